"""Appending and group commit.  See _log.pxd for the design and docs/format/pool.md for the bytes."""

from libc.errno cimport EEXIST, EIO, ENOMEM, ENOSPC
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from blockdev._medium cimport (
    BUG_FLUSH_WITHOUT_SYNC, BUG_HEADER_BEFORE_PAYLOAD, BUG_NEWEST_SEGMENT_ONLY, BUG_NO_DIRECTORY_SYNC,
    BUG_OPEN_BATCH_NOT_KEPT, BUG_SYNC_FAILURE_IGNORED, BUG_WRITTEN_COUNTS_AS_DURABLE, medium_report, medium_sync,
    medium_sync_directory, medium_write, planted,
)
from blockdev._segments cimport (
    BATCH_ENTRIES_MAX, BATCH_SLOTS_MAX, ENTRY_DATA, ENTRY_RECORD, ENTRY_REFERENCE, SLOT_BYTES, BatchEntry,
    BatchHeader, batch_sign, make_address, segment_allocate, segment_create, segment_fill_ahead,
    segment_seal, segment_unpin, segments_bytes, segments_evict,
)
from blockdev._spare cimport spare_keep, spare_lend
from blockdev._statistics cimport CAUSE_LOG, begin_wait, end_wait, timed_lock
from blockdev._sync cimport (
    add_u32, add_u64, count_u64, load_u32, load_u64, pthread_cond_broadcast, pthread_cond_destroy,
    pthread_cond_init, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_unlock, sched_yield,
    store_u32, store_u64,
)


cdef Log* log_create(SegmentStore* segments, uint32_t next_id, uint64_t next_lsn) noexcept nogil:
    cdef Log* log = <Log*>calloc(1, sizeof(Log))
    cdef size_t aligned
    cdef int i
    if log == NULL:
        return NULL
    log.segments = segments
    log.next_id = next_id
    log.next_lsn = next_lsn
    log.durable_lsn = next_lsn
    log.kept_lsn = next_lsn
    log.first_unwritten = make_address(next_id, 0)
    log.data_limit_bytes = <uint64_t>-1
    log.hard_limit_bytes = <uint64_t>-1
    pthread_mutex_init(&log.write_lock, NULL)
    pthread_mutex_init(&log.lock, NULL)
    pthread_cond_init(&log.changed, NULL)
    log.ring_memory = <char*>calloc(BATCH_RING * BATCH_SLOTS_MAX + 1, SLOT_BYTES)
    if log.ring_memory == NULL:
        log_destroy(log)
        return NULL
    aligned = (<size_t>log.ring_memory + SLOT_BYTES - 1) // SLOT_BYTES * SLOT_BYTES
    for i in range(BATCH_RING):
        log.ring[i].slots = <char*>aligned + i * BATCH_SLOTS_MAX * SLOT_BYTES
    return log


cdef void log_destroy(Log* log) noexcept nogil:
    if log == NULL:
        return
    free(log.ring_memory)
    pthread_mutex_destroy(&log.write_lock)
    pthread_mutex_destroy(&log.lock)
    pthread_cond_destroy(&log.changed)
    free(log)


cdef void poison(Log* log, int failure) noexcept nogil:
    """Refuse all further writes.  Caller holds log.lock."""
    if not log.poisoned:
        store_u32(&log.poisoned, failure)
        medium_report(b"blockdev: log write failed: %s; writes are refused until the engine is restarted\n",
                      failure, 0, 0)
    pthread_cond_broadcast(&log.changed)


cdef void log_poison(Log* log, int failure) noexcept nogil:
    """Refuse further writes because memory and log no longer agree."""
    timed_lock(&log.lock, CAUSE_LOG)
    poison(log, failure)
    pthread_mutex_unlock(&log.lock)


cdef void close_batch(Log* log) noexcept nogil:
    """End the open batch; log_drain will write it.  Caller holds log.lock."""
    if log.open:
        store_u32(&log.segment.slot_count, log.segment.slot_count + 1)      # the second copy of its header
        add_u64(&log.segments.bytes_added, SLOT_BYTES)
        log.open = False
        log.open_number += 1


cdef int roll_segment(Log* log, EntryKind kind) noexcept nogil:
    """Go on in a new segment.  Caller holds log.lock; no batch is open."""
    cdef Segment* segment = NULL
    cdef int failure
    if log.unsynced_count == UNSYNCED_MAX:
        return ENOSPC
    failure = segment_create(log.segments, log.next_id, log.next_lsn, kind != ENTRY_DATA, &segment)
    while failure == EEXIST:        # left by one that could be neither written nor removed
        log.next_id += 1
        failure = segment_create(log.segments, log.next_id, log.next_lsn, kind != ENTRY_DATA, &segment)
    if failure:
        return failure
    log.next_id += 1
    log.segment = segment
    log.unsynced[log.unsynced_count] = segment
    log.unsynced_count += 1
    log.directory_dirty = True
    return 0


cdef int make_room(Log* log, EntryKind kind, uint32_t payload_slots) noexcept nogil:
    """Have a hot segment with room for a batch, in it and on the disk.  Caller holds log.lock; no batch is open."""
    cdef int failure
    if log.segment != NULL and log.segment.slot_count + 2 + payload_slots <= log.segments.segment_slots:
        failure = segment_allocate(log.segments, log.segment,
                                   min(log.segment.slot_count + BATCH_SLOTS_MAX, log.segments.segment_slots))
        if failure != ENOSPC or kind == ENTRY_DATA:
            return failure
    return roll_segment(log, kind)


cdef int open_batch(Log* log, EntryKind kind, uint32_t payload_slots) noexcept nogil:
    """Begin a batch with room for `payload_slots`.  Caller holds log.lock, which is released while the ring is full."""
    cdef Batch* batch
    cdef int failure
    while log.open_number - log.written_number >= BATCH_RING and not log.poisoned:
        pthread_mutex_unlock(&log.lock)     # help to make room rather than wait for whoever should
        log_drain(log)
        timed_lock(&log.lock, CAUSE_LOG)
    if log.poisoned:
        return EIO
    if log.open:                    # someone else began it while we waited
        return 0
    failure = make_room(log, kind, payload_slots)
    if failure:
        return failure
    batch = &log.ring[log.open_number % BATCH_RING]
    batch.segment = log.segment
    batch.index = log.segment.slot_count
    batch.entry_count = 0
    batch.lsn_count = 0
    batch.payload_count = 0
    batch.kept_payload_count = 0
    batch.kept = False
    batch.first_lsn = log.next_lsn
    store_u32(&log.segment.slot_count, log.segment.slot_count + 1)
    add_u64(&log.segments.bytes_added, SLOT_BYTES)
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
        if (log.segments.spare.slots < log.segments.spare.slots_wanted
                and spare_keep(&log.segments.spare, log.segments.path) == ENOSPC):
            return ENOSPC               # what room there is, is for deletes
        limit = log.data_limit_bytes
    elif kind != ENTRY_RECORD:      # guests leave half of the reserve: a delete must always be possible
        limit -= (log.hard_limit_bytes - log.data_limit_bytes) // 2
    if segments_bytes(log.segments) + (payload_slots + <uint64_t>2) * SLOT_BYTES > limit:
        return ENOSPC
    while True:
        batch = &log.ring[log.open_number % BATCH_RING]
        if log.open and batch_has_room(log, batch, payload_slots):
            out[0] = batch
            return 0
        if log.open:
            close_batch(log)
            closed[0] = True
        failure = open_batch(log, kind, payload_slots)
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
    timed_lock(&log.lock, CAUSE_LOG)
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
    add_u64(&log.segments.bytes_added, <uint64_t>payload_slots * SLOT_BYTES)
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


cdef int log_keep_spare(Log* log) noexcept nogil:
    """Make the spare file again once there is room; ENOSPC while there is none."""
    cdef int failure
    timed_lock(&log.lock, CAUSE_LOG)
    failure = spare_keep(&log.segments.spare, log.segments.path)
    pthread_mutex_unlock(&log.lock)
    return failure


cdef void log_lend_spare(Log* log, bint lent) noexcept nogil:
    """Let compaction have the room that is kept for when there is no other; guests' data is refused meanwhile."""
    timed_lock(&log.lock, CAUSE_LOG)
    spare_lend(&log.segments.spare, log.segments.path, lent)
    pthread_mutex_unlock(&log.lock)


cdef bint log_read_unwritten(Log* log, uint64_t address, void* block) noexcept nogil:
    """Copy a block out of a batch in memory; False when it is in its file by now."""
    cdef uint64_t number
    cdef Batch* batch
    cdef uint32_t id = <uint32_t>(address >> 32)
    cdef uint32_t index = <uint32_t>address
    cdef bint found = False
    timed_lock(&log.lock, CAUSE_LOG)
    number = log.written_number
    while number < log.open_number + log.open and not found:
        batch = &log.ring[number % BATCH_RING]
        if batch.segment.id == id and batch.index < index <= batch.index + batch.payload_count:
            memcpy(block, batch.slots + <uint64_t>(index - batch.index) * SLOT_BYTES, SLOT_BYTES)
            found = True
        number += 1
    pthread_mutex_unlock(&log.lock)
    return found


cdef void sign_header(Log* log, Batch* batch, char* slot) noexcept nogil:
    """Complete a header slot, which holds the entries of the batch.  Caller holds log.lock, or the batch is closed."""
    cdef BatchHeader* header = <BatchHeader*>slot
    cdef uint64_t used = sizeof(BatchHeader) + batch.entry_count * sizeof(BatchEntry)
    memset(header, 0, sizeof(BatchHeader))
    memset(slot + used, 0, SLOT_BYTES - used)
    header.segment_id = batch.segment.id
    header.index = batch.index
    header.first_lsn = batch.first_lsn
    header.durable_lsn = batch.first_lsn if planted(BUG_WRITTEN_COUNTS_AS_DURABLE) else load_u64(&log.durable_lsn)
    header.entry_count = batch.entry_count
    header.lsn_count = batch.lsn_count
    header.payload_count = batch.payload_count
    batch_sign(log.segments, header)


cdef int write_slots(Batch* batch, const char* slots, uint32_t first, uint32_t count) noexcept nogil:
    """Write `count` slots to the places in the file of those from `first` on, counted from the batch's header."""
    return medium_write(batch.segment.file, slots, <uint64_t>count * SLOT_BYTES,
                        <uint64_t>(batch.index + first) * SLOT_BYTES) if count else 0


cdef int write_onto_kept(Batch* batch, const char* header, uint32_t end) noexcept nogil:
    """Write the slots below `end` that are not in the file yet, then the header: a death in between leaves that before.

    A write of one slot is there as a whole or not at all when the process dies in it.
    """
    cdef uint32_t first = 1 + batch.kept_payload_count
    cdef int failure = 0
    if planted(BUG_HEADER_BEFORE_PAYLOAD):
        failure = write_slots(batch, header, 0, 1)
    if not failure:
        failure = write_slots(batch, batch.slots + <uint64_t>first * SLOT_BYTES, first, end - first)
    return failure or write_slots(batch, header, 0, 1)


cdef void wait_until_filled(Batch* batch) noexcept nogil:
    cdef uint64_t begun_ns = begin_wait()
    while load_u32(&batch.filling):
        sched_yield()
    end_wait(CAUSE_LOG, begun_ns)


cdef void wait_for_change(Log* log) noexcept nogil:
    """For what another thread syncs.  Caller holds log.lock, which is let go meanwhile."""
    cdef uint64_t begun_ns = begin_wait()
    pthread_cond_wait(&log.changed, &log.lock)
    end_wait(CAUSE_LOG, begun_ns)


cdef int write_batch(Log* log, Batch* batch) noexcept nogil:
    """Sign a closed batch and write it.  Caller holds write_lock."""
    cdef uint32_t end = batch.index + 2 + batch.payload_count
    cdef int failure
    if load_u32(&batch.filling):
        wait_until_filled(batch)
    sign_header(log, batch, batch.slots)
    memcpy(batch.slots + (1 + <uint64_t>batch.payload_count) * SLOT_BYTES, batch.slots, SLOT_BYTES)
    if batch.kept:
        failure = write_onto_kept(batch, batch.slots, 2 + batch.payload_count)
    else:
        failure = write_slots(batch, batch.slots, 0, 2 + batch.payload_count)
    if not failure and end > batch.segment.filled_slots and load_u32(&log.commits) >= COMMITS_MIN:
        failure = segment_fill_ahead(batch.segment, end)
    if not failure:
        count_u64(&log.batches, 1)
        store_u64(&log.kept_lsn, batch.first_lsn + batch.lsn_count)
        store_u64(&log.first_unwritten, make_address(batch.segment.id, end))
    return failure


cdef int log_drain(Log* log) noexcept nogil:
    """Write all closed batches, in order.  0, or EIO when the log is poisoned."""
    cdef int failure
    timed_lock(&log.write_lock, CAUSE_LOG)
    failure = write_closed(log)
    pthread_mutex_unlock(&log.write_lock)
    return failure


cdef int write_closed(Log* log) noexcept nogil:
    """As log_drain.  Caller holds write_lock."""
    cdef Batch* batch
    cdef int failure = 0
    while True:
        timed_lock(&log.lock, CAUSE_LOG)
        if log.poisoned or log.written_number == log.open_number:
            failure = EIO if log.poisoned else 0
            pthread_mutex_unlock(&log.lock)
            break
        batch = &log.ring[log.written_number % BATCH_RING]
        pthread_mutex_unlock(&log.lock)
        failure = write_batch(log, batch)
        timed_lock(&log.lock, CAUSE_LOG)
        if failure:
            poison(log, failure)
        else:
            log.written_number += 1
        pthread_mutex_unlock(&log.lock)
    return failure


cdef bint take_open(Log* log, char* header, uint32_t* payload_count, uint64_t* end_lsn) noexcept nogil:
    """Copy the header of the open batch as it is now, with all its payload in memory; False: not now, or there is none.

    Caller holds write_lock, so it is not written meanwhile.
    """
    cdef Batch* batch
    cdef bint taken = False
    timed_lock(&log.lock, CAUSE_LOG)
    batch = &log.ring[log.open_number % BATCH_RING]
    if log.open and log.written_number == log.open_number and not log.poisoned and not load_u32(&batch.filling):
        memcpy(header, batch.slots, sizeof(BatchHeader) + batch.entry_count * sizeof(BatchEntry))
        sign_header(log, batch, header)
        payload_count[0] = batch.payload_count
        end_lsn[0] = batch.first_lsn + batch.lsn_count
        taken = not planted(BUG_OPEN_BATCH_NOT_KEPT)
    pthread_mutex_unlock(&log.lock)
    return taken


cdef int write_open(Log* log) noexcept nogil:
    """Write what the open batch holds, and leave it open.  Caller holds write_lock."""
    cdef Batch* batch = &log.ring[log.written_number % BATCH_RING]      # when there is one
    cdef char header[SLOT_BYTES]
    cdef uint32_t payload_count = 0
    cdef uint64_t end_lsn = 0
    cdef int failure
    if not take_open(log, header, &payload_count, &end_lsn):
        sched_yield()                   # somebody copies into it
        return 0
    failure = write_onto_kept(batch, header, 1 + payload_count)
    if failure:
        log_poison(log, failure)
        return failure
    batch.kept = True
    batch.kept_payload_count = payload_count
    store_u64(&log.kept_lsn, end_lsn)
    return 0


cdef int log_keep(Log* log) noexcept nogil:
    """Return when every entry that was appended before is in its file; EIO when that will never be.

    Who waits for write_lock meanwhile finds its entries written by whoever held it last, or writes those of all who wait.
    """
    cdef uint64_t target = load_u64(&log.next_lsn)
    cdef int failure = 0
    if load_u64(&log.kept_lsn) >= target:
        return 0
    timed_lock(&log.write_lock, CAUSE_LOG)
    while not failure and load_u64(&log.kept_lsn) < target:
        failure = write_closed(log)
        if not failure and load_u64(&log.kept_lsn) < target:
            failure = write_open(log)
        if planted(BUG_OPEN_BATCH_NOT_KEPT):
            break
    pthread_mutex_unlock(&log.write_lock)
    return failure


cdef int sync_segments(Log* log, Segment** unsynced, uint32_t count, bint directory) noexcept nogil:
    """Seal the segments that are full, sync them all, and the directory if it has new names."""
    cdef uint32_t i
    cdef int failure = 0
    for i in range(count):
        if i + 1 < count and not unsynced[i].sealed:
            failure = segment_seal(log.segments, unsynced[i], False)
        if not failure and not (planted(BUG_NEWEST_SEGMENT_ONLY) and i + 1 < count):
            failure = medium_sync(unsynced[i].file)
        if failure:
            return failure
    if directory and not planted(BUG_NO_DIRECTORY_SYNC):
        failure = medium_sync_directory(log.segments.path)
        if load_u64(&log.segments.open_count) >= log.segments.open_max:
            segments_evict(log.segments)    # those that were begun here are open too
    count_u64(&log.syncs, 1)
    return failure


cdef void note_commit(Log* log) noexcept nogil:
    """Count small syncs in a row.  Caller holds log.lock."""
    cdef uint64_t slots = load_u64(&log.segments.bytes_added) // SLOT_BYTES
    if slots - log.slots_at_sync <= COMMIT_SLOTS:
        store_u32(&log.commits, log.commits + 1)
    else:
        store_u32(&log.commits, 0)
    log.slots_at_sync = slots


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
    note_commit(log)
    unsynced = <Segment**>malloc((count + 1) * sizeof(Segment*))
    if unsynced == NULL:
        return ENOMEM
    memcpy(unsynced, log.unsynced, count * sizeof(Segment*))
    pthread_mutex_unlock(&log.lock)
    failure = log_drain(log)
    if not failure and not planted(BUG_FLUSH_WITHOUT_SYNC):
        failure = sync_segments(log, unsynced, count, directory)
    timed_lock(&log.lock, CAUSE_LOG)
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
    timed_lock(&log.lock, CAUSE_LOG)
    if log.poisoned:
        pthread_mutex_unlock(&log.lock)
        return EIO
    while (log.durable_lsn < target_lsn or log.rolling) and not log.poisoned:
        if log.syncing:
            wait_for_change(log)
            continue
        log.syncing = True
        failure = sync_now(log)
        log.syncing = False
        if failure and not planted(BUG_SYNC_FAILURE_IGNORED):
            poison(log, failure)
        pthread_cond_broadcast(&log.changed)
    failure = 0 if log.durable_lsn >= target_lsn else EIO
    pthread_mutex_unlock(&log.lock)
    return failure


cdef int log_roll(Log* log) noexcept nogil:
    """Go on in a new segment and seal the one before, durably: then compaction can have it.  ENOSPC: no room for one."""
    cdef int failure = 0
    timed_lock(&log.lock, CAUSE_LOG)
    while log.syncing:
        wait_for_change(log)
    if log.poisoned or log.segment == NULL or (log.segment.slot_count == 1 and not log.open):
        failure = EIO if log.poisoned else 0
        pthread_mutex_unlock(&log.lock)
        return failure
    log.syncing = True
    close_batch(log)
    failure = roll_segment(log, ENTRY_DATA)     # the spare is for what must go on
    if not failure:
        log.rolling = True
        failure = sync_now(log)
        if failure:
            poison(log, failure)
    log.syncing = log.rolling = False
    pthread_cond_broadcast(&log.changed)
    pthread_mutex_unlock(&log.lock)
    return failure


cdef void log_position(Log* log, uint32_t* segment_id, uint32_t* index, uint64_t* lsn) noexcept nogil:
    """Where replay must begin to see every entry from `lsn` (the next one) on: the open batch, or the end of the log."""
    cdef Batch* batch
    timed_lock(&log.lock, CAUSE_LOG)
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
        if not failure:
            log_keep_spare(log)         # of what the seal gave back
    return failure
