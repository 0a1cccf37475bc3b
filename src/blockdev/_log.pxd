"""The log: segments of blocks, the batches appended to them, and group commit.

A batch is one header slot (what it holds, for whom, and its checksum), up to 124 payload slots, and the header slot
again: one lost sector loses no mapping.  One append of a batch makes data and mapping durable together once synced.  Batches are written in order, each with the next LSN; recovery takes
the longest run of them that verifies.

Threads: any may append, flush and read.  Appending reserves a place under log.lock, copies outside of it, and the batch is
written by whoever finds it closed (log_drain), in order, under log.write_lock.  A block can be read from the moment its
append returned: from the batch in memory until it is written, from the file after.

Durable: everything below log.durable_lsn.  log_flush raises it; concurrent callers share one fdatasync.
After a failed write or sync the log is poisoned: nothing is appended any more, reads go on.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from blockdev._dedup cimport Fingerprint
from blockdev._sync cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    SLOT_BYTES = 4096
    BATCH_ENTRIES_MAX = 124         # what a header slot has room for
    BATCH_SLOTS_MAX = 126           # with both copies of the header
    BATCH_RING = 16                 # batches in memory: one open, the others being written
    SEGMENTS_MAX = 1 << 22
    UNSYNCED_MAX = 4096             # segments rolled since the last flush

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
    uint32_t unread                 # slots that a scan for batches could not read: not to be sealed without them
    uint64_t first_lsn
    uint64_t end_lsn
    pthread_mutex_t lock            # guards what follows
    int file                        # -1: not open
    uint32_t pins                   # users of file and fingerprints
    uint32_t referenced             # for the eviction clock
    Fingerprint* fingerprints       # one a slot, zero for a slot that holds no block; NULL: not in memory

cdef struct SegmentStore:           # the local directory of segments; the narrow interface an object store would have too
    char* path                      # of the directory, owned
    uint8_t uuid[16]
    uint32_t segment_slots          # room of a segment
    Segment** table                 # by id; entries are never freed while the store is open
    uint32_t id_end                 # ids in use are below; atomic
    uint64_t bytes_used             # in all segment files; atomic
    uint64_t open_count             # atomic
    uint64_t open_max
    uint32_t clock_hand
    pthread_mutex_t evict_lock

cdef struct Batch:
    char* slots                     # header, payload, header: BATCH_SLOTS_MAX * SLOT_BYTES, aligned
    Segment* segment
    uint32_t index                  # of the header slot
    uint32_t entry_count
    uint32_t payload_count
    uint32_t lsn_count
    uint32_t filling                # appenders still copying; atomic
    uint64_t first_lsn

cdef struct Log:
    SegmentStore* segments
    pthread_mutex_t write_lock      # one writer of batches at a time; before `lock`
    uint64_t first_unwritten        # block addresses below are in their files; atomic
    pthread_mutex_t lock            # guards what follows
    pthread_cond_t changed          # the end of a sync
    Batch ring[16]
    uint64_t open_number            # of the batch being filled; ring[open_number % BATCH_RING]
    uint64_t written_number         # batches below are written
    bint open                       # ring[open_number] has been begun
    Segment* segment                # hot; NULL before the first append
    uint32_t next_id                # of the next segment
    uint64_t next_lsn               # of the next entry; atomic
    uint64_t durable_lsn            # atomic
    bint syncing
    bint directory_dirty            # a segment was created since the directory was synced
    Segment* unsynced[4096]
    uint32_t unsynced_count
    int poisoned                    # errno of the failure, 0: sound
    uint64_t data_limit_bytes       # ENTRY_DATA is refused when the segments would exceed this
    uint64_t hard_limit_bytes       # the same for ENTRY_RECORD; other kinds may use half of what is between
    # statistics, atomic
    uint64_t syncs
    uint64_t batches

cdef inline uint64_t make_address(uint32_t segment_id, uint32_t index) noexcept nogil:
    return (<uint64_t>segment_id << 32) | index

# segments
cdef SegmentStore* segments_create(
    const char* path, const uint8_t* uuid, uint32_t segment_slots, uint64_t open_max) noexcept nogil
cdef void segments_destroy(SegmentStore* store) noexcept nogil
cdef int segments_add(SegmentStore* store, uint32_t id, uint32_t generation, uint64_t size_bytes) noexcept nogil
cdef void segments_remove(SegmentStore* store, Segment* segment) noexcept nogil
cdef Segment* segments_get(SegmentStore* store, uint64_t id) noexcept nogil
cdef int segment_pin(SegmentStore* store, uint64_t id, Segment** out) noexcept nogil
cdef void segment_unpin(SegmentStore* store, Segment* segment) noexcept nogil
cdef int segment_read(Segment* segment, uint32_t index, uint32_t count, void* buffer) noexcept nogil
cdef int segment_seal(SegmentStore* store, Segment* segment, bint truncate) noexcept nogil
cdef uint64_t entry_lsn_count(const BatchEntry* entry) noexcept nogil
cdef uint32_t batch_slots(const BatchHeader* header) noexcept nogil
cdef uint32_t batch_recognise(SegmentStore* store, Segment* segment, uint32_t place, const char* slot) noexcept nogil
cdef int batch_find(
    SegmentStore* store, Segment* segment, uint32_t index, uint64_t size_bytes, char* slot) noexcept nogil

# log
cdef Log* log_create(SegmentStore* segments, uint32_t next_id, uint64_t next_lsn) noexcept nogil
cdef void log_destroy(Log* log) noexcept nogil
cdef int log_append(
    Log* log, EntryKind kind, uint32_t object, uint64_t block, uint64_t a, uint64_t b,
    const void* payload, uint32_t payload_slots, uint64_t* address, uint64_t* end_lsn) noexcept nogil
cdef bint log_read_unwritten(Log* log, uint64_t address, void* block) noexcept nogil
cdef int log_drain(Log* log) noexcept nogil
cdef int log_flush(Log* log, uint64_t target_lsn) noexcept nogil
cdef void log_poison(Log* log, int failure) noexcept nogil
cdef void log_position(Log* log, uint32_t* segment_id, uint32_t* index, uint64_t* lsn) noexcept nogil
cdef int log_close(Log* log) noexcept nogil
