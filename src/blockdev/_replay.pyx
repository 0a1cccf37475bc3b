"""Replay of the log.  See _replay.pxd; all of it runs with the pool's lock held."""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport ENOENT, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from blockdev import errors

from blockdev._cow cimport map_punch, map_update
from blockdev._dedup cimport Fingerprint, checksum64, dedup_insert, fingerprint_block
from blockdev._disk cimport Disk, PoolState
from blockdev._medium cimport (
    BUG_GAP_PASSED_OVER, BUG_NOT_WRITTEN_AGAIN, BUG_REPLAYED_NOT_SYNCED, BUG_TAIL_NOT_CUT, BUG_TORN_PAYLOAD_TAKEN,
    medium_read, medium_size, medium_sync, medium_truncate, medium_unlink, medium_write, planted,
)
from blockdev._pool cimport Core, DiskObject
from blockdev._segments cimport (
    ENTRY_DATA, ENTRY_HOLE, ENTRY_RECORD, ENTRY_REFERENCE, SLOT_BYTES, BatchEntry, BatchHeader, Segment, batch_find,
    batch_recognise, batch_slots, entry_lsn_count, make_address, segment_pin, segment_seal, segment_unpin,
    segments_get, segments_remove,
)
from blockdev._sync cimport store_u32


# --- finding the run of sound batches --------------------------------------------------------------------------------

cdef int run_push(Run* run, uint32_t segment_id, uint32_t index, const BatchHeader* header) noexcept nogil:
    cdef BatchPlace* batches
    if run.count == run.room:
        batches = <BatchPlace*>realloc(run.batches, (run.room * 2 + 1024) * sizeof(BatchPlace))
        if batches == NULL:
            return ENOMEM
        run.batches = batches
        run.room = run.room * 2 + 1024
    run.batches[run.count].segment_id = segment_id
    run.batches[run.count].index = index
    run.batches[run.count].end_index = index + batch_slots(header)
    run.batches[run.count].first_lsn = header.first_lsn
    run.batches[run.count].lsn_count = header.lsn_count
    run.count += 1
    if header.durable_lsn > run.durable_lsn:
        run.durable_lsn = header.durable_lsn
    return 0


cdef int read_header(PoolState* pool, Segment* segment, uint32_t index, char* slot) noexcept nogil:
    """The verified batch header at `index`; ENOENT when there is none, another errno when that cannot be told."""
    cdef uint64_t size_bytes = 0
    cdef int failure = medium_size(segment.file, &size_bytes)
    return failure or batch_find(pool.segments, segment, index, size_bytes, slot)


cdef int collect_segment(PoolState* pool, uint32_t id, uint32_t index, uint64_t* lsn, bint inside, Run* run) noexcept nogil:
    """Take the batches of one segment that continue the log at `lsn`.

    inside: the first one may begin before `lsn` (the checkpoint was taken while it was open).
    """
    cdef char slot[SLOT_BYTES]
    cdef const BatchHeader* header = <const BatchHeader*>slot
    cdef Segment* segment = NULL
    cdef int failure = segment_pin(pool.segments, id, &segment)
    if failure:
        return failure
    while True:
        failure = read_header(pool, segment, index, slot)
        if failure:
            break
        if header.first_lsn != lsn[0] and not (planted(BUG_GAP_PASSED_OVER) and header.first_lsn > lsn[0]):
            if not (inside and header.first_lsn < lsn[0] <= header.first_lsn + header.lsn_count):
                break
        inside = False
        failure = run_push(run, id, index, header)
        if failure:
            break
        lsn[0] = header.first_lsn + header.lsn_count
        index += batch_slots(header)
    segment_unpin(pool.segments, segment)
    return 0 if failure == ENOENT else failure


cdef int payload_verifies(PoolState* pool, BatchPlace* place, bint* sound) noexcept nogil:
    """Whether every payload slot of a batch holds what its entries say.

    One that cannot be read is not torn: it reads as EIO, or when it is a record the replay fails.
    """
    cdef char slot[SLOT_BYTES]
    cdef const BatchHeader* header = <const BatchHeader*>slot
    cdef const BatchEntry* entries = <const BatchEntry*>(slot + sizeof(BatchHeader))
    cdef Segment* segment = NULL
    cdef uint64_t size_bytes = 0
    cdef uint32_t i, index = place.index + 1
    cdef int failure = segment_pin(pool.segments, place.segment_id, &segment)
    if failure:
        return failure
    failure = read_header(pool, segment, place.index, slot)
    if not failure:
        failure = medium_size(segment.file, &size_bytes)
    sound[0] = <uint64_t>(place.end_index - 1) * SLOT_BYTES <= size_bytes      # one copy of the header will do
    for i in range(header.entry_count if sound[0] and not failure else 0):
        if entries[i].kind == ENTRY_DATA:
            sound[0] = sound[0] and block_verifies(segment, index, &entries[i])
            index += 1
        elif entries[i].kind == ENTRY_RECORD:
            sound[0] = sound[0] and record_verifies(segment, index, &entries[i])
            index += entries[i].object
    segment_unpin(pool.segments, segment)
    return failure


cdef bint block_verifies(Segment* segment, uint32_t index, const BatchEntry* entry) noexcept nogil:
    cdef char block[SLOT_BYTES]
    cdef Fingerprint fingerprint
    if medium_read(segment.file, block, SLOT_BYTES, <uint64_t>index * SLOT_BYTES):
        return True
    fingerprint = fingerprint_block(block)
    return fingerprint.low == entry.a and fingerprint.high == entry.b


cdef bint record_verifies(Segment* segment, uint32_t index, const BatchEntry* entry) noexcept nogil:
    cdef char* record = <char*>calloc(entry.object + 1, SLOT_BYTES)
    cdef bint sound = True
    if record == NULL:
        return True
    if medium_read(segment.file, record, <uint64_t>entry.object * SLOT_BYTES, <uint64_t>index * SLOT_BYTES) == 0:
        sound = checksum64(record, entry.block) == entry.a
    free(record)
    return sound


cdef int cut_torn_tail(PoolState* pool, Run* run) noexcept nogil:
    """End the run before the first batch that may be torn and is."""
    cdef uint64_t i
    cdef bint sound = True
    cdef int failure = 0
    for i in range(0 if planted(BUG_TORN_PAYLOAD_TAKEN) else run.count):
        if run.batches[i].first_lsn + run.batches[i].lsn_count > run.durable_lsn:
            failure = payload_verifies(pool, &run.batches[i], &sound)
            if failure:
                break
            if not sound:
                run.count = i
                break
    return failure


cdef int tells_of_durable(PoolState* pool, uint32_t id, uint32_t index, uint64_t lsn, bint* found) noexcept nogil:
    """Whether a sound batch at or after `index` says that the log was durable beyond `lsn`."""
    cdef char slot[SLOT_BYTES]
    cdef const BatchHeader* header = <const BatchHeader*>slot
    cdef Segment* segment = NULL
    cdef uint64_t size_bytes = 0
    cdef int failure = segment_pin(pool.segments, id, &segment)
    if failure:
        return failure
    failure = medium_size(segment.file, &size_bytes)
    while (index < pool.segments.segment_slots and (<uint64_t>index + 1) * SLOT_BYTES <= size_bytes
           and not found[0] and not failure):
        failure = medium_read(segment.file, slot, SLOT_BYTES, <uint64_t>index * SLOT_BYTES)
        found[0] = (failure == 0 and batch_recognise(pool.segments, segment, index, slot) != 0
                    and header.durable_lsn > lsn)
        index += 1
    segment_unpin(pool.segments, segment)
    return failure


# --- replay ----------------------------------------------------------------------------------------------------------

cdef raise_unreadable(int failure):
    """What cannot be read may be there: it is never taken for the end of the log."""
    if failure:
        raise errors.MediumError(
            f"the log cannot be read: {os.strerror(failure)}; if the disk has lost that place for good, write zeros to it",
            failure)


cdef bint entry_fits(Disk* disk, const BatchEntry* entry) noexcept nogil:
    """Whether an entry is of a known kind and about blocks of the disk."""
    cdef uint64_t end = (disk.size_bytes + SLOT_BYTES - 1) // SLOT_BYTES
    cdef uint64_t count = 0
    if entry.kind == ENTRY_DATA:
        count = 1
    elif entry.kind == ENTRY_REFERENCE:
        count = entry.b
    elif entry.kind == ENTRY_HOLE:
        count = entry.a
    return count != 0 and count <= end and entry.block <= end - count


cdef int write_batch_again(PoolState* pool, BatchPlace* place) noexcept nogil:
    """Write a batch over itself, with both copies of its header."""
    cdef char header[SLOT_BYTES]
    cdef char slot[SLOT_BYTES]
    cdef Segment* segment = NULL
    cdef uint64_t offset = <uint64_t>(place.index + 1) * SLOT_BYTES
    cdef uint64_t end = <uint64_t>(place.end_index - 1) * SLOT_BYTES
    cdef int failure = segment_pin(pool.segments, place.segment_id, &segment)
    if failure:
        return failure
    failure = read_header(pool, segment, place.index, header)
    while offset < end and not failure:
        if medium_read(segment.file, slot, SLOT_BYTES, offset) == 0:
            failure = medium_write(segment.file, slot, SLOT_BYTES, offset)
        offset += SLOT_BYTES
    if not failure:
        failure = medium_write(segment.file, header, SLOT_BYTES, <uint64_t>place.index * SLOT_BYTES)
    if not failure:
        failure = medium_write(segment.file, header, SLOT_BYTES, end)
    segment_unpin(pool.segments, segment)
    return failure


cdef class Replay:
    """One recovery: find the run, apply it, then make its end final on disk."""

    cdef Core core
    cdef Run run
    cdef uint32_t first_segment
    cdef uint32_t first_index
    cdef uint64_t checkpoint_lsn
    cdef dict objects

    def __init__(self, Core core, uint32_t segment_id, uint32_t index, uint64_t lsn, dict objects):
        """objects: id -> DiskObject, of the checkpoint; `apply` adds to and takes from it through its callback."""
        self.core = core
        self.first_segment = segment_id
        self.first_index = index
        self.checkpoint_lsn = lsn
        self.objects = objects
        memset(&self.run, 0, sizeof(Run))
        self.run.durable_lsn = lsn

    def __dealloc__(self):
        free(self.run.batches)

    @property
    def batch_count(self):
        return self.run.count

    def find(self):
        """Find the run of sound batches.  Corrupt when something that was durable is missing from it."""
        cdef PoolState* pool = self.core.state
        cdef uint32_t id
        cdef uint64_t lsn = self.checkpoint_lsn
        cdef int failure = 0
        with nogil:
            for id in range(self.first_segment, pool.segments.id_end):
                if segments_get(pool.segments, id) != NULL and not failure:
                    failure = collect_segment(pool, id, self.first_index if id == self.first_segment else 1, &lsn,
                                              id == self.first_segment, &self.run)
            if not failure:
                failure = cut_torn_tail(pool, &self.run)
        raise_unreadable(failure)
        self.refuse_lost()

    def end(self):
        """(segment id, index) after the last batch, and the LSN there."""
        cdef BatchPlace* last
        if self.run.count == 0:
            return self.first_segment, self.first_index, self.checkpoint_lsn
        last = &self.run.batches[self.run.count - 1]
        return last.segment_id, last.end_index, max(self.checkpoint_lsn, last.first_lsn + last.lsn_count)

    cdef refuse_lost(self):
        """A gap before something that was durable is damage, not a power cut: nothing may be dropped silently."""
        cdef PoolState* pool = self.core.state
        cdef uint32_t id, index, end_id, end_index
        cdef uint64_t lsn
        cdef bint found = False
        end_id, end_index, lsn = self.end()
        for id in range(end_id, pool.segments.id_end):
            index = end_index if id == end_id else 1
            if segments_get(pool.segments, id) != NULL:
                raise_unreadable(tells_of_durable(pool, id, index, lsn, &found))
            if found:
                raise errors.Corrupt(
                    f"the log is damaged at segment {end_id:08x} slot {end_index}: later batches were durable; "
                    "restore that file from a copy, or open the pool's copy elsewhere")

    def apply(self, on_record):
        """Apply the run to the maps.  on_record(bytes, lsn): called for each record, in its place."""
        cdef uint64_t i
        for i in range(self.run.count):
            self.apply_batch(&self.run.batches[i], on_record)

    cdef apply_batch(self, BatchPlace* place, on_record):
        cdef char slot[SLOT_BYTES]
        cdef const BatchHeader* header = <const BatchHeader*>slot
        cdef const BatchEntry* entry = <const BatchEntry*>(slot + sizeof(BatchHeader))
        cdef Segment* segment = NULL
        cdef uint32_t _i, index = place.index + 1
        cdef uint64_t lsn = place.first_lsn
        cdef int failure = segment_pin(self.core.state.segments, place.segment_id, &segment)
        if not failure:
            failure = read_header(self.core.state, segment, place.index, slot)
        if failure:
            raise errors.medium_failure(f"segment {place.segment_id:08x} cannot be read", failure)
        try:
            for _i in range(header.entry_count):
                if lsn + entry_lsn_count(entry) > self.checkpoint_lsn:
                    self.apply_entry(segment, index, entry, lsn, on_record)
                lsn += entry_lsn_count(entry)
                if entry.kind == ENTRY_DATA:
                    index += 1
                elif entry.kind == ENTRY_RECORD:
                    index += entry.object
                entry += 1
        finally:
            segment_unpin(self.core.state.segments, segment)

    cdef apply_entry(self, Segment* segment, uint32_t index, const BatchEntry* entry, uint64_t lsn, on_record):
        cdef PoolState* pool = self.core.state
        cdef Fingerprint fingerprint
        cdef Disk* disk
        cdef DiskObject thing
        cdef uint64_t i
        cdef int failure = 0
        if entry.kind == ENTRY_RECORD:
            record = PyBytes_FromStringAndSize(NULL, entry.block)
            failure = medium_read(segment.file, <char*>record, entry.block, <uint64_t>index * SLOT_BYTES)
            if failure or checksum64(<char*>record, entry.block) != entry.a:
                raise errors.Corrupt(f"the record at LSN {lsn} (segment {segment.id:08x} slot {index}) does not verify")
            on_record(record, lsn)
            return
        thing = self.objects.get(entry.object)
        if thing is None or thing.disk.snapshot:
            raise errors.Corrupt(f"the log at LSN {lsn} writes to object {entry.object}, which is no vdisk")
        disk = thing.disk
        if not entry_fits(disk, entry):
            raise errors.Corrupt(f"the log at LSN {lsn} writes beyond the end of object {entry.object}")
        if entry.kind == ENTRY_DATA:
            fingerprint.low = entry.a
            fingerprint.high = entry.b
            failure = map_update(pool.nodes, &disk.map, entry.block, make_address(segment.id, index))
            dedup_insert(pool.dedup, fingerprint, make_address(segment.id, index))
        elif entry.kind == ENTRY_REFERENCE:
            # the checkpoint may have been taken between two blocks of it
            for i in range(max(self.checkpoint_lsn, lsn) - lsn, entry.b):
                failure = failure or map_update(pool.nodes, &disk.map, entry.block + i, entry.a + i)
        elif entry.kind == ENTRY_HOLE:
            failure = map_punch(pool.nodes, &disk.map, entry.block, entry.a)
        if failure:
            raise errors.Corrupt(f"a map node that the log needs at LSN {lsn} does not verify (errno {failure})")

    def finish(self, str segments_path):
        """Make the end final: cut and seal the segments of the run, remove those after it.  Returns (next id, LSN).

        The caller syncs the directory.  Safe to be interrupted anywhere: the next recovery finds the same end.
        """
        cdef PoolState* pool = self.core.state
        cdef uint32_t id, end_id, end_index
        cdef Segment* segment
        cdef uint64_t lsn
        cdef int failure
        end_id, end_index, lsn = self.end()
        self.write_again()
        for id in range(self.first_segment, pool.segments.id_end):
            segment = segments_get(pool.segments, id)
            if segment == NULL:
                continue
            # the first one also holds what came before the checkpoint
            if id == self.first_segment or self.holds_run(id) or id == end_id:
                self.settle(id, end_index if id == end_id else 0, lsn)
            else:
                path = f"{segments_path}/{segment.id:08x}.{segment.generation}"
                failure = medium_unlink(path.encode())
                if failure:
                    raise errors.medium_failure(f"{path} cannot be removed", failure)
                segments_remove(pool.segments, segment)
        return pool.segments.id_end, lsn

    cdef write_again(self):
        """Write the batches again that none tells to be durable.

        After a failed sync their pages may be clean in memory and not on the disk: a sync alone would leave them there.
        """
        cdef PoolState* pool = self.core.state
        cdef uint64_t i
        cdef int failure = 0
        with nogil:
            for i in range(0 if planted(BUG_NOT_WRITTEN_AGAIN) else self.run.count):
                if not failure and self.run.batches[i].first_lsn + self.run.batches[i].lsn_count > self.run.durable_lsn:
                    failure = write_batch_again(pool, &self.run.batches[i])
        if failure:
            raise errors.medium_failure("the end of the log cannot be written", failure)

    cdef bint holds_run(self, uint32_t id):
        cdef uint64_t low = 0, high = self.run.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.run.batches[middle].segment_id < id:
                low = middle + 1
            else:
                high = middle
        return low < self.run.count and self.run.batches[low].segment_id == id

    cdef settle(self, uint32_t id, uint32_t end_index, uint64_t end_lsn):
        """Sync a segment of the run; if it has no trailer, cut what follows `end_index` (0: nothing) and seal it."""
        cdef Segment* segment = NULL
        cdef uint32_t i
        cdef int failure = segment_pin(self.core.state.segments, id, &segment)
        if failure:
            raise errors.medium_failure(f"segment {id:08x} cannot be opened", failure)
        if end_index and end_index < segment.slot_count:
            # its trailer, if it has one, reached the disk before the batches it speaks of
            for i in range(end_index, segment.slot_count):
                memset(&segment.fingerprints[i], 0, sizeof(Fingerprint))
            store_u32(&segment.slot_count, end_index)
            segment.end_lsn = end_lsn
            segment.sealed = 0
        elif not segment.sealed and self.reaches(segment, end_index):
            store_u32(&segment.slot_count, end_index)       # a checkpoint refers to blocks behind a damaged header
        if not segment.sealed and segment.unread:
            # without a trailer the next one to open it looks for batches again
            failure = medium_truncate(segment.file, <uint64_t>segment.slot_count * SLOT_BYTES)
        elif not segment.sealed and not planted(BUG_TAIL_NOT_CUT):
            failure = segment_seal(self.core.state.segments, segment, True)
        if not failure and not planted(BUG_REPLAYED_NOT_SYNCED):
            failure = medium_sync(segment.file)
        segment_unpin(self.core.state.segments, segment)
        if failure:
            raise errors.medium_failure(f"segment {id:08x} cannot be sealed", failure)

    cdef bint reaches(self, Segment* segment, uint32_t index):
        """Whether a segment's file has all slots below `index`, more than are known to be in use."""
        cdef uint64_t size_bytes = 0
        return (segment.slot_count < index <= self.core.state.segments.segment_slots
                and medium_size(segment.file, &size_bytes) == 0 and <uint64_t>index * SLOT_BYTES <= size_bytes)
