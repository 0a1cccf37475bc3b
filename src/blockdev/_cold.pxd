"""Cold segments: what a segment becomes when compaction rewrites it.

Only its live blocks are left, in the order of their addresses, eight to a frame, each frame compressed by zstd or stored as
it is: when that saves too little, or when a policy wants one of its blocks plain.  An index says where the block of an
address lies: the addresses themselves stay what they were.  The index is there twice, page by page, so that one lost sector
loses none of it.

A cold segment is written once, whole, and never changed.  Functions take an open file; who may use it when is _segments'.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blockdev._dedup cimport Fingerprint

cdef enum:
    FRAME_BLOCKS = 8
    FRAME_BYTES = 32768
    PAGE_FRAMES = 24
    PAGE_BLOCKS = 192               # of PAGE_FRAMES

cpdef enum Codec:
    CODEC_RAW = 0
    CODEC_ZSTD = 1
    CODEC_PLAIN = 2                 # raw, as a policy wanted one of its blocks plain

cdef struct ColdHeader:             # slot 0 of the file, and its last slot once more
    uint64_t magic
    uint64_t checksum               # XXH3-64 of the rest of the structure
    uint8_t uuid[16]                # of the pool
    uint32_t id
    uint32_t generation
    uint32_t slot_count             # of the segment as the log wrote it: addresses are below
    uint32_t block_count            # that are left
    uint64_t first_lsn              # of the segment as the log wrote it
    uint64_t end_lsn
    uint64_t index_offset           # bytes, of the first copy of the pages; the second follows it
    uint32_t page_count             # of one copy
    uint32_t reserved

cdef struct ColdPage:               # 4096 bytes
    uint64_t magic
    uint64_t checksum               # XXH3-64 of the page from `uuid` on
    uint8_t uuid[16]
    uint32_t id
    uint32_t generation
    uint32_t number
    uint32_t block_count            # that it has
    uint8_t reserved[16]
    uint64_t frames[24]             # see frame_offset and its kin
    uint32_t slots[192]             # that the blocks have in the segment, ascending
    Fingerprint fingerprints[192]

cdef struct ColdIndex:              # of a segment that is open
    uint32_t block_count
    uint64_t* frames
    uint32_t* ranks                 # of each slot: one more than the block's number among those that are left; 0: gone

cdef struct ColdWriter:             # one rewrite; buffers are kept from one segment to the next
    int file
    int level                       # of zstd
    ColdHeader header
    uint64_t offset                 # where the next frame goes
    uint32_t pending                # blocks of the frame that is being filled
    bint plain                      # one of them is not to be compressed
    char* frame
    char* packed                    # room for a compressed frame
    ColdPage* pages
    uint32_t page_room
    void* context                   # ZSTD_CCtx

cdef inline uint64_t frame_offset(uint64_t frame) noexcept nogil:
    return frame & 0xFFFFFFFFFFULL


cdef inline uint32_t frame_stored(uint64_t frame) noexcept nogil:
    """Bytes in the file."""
    return <uint32_t>(frame >> 40) & 0xFFFF


cdef inline uint32_t frame_codec(uint64_t frame) noexcept nogil:
    return <uint32_t>(frame >> 56)


# `known` has uuid, id, generation and the most slots there may be, and is filled from the header.
# ENOENT: it is no cold segment; EIO: it is damaged
cdef int cold_load(int file, ColdHeader* known, ColdIndex** index, Fingerprint** fingerprints) noexcept nogil
cdef void cold_free(ColdIndex* index) noexcept nogil
cdef int cold_read(int file, const ColdIndex* index, uint32_t slot, uint32_t count, char* out) noexcept nogil
cdef uint32_t cold_frames(const ColdIndex* index) noexcept nogil
cdef uint32_t cold_share(const ColdIndex* index, uint32_t slot) noexcept nogil      # bytes that a block takes of its frame
cdef int cold_heal(int file, const ColdHeader* known, bint write, uint32_t* bad, uint32_t* lost) noexcept nogil

cdef int cold_writer_init(ColdWriter* writer) noexcept nogil
cdef void cold_writer_destroy(ColdWriter* writer) noexcept nogil
cdef void cold_begin(ColdWriter* writer, int file, const ColdHeader* header, int level) noexcept nogil
cdef int cold_add(
    ColdWriter* writer, uint32_t slot, Fingerprint fingerprint, const char* block, bint plain) noexcept nogil
cdef int cold_finish(ColdWriter* writer, uint64_t* size_bytes) noexcept nogil
