"""Segments and the batches in them.  See _segments.pxd for the design and docs/format/pool.md for the bytes."""

from libc.errno cimport EEXIST, EFBIG, EIO, ENOENT, ENOMEM, ENOSPC
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strdup

from blockdev._cold cimport ColdHeader, ColdIndex, cold_free, cold_load, cold_read
from blockdev._dedup cimport Fingerprint, checksum64
from blockdev._medium cimport (
    MEDIUM_CREATE, MEDIUM_READ, MEDIUM_WRITE, medium_allocate, medium_close, medium_open, medium_read, medium_rename,
    BUG_REWRITE_NOT_SYNCED, medium_size, medium_sync, medium_sync_directory, medium_truncate, medium_unlink, medium_write,
    planted,
)
from blockdev._spare cimport spare_close, spare_init, spare_take
from blockdev._statistics cimport (
    BLOCKS_COLD, CAUSE_COMPACTION, CAUSE_LOCK, begin_wait, end_wait, tally_blocks, timed_lock,
)
from blockdev._sync cimport (
    add_u64, load_pointer, load_u32, load_u64, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock, store_pointer, store_u32,
)

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)

cdef uint64_t SEGMENT_MAGIC = 0x31474553444C42      # "BLDSEG1" little-endian
cdef uint64_t TRAILER_MAGIC = 0x31444E45444C42      # "BLDEND1"
cdef uint64_t BATCH_MAGIC = 0x31544142444C42        # "BLDBAT1"

cdef enum:
    PATH_BYTES = 4096
    FILL_AHEAD_SLOTS = 256              # 1 MiB, some 85 commits of one block
    FILL_PIECE_BYTES = 1 << 17
    PIN_WAIT_US = 20


cdef SegmentStore* segments_create(
    const char* path, const uint8_t* uuid, uint32_t segment_slots, uint64_t open_max
) noexcept nogil:
    cdef SegmentStore* store = <SegmentStore*>calloc(1, sizeof(SegmentStore))
    if store == NULL:
        return NULL
    store.table = <Segment**>calloc(SEGMENTS_MAX, sizeof(Segment*))
    store.path = strdup(path)
    if store.table == NULL or store.path == NULL:
        free(store.table)
        free(store.path)
        free(store)
        return NULL
    memcpy(store.uuid, uuid, 16)
    store.segment_slots = segment_slots
    store.open_max = open_max
    spare_init(&store.spare, min(<uint32_t>ALLOCATE_SLOTS, slots_with_trailer(segment_slots)))
    store.id_end = 1
    pthread_mutex_init(&store.evict_lock, NULL)
    return store


cdef void segments_destroy(SegmentStore* store) noexcept nogil:
    cdef uint32_t id
    cdef Segment* segment
    if store == NULL:
        return
    for id in range(store.id_end):
        segment = store.table[id]
        if segment != NULL:
            free_segment(segment)
    while store.removed != NULL:
        segment = store.removed
        store.removed = segment.next_removed
        free_segment(segment)
    spare_close(&store.spare)
    pthread_mutex_destroy(&store.evict_lock)
    free(store.table)
    free(store.path)
    free(store)


cdef void free_segment(Segment* segment) noexcept nogil:
    if segment.file >= 0:
        medium_close(segment.file)
    free(segment.fingerprints)
    cold_free(segment.cold)
    pthread_mutex_destroy(&segment.lock)
    free(segment)


cdef Segment* new_segment(uint32_t id, uint32_t generation) noexcept nogil:
    cdef Segment* segment = <Segment*>calloc(1, sizeof(Segment))
    if segment != NULL:
        segment.id = id
        segment.generation = generation
        segment.file = -1
        pthread_mutex_init(&segment.lock, NULL)
    return segment


cdef bint may_add(SegmentStore* store, uint32_t id) noexcept nogil:
    return id != 0 and id < SEGMENTS_MAX and store.table[id] == NULL


cdef void add_segment(SegmentStore* store, Segment* segment) noexcept nogil:
    """From here on other threads find it."""
    store_pointer(<void**>&store.table[segment.id], segment)
    if segment.id >= load_u32(&store.id_end):
        store_u32(&store.id_end, segment.id + 1)


cdef int segments_add(SegmentStore* store, uint32_t id, uint32_t generation, uint64_t size_bytes) noexcept nogil:
    """Make a segment file known that a listing of the directory found."""
    cdef Segment* segment = new_segment(id, generation) if may_add(store, id) else NULL
    if segment == NULL:
        return EFBIG
    add_segment(store, segment)
    add_u64(&store.bytes_added, size_bytes)
    return 0


cdef Segment* segments_get(SegmentStore* store, uint64_t id) noexcept nogil:
    return <Segment*>load_pointer(<void**>&store.table[id]) if id < load_u32(&store.id_end) else NULL


cdef uint64_t segments_bytes(SegmentStore* store) noexcept nogil:
    return load_u64(&store.bytes_added) - load_u64(&store.bytes_removed)


cdef void generation_path(SegmentStore* store, Segment* segment, uint32_t generation, char* path) noexcept nogil:
    snprintf(path, PATH_BYTES, b"%s/%08x.%u", store.path, segment.id, generation)


cdef void segment_path(SegmentStore* store, Segment* segment, char* path) noexcept nogil:
    generation_path(store, segment, segment.generation, path)


cdef void fill_header(SegmentStore* store, Segment* segment, SegmentHeader* header, uint64_t magic) noexcept nogil:
    memset(header, 0, sizeof(SegmentHeader))
    header.magic = magic
    memcpy(header.uuid, store.uuid, 16)
    header.id = segment.id
    header.generation = segment.generation
    header.first_lsn = segment.first_lsn


cdef void sign_header(SegmentHeader* header) noexcept nogil:
    header.checksum = checksum64(&header.uuid, sizeof(SegmentHeader) - 16)


cdef bint header_holds(SegmentStore* store, Segment* segment, SegmentHeader* header, uint64_t magic) noexcept nogil:
    return (header.magic == magic and header.id == segment.id and header.generation == segment.generation
            and memcmp(header.uuid, store.uuid, 16) == 0
            and header.checksum == checksum64(&header.uuid, sizeof(SegmentHeader) - 16))


cdef uint32_t slots_with_trailer(uint32_t slot_count) noexcept nogil:
    """Slots of a segment's file once it is sealed with `slot_count` in use."""
    return slot_count + (slot_count * <uint32_t>sizeof(Fingerprint) + SLOT_BYTES - 1) // SLOT_BYTES + 1


cdef int segment_allocate(SegmentStore* store, Segment* segment, uint32_t slot_count) noexcept nogil:
    """Make sure that the disk has room for a hot segment of `slot_count` slots and its trailer, and for some more."""
    cdef uint32_t end = slots_with_trailer(slot_count)
    cdef int failure
    if end <= segment.allocated_slots:
        return 0
    end = min(end + ALLOCATE_SLOTS, slots_with_trailer(store.segment_slots))
    failure = medium_allocate(segment.file, <uint64_t>segment.allocated_slots * SLOT_BYTES,
                              <uint64_t>(end - segment.allocated_slots) * SLOT_BYTES)
    if not failure:
        store_u32(&segment.allocated_slots, end)
    return failure


cdef int segment_fill_ahead(Segment* segment, uint32_t slot_count) noexcept nogil:
    """Write zeros behind the last of `slot_count` slots, where batches will be, within the room that is reserved.

    A sync of slots that were written before has no metadata to write: on ext4 it spares the commit of the journal.
    """
    cdef char zeros[FILL_PIECE_BYTES]
    cdef uint32_t end = min(slot_count + FILL_AHEAD_SLOTS, load_u32(&segment.allocated_slots))
    cdef uint64_t offset = <uint64_t>slot_count * SLOT_BYTES
    cdef uint64_t count
    cdef int failure = 0
    memset(zeros, 0, FILL_PIECE_BYTES)
    while offset < <uint64_t>end * SLOT_BYTES and not failure:
        count = min(<uint64_t>FILL_PIECE_BYTES, <uint64_t>end * SLOT_BYTES - offset)
        failure = medium_write(segment.file, zeros, count, offset)
        offset += count
    if not failure:
        segment.filled_slots = end
    return failure


cdef int create_file(SegmentStore* store, Segment* segment) noexcept nogil:
    """A new file with room on the disk for a start; a failure leaves none."""
    cdef char path[PATH_BYTES]
    cdef int failure
    segment_path(store, segment, path)
    failure = medium_open(path, MEDIUM_CREATE, &segment.file)
    if failure:
        segment.file = -1
        return failure
    failure = segment_allocate(store, segment, 1 + BATCH_SLOTS_MAX)
    if failure:
        medium_unlink(path)
    return failure


cdef int segment_write_header(SegmentStore* store, Segment* segment) noexcept nogil:
    cdef char slot[SLOT_BYTES]
    cdef SegmentHeader* header = <SegmentHeader*>slot
    memset(slot, 0, SLOT_BYTES)
    fill_header(store, segment, header, SEGMENT_MAGIC)
    header.slot_count = store.segment_slots
    sign_header(header)
    return medium_write(segment.file, slot, SLOT_BYTES, 0)


cdef int make_file(SegmentStore* store, Segment* segment, bint may_take_spare) noexcept nogil:
    """The file of a new segment, with its header slot; a failure leaves none."""
    cdef char path[PATH_BYTES]
    cdef int failure = create_file(store, segment)
    if failure == ENOSPC and may_take_spare:
        if segment.file >= 0:
            medium_close(segment.file)
            segment.file = -1
        segment_path(store, segment, path)
        failure = spare_take(&store.spare, store.path, path, &segment.file, &segment.allocated_slots)
    if failure:
        return failure
    failure = segment_write_header(store, segment)
    if failure:
        segment_path(store, segment, path)
        medium_unlink(path)
    return failure


cdef int segment_create(
    SegmentStore* store, uint32_t id, uint64_t first_lsn, bint may_take_spare, Segment** out
) noexcept nogil:
    """A new hot segment: its file with a header slot, open and pinned."""
    cdef Segment* segment = new_segment(id, 0) if may_add(store, id) else NULL
    cdef int failure = ENOMEM
    if segment == NULL:
        return ENOMEM
    segment.first_lsn = first_lsn
    segment.end_lsn = first_lsn
    segment.slot_count = 1
    segment.pins = 1
    segment.fingerprints = <Fingerprint*>calloc(store.segment_slots, sizeof(Fingerprint))
    if segment.fingerprints != NULL:
        failure = make_file(store, segment, may_take_spare)
    if failure:
        free_segment(segment)
        return failure
    add_u64(&store.open_count, 1)
    add_u64(&store.bytes_added, SLOT_BYTES)
    add_segment(store, segment)
    out[0] = segment
    return 0


cdef int load_trailer(SegmentStore* store, Segment* segment, uint64_t size_bytes) noexcept nogil:
    """Read slot count and fingerprints from the end of a sealed segment; ENOENT when it has no sound trailer."""
    cdef char slot[SLOT_BYTES]
    cdef SegmentHeader* trailer = <SegmentHeader*>slot
    cdef uint64_t index_bytes
    cdef Fingerprint* fingerprints
    if size_bytes < 2 * SLOT_BYTES or size_bytes % SLOT_BYTES:
        return ENOENT
    if medium_read(segment.file, slot, SLOT_BYTES, size_bytes - SLOT_BYTES):
        return ENOENT
    if (not header_holds(store, segment, trailer, TRAILER_MAGIC)
            or trailer.slot_count == 0 or trailer.slot_count > store.segment_slots):
        return ENOENT
    index_bytes = (trailer.slot_count * sizeof(Fingerprint) + SLOT_BYTES - 1) // SLOT_BYTES * SLOT_BYTES
    if trailer.slot_count * <uint64_t>SLOT_BYTES + index_bytes + SLOT_BYTES != size_bytes:
        return ENOENT
    fingerprints = <Fingerprint*>malloc(index_bytes)
    if fingerprints == NULL:
        return ENOMEM
    if (medium_read(segment.file, fingerprints, index_bytes, trailer.slot_count * <uint64_t>SLOT_BYTES)
            or checksum64(fingerprints, index_bytes) != trailer.index_checksum):
        free(fingerprints)
        return ENOENT
    segment.fingerprints = fingerprints
    segment.slot_count = trailer.slot_count
    segment.first_lsn = trailer.first_lsn
    segment.end_lsn = trailer.end_lsn
    segment.sealed = 1
    return 0


cdef uint64_t entry_lsn_count(const BatchEntry* entry) noexcept nogil:
    return entry.b if entry.kind == ENTRY_REFERENCE else 1


cdef uint32_t batch_slots(const BatchHeader* header) noexcept nogil:
    """Slots of a batch, with both copies of its header."""
    return 2 + header.payload_count


cdef void batch_sign(SegmentStore* store, BatchHeader* header) noexcept nogil:
    """Complete the header at the start of a slot that is otherwise filled."""
    header.magic = BATCH_MAGIC
    memcpy(header.uuid, store.uuid, 16)
    header.checksum = checksum64(&header.uuid, SLOT_BYTES - 16)


cdef int batch_verify(SegmentStore* store, Segment* segment, uint32_t index, const char* slot) noexcept nogil:
    """0 when `slot` is the header of a batch of this segment at this index, with counts in bounds; EIO otherwise."""
    cdef const BatchHeader* header = <const BatchHeader*>slot
    cdef const BatchEntry* entries = <const BatchEntry*>(slot + sizeof(BatchHeader))
    cdef uint32_t i, payload = 0
    cdef uint64_t lsn_count = 0
    if (header.magic != BATCH_MAGIC or header.segment_id != segment.id or header.index != index
            or memcmp(header.uuid, store.uuid, 16) != 0
            or header.checksum != checksum64(&header.uuid, SLOT_BYTES - 16)
            or header.entry_count == 0 or header.entry_count > BATCH_ENTRIES_MAX
            or header.payload_count > BATCH_ENTRIES_MAX
            or index + <uint64_t>batch_slots(header) > store.segment_slots):
        return EIO
    for i in range(header.entry_count):
        lsn_count += entry_lsn_count(&entries[i])
        if entries[i].kind == ENTRY_DATA:
            payload += 1
        elif entries[i].kind == ENTRY_REFERENCE:
            if (entries[i].b == 0 or entries[i].b > store.segment_slots
                    or (entries[i].a & 0xFFFFFFFFULL) + entries[i].b > store.segment_slots):
                return EIO
        elif entries[i].kind == ENTRY_RECORD:
            if entries[i].object > BATCH_ENTRIES_MAX or entries[i].block > <uint64_t>entries[i].object * SLOT_BYTES:
                return EIO
            payload += entries[i].object
    return 0 if payload == header.payload_count and lsn_count == header.lsn_count else EIO


cdef uint32_t batch_recognise(SegmentStore* store, Segment* segment, uint32_t place, const char* slot) noexcept nogil:
    """The index of the batch that has a copy of its header at `place`, which holds `slot`; 0: it is no header."""
    cdef const BatchHeader* header = <const BatchHeader*>slot
    if header.index != place and header.index + <uint64_t>batch_slots(header) - 1 != place:
        return 0
    return 0 if batch_verify(store, segment, header.index, slot) else header.index


cdef int batch_find(
    SegmentStore* store, Segment* segment, uint32_t index, uint64_t size_bytes, char* slot
) noexcept nogil:
    """The verified header of the batch at `index`, from either copy; ENOENT: there is none; else it cannot be told.

    size_bytes: of the file.  The second copy's place depends on the payload, so it is looked for wherever it may be.
    """
    cdef uint32_t place
    cdef int failure, unread = 0
    if index == 0 or index >= store.segment_slots:
        return ENOENT
    for place in range(index, index + BATCH_SLOTS_MAX):
        if (<uint64_t>place + 1) * SLOT_BYTES > size_bytes:
            break
        failure = medium_read(segment.file, slot, SLOT_BYTES, <uint64_t>place * SLOT_BYTES)
        if failure:
            unread = failure
        elif batch_recognise(store, segment, place, slot) == index:
            return 0
    return unread or ENOENT


cdef void take_fingerprints(const char* slot, uint32_t index, Fingerprint* fingerprints) noexcept nogil:
    """Note the fingerprints of one batch, whose header slot is at `index`."""
    cdef const BatchHeader* header = <const BatchHeader*>slot
    cdef const BatchEntry* entries = <const BatchEntry*>(slot + sizeof(BatchHeader))
    cdef uint32_t i, place = index + 1
    for i in range(header.entry_count):
        if entries[i].kind == ENTRY_DATA:
            fingerprints[place].low = entries[i].a
            fingerprints[place].high = entries[i].b
            place += 1
        elif entries[i].kind == ENTRY_RECORD:
            place += entries[i].object


cdef int scan_batches(SegmentStore* store, Segment* segment, uint64_t size_bytes) noexcept nogil:
    """Rebuild slot count and fingerprints from the batch headers of a segment without a trailer."""
    cdef char slot[SLOT_BYTES]
    cdef BatchHeader* header = <BatchHeader*>slot
    cdef uint32_t index = 1, end = 1, found
    cdef Fingerprint* fingerprints = <Fingerprint*>calloc(store.segment_slots, sizeof(Fingerprint))
    if fingerprints == NULL:
        return ENOMEM
    segment.unread = 0
    while (<uint64_t>index + 1) * SLOT_BYTES <= size_bytes and index < store.segment_slots:
        if medium_read(segment.file, slot, SLOT_BYTES, <uint64_t>index * SLOT_BYTES):
            segment.unread += 1
            index += 1
            continue
        found = batch_recognise(store, segment, index, slot)
        if found < end:
            index += 1          # both copies of a header damaged cost that batch, not those behind it
            continue
        take_fingerprints(slot, found, fingerprints)
        if end == 1:
            segment.first_lsn = header.first_lsn
        segment.end_lsn = header.first_lsn + header.lsn_count
        index = end = found + batch_slots(header)
    segment.fingerprints = fingerprints
    segment.slot_count = end
    return 0


cdef void cold_identity(SegmentStore* store, Segment* segment, ColdHeader* header) noexcept nogil:
    """What the header of a compacted segment's file must say, and how many slots it may tell of."""
    memset(header, 0, sizeof(ColdHeader))
    memcpy(header.uuid, store.uuid, 16)
    header.id = segment.id
    header.generation = segment.generation
    header.slot_count = store.segment_slots


cdef int load_compacted(SegmentStore* store, Segment* segment) noexcept nogil:
    cdef ColdHeader header
    cdef int failure
    cold_identity(store, segment, &header)
    failure = cold_load(segment.file, &header, &segment.cold, &segment.fingerprints)
    if failure:
        return EIO if failure == ENOENT else failure
    store_u32(&segment.slot_count, header.slot_count)
    segment.first_lsn = header.first_lsn
    segment.end_lsn = header.end_lsn
    segment.sealed = 1
    return 0


cdef void drop_contents(Segment* segment) noexcept nogil:
    """Free what is in memory of a segment."""
    free(segment.fingerprints)
    segment.fingerprints = NULL
    cold_free(segment.cold)
    segment.cold = NULL


cdef int open_segment(SegmentStore* store, Segment* segment) noexcept nogil:
    """Open the file and bring the fingerprints in.  Caller holds segment.lock."""
    cdef char path[PATH_BYTES]
    cdef uint64_t size_bytes = 0
    cdef int failure
    segment_path(store, segment, path)
    failure = medium_open(path, MEDIUM_WRITE, &segment.file)
    if failure:
        segment.file = -1
        return failure
    if segment.generation:
        failure = load_compacted(store, segment)
    else:
        failure = medium_size(segment.file, &size_bytes)
        if not failure:
            failure = load_trailer(store, segment, size_bytes)
        if failure == ENOENT:
            failure = scan_batches(store, segment, size_bytes)
    if failure:
        medium_close(segment.file)
        segment.file = -1
        return failure
    add_u64(&store.open_count, 1)
    return 0


cdef void close_segment(SegmentStore* store, Segment* segment) noexcept nogil:
    """Caller holds segment.lock; there are no pins."""
    medium_close(segment.file)
    segment.file = -1
    drop_contents(segment)
    add_u64(&store.open_count, <uint64_t>-1)


cdef void segments_evict(SegmentStore* store) noexcept nogil:
    """Close segments nobody used lately, until fewer than open_max are open (or all were looked at twice)."""
    cdef uint32_t scanned = 0, end = load_u32(&store.id_end)
    cdef Segment* segment
    pthread_mutex_lock(&store.evict_lock)
    while load_u64(&store.open_count) >= store.open_max and scanned < 2 * end:
        scanned += 1
        store.clock_hand += 1
        if store.clock_hand >= end:
            store.clock_hand = 0
        segment = segments_get(store, store.clock_hand)
        if segment == NULL:
            continue
        pthread_mutex_lock(&segment.lock)
        if segment.file >= 0 and segment.pins == 0:
            if segment.referenced:
                segment.referenced = 0
            else:
                close_segment(store, segment)
        pthread_mutex_unlock(&segment.lock)
    pthread_mutex_unlock(&store.evict_lock)


cdef void wait_until_replaced(Segment* segment) noexcept nogil:
    """Caller holds segment.lock, which is let go meanwhile."""
    cdef uint64_t begun_ns = begin_wait()
    while segment.replacing:
        pthread_mutex_unlock(&segment.lock)
        usleep(PIN_WAIT_US)
        pthread_mutex_lock(&segment.lock)
    end_wait(CAUSE_COMPACTION, begun_ns)


cdef int segment_pin(SegmentStore* store, uint64_t id, Segment** out) noexcept nogil:
    """The segment, with file and fingerprints in memory until segment_unpin."""
    cdef Segment* segment = segments_get(store, id)
    cdef int failure = 0
    if segment == NULL:
        return EIO
    timed_lock(&segment.lock, CAUSE_LOCK)
    if segment.file < 0 and load_u64(&store.open_count) >= store.open_max:
        pthread_mutex_unlock(&segment.lock)
        segments_evict(store)
        pthread_mutex_lock(&segment.lock)
    if segment.replacing:
        wait_until_replaced(segment)
    if segment.gone:
        failure = EIO
    elif segment.file < 0:
        failure = open_segment(store, segment)
    if not failure:
        segment.pins += 1
        segment.referenced = 1
    pthread_mutex_unlock(&segment.lock)
    out[0] = segment
    return failure


cdef void segment_unpin(SegmentStore* store, Segment* segment) noexcept nogil:
    pthread_mutex_lock(&segment.lock)
    segment.pins -= 1
    pthread_mutex_unlock(&segment.lock)


cdef int segment_read(Segment* segment, uint32_t index, uint32_t count, void* buffer) noexcept nogil:
    """Read `count` slots of a pinned segment; EIO beyond its end."""
    if <uint64_t>index + count > load_u32(&segment.slot_count):
        return EIO
    if segment.cold != NULL:
        tally_blocks(BLOCKS_COLD, count)
        return cold_read(segment.file, segment.cold, index, count, <char*>buffer)
    return medium_read(segment.file, buffer, <uint64_t>count * SLOT_BYTES, <uint64_t>index * SLOT_BYTES)


cdef int segment_seal(SegmentStore* store, Segment* segment, bint truncate) noexcept nogil:
    """Write fingerprints and trailer behind the last slot of a pinned segment; not synced.

    truncate: the file may hold bytes of a torn batch behind its last slot (recovery).
    """
    cdef uint64_t index_bytes = (segment.slot_count * sizeof(Fingerprint) + SLOT_BYTES - 1) // SLOT_BYTES * SLOT_BYTES
    cdef uint64_t end = <uint64_t>segment.slot_count * SLOT_BYTES
    cdef char* buffer = <char*>calloc(1, index_bytes + SLOT_BYTES)
    cdef SegmentHeader* trailer
    cdef int failure = 0
    if buffer == NULL:
        return ENOMEM
    trailer = <SegmentHeader*>(buffer + index_bytes)
    memcpy(buffer, segment.fingerprints, segment.slot_count * sizeof(Fingerprint))
    fill_header(store, segment, trailer, TRAILER_MAGIC)
    trailer.slot_count = segment.slot_count
    trailer.end_lsn = segment.end_lsn
    trailer.index_checksum = checksum64(buffer, index_bytes)
    sign_header(trailer)
    if truncate:
        failure = medium_truncate(segment.file, end)
    if not failure:
        failure = medium_write(segment.file, buffer, index_bytes + SLOT_BYTES, end)
    if not failure:                 # to its own size: that gives back the room reserved behind it
        failure = medium_truncate(segment.file, end + index_bytes + SLOT_BYTES)
    if not failure:
        segment.sealed = 1
        add_u64(&store.bytes_added, index_bytes + SLOT_BYTES)
    free(buffer)
    return failure


# --- compaction ------------------------------------------------------------------------------------------------------

cdef void rewrite_path(SegmentStore* store, char* path) noexcept nogil:
    snprintf(path, PATH_BYTES, b"%s/rewrite", store.path)


cdef int segment_rewrite_begin(SegmentStore* store, int* file) noexcept nogil:
    """An empty file to write a segment's live blocks to; one left by a rewrite that did not end goes."""
    cdef char path[PATH_BYTES]
    cdef int failure
    rewrite_path(store, path)
    failure = medium_open(path, MEDIUM_CREATE, file)
    if failure == EEXIST:
        failure = medium_unlink(path)
        if not failure:
            failure = medium_open(path, MEDIUM_CREATE, file)
    return failure


cdef void segment_rewrite_abandon(SegmentStore* store, int file) noexcept nogil:
    cdef char path[PATH_BYTES]
    rewrite_path(store, path)
    medium_close(file)
    medium_unlink(path)


cdef void keep_others_out(Segment* segment) noexcept nogil:
    """Return with segment.lock held when nobody has the segment pinned.  `replacing` is for the caller to end."""
    pthread_mutex_lock(&segment.lock)
    segment.replacing = True
    while segment.pins:
        pthread_mutex_unlock(&segment.lock)
        usleep(PIN_WAIT_US)
        pthread_mutex_lock(&segment.lock)


cdef int cold_verify(int file, const ColdHeader* known) noexcept nogil:
    """0 when header and index of a compacted segment can be read."""
    cdef ColdHeader header = known[0]
    cdef ColdIndex* index = NULL
    cdef Fingerprint* fingerprints = NULL
    cdef uint32_t slot, found = 0
    cdef int failure = cold_load(file, &header, &index, &fingerprints)
    if not failure:
        for slot in range(header.slot_count):
            found += index.ranks[slot] != 0
        failure = 0 if found == header.block_count else EIO     # a page that is lost is passed over
    cold_free(index)
    free(fingerprints)
    return failure


cdef int segment_peek(SegmentStore* store, uint64_t id, Segment** out, bint* was_open) noexcept nogil:
    """Pin a segment for one look, until segment_let_go."""
    cdef Segment* segment = segments_get(store, id)
    was_open[0] = False
    if segment != NULL:
        pthread_mutex_lock(&segment.lock)
        was_open[0] = segment.file >= 0
        pthread_mutex_unlock(&segment.lock)
    return segment_pin(store, id, out)


cdef void segment_let_go(SegmentStore* store, Segment* segment, bint was_open) noexcept nogil:
    """Unpin a segment, and close it if it was not open before and nobody else has it."""
    pthread_mutex_lock(&segment.lock)
    segment.pins -= 1
    if not was_open and segment.pins == 0 and segment.file >= 0:
        close_segment(store, segment)
    pthread_mutex_unlock(&segment.lock)


cdef bint is_gone(SegmentStore* store, const char* path) noexcept nogil:
    """Remove a name that may be there; whether it is durably not."""
    cdef int failure = medium_unlink(path)
    cdef int unsynced = medium_sync_directory(store.path)
    return (failure == 0 or failure == ENOENT) and not unsynced


cdef int segment_swap(
    SegmentStore* store, Segment* segment, int file, uint64_t* old_bytes, uint64_t* new_bytes, bint* unsure
) noexcept nogil:
    """Let `file`, a complete rewrite, be the segment's; takes the caller's pin.  An error leaves all as it was.

    The caller makes the new name durable before it removes the old one.  Until then a start may find either or both, and of
    both it takes the higher generation: nothing may be added to the old one any more.  unsure: after an error the new name
    may be there all the same.
    """
    cdef char new_path[PATH_BYTES]
    cdef char made_path[PATH_BYTES]
    cdef ColdHeader header
    cdef int failure = 0 if planted(BUG_REWRITE_NOT_SYNCED) else medium_sync(file)
    rewrite_path(store, made_path)
    cold_identity(store, segment, &header)
    header.generation += 1
    generation_path(store, segment, header.generation, new_path)
    if not failure:
        failure = medium_size(segment.file, old_bytes) or medium_size(file, new_bytes)
    if not failure:                     # it is read back before anything relies on it
        failure = cold_verify(file, &header)
    if not failure:
        failure = medium_rename(made_path, new_path)
        unsure[0] = failure and not is_gone(store, new_path)
    segment_unpin(store, segment)
    if failure:
        segment_rewrite_abandon(store, file)
        return failure
    keep_others_out(segment)
    if segment.file >= 0:
        close_segment(store, segment)
    segment.generation += 1
    segment.block_count = 0
    segment.replacing = False
    pthread_mutex_unlock(&segment.lock)
    medium_close(file)
    return 0


cdef int segment_drop(
    SegmentStore* store, Segment* segment, uint32_t generation, uint64_t old_bytes, uint64_t new_bytes
) noexcept nogil:
    """Remove the file of an older generation, of `old_bytes`; that of the new one, of `new_bytes`, is counted instead."""
    cdef char path[PATH_BYTES]
    cdef int failure
    generation_path(store, segment, generation, path)
    failure = medium_unlink(path)
    if not failure:
        add_u64(&store.bytes_removed, old_bytes - new_bytes)
    return failure


cdef int segment_remove(SegmentStore* store, Segment* segment, uint64_t* freed_bytes) noexcept nogil:
    """Remove a segment, which nothing refers to; its id is not used again."""
    cdef char path[PATH_BYTES]
    cdef uint64_t size_bytes = 0
    cdef int failure = 0
    keep_others_out(segment)
    segment_path(store, segment, path)
    if segment.file < 0:
        failure = medium_open(path, MEDIUM_READ, &segment.file)
        if not failure:
            add_u64(&store.open_count, 1)
    if not failure:
        failure = medium_size(segment.file, &size_bytes)
    if not failure:
        failure = medium_unlink(path)
    if segment.file >= 0:
        close_segment(store, segment)
    segment.gone = not failure
    segment.replacing = False
    pthread_mutex_unlock(&segment.lock)
    if failure:
        return failure
    # whoever has it from the table already finds that it is gone
    store_pointer(<void**>&store.table[segment.id], NULL)
    segment.next_removed = store.removed
    store.removed = segment
    add_u64(&store.bytes_removed, size_bytes)
    freed_bytes[0] = size_bytes
    return 0


# --- check and scrub -------------------------------------------------------------------------------------------------

cdef bint segment_header_holds(SegmentStore* store, Segment* segment) noexcept nogil:
    """Whether the header slot verifies."""
    cdef char slot[SLOT_BYTES]
    return (medium_read(segment.file, slot, SLOT_BYTES, 0) == 0
            and header_holds(store, segment, <SegmentHeader*>slot, SEGMENT_MAGIC))


cdef bint segment_index_holds(SegmentStore* store, Segment* segment) noexcept nogil:
    """Whether index and trailer on the disk say what is in memory."""
    cdef char slot[SLOT_BYTES]
    cdef SegmentHeader* trailer = <SegmentHeader*>slot
    cdef uint64_t used = segment.slot_count * sizeof(Fingerprint)
    cdef uint64_t index_bytes = (used + SLOT_BYTES - 1) // SLOT_BYTES * SLOT_BYTES
    cdef uint64_t end = <uint64_t>segment.slot_count * SLOT_BYTES
    cdef uint64_t size_bytes = 0
    cdef char* index = <char*>malloc(index_bytes)
    cdef bint sound
    if index == NULL:
        return True
    sound = (medium_size(segment.file, &size_bytes) == 0 and size_bytes == end + index_bytes + SLOT_BYTES
             and medium_read(segment.file, slot, SLOT_BYTES, end + index_bytes) == 0
             and header_holds(store, segment, trailer, TRAILER_MAGIC)
             and trailer.slot_count == segment.slot_count
             and medium_read(segment.file, index, index_bytes, end) == 0
             and checksum64(index, index_bytes) == trailer.index_checksum
             and memcmp(index, segment.fingerprints, used) == 0)
    free(index)
    return sound


cdef int segment_seal_again(SegmentStore* store, Segment* segment) noexcept nogil:
    """Write index and trailer anew, durably, from what is in memory of a segment that the log has left."""
    cdef uint64_t before = 0
    cdef int failure = medium_size(segment.file, &before)
    if not failure:
        failure = segment_seal(store, segment, True)
    if failure:
        return failure
    # the file was counted with what was behind its last slot
    add_u64(&store.bytes_removed, before - <uint64_t>segment.slot_count * SLOT_BYTES)
    return medium_sync(segment.file)
