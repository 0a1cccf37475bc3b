"""Fingerprints, and the index from fingerprint to block address.  See _dedup.pxd for the design."""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from blockdev._sync cimport (
    add_u64, count_u64, load_u64, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
    store_u64,
)

cdef extern from *:
    """
    #define XXH_INLINE_ALL
    #include <xxhash.h>

    typedef XXH128_hash_t (*fingerprint_function)(const void *block);
    XXH128_hash_t fingerprint_avx2(const void *block);
    XXH128_hash_t fingerprint_avx512(const void *block);
    static XXH128_hash_t fingerprint_baseline(const void *block) { return XXH3_128bits(block, 4096); }

    #ifdef BLOCKDEV_UNCHECKED /* bench measures against it what checksums cost */
    #define CHECKSUM64(data, count) 0
    static XXH128_hash_t first_words(const void *block)
    {
        XXH128_hash_t words;
        memcpy(&words, block, sizeof words);
        return words;
    }
    #else
    #define CHECKSUM64(data, count) XXH3_64bits(data, count)
    #endif

    static fingerprint_function fingerprint_widest(void)
    {
    #ifdef BLOCKDEV_UNCHECKED
        return first_words;
    #endif
    #ifdef __x86_64__
        if (__builtin_cpu_supports("avx512f"))
            return fingerprint_avx512;
        if (__builtin_cpu_supports("avx2"))
            return fingerprint_avx2;
    #endif
        return fingerprint_baseline;
    }
    """
    ctypedef struct XXH128_hash_t:
        uint64_t low64
        uint64_t high64
    ctypedef XXH128_hash_t (*fingerprint_function)(const void* block) noexcept nogil
    fingerprint_function fingerprint_widest() noexcept nogil
    uint64_t CHECKSUM64(const void* data, size_t count) noexcept nogil

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t count, int protection, int flags, int fd, long long offset)
    int munmap(void* address, size_t count)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_NORESERVE
    void* MAP_FAILED


cdef extern from * nogil:
    int __builtin_clzll(unsigned long long value)
    void __builtin_prefetch(const void* address)


cdef fingerprint_function widest = fingerprint_widest()


cdef Fingerprint fingerprint_block(const void* block) noexcept nogil:
    cdef XXH128_hash_t hashed = widest(block)
    cdef Fingerprint fingerprint
    fingerprint.low = hashed.low64
    fingerprint.high = hashed.high64
    return fingerprint


cdef bint is_zero_block(const void* block) noexcept nogil:
    cdef const uint64_t* words = <const uint64_t*>block
    # most blocks differ from zero in their first words: look there before the whole
    if words[0] | words[1]:
        return False
    return memcmp(block, <const char*>block + 16, 4096 - 16) == 0


cdef uint64_t checksum64(const void* data, uint64_t count) noexcept nogil:
    return CHECKSUM64(data, count)


cdef int dedup_create(DedupIndex** out, uint64_t budget_bytes) noexcept nogil:
    cdef DedupIndex* index = <DedupIndex*>calloc(1, sizeof(DedupIndex))
    cdef void* area
    cdef int i
    if index == NULL:
        return ENOMEM
    index.bucket_count_max = budget_bytes // sizeof(DedupBucket)
    if index.bucket_count_max < DEDUP_STRIPES:
        index.bucket_count_max = DEDUP_STRIPES
    area = mmap(NULL, index.bucket_count_max * sizeof(DedupBucket), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if area == MAP_FAILED:
        free(index)
        return ENOMEM
    index.buckets = <DedupBucket*>area
    index.bucket_count = DEDUP_STRIPES
    pthread_mutex_init(&index.split_lock, NULL)
    for i in range(DEDUP_STRIPES):
        pthread_mutex_init(&index.locks[i], NULL)
    out[0] = index
    return 0


cdef void dedup_destroy(DedupIndex* index) noexcept nogil:
    cdef int i
    if index == NULL:
        return
    munmap(index.buckets, index.bucket_count_max * sizeof(DedupBucket))
    pthread_mutex_destroy(&index.split_lock)
    for i in range(DEDUP_STRIPES):
        pthread_mutex_destroy(&index.locks[i])
    free(index)


cdef inline uint64_t bucket_of(uint64_t key, uint64_t bucket_count) noexcept nogil:
    """Linear hashing: the bucket of `key` when `bucket_count` buckets are in use (not a power of two in general)."""
    cdef uint64_t mask = (<uint64_t>1 << (63 - __builtin_clzll(bucket_count))) - 1      # the last completed round
    cdef uint64_t wide = key & (mask << 1 | 1)
    return wide if wide < bucket_count else key & mask


cdef inline uint64_t other_hash(uint64_t key) noexcept nogil:
    """The second of the two hashes of a key; its bucket is independent of the first's."""
    return (key >> 32) | (key << 32)


cdef inline DedupBucket* lock_bucket(DedupIndex* index, uint64_t hashed) noexcept nogil:
    """Lock the stripe of a hash and return its bucket; it stays this hash's bucket while the stripe is locked."""
    pthread_mutex_lock(&index.locks[hashed & (DEDUP_STRIPES - 1)])
    return &index.buckets[bucket_of(hashed, load_u64(&index.bucket_count))]


cdef inline void unlock_bucket(DedupIndex* index, uint64_t hashed) noexcept nogil:
    pthread_mutex_unlock(&index.locks[hashed & (DEDUP_STRIPES - 1)])


cdef inline uint64_t find_in(DedupIndex* index, uint64_t hashed, uint64_t key) noexcept nogil:
    cdef DedupBucket* bucket = lock_bucket(index, hashed)
    cdef uint64_t address = 0
    cdef int i
    for i in range(DEDUP_BUCKET_ENTRIES):
        if bucket.entries[i].key == key and bucket.entries[i].address:
            address = bucket.entries[i].address
            break
    unlock_bucket(index, hashed)
    return address


cdef uint64_t dedup_lookup(DedupIndex* index, Fingerprint fingerprint) noexcept nogil:
    cdef uint64_t address = find_in(index, fingerprint.low, fingerprint.low)
    return address or find_in(index, other_hash(fingerprint.low), fingerprint.low)


cdef void dedup_prefetch(DedupIndex* index, Fingerprint fingerprint) noexcept nogil:
    cdef uint64_t count = load_u64(&index.bucket_count)
    cdef DedupBucket* first = &index.buckets[bucket_of(fingerprint.low, count)]
    cdef DedupBucket* second = &index.buckets[bucket_of(other_hash(fingerprint.low), count)]
    __builtin_prefetch(first)       # a bucket is two cache lines
    __builtin_prefetch(&first.entries[4])
    __builtin_prefetch(second)
    __builtin_prefetch(&second.entries[4])


cdef bint stays(DedupEntry* entry, uint64_t bucket, uint64_t bucket_count) noexcept nogil:
    """Whether one of an entry's two hashes still names `bucket`."""
    return (bucket_of(entry.key, bucket_count) == bucket
            or bucket_of(other_hash(entry.key), bucket_count) == bucket)


cdef void split_one(DedupIndex* index) noexcept nogil:
    """Put one more bucket into use and move to it what now belongs there from the bucket it splits off."""
    cdef uint64_t count, source_number
    cdef DedupBucket* source
    cdef DedupBucket* target
    cdef int i, moved = 0
    pthread_mutex_lock(&index.split_lock)
    count = load_u64(&index.bucket_count)
    if count < index.bucket_count_max:
        source_number = count - (<uint64_t>1 << (63 - __builtin_clzll(count)))
        pthread_mutex_lock(&index.locks[source_number & (DEDUP_STRIPES - 1)])
        source = &index.buckets[source_number]
        target = &index.buckets[count]
        for i in range(DEDUP_BUCKET_ENTRIES):
            if source.entries[i].address and not stays(&source.entries[i], source_number, count + 1):
                target.entries[moved] = source.entries[i]
                moved += 1
                memset(&source.entries[i], 0, sizeof(DedupEntry))
        store_u64(&index.bucket_count, count + 1)
        pthread_mutex_unlock(&index.locks[source_number & (DEDUP_STRIPES - 1)])
    pthread_mutex_unlock(&index.split_lock)


cdef bint put_in(DedupIndex* index, uint64_t hashed, uint64_t key, uint64_t address, int want_free) noexcept nogil:
    """Put an entry into the bucket of `hashed` if it is there already or `want_free` places are; -1: evict for it."""
    cdef DedupBucket* bucket = lock_bucket(index, hashed)
    cdef DedupEntry* place = NULL
    cdef int i, empty = 0
    for i in range(DEDUP_BUCKET_ENTRIES):
        if bucket.entries[i].address == 0:
            empty += 1
            if place == NULL or place.address == 0:
                place = &bucket.entries[i]
        elif bucket.entries[i].key == key:
            place = &bucket.entries[i]
            empty = DEDUP_BUCKET_ENTRIES
            break
    if want_free < 0 and place == NULL:
        place = &bucket.entries[count_u64(&index.evictions, 1) & (DEDUP_BUCKET_ENTRIES - 1)]
    if empty < want_free:
        place = NULL
    if place != NULL:
        if place.address == 0:
            count_u64(&index.entry_count, 1)
        place.key = key
        place.address = address
    unlock_bucket(index, hashed)
    return place != NULL


cdef void dedup_insert(DedupIndex* index, Fingerprint fingerprint, uint64_t address) noexcept nogil:
    """The emptier of two buckets takes the entry: with 8 places a bucket that keeps a table half full without evicting."""
    cdef uint64_t key = fingerprint.low
    if not put_in(index, key, key, address, 4):
        if not put_in(index, other_hash(key), key, address, 1):
            put_in(index, key, key, address, -1)
    if load_u64(&index.entry_count) > load_u64(&index.bucket_count) * 4:
        split_one(index)


cdef void forget_in(DedupIndex* index, uint64_t hashed, uint64_t key, uint64_t address) noexcept nogil:
    cdef DedupBucket* bucket = lock_bucket(index, hashed)
    cdef int i
    for i in range(DEDUP_BUCKET_ENTRIES):
        if bucket.entries[i].key == key and bucket.entries[i].address == address:
            memset(&bucket.entries[i], 0, sizeof(DedupEntry))
            add_u64(&index.entry_count, <uint64_t>-1)
    unlock_bucket(index, hashed)


cdef void dedup_forget(DedupIndex* index, Fingerprint fingerprint, uint64_t address) noexcept nogil:
    """Drop a hint that proved wrong (the block at `address` has other bytes)."""
    forget_in(index, fingerprint.low, fingerprint.low, address)
    forget_in(index, other_hash(fingerprint.low), fingerprint.low, address)


cdef uint64_t dedup_export(
    DedupIndex* index, uint64_t first_bucket, DedupEntry* out, uint64_t bucket_count
) noexcept nogil:
    """Copy the entries in use of a range of buckets to `out` (room: 8 a bucket); returns how many."""
    cdef uint64_t number, exported = 0
    cdef int i
    for number in range(first_bucket, first_bucket + bucket_count):
        if number >= load_u64(&index.bucket_count):
            break
        pthread_mutex_lock(&index.locks[number & (DEDUP_STRIPES - 1)])
        for i in range(DEDUP_BUCKET_ENTRIES):
            if index.buckets[number].entries[i].address:
                out[exported] = index.buckets[number].entries[i]
                exported += 1
        pthread_mutex_unlock(&index.locks[number & (DEDUP_STRIPES - 1)])
    return exported
