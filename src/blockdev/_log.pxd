"""The log: batches appended to the hot segment, and group commit.

One append of a batch makes data and mapping durable together once synced.  Batches are written in order, each with the
next LSN; recovery takes the longest run of them that verifies.

Threads: any may append, flush and read.  Appending reserves a place under log.lock, copies outside of it, and the batch is
written by whoever finds it closed (log_drain), in order, under log.write_lock.  A block can be read from the moment its
append returned: from the batch in memory until it is written, from the file after.

Durable: everything below log.durable_lsn.  log_flush raises it; concurrent callers share one fdatasync.
Kept: everything below log.kept_lsn is in its file, though not synced.  It survives the end of this process, not that of the
machine.  log_keep raises it: the open batch is written as it is, and stays open; the next write of it adds the payload since
and then puts its header over the one before.  A batch that a sync covers is closed and never changes.
After a failed write or sync the log is poisoned: nothing is appended any more, reads go on.
"""

from libc.stdint cimport uint32_t, uint64_t

from blockdev._segments cimport EntryKind, Segment, SegmentStore
from blockdev._sync cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    BATCH_RING = 16                 # batches in memory: one open, the others being written
    UNSYNCED_MAX = 4096             # segments rolled since the last flush
    COMMIT_SLOTS = 64               # a sync of no more than these is a small one ...
    COMMITS_MIN = 4                 # ... and after so many of them in a row the hot segment is filled ahead

cdef struct Batch:
    char* slots                     # header, payload, header: BATCH_SLOTS_MAX * SLOT_BYTES, aligned
    Segment* segment
    uint32_t index                  # of the header slot
    uint32_t entry_count
    uint32_t payload_count
    uint32_t kept_payload_count     # of those, in the file; under write_lock, as what follows
    bint kept                       # its header is there, too
    uint32_t lsn_count
    uint32_t filling                # appenders still copying; atomic
    uint64_t first_lsn

cdef struct Log:
    SegmentStore* segments
    pthread_mutex_t write_lock      # one writer of batches at a time; before `lock`
    uint64_t first_unwritten        # block addresses below are in their files for good; atomic
    uint64_t kept_lsn               # atomic, written under write_lock
    pthread_mutex_t lock            # guards what follows
    pthread_cond_t changed          # the end of a sync
    Batch ring[16]
    char* ring_memory               # of all their slots, owned; fresh pages of the kernel, zero until they are used
    uint64_t open_number            # of the batch being filled; ring[open_number % BATCH_RING]
    uint64_t written_number         # batches below are written
    bint open                       # ring[open_number] has been begun
    Segment* segment                # hot; NULL before the first append
    uint32_t next_id                # of the next segment
    uint64_t next_lsn               # of the next entry; atomic
    uint64_t durable_lsn            # atomic
    bint syncing
    bint rolling                    # a sync that seals a segment, too: a checkpoint behind it waits for that
    uint64_t slots_at_sync          # in use in all segments when it began
    uint32_t commits                # small syncs in a row; atomic
    bint directory_dirty            # a segment was created since the directory was synced
    Segment* unsynced[4096]
    uint32_t unsynced_count
    uint32_t poisoned               # errno of the failure, 0: sound; atomic, written under lock
    uint64_t data_limit_bytes       # ENTRY_DATA is refused when the segments would exceed this
    uint64_t hard_limit_bytes       # the same for ENTRY_RECORD; other kinds may use half of what is between
    # statistics, atomic
    uint64_t syncs
    uint64_t batches

cdef Log* log_create(SegmentStore* segments, uint32_t next_id, uint64_t next_lsn) noexcept nogil
cdef void log_destroy(Log* log) noexcept nogil
cdef int log_append(
    Log* log, EntryKind kind, uint32_t object, uint64_t block, uint64_t a, uint64_t b,
    const void* payload, uint32_t payload_slots, uint64_t* address, uint64_t* end_lsn) noexcept nogil
cdef bint log_read_unwritten(Log* log, uint64_t address, void* block) noexcept nogil
cdef int log_keep_spare(Log* log) noexcept nogil
cdef void log_lend_spare(Log* log, bint lent) noexcept nogil
cdef int log_drain(Log* log) noexcept nogil
cdef int log_keep(Log* log) noexcept nogil
cdef int log_flush(Log* log, uint64_t target_lsn) noexcept nogil
cdef void log_poison(Log* log, int failure) noexcept nogil
cdef int log_roll(Log* log) noexcept nogil
cdef void log_position(Log* log, uint32_t* segment_id, uint32_t* index, uint64_t* lsn) noexcept nogil
cdef int log_close(Log* log) noexcept nogil
