"""The one door to the file system below a pool: every open, write, sync, rename, truncate, unlink and directory sync.

All functions return 0 or a positive errno, loop over short transfers and EINTR, and may be called without the GIL.
A failed sync is never retried: the kernel may have dropped the pages (see the fsync(2) notes); the log poisons itself.

A torture build (BLOCKDEV_VARIANT=torture, see docs/hacking.md) asks a hook before each call, which may record it, let it
fail, cut it short or swallow it, and can switch one planted bug on.  In every other build both are constants that the
compiler removes.  An unchecked build reads, writes and syncs with bare system calls: bench measures against it what the
door costs.
"""

from libc.stdint cimport uint32_t, uint64_t

from blockdev._statistics cimport CAUSE_MEDIUM, begin_wait, end_wait

cdef extern from *:
    """
    #ifdef BLOCKDEV_TORTURE
    #define TORTURE_BUILD 1
    #else
    #define TORTURE_BUILD 0
    #endif

    #include <errno.h>
    #include <stdint.h>
    #include <unistd.h>

    #ifdef BLOCKDEV_UNCHECKED
    #define BARE_BUILD 1
    #else
    #define BARE_BUILD 0
    #endif

    static inline int bare_read(int fd, void *buffer, uint64_t count, uint64_t offset)
    { return pread(fd, buffer, count, offset) == (ssize_t)count ? 0 : EIO; }

    static inline int bare_write(int fd, const void *buffer, uint64_t count, uint64_t offset)
    { return pwrite(fd, buffer, count, offset) == (ssize_t)count ? 0 : EIO; }

    static inline int bare_sync(int fd)
    { return fdatasync(fd) < 0 ? errno : 0; }
    """
    bint TORTURE_BUILD
    bint BARE_BUILD
    int bare_read(int fd, void* buffer, uint64_t count, uint64_t offset) noexcept nogil
    int bare_write(int fd, const void* buffer, uint64_t count, uint64_t offset) noexcept nogil
    int bare_sync(int fd) noexcept nogil

cpdef enum PlantedBug:                  # each breaks one promise; tests/torture must catch every one of them
    BUG_NONE = 0
    BUG_FLUSH_WITHOUT_SYNC = 1          # a flush is replied to before its segments are synced
    BUG_NO_DIRECTORY_SYNC = 2           # a new segment's name is not made durable
    BUG_NODES_NOT_SYNCED = 3            # a checkpoint's superblock is written before its nodes are durable
    BUG_SLOTS_REUSED_EARLY = 4          # node slots are used again while the older superblock names them
    BUG_ONE_SUPERBLOCK = 5              # every checkpoint overwrites the same superblock
    BUG_TORN_PAYLOAD_TAKEN = 6          # recovery believes a header without looking at its payload
    BUG_TAIL_NOT_CUT = 7                # recovery leaves torn batches behind the end
    BUG_ENTRY_BEFORE_CUT_LOST = 8       # a checkpoint's LSN is one too high
    BUG_SYNC_FAILURE_IGNORED = 9        # a failed fdatasync is tried again, and the second one counts
    BUG_TABLE_NOT_SYNCED = 10           # the superblock names a table that is not durable
    BUG_LOG_BEHIND_CHECKPOINT = 11      # a checkpoint does not wait for the log up to its cut
    BUG_NEWEST_SEGMENT_ONLY = 12        # a flush after a roll syncs only the segment that is being appended to
    BUG_RECORD_NOT_FLUSHED = 13         # a snapshot or clone is replied to before its record is durable
    BUG_FUA_IGNORED = 14                # a write is replied to without its flush
    BUG_WRITTEN_COUNTS_AS_DURABLE = 15  # a batch tells that all before it is durable, when it is written only
    BUG_GAP_PASSED_OVER = 16            # recovery goes on behind a batch that is missing
    BUG_SEALED_NODE_CHANGED = 17        # a node that a checkpoint holds is changed in place
    BUG_NODES_FORGOTTEN = 18            # a checkpoint that failed takes its nodes for written
    BUG_REPLAYED_NOT_SYNCED = 19        # recovery takes what it read for durable: it was in the page cache only
    BUG_NOT_WRITTEN_AGAIN = 20          # recovery syncs, but does not write, what a failed sync may have lost
    BUG_REWRITE_NOT_SYNCED = 21         # a compacted segment takes its place before it is durable
    BUG_SWAP_NOT_SYNCED = 22            # the segment it replaces is removed before its name is durable
    BUG_MARKED_TOO_NEW = 23             # compaction marks from the maps of now, not from a durable checkpoint's
    BUG_REVIVED_LOST = 24               # a reference made while a mark is under way does not count
    BUG_OPEN_BATCH_NOT_KEPT = 25        # a write is replied to as kept while the batch that holds it is still open
    BUG_HEADER_BEFORE_PAYLOAD = 26      # what an open batch has more is written behind the header that tells of it
    BUG_NEWER_SUPERBLOCK_KEPT = 27      # a start that could not use the newer superblock leaves it there
    BUG_SPARE_NOT_EMPTIED = 28          # a spare that was a segment once keeps what was in it
    BUG_EMPTIED_SPARE_NOT_SYNCED = 29   # or may have it again when it becomes the next one

cdef enum:
    MEDIUM_READ = 0          # open for reading
    MEDIUM_WRITE = 1         # open for reading and writing
    MEDIUM_CREATE = 2        # create, must not exist; reading and writing

cdef int medium_open(const char* path, int mode, int* fd) noexcept nogil
cdef int medium_close(int fd) noexcept nogil
cdef void medium_prefetch(int fd, uint64_t offset, uint64_t count) noexcept nogil           # a hint: will be read soon
cdef int medium_sync_directory(const char* path) noexcept nogil
cdef int medium_rename(const char* source, const char* destination) noexcept nogil
cdef int medium_truncate(int fd, uint64_t size_bytes) noexcept nogil
cdef int medium_allocate(int fd, uint64_t offset, uint64_t count) noexcept nogil    # ENOSPC, or 0: room is certain
cdef int medium_unlink(const char* path) noexcept nogil
cdef int medium_make_directory(const char* path) noexcept nogil
cdef int medium_size(int fd, uint64_t* size_bytes) noexcept nogil
cdef void medium_report(const char* format, int error, uint64_t a, uint64_t b) noexcept nogil

cdef int medium_read_all(int fd, void* buffer, uint64_t count, uint64_t offset) noexcept nogil
cdef int medium_write_all(int fd, const void* buffer, uint64_t count, uint64_t offset) noexcept nogil
cdef int medium_sync_data(int fd) noexcept nogil

cdef inline int medium_read(int fd, void* buffer, uint64_t count, uint64_t offset) noexcept nogil:
    """EIO on a short file."""
    cdef uint64_t begun_ns = begin_wait()
    cdef int failure = bare_read(fd, buffer, count, offset) if BARE_BUILD else medium_read_all(fd, buffer, count, offset)
    end_wait(CAUSE_MEDIUM, begun_ns)
    return failure

cdef inline int medium_write(int fd, const void* buffer, uint64_t count, uint64_t offset) noexcept nogil:
    cdef uint64_t begun_ns = begin_wait()
    cdef int failure = bare_write(fd, buffer, count, offset) if BARE_BUILD else medium_write_all(fd, buffer, count, offset)
    end_wait(CAUSE_MEDIUM, begun_ns)
    return failure

cdef inline int medium_sync(int fd) noexcept nogil:
    """fdatasync."""
    cdef uint64_t begun_ns = begin_wait()
    cdef int failure = bare_sync(fd) if BARE_BUILD else medium_sync_data(fd)
    end_wait(CAUSE_MEDIUM, begun_ns)
    return failure

cdef bint medium_planted(PlantedBug bug) noexcept nogil

cdef inline bint planted(PlantedBug bug) noexcept nogil:
    """Whether a planted bug is switched on: never, outside of a torture build."""
    return TORTURE_BUILD and medium_planted(bug)
