"""Locks and atomics for code that runs without the GIL.  Declarations only; there is no module behind them.

Lock order, outermost first (a thread may skip levels, never go back):
disk.lock > pool.cut_lock > pool.block_locks, and below these
  log.write_lock > log.lock > segment.lock        segments.evict_lock > segment.lock
  map.lock > nodes.fault_locks > nodes.lock       nodes.reclaim_lock > nodes.lock
  dedup.split_lock > dedup stripe
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

ctypedef void (*fork_handler)() noexcept nogil

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(fork_handler prepare, fork_handler parent, fork_handler child)
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_rwlock_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_trylock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_cond_init(pthread_cond_t* condition, void* attributes)
    int pthread_cond_destroy(pthread_cond_t* condition)
    int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex)
    int pthread_cond_broadcast(pthread_cond_t* condition)
    int pthread_rwlock_destroy(pthread_rwlock_t* lock)
    int pthread_rwlock_rdlock(pthread_rwlock_t* lock)
    int pthread_rwlock_tryrdlock(pthread_rwlock_t* lock)
    int pthread_rwlock_wrlock(pthread_rwlock_t* lock)
    int pthread_rwlock_trywrlock(pthread_rwlock_t* lock)
    int pthread_rwlock_unlock(pthread_rwlock_t* lock)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    #include <stdlib.h>
    static inline uint64_t load_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void store_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t add_u64(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t count_u64(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
    static inline void or_u64(uint64_t *p, uint64_t v) { __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
    static inline uint32_t load_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void store_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint32_t add_u32(uint32_t *p, int32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t load_hint(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void store_hint(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void *load_pointer(void *const *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void store_pointer(void **p, void *v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline int claim_pointer(void **p, void *v) {
        void *none = NULL;
        return __atomic_compare_exchange_n(p, &none, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    static inline void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    /* An exclusive waiter must not starve behind a stream of shared holders: a snapshot would never come. */
    static inline int rwlock_init_writer_first(pthread_rwlock_t *lock) {
        pthread_rwlockattr_t a;
        pthread_rwlockattr_init(&a);
        pthread_rwlockattr_setkind_np(&a, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
        int r = pthread_rwlock_init(lock, &a);
        pthread_rwlockattr_destroy(&a);
        return r;
    }
    /* A small number that differs between threads that run at once: picks a stripe of a counter. */
    static inline uint32_t thread_stripe(void) {
        static uint32_t next;
        static __thread uint32_t mine;
        if (!mine) mine = __atomic_add_fetch(&next, 1, __ATOMIC_RELAXED);
        return mine;
    }
    static inline void *aligned_zeroed(size_t alignment, size_t bytes) {
        void *p = NULL;
        if (posix_memalign(&p, alignment, bytes)) return NULL;
        __builtin_memset(p, 0, bytes);
        return p;
    }
    """
    uint64_t load_u64(const uint64_t* place) noexcept nogil
    void store_u64(uint64_t* place, uint64_t value) noexcept nogil
    uint64_t add_u64(uint64_t* place, uint64_t value) noexcept nogil     # sequentially consistent, returns the old value
    uint64_t count_u64(uint64_t* place, uint64_t value) noexcept nogil   # relaxed: for statistics
    void or_u64(uint64_t* place, uint64_t bits) noexcept nogil           # relaxed: others see it after a lock changed hands
    uint32_t load_u32(const uint32_t* place) noexcept nogil
    void store_u32(uint32_t* place, uint32_t value) noexcept nogil
    uint32_t add_u32(uint32_t* place, int32_t value) noexcept nogil
    uint32_t load_hint(const uint32_t* place) noexcept nogil             # relaxed: for what may be out of date
    void store_hint(uint32_t* place, uint32_t value) noexcept nogil
    void* load_pointer(void** place) noexcept nogil
    void store_pointer(void** place, void* value) noexcept nogil
    bint claim_pointer(void** place, void* value) noexcept nogil         # store it where there is none; False: there is one
    void fence() noexcept nogil
    int rwlock_init_writer_first(pthread_rwlock_t* lock) noexcept nogil
    uint32_t thread_stripe() noexcept nogil
    void* aligned_zeroed(size_t alignment, size_t size_bytes) noexcept nogil
