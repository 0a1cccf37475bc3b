"""Segments: append-only files of blocks, and the batches in them as they lie on the disk.

A segment is hot while it is appended to (by the log, which alone does that) and sealed afterwards.  A block address is
(segment id, slot in it) and is valid for the life of the block.  This is the narrow interface that an object store
would have, too.

A batch is one header slot (what it holds, for whom, and its checksum), up to 124 payload slots, and the header slot
again: one lost sector loses no mapping.

Compaction replaces the file of a sealed segment by one of the next generation that has only its live blocks (see
_cold.pxd), or removes it.  Addresses stay what they were.

Room on the disk is reserved before it is written to, so that a full file system is an ENOSPC to the one who asked and not
a failed write.  A spare file is kept for what must go on then: deletes and discards.

Threads: any may pin and read.  Creating, allocating, taking and keeping the spare are the log's, under log.lock.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from blockdev._cold cimport ColdHeader, ColdIndex
from blockdev._dedup cimport Fingerprint
from blockdev._spare cimport Spare
from blockdev._sync cimport pthread_mutex_t

cdef enum:
    SLOT_BYTES = 4096
    BATCH_ENTRIES_MAX = 124         # what a header slot has room for
    BATCH_SLOTS_MAX = 126           # with both copies of the header
    SEGMENTS_MAX = 1 << 24          # ids are not used again: 1 PiB written, at 64 MiB each
    ALLOCATE_SLOTS = 4096           # room on the disk is reserved in steps of 16 MiB

cpdef enum EntryKind:
    ENTRY_DATA = 1                  # a, b: fingerprint; one payload slot
    ENTRY_REFERENCE = 2             # a: block address of bytes that are already there; b: blocks, each at the next address
    ENTRY_HOLE = 3                  # a: how many blocks from `block` on
    ENTRY_RECORD = 4                # a: checksum of the payload, b: 0, block: its bytes, object: its slots

cdef struct SegmentHeader:          # slot 0 of a segment, and its trailer's twin
    uint64_t magic
    uint64_t checksum               # XXH3-64 of the rest of the structure
    uint8_t uuid[16]                # of the pool
    uint32_t id
    uint32_t generation
    uint32_t slot_count             # trailer: slots in use, header slots included.  Header: room
    uint32_t reserved
    uint64_t first_lsn              # of its first batch
    uint64_t end_lsn                # trailer: after its last batch
    uint64_t index_checksum         # trailer: XXH3-64 of the fingerprints before it

cdef struct BatchHeader:            # 128 bytes, then entry_count entries, zeros to the end of the slot
    uint64_t magic
    uint64_t checksum               # XXH3-64 of the slot from `uuid` on: the commit point
    uint8_t uuid[16]
    uint32_t segment_id
    uint32_t index                  # slot this header is in
    uint64_t first_lsn              # of its first entry; a reference takes as many LSNs as it has blocks, the others one
    uint64_t durable_lsn            # everything below was durable when this batch was written
    uint16_t entry_count
    uint16_t payload_count          # slots that follow; then the second copy of this one
    uint32_t lsn_count              # of all its entries
    uint8_t reserved[64]

cdef struct BatchEntry:             # 32 bytes
    uint64_t a
    uint64_t b
    uint64_t block
    uint32_t object
    uint8_t kind                    # EntryKind
    uint8_t reserved[3]

cdef struct Segment:
    uint32_t id
    uint32_t generation
    uint32_t slot_count             # in use; atomic while hot
    uint32_t sealed                 # its trailer is written
    uint32_t allocated_slots        # hot: room on the disk, for the trailer too; under log.lock
    uint32_t filled_slots           # hot: written already, if only with zeros; under log.write_lock
    uint32_t unread                 # slots that a scan for batches could not read: not to be sealed without them
    uint64_t first_lsn
    uint64_t end_lsn
    uint32_t block_count            # of a sealed segment, once compaction has counted them; 0: not known
    uint32_t closed                 # takes no new references: compaction is about to rewrite it; atomic
    uint64_t* live                  # one bit a slot while a mark is under way, see _compact.pxd; atomic
    pthread_mutex_t lock            # guards what follows
    int file                        # -1: not open
    uint32_t pins                   # users of file, fingerprints and cold
    uint32_t referenced             # for the eviction clock
    bint replacing                  # its file is being replaced: no new pins
    bint gone                       # its file is removed
    Segment* next_removed           # in store.removed
    Fingerprint* fingerprints       # one a slot, zero for a slot that holds no block; NULL: not in memory
    ColdIndex* cold                 # how a compacted segment lies in its file; NULL: as the log wrote it

cdef struct SegmentStore:           # the local directory of segments; the narrow interface an object store would have too
    char* path                      # of the directory, owned
    uint8_t uuid[16]
    uint32_t segment_slots          # room of a segment
    Segment** table                 # by id; entries are never freed while the store is open
    uint32_t id_end                 # ids in use are below; atomic
    uint64_t bytes_added            # to segment files since the pool is open, and what they had then; atomic
    uint64_t bytes_removed          # from them; atomic
    Spare spare                     # the next segment when there is no room for another
    uint64_t open_count             # atomic
    uint64_t open_max
    uint32_t clock_hand
    Segment* removed                # kept for whoever still has them from the table; changed by one thread
    pthread_mutex_t evict_lock

cdef inline uint64_t make_address(uint32_t segment_id, uint32_t index) noexcept nogil:
    return (<uint64_t>segment_id << 32) | index

cdef inline bint segment_holds_block(const Segment* segment, uint32_t index) noexcept nogil:
    """Whether a slot of a pinned segment holds a block; else it holds a header or a record, or compaction dropped it."""
    return segment.fingerprints[index].low != 0 or segment.fingerprints[index].high != 0


cdef SegmentStore* segments_create(
    const char* path, const uint8_t* uuid, uint32_t segment_slots, uint64_t open_max) noexcept nogil
cdef void segments_destroy(SegmentStore* store) noexcept nogil
cdef int segments_add(SegmentStore* store, uint32_t id, uint32_t generation, uint64_t size_bytes) noexcept nogil
cdef Segment* segments_get(SegmentStore* store, uint64_t id) noexcept nogil
cdef uint64_t segments_bytes(SegmentStore* store) noexcept nogil     # in all segment files
cdef void segments_evict(SegmentStore* store) noexcept nogil         # close files nobody used lately, down to open_max

# for the log
cdef int segment_create(
    SegmentStore* store, uint32_t id, uint64_t first_lsn, bint may_take_spare, Segment** out) noexcept nogil
cdef int segment_fill_ahead(Segment* segment, uint32_t slot_count) noexcept nogil
cdef int segment_allocate(SegmentStore* store, Segment* segment, uint32_t slot_count) noexcept nogil

cdef int segment_pin(SegmentStore* store, uint64_t id, Segment** out) noexcept nogil
cdef void segment_unpin(SegmentStore* store, Segment* segment) noexcept nogil
cdef int segment_peek(SegmentStore* store, uint64_t id, Segment** out, bint* was_open) noexcept nogil
cdef void segment_let_go(SegmentStore* store, Segment* segment, bint was_open) noexcept nogil
cdef int segment_read(Segment* segment, uint32_t index, uint32_t count, void* buffer) noexcept nogil
cdef int segment_seal(SegmentStore* store, Segment* segment, bint truncate) noexcept nogil

# for compaction
cdef int segment_rewrite_begin(SegmentStore* store, int* file) noexcept nogil
cdef void segment_rewrite_abandon(SegmentStore* store, int file) noexcept nogil
cdef void cold_identity(SegmentStore* store, Segment* segment, ColdHeader* header) noexcept nogil
cdef int segment_swap(
    SegmentStore* store, Segment* segment, int file, uint64_t* old_bytes, uint64_t* new_bytes, bint* unsure) noexcept nogil
cdef int segment_drop(
    SegmentStore* store, Segment* segment, uint32_t generation, uint64_t old_bytes, uint64_t new_bytes) noexcept nogil
cdef int segment_remove(SegmentStore* store, Segment* segment, uint64_t* freed_bytes) noexcept nogil

# for check and scrub: what describes a pinned segment on the disk
cdef bint segment_header_holds(SegmentStore* store, Segment* segment) noexcept nogil
cdef bint segment_index_holds(SegmentStore* store, Segment* segment) noexcept nogil
cdef int segment_write_header(SegmentStore* store, Segment* segment) noexcept nogil
cdef int segment_seal_again(SegmentStore* store, Segment* segment) noexcept nogil

# batches
cdef uint64_t entry_lsn_count(const BatchEntry* entry) noexcept nogil
cdef uint32_t batch_slots(const BatchHeader* header) noexcept nogil
cdef void batch_sign(SegmentStore* store, BatchHeader* header) noexcept nogil
cdef int batch_verify(SegmentStore* store, Segment* segment, uint32_t index, const char* slot) noexcept nogil
cdef uint32_t batch_recognise(SegmentStore* store, Segment* segment, uint32_t place, const char* slot) noexcept nogil
cdef int batch_find(
    SegmentStore* store, Segment* segment, uint32_t index, uint64_t size_bytes, char* slot) noexcept nogil
