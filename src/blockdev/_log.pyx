"""Segments, batches and group commit.  See _log.pxd for the design and docs/format/pool.md for the bytes."""

from libc.errno cimport EEXIST, EFBIG, EIO, ENOENT, ENOMEM, ENOSPC
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strdup

from blockdev._dedup cimport Fingerprint, checksum64
from blockdev._medium cimport (
    MEDIUM_CREATE, MEDIUM_WRITE, medium_close, medium_open, medium_read, medium_report, medium_size, medium_sync,
    medium_sync_directory, medium_truncate, medium_unlink, medium_write,
)
from blockdev._sync cimport (
    add_u32, add_u64, aligned_zeroed, count_u64, load_u32, load_u64, pthread_cond_broadcast, pthread_cond_destroy,
    pthread_cond_init, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock, sched_yield, store_u32, store_u64,
)

cdef uint64_t SEGMENT_MAGIC = 0x31474553444C42      # "BLDSEG1" little-endian
cdef uint64_t TRAILER_MAGIC = 0x31444E45444C42      # "BLDEND1"
cdef uint64_t BATCH_MAGIC = 0x31544142444C42        # "BLDBAT1"

cdef enum:
    PATH_BYTES = 4096


# --- segments --------------------------------------------------------------------------------------------------------

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
    pthread_mutex_destroy(&store.evict_lock)
    free(store.table)
    free(store.path)
    free(store)


cdef void free_segment(Segment* segment) noexcept nogil:
    if segment.file >= 0:
        medium_close(segment.file)
    free(segment.fingerprints)
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
    store.table[segment.id] = segment
    if segment.id >= load_u32(&store.id_end):
        store_u32(&store.id_end, segment.id + 1)


cdef int segments_add(SegmentStore* store, uint32_t id, uint32_t generation, uint64_t size_bytes) noexcept nogil:
    """Make a segment file known that a listing of the directory found."""
    cdef Segment* segment = new_segment(id, generation) if may_add(store, id) else NULL
    if segment == NULL:
        return EFBIG
    add_segment(store, segment)
    add_u64(&store.bytes_used, size_bytes)
    return 0


cdef void segments_remove(SegmentStore* store, Segment* segment) noexcept nogil:
    """Forget a segment whose file is gone.  Nobody else may know it."""
    if segment.file >= 0:
        add_u64(&store.open_count, <uint64_t>-1)
    store.table[segment.id] = NULL
    free_segment(segment)


cdef Segment* segments_get(SegmentStore* store, uint64_t id) noexcept nogil:
    return store.table[id] if id < load_u32(&store.id_end) else NULL


cdef void segment_path(SegmentStore* store, Segment* segment, char* path) noexcept nogil:
    snprintf(path, PATH_BYTES, b"%s/%08x.%u", store.path, segment.id, segment.generation)


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


cdef int write_new_file(SegmentStore* store, Segment* segment) noexcept nogil:
    """The file of a new segment, with its header slot; a failure leaves none."""
    cdef char path[PATH_BYTES]
    cdef char slot[SLOT_BYTES]
    cdef SegmentHeader* header = <SegmentHeader*>slot
    cdef int failure
    memset(slot, 0, SLOT_BYTES)
    fill_header(store, segment, header, SEGMENT_MAGIC)
    header.slot_count = store.segment_slots
    sign_header(header)
    segment_path(store, segment, path)
    failure = medium_open(path, MEDIUM_CREATE, &segment.file)
    if failure:
        segment.file = -1
        return failure
    failure = medium_write(segment.file, slot, SLOT_BYTES, 0)
    if failure:
        medium_unlink(path)
    return failure


cdef int create_segment(SegmentStore* store, uint32_t id, uint64_t first_lsn, Segment** out) noexcept nogil:
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
        failure = write_new_file(store, segment)
    if failure:
        free_segment(segment)
        return failure
    add_u64(&store.open_count, 1)
    add_u64(&store.bytes_used, SLOT_BYTES)
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
    if not header_holds(store, segment, trailer, TRAILER_MAGIC):
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
    free(segment.fingerprints)
    segment.fingerprints = NULL
    add_u64(&store.open_count, <uint64_t>-1)


cdef void evict_segments(SegmentStore* store) noexcept nogil:
    """Close segments nobody used lately, until fewer than open_max are open (or all were looked at twice)."""
    cdef uint32_t scanned = 0, end = load_u32(&store.id_end)
    cdef Segment* segment
    pthread_mutex_lock(&store.evict_lock)
    while load_u64(&store.open_count) >= store.open_max and scanned < 2 * end:
        scanned += 1
        store.clock_hand += 1
        if store.clock_hand >= end:
            store.clock_hand = 0
        segment = store.table[store.clock_hand]
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


cdef int segment_pin(SegmentStore* store, uint64_t id, Segment** out) noexcept nogil:
    """The segment, with file and fingerprints in memory until segment_unpin."""
    cdef Segment* segment = segments_get(store, id)
    cdef int failure = 0
    if segment == NULL:
        return EIO
    if segment.file < 0 and load_u64(&store.open_count) >= store.open_max:
        evict_segments(store)
    pthread_mutex_lock(&segment.lock)
    if segment.file < 0:
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
    if not failure:
        segment.sealed = 1
        add_u64(&store.bytes_used, index_bytes + SLOT_BYTES)
    free(buffer)
    return failure


# --- log -------------------------------------------------------------------------------------------------------------

cdef Log* log_create(SegmentStore* segments, uint32_t next_id, uint64_t next_lsn) noexcept nogil:
    cdef Log* log = <Log*>calloc(1, sizeof(Log))
    cdef int i
    if log == NULL:
        return NULL
    log.segments = segments
    log.next_id = next_id
    log.next_lsn = next_lsn
    log.durable_lsn = next_lsn
    log.first_unwritten = make_address(next_id, 0)
    log.data_limit_bytes = <uint64_t>-1
    log.hard_limit_bytes = <uint64_t>-1
    pthread_mutex_init(&log.write_lock, NULL)
    pthread_mutex_init(&log.lock, NULL)
    pthread_cond_init(&log.changed, NULL)
    for i in range(BATCH_RING):
        log.ring[i].slots = <char*>aligned_zeroed(SLOT_BYTES, BATCH_SLOTS_MAX * SLOT_BYTES)
        if log.ring[i].slots == NULL:
            log_destroy(log)
            return NULL
    return log


cdef void log_destroy(Log* log) noexcept nogil:
    cdef int i
    if log == NULL:
        return
    for i in range(BATCH_RING):
        free(log.ring[i].slots)
    pthread_mutex_destroy(&log.write_lock)
    pthread_mutex_destroy(&log.lock)
    pthread_cond_destroy(&log.changed)
    free(log)


cdef void poison(Log* log, int failure) noexcept nogil:
    """Refuse all further writes.  Caller holds log.lock."""
    if not log.poisoned:
        log.poisoned = failure
        medium_report(b"blockdev: log write failed: %s; writes are refused until the engine is restarted\n",
                      failure, 0, 0)
    pthread_cond_broadcast(&log.changed)


cdef void log_poison(Log* log, int failure) noexcept nogil:
    """Refuse further writes because memory and log no longer agree."""
    pthread_mutex_lock(&log.lock)
    poison(log, failure)
    pthread_mutex_unlock(&log.lock)


cdef void close_batch(Log* log) noexcept nogil:
    """End the open batch; log_drain will write it.  Caller holds log.lock."""
    if log.open:
        store_u32(&log.segment.slot_count, log.segment.slot_count + 1)      # the second copy of its header
        add_u64(&log.segments.bytes_used, SLOT_BYTES)
        log.open = False
        log.open_number += 1


cdef int roll_segment(Log* log) noexcept nogil:
    """Go on in a new segment.  Caller holds log.lock; no batch is open."""
    cdef Segment* segment = NULL
    cdef int failure
    if log.unsynced_count == UNSYNCED_MAX:
        return ENOSPC
    failure = create_segment(log.segments, log.next_id, log.next_lsn, &segment)
    while failure == EEXIST:        # left by one that could be neither written nor removed
        log.next_id += 1
        failure = create_segment(log.segments, log.next_id, log.next_lsn, &segment)
    if failure:
        return failure
    log.next_id += 1
    log.segment = segment
    log.unsynced[log.unsynced_count] = segment
    log.unsynced_count += 1
    log.directory_dirty = True
    return 0


cdef int open_batch(Log* log, uint32_t payload_slots) noexcept nogil:
    """Begin a batch with room for `payload_slots`.  Caller holds log.lock, which is released while the ring is full."""
    cdef Batch* batch
    cdef int failure
    while log.open_number - log.written_number >= BATCH_RING and not log.poisoned:
        pthread_mutex_unlock(&log.lock)     # help to make room rather than wait for whoever should
        log_drain(log)
        pthread_mutex_lock(&log.lock)
    if log.poisoned:
        return EIO
    if log.open:                    # someone else began it while we waited
        return 0
    if log.segment == NULL or log.segment.slot_count + 2 + payload_slots > log.segments.segment_slots:
        failure = roll_segment(log)
        if failure:
            return failure
    batch = &log.ring[log.open_number % BATCH_RING]
    batch.segment = log.segment
    batch.index = log.segment.slot_count
    batch.entry_count = 0
    batch.lsn_count = 0
    batch.payload_count = 0
    batch.first_lsn = log.next_lsn
    store_u32(&log.segment.slot_count, log.segment.slot_count + 1)
    add_u64(&log.segments.bytes_used, SLOT_BYTES)
    log.open = True
    return 0


cdef inline bint batch_has_room(Log* log, Batch* batch, uint32_t payload_slots) noexcept nogil:
    return (batch.entry_count < BATCH_ENTRIES_MAX
            and batch.payload_count + payload_slots <= BATCH_ENTRIES_MAX
            and batch.segment.slot_count + payload_slots + 1 <= log.segments.segment_slots)


cdef int reserve(Log* log, EntryKind kind, uint32_t payload_slots, Batch** out, bint* closed) noexcept nogil:
    """The open batch with room for one entry and its payload.  Caller holds log.lock."""
    cdef uint64_t limit = log.hard_limit_bytes
    cdef Batch* batch
    cdef int failure
    if log.poisoned:
        return EIO
    if kind == ENTRY_DATA:
        limit = log.data_limit_bytes
    elif kind != ENTRY_RECORD:      # guests leave half of the reserve: a delete must always be possible
        limit -= (log.hard_limit_bytes - log.data_limit_bytes) // 2
    if load_u64(&log.segments.bytes_used) + (payload_slots + <uint64_t>2) * SLOT_BYTES > limit:
        return ENOSPC
    while True:
        batch = &log.ring[log.open_number % BATCH_RING]
        if log.open and batch_has_room(log, batch, payload_slots):
            out[0] = batch
            return 0
        if log.open:
            close_batch(log)
            closed[0] = True
        failure = open_batch(log, payload_slots)
        if failure:
            return failure


cdef uint64_t take_lsn(Log* log, Batch* batch) noexcept nogil:
    """Count one more LSN into the open batch; returns the LSN after it.  Caller holds log.lock."""
    store_u64(&log.next_lsn, log.next_lsn + 1)
    batch.lsn_count += 1
    batch.segment.end_lsn = log.next_lsn
    return log.next_lsn


cdef bint extend_reference(Log* log, uint32_t object, uint64_t block, uint64_t known, uint64_t* end_lsn) noexcept nogil:
    """Let the last entry of the open batch refer to one block more, if it refers to the ones before these.

    Without this a disk image that is there already would cost 32 bytes a block.  Caller holds log.lock.
    """
    cdef Batch* batch = &log.ring[log.open_number % BATCH_RING]
    cdef BatchEntry* last
    if not log.open or batch.entry_count == 0 or log.poisoned:
        return False
    last = <BatchEntry*>(batch.slots + sizeof(BatchHeader)) + batch.entry_count - 1
    if (last.kind != ENTRY_REFERENCE or last.object != object
            or last.block + last.b != block or last.a + last.b != known):
        return False
    last.b += 1
    end_lsn[0] = take_lsn(log, batch)
    return True


cdef int log_append(
    Log* log, EntryKind kind, uint32_t object, uint64_t block, uint64_t a, uint64_t b,
    const void* payload, uint32_t payload_slots, uint64_t* address, uint64_t* end_lsn
) noexcept nogil:
    """Append one entry with its payload.  `address`: of the first payload slot; `end_lsn`: flush up to here for it.

    ENOSPC: the pool is full for this kind.  EIO: poisoned.  The entry can be read on return; durable after log_flush.
    """
    cdef Batch* batch = NULL
    cdef BatchEntry* entry
    cdef uint32_t index
    cdef char* place
    cdef bint closed = False
    cdef int failure
    pthread_mutex_lock(&log.lock)
    if kind == ENTRY_REFERENCE and extend_reference(log, object, block, a, end_lsn):
        pthread_mutex_unlock(&log.lock)
        return 0
    failure = reserve(log, kind, payload_slots, &batch, &closed)
    if failure:
        pthread_mutex_unlock(&log.lock)
        if closed:
            log_drain(log)
        return failure
    entry = <BatchEntry*>(batch.slots + sizeof(BatchHeader)) + batch.entry_count
    entry.a = a
    entry.b = b
    entry.block = block
    entry.object = object
    entry.kind = kind
    index = batch.index + 1 + batch.payload_count
    place = batch.slots + (1 + batch.payload_count) * SLOT_BYTES
    batch.entry_count += 1
    batch.payload_count += payload_slots
    add_u32(&batch.filling, 1)
    if kind == ENTRY_DATA:
        batch.segment.fingerprints[index].low = a
        batch.segment.fingerprints[index].high = b
    store_u32(&batch.segment.slot_count, batch.segment.slot_count + payload_slots)
    add_u64(&log.segments.bytes_used, <uint64_t>payload_slots * SLOT_BYTES)
    address[0] = make_address(batch.segment.id, index)
    end_lsn[0] = take_lsn(log, batch)
    if not batch_has_room(log, batch, 1):
        close_batch(log)
        closed = True
    pthread_mutex_unlock(&log.lock)
    if payload_slots:
        memcpy(place, payload, <uint64_t>payload_slots * SLOT_BYTES)
    add_u32(&batch.filling, -1)
    return log_drain(log) if closed else 0


cdef bint log_read_unwritten(Log* log, uint64_t address, void* block) noexcept nogil:
    """Copy a block out of a batch in memory; False when it is in its file by now."""
    cdef uint64_t number
    cdef Batch* batch
    cdef uint32_t id = <uint32_t>(address >> 32)
    cdef uint32_t index = <uint32_t>address
    cdef bint found = False
    pthread_mutex_lock(&log.lock)
    number = log.written_number
    while number < log.open_number + log.open and not found:
        batch = &log.ring[number % BATCH_RING]
        if batch.segment.id == id and batch.index < index <= batch.index + batch.payload_count:
            memcpy(block, batch.slots + <uint64_t>(index - batch.index) * SLOT_BYTES, SLOT_BYTES)
            found = True
        number += 1
    pthread_mutex_unlock(&log.lock)
    return found


cdef int write_batch(Log* log, Batch* batch) noexcept nogil:
    """Sign a closed batch and write it.  Caller holds write_lock."""
    cdef BatchHeader* header = <BatchHeader*>batch.slots
    cdef uint64_t used = sizeof(BatchHeader) + batch.entry_count * sizeof(BatchEntry)
    cdef int failure
    while load_u32(&batch.filling):
        sched_yield()
    memset(header, 0, sizeof(BatchHeader))
    memset(batch.slots + used, 0, SLOT_BYTES - used)
    header.magic = BATCH_MAGIC
    memcpy(header.uuid, log.segments.uuid, 16)
    header.segment_id = batch.segment.id
    header.index = batch.index
    header.first_lsn = batch.first_lsn
    header.durable_lsn = load_u64(&log.durable_lsn)
    header.entry_count = batch.entry_count
    header.lsn_count = batch.lsn_count
    header.payload_count = batch.payload_count
    header.checksum = checksum64(&header.uuid, SLOT_BYTES - 16)
    memcpy(batch.slots + (1 + <uint64_t>batch.payload_count) * SLOT_BYTES, header, SLOT_BYTES)
    failure = medium_write(batch.segment.file, batch.slots, <uint64_t>batch_slots(header) * SLOT_BYTES,
                           <uint64_t>batch.index * SLOT_BYTES)
    if not failure:
        count_u64(&log.batches, 1)
        store_u64(&log.first_unwritten, make_address(batch.segment.id, batch.index + batch_slots(header)))
    return failure


cdef int log_drain(Log* log) noexcept nogil:
    """Write all closed batches, in order.  0, or EIO when the log is poisoned."""
    cdef Batch* batch
    cdef int failure = 0
    pthread_mutex_lock(&log.write_lock)
    while True:
        pthread_mutex_lock(&log.lock)
        if log.poisoned or log.written_number == log.open_number:
            failure = EIO if log.poisoned else 0
            pthread_mutex_unlock(&log.lock)
            break
        batch = &log.ring[log.written_number % BATCH_RING]
        pthread_mutex_unlock(&log.lock)
        failure = write_batch(log, batch)
        pthread_mutex_lock(&log.lock)
        if failure:
            poison(log, failure)
        else:
            log.written_number += 1
        pthread_mutex_unlock(&log.lock)
    pthread_mutex_unlock(&log.write_lock)
    return failure


cdef int sync_segments(Log* log, Segment** unsynced, uint32_t count, bint directory) noexcept nogil:
    """Seal the segments that are full, sync them all, and the directory if it has new names."""
    cdef uint32_t i
    cdef int failure = 0
    for i in range(count):
        if i + 1 < count and not unsynced[i].sealed:
            failure = segment_seal(log.segments, unsynced[i], False)
        if not failure:
            failure = medium_sync(unsynced[i].file)
        if failure:
            return failure
    if directory:
        failure = medium_sync_directory(log.segments.path)
        if load_u64(&log.segments.open_count) >= log.segments.open_max:
            evict_segments(log.segments)    # those that were begun here are open too
    count_u64(&log.syncs, 1)
    return failure


cdef int sync_now(Log* log) noexcept nogil:
    """Make durable what is appended now.  Caller holds log.lock and has set log.syncing; the lock is let go meanwhile."""
    cdef uint64_t target
    cdef uint32_t count = log.unsynced_count
    cdef bint directory = log.directory_dirty
    cdef Segment** unsynced
    cdef uint32_t i
    cdef int failure
    close_batch(log)
    target = log.next_lsn
    log.directory_dirty = False
    unsynced = <Segment**>malloc((count + 1) * sizeof(Segment*))
    if unsynced == NULL:
        return ENOMEM
    memcpy(unsynced, log.unsynced, count * sizeof(Segment*))
    pthread_mutex_unlock(&log.lock)
    failure = log_drain(log)
    if not failure:
        failure = sync_segments(log, unsynced, count, directory)
    pthread_mutex_lock(&log.lock)
    if not failure:
        # the last one may have grown since; the others are complete and sealed
        for i in range(1, count):
            segment_unpin(log.segments, unsynced[i - 1])
        if count > 1:
            log.unsynced_count -= count - 1
            for i in range(log.unsynced_count):
                log.unsynced[i] = log.unsynced[i + count - 1]
        store_u64(&log.durable_lsn, target)
    free(unsynced)
    return failure


cdef int log_flush(Log* log, uint64_t target_lsn) noexcept nogil:
    """Return when every entry below `target_lsn` is durable; EIO when that will never be."""
    cdef int failure = 0
    pthread_mutex_lock(&log.lock)
    while log.durable_lsn < target_lsn and not log.poisoned:
        if log.syncing:
            pthread_cond_wait(&log.changed, &log.lock)
            continue
        log.syncing = True
        failure = sync_now(log)
        log.syncing = False
        if failure:
            poison(log, failure)
        pthread_cond_broadcast(&log.changed)
    failure = 0 if log.durable_lsn >= target_lsn else EIO
    pthread_mutex_unlock(&log.lock)
    return failure


cdef void log_position(Log* log, uint32_t* segment_id, uint32_t* index, uint64_t* lsn) noexcept nogil:
    """Where replay must begin to see every entry from `lsn` (the next one) on: the open batch, or the end of the log."""
    cdef Batch* batch
    pthread_mutex_lock(&log.lock)
    batch = &log.ring[log.open_number % BATCH_RING]
    lsn[0] = log.next_lsn
    if log.open:
        segment_id[0] = batch.segment.id
        index[0] = batch.index
    elif log.segment != NULL:
        segment_id[0] = log.segment.id
        index[0] = log.segment.slot_count
    else:
        segment_id[0] = log.next_id
        index[0] = 1
    pthread_mutex_unlock(&log.lock)


cdef int log_close(Log* log) noexcept nogil:
    """Flush, and seal the hot segment so that the next start need not scan it."""
    cdef int failure = log_flush(log, load_u64(&log.next_lsn))
    if not failure and log.segment != NULL and not log.segment.sealed:
        failure = segment_seal(log.segments, log.segment, False)
        if not failure:
            failure = medium_sync(log.segment.file)
    return failure
