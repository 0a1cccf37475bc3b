"""Fingerprints, and the index from fingerprint to block address.

The index is a hint: it may forget anything at any time, and whoever uses a hit compares the bytes first.  It is a linear
hash table of 128-byte buckets (8 entries each) in one reserved range of address space: it grows one bucket at a time, so no
insert ever waits for a rehash, and it stops growing at its budget, from where on inserts evict.  A key may be in either of
two buckets, and is put into the emptier one.

Threads: any.  A bucket is guarded by the stripe lock of its low bits, which splitting a bucket does not change.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blockdev._sync cimport pthread_mutex_t

cdef enum:
    DEDUP_STRIPES = 256             # power of two; also the smallest number of buckets
    DEDUP_BUCKET_ENTRIES = 8

cdef struct Fingerprint:            # XXH3-128 of one plain block
    uint64_t low
    uint64_t high

cdef struct DedupEntry:             # 16 bytes; address 0 is an empty entry
    uint64_t key                    # fingerprint.low
    uint64_t address                # block address

cdef struct DedupBucket:
    DedupEntry entries[8]

cdef struct DedupIndex:
    DedupBucket* buckets            # reserved: bucket_count_max; in use: bucket_count
    uint64_t bucket_count           # atomic; grows only
    uint64_t bucket_count_max       # from the budget
    uint64_t entry_count            # atomic, approximate
    uint64_t evictions              # atomic, statistics; also chooses victims
    pthread_mutex_t split_lock
    pthread_mutex_t locks[256]

cdef Fingerprint fingerprint_block(const void* block) noexcept nogil
cdef bint is_zero_block(const void* block) noexcept nogil
cdef uint64_t checksum64(const void* data, uint64_t count) noexcept nogil      # XXH3-64

cdef int dedup_create(DedupIndex** index, uint64_t budget_bytes) noexcept nogil
cdef void dedup_destroy(DedupIndex* index) noexcept nogil
cdef uint64_t dedup_lookup(DedupIndex* index, Fingerprint fingerprint) noexcept nogil   # block address, 0: unknown
cdef void dedup_prefetch(DedupIndex* index, Fingerprint fingerprint) noexcept nogil     # a lookup follows soon
cdef void dedup_insert(DedupIndex* index, Fingerprint fingerprint, uint64_t address) noexcept nogil
cdef void dedup_forget(DedupIndex* index, Fingerprint fingerprint, uint64_t address) noexcept nogil
cdef uint64_t dedup_export(DedupIndex* index, uint64_t first_bucket, DedupEntry* out, uint64_t bucket_count) noexcept nogil
