"""Reading a pool back: replay of the log after a checkpoint.

Replay takes the longest run of batches that verify, from the checkpoint's position on, with LSNs that follow each other.
A batch at or after the highest `durable_lsn` seen also needs its payload to verify: only there may a write be torn.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blockdev._disk cimport Disk, PoolState
from blockdev._segments cimport BatchEntry, Segment

cdef enum:
    DISKS_KNOWN = 256               # power of two
    EXPECT_GAP_SLOTS = 4            # blocks between two headers: more are not read along with them

cdef struct BatchPlace:
    uint32_t segment_id
    uint32_t index
    uint32_t end_index              # after the second copy of its header
    uint32_t lsn_count
    uint64_t first_lsn
    uint64_t kept                   # its first entry in run.entries
    uint32_t kept_count             # 0: its entries were not kept, its header is to be read again

cdef struct Run:                    # the batches that replay found, in order
    BatchPlace* batches
    uint64_t count
    uint64_t room
    uint64_t durable_lsn            # highest that any of them tells of
    BatchEntry* entries             # kept from finding them for applying them, as many as there is memory for
    uint64_t entry_count
    uint64_t entry_room
    uint64_t entry_count_max

cdef struct LogReader:              # one segment of the log at a time, one batch in it
    PoolState* pool
    Segment* segment                # pinned; NULL: none
    uint64_t size_bytes             # of its file, as far as there can be batches
    char* slots                     # BATCH_SLOTS_MAX: the header that was read last, then its payload
    uint8_t unread[126]             # which of them cannot be read

cdef struct LeafCursor:             # where the log wrote last: the next entry is often beside it
    uint64_t* entries               # of a leaf that is writable for the disk; NULL: none
    Disk* disk
    uint64_t leaf                   # number of its first block / NODE_FANOUT
