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
    """
    ctypedef struct XXH128_hash_t:
        uint64_t low64
        uint64_t high64
    XXH128_hash_t XXH3_128bits(const void* data, size_t count) noexcept nogil
    uint64_t XXH3_64bits(const void* data, size_t count) noexcept nogil

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


cdef Fingerprint fingerprint_block(const void* block) noexcept nogil:
    cdef XXH128_hash_t hashed = XXH3_128bits(block, 4096)
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
    return XXH3_64bits(data, count)


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


cdef inline uint64_t lock_bucket(DedupIndex* index, uint64_t key) noexcept nogil:
    """Lock the stripe of `key` and return its bucket; it stays this key's bucket while the stripe is locked."""
    pthread_mutex_lock(&index.locks[key & (DEDUP_STRIPES - 1)])
    return bucket_of(key, load_u64(&index.bucket_count))


cdef inline void unlock_bucket(DedupIndex* index, uint64_t key) noexcept nogil:
    pthread_mutex_unlock(&index.locks[key & (DEDUP_STRIPES - 1)])


cdef uint64_t dedup_lookup(DedupIndex* index, Fingerprint fingerprint) noexcept nogil:
    cdef uint64_t address = 0
    cdef DedupBucket* bucket
    cdef int i
    bucket = &index.buckets[lock_bucket(index, fingerprint.low)]
    for i in range(DEDUP_BUCKET_ENTRIES):
        if bucket.entries[i].key == fingerprint.low and bucket.entries[i].address:
            address = bucket.entries[i].address
            break
    unlock_bucket(index, fingerprint.low)
    return address


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
            if source.entries[i].address and bucket_of(source.entries[i].key, count + 1) == count:
                target.entries[moved] = source.entries[i]
                moved += 1
                memset(&source.entries[i], 0, sizeof(DedupEntry))
        store_u64(&index.bucket_count, count + 1)
        pthread_mutex_unlock(&index.locks[source_number & (DEDUP_STRIPES - 1)])
    pthread_mutex_unlock(&index.split_lock)


cdef void dedup_insert(DedupIndex* index, Fingerprint fingerprint, uint64_t address) noexcept nogil:
    cdef DedupBucket* bucket
    cdef DedupEntry* place = NULL
    cdef DedupEntry* entry
    cdef bint grew = False
    cdef int i
    bucket = &index.buckets[lock_bucket(index, fingerprint.low)]
    for i in range(DEDUP_BUCKET_ENTRIES):
        entry = &bucket.entries[i]
        if entry.address and entry.key == fingerprint.low:
            place = entry
            break
        if entry.address == 0 and place == NULL:
            place = entry
    if place == NULL:
        place = &bucket.entries[count_u64(&index.evictions, 1) & (DEDUP_BUCKET_ENTRIES - 1)]
    elif place.address == 0:
        grew = True
    place.key = fingerprint.low
    place.address = address
    unlock_bucket(index, fingerprint.low)
    # keep the table at most half full: with 4 entries a bucket that evicts 1 in 50 at random
    if grew and (count_u64(&index.entry_count, 1) + 1) > load_u64(&index.bucket_count) * 2:
        split_one(index)


cdef void dedup_forget(DedupIndex* index, Fingerprint fingerprint, uint64_t address) noexcept nogil:
    """Drop a hint that proved wrong (the block at `address` has other bytes)."""
    cdef DedupBucket* bucket = &index.buckets[lock_bucket(index, fingerprint.low)]
    cdef int i
    for i in range(DEDUP_BUCKET_ENTRIES):
        if bucket.entries[i].key == fingerprint.low and bucket.entries[i].address == address:
            memset(&bucket.entries[i], 0, sizeof(DedupEntry))
            add_u64(&index.entry_count, <uint64_t>-1)
    unlock_bucket(index, fingerprint.low)


cdef uint64_t dedup_export(
    DedupIndex* index, uint64_t first_bucket, DedupEntry* out, uint64_t bucket_count
) noexcept nogil:
    """Copy the entries in use of a range of buckets to `out` (room: 4 a bucket); returns how many."""
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
