"""Cold segments: writing, loading and reading them.  See _cold.pxd for the design and docs/format/pool.md for the bytes."""

from libc.errno cimport EIO, ENOENT, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from blockdev._dedup cimport Fingerprint, checksum64
from blockdev._medium cimport medium_read, medium_size, medium_write
from blockdev._sync cimport pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, thread_stripe

cdef extern from "<zstd.h>" nogil:
    ctypedef struct ZSTD_CCtx:
        pass
    ctypedef struct ZSTD_DCtx:
        pass
    ZSTD_CCtx* ZSTD_createCCtx()
    size_t ZSTD_freeCCtx(ZSTD_CCtx* context)
    size_t ZSTD_compressCCtx(
        ZSTD_CCtx* context, void* out, size_t room, const void* data, size_t count, int level)
    ZSTD_DCtx* ZSTD_createDCtx()
    size_t ZSTD_decompressDCtx(ZSTD_DCtx* context, void* out, size_t room, const void* data, size_t count)
    unsigned int ZSTD_isError(size_t code)

cdef uint64_t COLD_MAGIC = 0x31444C43444C42         # "BLDCLD1" little-endian
cdef uint64_t PAGE_MAGIC = 0x31584449444C42         # "BLDIDX1"

cdef enum:
    SLOT_BYTES = 4096
    DECODERS = 16
    WORTH_IT = 16                                   # a frame is kept as it is unless this part of it is saved


# --- zstd contexts for reading: few, shared by all threads -----------------------------------------------------------

cdef struct Decoder:
    pthread_mutex_t lock
    ZSTD_DCtx* context

cdef Decoder decoders[16]
cdef int _i
for _i in range(DECODERS):
    pthread_mutex_init(&decoders[_i].lock, NULL)


cdef int decompress(const char* stored, uint32_t stored_bytes, char* out, uint32_t count) noexcept nogil:
    cdef Decoder* decoder = &decoders[thread_stripe() % DECODERS]
    cdef size_t got
    pthread_mutex_lock(&decoder.lock)
    if decoder.context == NULL:
        decoder.context = ZSTD_createDCtx()
    if decoder.context == NULL:
        pthread_mutex_unlock(&decoder.lock)
        return ENOMEM
    got = ZSTD_decompressDCtx(decoder.context, out, count, stored, stored_bytes)
    pthread_mutex_unlock(&decoder.lock)
    return EIO if ZSTD_isError(got) or got != count else 0


# --- headers and pages -----------------------------------------------------------------------------------------------

cdef inline uint64_t header_checksum(const ColdHeader* header) noexcept nogil:
    return checksum64(<const char*>header + 16, sizeof(ColdHeader) - 16)


cdef bint header_holds(const char* slot, const ColdHeader* known) noexcept nogil:
    cdef const ColdHeader* header = <const ColdHeader*>slot
    return (header.magic == COLD_MAGIC and header.checksum == header_checksum(header)
            and memcmp(header.uuid, known.uuid, 16) == 0 and header.id == known.id
            and header.generation == known.generation)


cdef bint header_fits(const ColdHeader* header, uint64_t size_bytes) noexcept nogil:
    return (header.block_count < header.slot_count
            and header.page_count == (header.block_count + PAGE_BLOCKS - 1) // PAGE_BLOCKS
            and header.index_offset % SLOT_BYTES == 0
            and header.index_offset + (2 * <uint64_t>header.page_count + 1) * SLOT_BYTES == size_bytes)


cdef bint page_holds(const char* slot, const ColdHeader* header, uint32_t number) noexcept nogil:
    cdef const ColdPage* page = <const ColdPage*>slot
    return (page.magic == PAGE_MAGIC and page.checksum == checksum64(slot + 16, SLOT_BYTES - 16)
            and memcmp(page.uuid, header.uuid, 16) == 0 and page.id == header.id
            and page.generation == header.generation and page.number == number
            and page.block_count == min(<uint32_t>PAGE_BLOCKS, header.block_count - number * PAGE_BLOCKS))


cdef uint64_t page_place(const ColdHeader* header, int copy, uint32_t number) noexcept nogil:
    return header.index_offset + (copy * <uint64_t>header.page_count + number) * SLOT_BYTES


cdef int read_header(int file, ColdHeader* known) noexcept nogil:
    """The header from slot 0 or from the last slot; ENOENT when neither is one."""
    cdef char slot[SLOT_BYTES]
    cdef uint64_t size_bytes = 0
    cdef int failure = medium_size(file, &size_bytes)
    if failure:
        return failure
    if size_bytes < 2 * SLOT_BYTES or size_bytes % SLOT_BYTES:
        return ENOENT
    if medium_read(file, slot, SLOT_BYTES, 0) or not header_holds(slot, known):
        if medium_read(file, slot, SLOT_BYTES, size_bytes - SLOT_BYTES) or not header_holds(slot, known):
            return ENOENT
    if (<ColdHeader*>slot).slot_count > known.slot_count or not header_fits(<ColdHeader*>slot, size_bytes):
        return EIO
    memcpy(known, slot, sizeof(ColdHeader))
    return 0


cdef int read_page(int file, const ColdHeader* header, uint32_t number, char* slot) noexcept nogil:
    """A page of the index from either copy."""
    cdef int copy
    for copy in range(2):
        if (medium_read(file, slot, SLOT_BYTES, page_place(header, copy, number)) == 0
                and page_holds(slot, header, number)):
            return 0
    return EIO


# --- loading ---------------------------------------------------------------------------------------------------------

cdef int take_page(
    const ColdHeader* header, const ColdPage* page, ColdIndex* index, Fingerprint* fingerprints
) noexcept nogil:
    """Bring one page into memory; EIO when it says what cannot be."""
    cdef uint32_t first = page.number * PAGE_BLOCKS, i, frame, blocks
    for i in range(page.block_count):
        if page.slots[i] >= header.slot_count or index.ranks[page.slots[i]]:
            return EIO
        index.ranks[page.slots[i]] = first + i + 1
        fingerprints[page.slots[i]] = page.fingerprints[i]
    for i in range((page.block_count + FRAME_BLOCKS - 1) // FRAME_BLOCKS):
        frame = first // FRAME_BLOCKS + i
        blocks = min(<uint32_t>FRAME_BLOCKS, header.block_count - frame * FRAME_BLOCKS)
        index.frames[frame] = page.frames[i]
        if (frame_offset(page.frames[i]) < SLOT_BYTES
                or frame_offset(page.frames[i]) + frame_stored(page.frames[i]) > header.index_offset
                or frame_stored(page.frames[i]) > blocks * SLOT_BYTES
                or frame_codec(page.frames[i]) > CODEC_PLAIN
                or (frame_codec(page.frames[i]) != CODEC_ZSTD and frame_stored(page.frames[i]) != blocks * SLOT_BYTES)):
            return EIO
    return 0


cdef int cold_load(int file, ColdHeader* known, ColdIndex** out, Fingerprint** fingerprints) noexcept nogil:
    """Header and index of a cold segment.  A page that is lost in both copies loses its blocks, not the others'."""
    cdef char slot[SLOT_BYTES]
    cdef ColdIndex* index
    cdef uint32_t number
    cdef int failure = read_header(file, known)
    if failure:
        return failure
    index = <ColdIndex*>calloc(1, sizeof(ColdIndex))
    fingerprints[0] = <Fingerprint*>calloc(known.slot_count, sizeof(Fingerprint))
    if index != NULL:
        index.block_count = known.block_count
        index.ranks = <uint32_t*>calloc(known.slot_count, sizeof(uint32_t))
        index.frames = <uint64_t*>calloc(known.block_count // FRAME_BLOCKS + 1, sizeof(uint64_t))
    if index == NULL or fingerprints[0] == NULL or index.ranks == NULL or index.frames == NULL:
        failure = ENOMEM
    for number in range(known.page_count):
        if not failure and read_page(file, known, number, slot) == 0:
            failure = take_page(known, <ColdPage*>slot, index, fingerprints[0])
    if failure:
        cold_free(index)
        free(fingerprints[0])
        fingerprints[0] = NULL
        return failure
    out[0] = index
    return 0


cdef void cold_free(ColdIndex* index) noexcept nogil:
    if index != NULL:
        free(index.frames)
        free(index.ranks)
        free(index)


cdef int heal_slot(int file, const char* good, bint write, uint64_t offset) noexcept nogil:
    return medium_write(file, good, SLOT_BYTES, offset) if write else EIO


cdef int cold_heal(int file, const ColdHeader* known, bint write, uint32_t* bad, uint32_t* lost) noexcept nogil:
    """Verify both copies of header and index, and with `write` write one that is bad anew from the other; not synced.

    bad: slots that do not verify; lost: pages of which neither copy does.  Returns why one could not be written anew.
    """
    cdef char slots[2][SLOT_BYTES]
    cdef ColdHeader header = known[0]
    cdef bint holds[2]
    cdef uint64_t places[2]
    cdef uint32_t number
    cdef int copy, one, failure
    bad[0] = lost[0] = 0
    failure = read_header(file, &header)
    if failure:
        return failure
    for number in range(header.page_count + 1):
        for copy in range(2):
            if number == header.page_count:     # the header itself
                places[copy] = copy * page_place(&header, 2, 0)
                holds[copy] = (medium_read(file, slots[copy], SLOT_BYTES, places[copy]) == 0
                               and header_holds(slots[copy], known))
            else:
                places[copy] = page_place(&header, copy, number)
                holds[copy] = (medium_read(file, slots[copy], SLOT_BYTES, places[copy]) == 0
                               and page_holds(slots[copy], &header, number))
        bad[0] += 2 - holds[0] - holds[1]
        if not holds[0] and not holds[1]:
            lost[0] += 1
        elif not holds[0] or not holds[1]:
            one = heal_slot(file, slots[holds[1]], write, places[not holds[1]])
            failure = failure or one
    return failure


# --- reading ---------------------------------------------------------------------------------------------------------

cdef int read_packed(
    int file, const ColdIndex* index, uint32_t number, uint32_t first, uint32_t count, char* out
) noexcept nogil:
    """`count` blocks of the compressed frame `number`, from its block `first` on."""
    cdef char stored[FRAME_BYTES]
    cdef char plain[FRAME_BYTES]
    cdef uint64_t frame = index.frames[number]
    cdef uint32_t blocks = min(<uint32_t>FRAME_BLOCKS, index.block_count - number * FRAME_BLOCKS)
    cdef int failure = medium_read(file, stored, frame_stored(frame), frame_offset(frame))
    if failure:
        return failure
    if count == blocks:
        return decompress(stored, frame_stored(frame), out, blocks * SLOT_BYTES)
    failure = decompress(stored, frame_stored(frame), plain, blocks * SLOT_BYTES)
    if not failure:
        memcpy(out, plain + first * SLOT_BYTES, <uint64_t>count * SLOT_BYTES)
    return failure


cdef int cold_read(int file, const ColdIndex* index, uint32_t slot, uint32_t count, char* out) noexcept nogil:
    """The blocks of `count` slots, one after the other; EIO when one of them is gone."""
    cdef uint32_t rank, run, number, first
    cdef uint64_t frame
    cdef int failure = 0
    while count and not failure:
        rank = index.ranks[slot]
        if rank == 0:
            return EIO
        number = (rank - 1) // FRAME_BLOCKS
        first = (rank - 1) % FRAME_BLOCKS
        frame = index.frames[number]
        if frame_stored(frame) == 0:            # on a page of the index that is lost
            return EIO
        run = 1
        while run < count and first + run < FRAME_BLOCKS and index.ranks[slot + run] == rank + run:
            run += 1
        if frame_codec(frame) != CODEC_ZSTD:
            failure = medium_read(file, out, <uint64_t>run * SLOT_BYTES, frame_offset(frame) + first * SLOT_BYTES)
        else:
            failure = read_packed(file, index, number, first, run, out)
        slot += run
        count -= run
        out += <uint64_t>run * SLOT_BYTES
    return failure


cdef uint32_t cold_frames(const ColdIndex* index) noexcept nogil:
    return (index.block_count + FRAME_BLOCKS - 1) // FRAME_BLOCKS


cdef uint32_t cold_share(const ColdIndex* index, uint32_t slot) noexcept nogil:
    """What a block takes in the file; the shares of a frame's blocks add up to what the frame takes.  0: it is gone."""
    cdef uint32_t rank = index.ranks[slot], number, place, blocks, stored
    if rank == 0:
        return 0
    number = (rank - 1) // FRAME_BLOCKS
    place = (rank - 1) % FRAME_BLOCKS
    blocks = min(<uint32_t>FRAME_BLOCKS, index.block_count - number * FRAME_BLOCKS)
    stored = frame_stored(index.frames[number])
    return stored * (place + 1) // blocks - stored * place // blocks


# --- writing ---------------------------------------------------------------------------------------------------------

cdef int cold_writer_init(ColdWriter* writer) noexcept nogil:
    memset(writer, 0, sizeof(ColdWriter))
    writer.frame = <char*>malloc(FRAME_BYTES)
    writer.packed = <char*>malloc(FRAME_BYTES)
    writer.context = ZSTD_createCCtx()
    return ENOMEM if writer.frame == NULL or writer.packed == NULL or writer.context == NULL else 0


cdef void cold_writer_destroy(ColdWriter* writer) noexcept nogil:
    free(writer.frame)
    free(writer.packed)
    free(writer.pages)
    ZSTD_freeCCtx(<ZSTD_CCtx*>writer.context)


cdef void cold_begin(ColdWriter* writer, int file, const ColdHeader* header, int level) noexcept nogil:
    """Begin a segment in an empty file.  header: uuid, id, generation, slot_count, first_lsn, end_lsn."""
    writer.file = file
    writer.level = level
    writer.header = header[0]
    writer.header.magic = COLD_MAGIC
    writer.header.block_count = writer.header.page_count = writer.header.reserved = 0
    writer.offset = SLOT_BYTES
    writer.pending = 0
    writer.plain = False


cdef ColdPage* page_for_next(ColdWriter* writer) noexcept nogil:
    """The page that the next block is noted on; NULL when there is no memory."""
    cdef uint32_t number = writer.header.block_count // PAGE_BLOCKS
    cdef ColdPage* pages
    cdef ColdPage* page
    if number == writer.page_room:
        pages = <ColdPage*>realloc(writer.pages, (writer.page_room * 2 + 8) * sizeof(ColdPage))
        if pages == NULL:
            return NULL
        writer.pages = pages
        writer.page_room = writer.page_room * 2 + 8
    page = &writer.pages[number]
    if number == writer.header.page_count:
        memset(page, 0, sizeof(ColdPage))
        page.magic = PAGE_MAGIC
        memcpy(page.uuid, writer.header.uuid, 16)
        page.id = writer.header.id
        page.generation = writer.header.generation
        page.number = number
        writer.header.page_count += 1
    return page


cdef int end_frame(ColdWriter* writer) noexcept nogil:
    """Write the frame that is being filled, which is not empty."""
    cdef uint32_t count = writer.pending * SLOT_BYTES, stored = count
    cdef uint32_t number = (writer.header.block_count - 1) // FRAME_BLOCKS
    cdef uint64_t codec = CODEC_PLAIN if writer.plain else CODEC_RAW
    cdef const char* place = writer.frame
    cdef size_t got
    cdef int failure
    if not writer.plain:
        # no more room than what is worth it: zstd stops there
        got = ZSTD_compressCCtx(<ZSTD_CCtx*>writer.context, writer.packed, count - count // WORTH_IT, writer.frame,
                                count, writer.level)
        if not ZSTD_isError(got):
            codec = CODEC_ZSTD
            stored = <uint32_t>got
            place = writer.packed
    failure = medium_write(writer.file, place, stored, writer.offset)
    writer.pages[number // PAGE_FRAMES].frames[number % PAGE_FRAMES] = (
        writer.offset | <uint64_t>stored << 40 | codec << 56)
    writer.offset += stored
    writer.pending = 0
    writer.plain = False
    return failure


cdef int cold_add(
    ColdWriter* writer, uint32_t slot, Fingerprint fingerprint, const char* block, bint plain
) noexcept nogil:
    """Take one more block; slots ascend.  plain: it is not to be compressed, nor are those in its frame."""
    cdef ColdPage* page = page_for_next(writer)
    if page == NULL:
        return ENOMEM
    page.slots[page.block_count] = slot
    page.fingerprints[page.block_count] = fingerprint
    page.block_count += 1
    writer.header.block_count += 1
    writer.plain = writer.plain or plain
    memcpy(writer.frame + <uint64_t>writer.pending * SLOT_BYTES, block, SLOT_BYTES)
    writer.pending += 1
    return end_frame(writer) if writer.pending == FRAME_BLOCKS else 0


cdef int cold_finish(ColdWriter* writer, uint64_t* size_bytes) noexcept nogil:
    """Write what is left, both copies of the index and of the header; not synced."""
    cdef char slot[SLOT_BYTES]
    cdef ColdHeader* header = &writer.header
    cdef uint64_t index_bytes = <uint64_t>header.page_count * SLOT_BYTES
    cdef uint32_t i
    cdef int copy, failure = end_frame(writer) if writer.pending else 0
    header.index_offset = (writer.offset + SLOT_BYTES - 1) // SLOT_BYTES * SLOT_BYTES
    for i in range(header.page_count):
        writer.pages[i].checksum = checksum64(<char*>&writer.pages[i] + 16, SLOT_BYTES - 16)
    header.checksum = header_checksum(header)
    memset(slot, 0, SLOT_BYTES)
    memcpy(slot, header, sizeof(ColdHeader))
    for copy in range(2):
        if not failure:
            failure = medium_write(writer.file, writer.pages, index_bytes, page_place(header, copy, 0))
    size_bytes[0] = page_place(header, 2, 0) + SLOT_BYTES
    if not failure:
        failure = medium_write(writer.file, slot, SLOT_BYTES, size_bytes[0] - SLOT_BYTES)
    return failure or medium_write(writer.file, slot, SLOT_BYTES, 0)
