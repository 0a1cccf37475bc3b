"""The data path of a pool: disks, and what a read, write, flush and hole do.

Disk functions check deletion only: range and alignment are the caller's wall (the nbdkit plugin, or VDisk's methods).
They return 0 or a positive errno (ENOSPC full, EIO bad checksum or poisoned, EPERM a snapshot, ESHUTDOWN gone) and never
need the GIL.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blockdev._cow cimport Map, run_callback
from blockdev._dedup cimport DedupIndex, Fingerprint
from blockdev._log cimport Log
from blockdev._nodes cimport MapNode, NodeStore
from blockdev._segments cimport SegmentStore
from blockdev._statistics cimport Statistics
from blockdev._sync cimport pthread_mutex_t, pthread_rwlock_t

cdef enum:
    BLOCK_BYTES = 4096
    BLOCK_LOCKS = 1024              # power of two
    READ_CHUNK_BLOCKS = 128         # addresses looked up at once
    READ_PIECE_BLOCKS = 16          # read and verified at once
    WRITE_CHUNK_BLOCKS = 64         # blocks written under one hold of cut_lock
    LABEL_BYTES = 256
    # what a disk's policy says of dedup, in the code of policies.py; neither: as the pool's
    POLICY_DEDUP_ON = 4
    POLICY_DEDUP_OFF = 8

cdef struct Counters:               # atomic, relaxed
    uint64_t blocks_read
    uint64_t blocks_written         # appended
    uint64_t blocks_deduplicated
    uint64_t blocks_unchanged       # rewritten with what was there
    uint64_t blocks_zero
    uint64_t dedup_mismatches       # hits whose bytes differed
    uint64_t found_behind           # known blocks that the index had forgotten, found behind another
    uint64_t checksum_errors

cdef struct PoolState:
    SegmentStore* segments
    Log* log
    NodeStore* nodes
    DedupIndex* dedup
    int node_files[2]               # map/nodes and its mirror, owned
    # held shared from the append of an entry to its effect on the map, exclusively for the instant of a checkpoint's cut:
    # then maps and log agree
    pthread_rwlock_t cut_lock
    # held from the append of a block to its map update, so that both happen in one order
    pthread_mutex_t block_locks[1024]
    MapNode* frozen                 # of the checkpoint under way
    uint32_t dedup_off              # for disks whose policy does not say; atomic
    # a write that finds no room waits for compaction, where somebody sees to that
    uint32_t reclaims               # somebody does; atomic
    uint32_t starved                # a write waits: a round is asked for; atomic
    uint64_t useless_lsn            # a round that saw the pool at this LSN found no room; atomic
    Counters counters

cdef struct Disk:
    PoolState* pool
    uint32_t id
    uint32_t epoch
    bint snapshot                   # read-only
    uint32_t deleted                # written under lock, exclusively
    uint32_t policy                 # of a vdisk, the code of policies.py; atomic
    uint64_t size_bytes             # changes under lock held exclusively
    uint64_t lsn                    # of a snapshot
    Statistics* statistics          # of the vdisk or, of a snapshot, of the one it was taken of; borrowed, alive as long
    uint64_t follows                # a hint: the block of the latest dedup hit; the next one may be behind it
    Map map
    pthread_rwlock_t lock           # shared by requests; exclusive for snapshot, resize, restore, holes, delete
    char label[256]                 # the name, for messages

# (offset, length in bytes, is a hole) -> 0 to go on, errno to stop
ctypedef int (*extent_callback)(void* opaque, uint64_t offset, uint64_t length, bint hole) noexcept nogil

# blocks at consecutive addresses, verified; `bad`: which one failed
cdef int fetch_run(PoolState* pool, uint64_t address, uint32_t count, char* out, uint32_t* bad) noexcept nogil
# one block by its address, if it has this fingerprint and its bytes do, too; ENOENT: it has not
cdef int fetch_block(PoolState* pool, uint64_t address, Fingerprint fingerprint, char* out) noexcept nogil
# whole blocks: the caller holds disk.lock shared; to write, cut_lock too
cdef int read_blocks(Disk* disk, uint64_t first, uint32_t count, char* out) noexcept nogil
cdef int write_blocks(Disk* disk, uint64_t first, uint32_t count, const char* data) noexcept nogil
cdef int check_writable(Disk* disk, uint64_t count, uint64_t offset) noexcept nogil
cdef bint wait_for_room(PoolState* pool, uint32_t* waits) noexcept nogil
cdef uint64_t find_known(Disk* disk, Fingerprint fingerprint) noexcept nogil
cdef int disk_read(Disk* disk, void* buffer, uint32_t count, uint64_t offset) noexcept nogil
cdef int disk_write(Disk* disk, const void* buffer, uint32_t count, uint64_t offset, bint fua) noexcept nogil
# what was replied to before, on any connection, survives the end of this process; disk_flush: that of the machine, too
cdef int disk_keep(Disk* disk) noexcept nogil
cdef int disk_flush(Disk* disk) noexcept nogil
cdef int disk_zero(Disk* disk, uint64_t count, uint64_t offset, bint fua) noexcept nogil
cdef int disk_clear_tail(Disk* disk) noexcept nogil
cdef int disk_extents(
    Disk* disk, uint64_t count, uint64_t offset, extent_callback callback, void* opaque) noexcept nogil
cdef int disk_diff(
    Disk* older, Disk* newer, uint64_t* next_block, run_callback callback, void* opaque) noexcept nogil
cdef int disk_cache(Disk* disk, uint32_t count, uint64_t offset) noexcept nogil
cdef uint64_t disk_size_bytes(Disk* disk) noexcept nogil
cdef bint disk_is_snapshot(Disk* disk) noexcept nogil
