"""What the engine counts of the requests for each vdisk (docs/statistics.md).

A vdisk's counters are in stripes, one for each CPU up to STRIPES_MAX, made when that CPU first needs one.  Counting is
relaxed atomic adds to the stripe of the CPU that one runs on: no lock, hardly ever a cache line that another CPU writes,
nothing lost when a thread is moved in between.  Reading sums the stripes.  There is no counter of operations: those that
were answered are what is in the latency histogram, so both always agree.

A thread's Tally gathers what its present request waits for, wherever below it waits.  Whoever begins a request clears it;
the tally of a thread without a request gathers for nobody.  The clock is read twice a request, and twice for each wait: a
lock that is free, and a block that is in memory, cost no look at it.

A build with BLOCKDEV_UNCOUNTED counts nothing and never reads the clock: bench measures against it what this costs.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from blockdev._sync cimport (
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_trylock, pthread_rwlock_rdlock, pthread_rwlock_t,
    pthread_rwlock_tryrdlock, pthread_rwlock_trywrlock, pthread_rwlock_wrlock,
)

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>

    #ifdef BLOCKDEV_UNCOUNTED
    #define COUNTED_BUILD 0
    #else
    #define COUNTED_BUILD 1
    #endif

    static inline uint64_t monotonic_ns(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
    }
    """
    bint COUNTED_BUILD
    uint64_t monotonic_ns() noexcept nogil

cdef enum:
    KIND_COUNT = 5
    CAUSE_COUNT = 4
    WAIT_COUNT = 3
    BLOCK_KIND_COUNT = 5
    SERVICE_COUNT = 4
    SIZE_BUCKETS = 18               # request sizes up to 512 << i; the last one: larger
    LATENCY_BUCKETS = 210           # log-linear, 8 a power of two, from 2^10 to 2^36 ns; first and last: below and above
    STRIPES_MAX = 16                # power of two

cdef enum Kind:
    KIND_READ = 0
    KIND_WRITE = 1
    KIND_FLUSH = 2
    KIND_DISCARD = 3
    KIND_ZERO = 4

cdef enum Cause:                    # of a wait
    CAUSE_LOCK = 0                  # a lock of the disk, the checkpoint's cut, a block or the map
    CAUSE_LOG = 1                   # the log: its locks, and what another one writes or syncs
    CAUSE_MEDIUM = 2                # a read, write or sync of one's own
    CAUSE_COMPACTION = 3            # room that compaction makes, or a segment that it is swapping

cdef enum Wait:                     # what a histogram of waits is of: a request's whole wait, of reads, writes and flushes
    WAIT_LOG = 0                    # CAUSE_LOCK and CAUSE_LOG
    WAIT_MEDIUM = 1
    WAIT_COMPACTION = 2

cdef enum BlockKind:                # of a block of 4096 bytes
    BLOCKS_APPENDED = 0
    BLOCKS_DEDUPLICATED = 1
    BLOCKS_UNCHANGED = 2            # rewritten with what was there
    BLOCKS_ZERO = 3                 # made a hole by writing zeros
    BLOCKS_COLD = 4                 # decompressed

cdef enum Service:                  # bytes that no guest asked for
    REPLICATED_READ = 0
    REPLICATED_WRITTEN = 1
    TRANSFERRED_READ = 2            # import, export, customising
    TRANSFERRED_WRITTEN = 3

cdef struct KindCounters:
    uint64_t bytes
    uint64_t latency_ns             # sum
    uint64_t waited_ns[4]           # sums, by Cause
    uint64_t sizes[18]
    uint64_t latency[210]

cdef struct Stripe:                 # all atomic, relaxed
    uint64_t started                # guests' requests
    uint64_t ended                  # of them
    uint64_t failed                 # that were answered with an error; they are in no other counter
    uint64_t blocks[5]              # by BlockKind, of guests' requests
    uint64_t services[4]            # by Service
    KindCounters kinds[5]
    uint64_t waits[3][210]          # by Wait: requests that waited, in buckets of latency; who did not is not in here

cdef struct Statistics:             # of one vdisk, and of its snapshots
    Stripe* stripes[16]             # NULL: never needed; atomic

cdef struct Tally:                  # of one thread
    uint64_t waited_ns[4]           # by Cause
    uint64_t blocks[5]              # by BlockKind

cdef class DiskStatistics:          # owns the counters of one vdisk; its snapshots have the same one
    cdef Statistics* counters
    cdef readonly uint32_t id       # of the vdisk
    cdef object __weakref__

cdef Tally* my_tally() noexcept nogil
cdef void end_wait(Cause cause, uint64_t begun_ns) noexcept nogil
cdef void lock_slowly(pthread_mutex_t* lock, Cause cause) noexcept nogil
cdef void share_slowly(pthread_rwlock_t* lock) noexcept nogil
cdef void exclude_slowly(pthread_rwlock_t* lock) noexcept nogil
# a guest's request: begin_request gives what end_request wants
cdef uint64_t begin_request(Statistics* counters) noexcept nogil
cdef void end_request(Statistics* counters, uint64_t begun_ns, Kind kind, uint64_t byte_count, int failure) noexcept nogil
cdef void count_service(Statistics* counters, Service service, uint64_t byte_count) noexcept nogil

cdef inline uint64_t begin_wait() noexcept nogil:
    return monotonic_ns() if COUNTED_BUILD else 0

cdef inline void tally_blocks(BlockKind kind, uint64_t count) noexcept nogil:
    if COUNTED_BUILD:
        my_tally().blocks[<int>kind] += count

cdef inline void timed_lock(pthread_mutex_t* lock, Cause cause) noexcept nogil:
    if not COUNTED_BUILD:
        pthread_mutex_lock(lock)
    elif pthread_mutex_trylock(lock):
        lock_slowly(lock, cause)

cdef inline void timed_share(pthread_rwlock_t* lock) noexcept nogil:
    if not COUNTED_BUILD:
        pthread_rwlock_rdlock(lock)
    elif pthread_rwlock_tryrdlock(lock):
        share_slowly(lock)

cdef inline void timed_exclude(pthread_rwlock_t* lock) noexcept nogil:
    if not COUNTED_BUILD:
        pthread_rwlock_wrlock(lock)
    elif pthread_rwlock_trywrlock(lock):
        exclude_slowly(lock)
