"""Replay of the log.  See _replay.pxd; all of it runs with the pool's lock held."""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EIO, ENOENT, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from blockdev import errors

from blockdev._cow cimport map_place, map_punch
from blockdev._dedup cimport Fingerprint, checksum64, dedup_insert, fingerprint_block
from blockdev._disk cimport Disk, PoolState
from blockdev._medium cimport (
    BUG_GAP_PASSED_OVER, BUG_NOT_WRITTEN_AGAIN, BUG_REPLAYED_NOT_SYNCED, BUG_TAIL_NOT_CUT, BUG_TORN_PAYLOAD_TAKEN,
    medium_prefetch, medium_read, medium_size, medium_sync, medium_truncate, medium_write, planted,
)
from blockdev._nodes cimport (
    NODE_FANOUT, MapNode, NodeStore, nodes_evict, nodes_finish, nodes_freeze, nodes_reclaim, nodes_thaw, nodes_write,
)
from blockdev._pool cimport Core, DiskObject
from blockdev._segments cimport (
    BATCH_SLOTS_MAX, ENTRY_DATA, ENTRY_HOLE, ENTRY_RECORD, ENTRY_REFERENCE, SLOT_BYTES, BatchEntry, BatchHeader, Segment,
    SegmentStore, batch_find, batch_recognise, batch_slots, entry_lsn_count, make_address, segment_pin, segment_seal,
    segment_remove, segment_unpin, segments_get,
)
from blockdev._sync cimport store_u32, store_u64


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
    run_keep(run, &run.batches[run.count], header)
    run.count += 1
    if header.durable_lsn > run.durable_lsn:
        run.durable_lsn = header.durable_lsn
    return 0


cdef void run_keep(Run* run, BatchPlace* place, const BatchHeader* header) noexcept nogil:
    """Keep the entries of a batch, unless there is no room for them: then they are read once more."""
    cdef BatchEntry* entries
    place.kept = place.kept_count = 0
    if run.entry_count + header.entry_count > run.entry_count_max:
        return
    if run.entry_count + header.entry_count > run.entry_room:
        entries = <BatchEntry*>realloc(run.entries, (run.entry_room * 2 + 4096) * sizeof(BatchEntry))
        if entries == NULL:
            return
        run.entries = entries
        run.entry_room = run.entry_room * 2 + 4096
    place.kept = run.entry_count
    place.kept_count = header.entry_count
    memcpy(&run.entries[run.entry_count], <const char*>header + sizeof(BatchHeader),
           header.entry_count * sizeof(BatchEntry))
    run.entry_count += header.entry_count


cdef void reader_leave(LogReader* reader) noexcept nogil:
    if reader.segment != NULL:
        segment_unpin(reader.pool.segments, reader.segment)
        reader.segment = NULL


cdef int reader_turn(LogReader* reader, uint32_t id) noexcept nogil:
    """Go to segment `id`: it stays pinned until the reader leaves it."""
    cdef uint32_t slots
    cdef int failure
    if reader.segment != NULL and reader.segment.id == id:
        return 0
    reader_leave(reader)
    failure = segment_pin(reader.pool.segments, id, &reader.segment)
    if failure:
        reader.segment = NULL
        return failure
    failure = medium_size(reader.segment.file, &reader.size_bytes)
    if failure:
        reader_leave(reader)
        return failure
    slots = reader.segment.slot_count if reader.segment.sealed else reader.pool.segments.segment_slots
    reader.size_bytes = min(reader.size_bytes, <uint64_t>slots * SLOT_BYTES)
    return 0


cdef int read_header(LogReader* reader, uint32_t id, uint32_t index) noexcept nogil:
    """Bring in the verified batch header at `index`; ENOENT when there is none, another errno when that cannot be told."""
    cdef int failure = reader_turn(reader, id)
    return failure or batch_find(reader.pool.segments, reader.segment, index, reader.size_bytes, reader.slots)


cdef void read_payload(LogReader* reader, const BatchPlace* place) noexcept nogil:
    """Bring in the payload of the batch whose header was read last, and note which slots cannot be read."""
    cdef uint32_t i, count = place.end_index - place.index - 2
    cdef uint64_t offset = <uint64_t>(place.index + 1) * SLOT_BYTES
    memset(reader.unread, 0, sizeof(reader.unread))
    if medium_read(reader.segment.file, reader.slots + SLOT_BYTES, <uint64_t>count * SLOT_BYTES, offset) == 0:
        return
    for i in range(1, count + 1):
        reader.unread[i] = medium_read(reader.segment.file, reader.slots + <uint64_t>i * SLOT_BYTES, SLOT_BYTES,
                                       <uint64_t>(place.index + i) * SLOT_BYTES) != 0


cdef void expect_segment(PoolState* pool, uint32_t id) noexcept nogil:
    """Let the kernel begin to read what replay will ask of a segment: the slots that hold no block, mostly headers.

    Alone, each would be waited for.  Where a block or two lie between them, reading these too is quicker.
    """
    cdef Segment* segment = NULL
    cdef uint32_t i, first = 0, end = 0
    if segments_get(pool.segments, id) == NULL or segment_pin(pool.segments, id, &segment):
        return
    for i in range(1, segment.slot_count):
        if segment.fingerprints[i].low or segment.fingerprints[i].high:
            continue
        if i > end + EXPECT_GAP_SLOTS:
            medium_prefetch(segment.file, <uint64_t>first * SLOT_BYTES, <uint64_t>(end - first) * SLOT_BYTES)
            first = i
        end = i + 1
    medium_prefetch(segment.file, <uint64_t>first * SLOT_BYTES, <uint64_t>(end - first) * SLOT_BYTES)
    segment_unpin(pool.segments, segment)


cdef int collect_segment(
    LogReader* reader, uint32_t id, uint32_t index, uint64_t* lsn, bint inside, Run* run
) noexcept nogil:
    """Take the batches of one segment that continue the log at `lsn`.

    inside: the first one may begin before `lsn` (the checkpoint was taken while it was open).
    """
    cdef const BatchHeader* header = <const BatchHeader*>reader.slots
    cdef int failure
    while True:
        failure = read_header(reader, id, index)
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
    return 0 if failure == ENOENT else failure


cdef int payload_verifies(LogReader* reader, const BatchPlace* place, bint* sound) noexcept nogil:
    """Whether every payload slot of a batch holds what its entries say.

    One that cannot be read is not torn: it reads as EIO, or when it is a record the replay fails.
    """
    cdef const BatchHeader* header = <const BatchHeader*>reader.slots
    cdef const BatchEntry* entries = <const BatchEntry*>(reader.slots + sizeof(BatchHeader))
    cdef uint32_t i, slot = 1
    cdef int failure = read_header(reader, place.segment_id, place.index)
    if failure:
        return failure
    sound[0] = <uint64_t>(place.end_index - 1) * SLOT_BYTES <= reader.size_bytes     # one copy of the header will do
    if sound[0]:
        read_payload(reader, place)
    for i in range(header.entry_count if sound[0] else 0):
        if entries[i].kind == ENTRY_DATA:
            sound[0] = sound[0] and block_verifies(reader, slot, &entries[i])
            slot += 1
        elif entries[i].kind == ENTRY_RECORD:
            sound[0] = sound[0] and record_verifies(reader, slot, &entries[i])
            slot += entries[i].object
    return 0


cdef bint block_verifies(LogReader* reader, uint32_t slot, const BatchEntry* entry) noexcept nogil:
    cdef Fingerprint fingerprint
    if reader.unread[slot]:
        return True
    fingerprint = fingerprint_block(reader.slots + <uint64_t>slot * SLOT_BYTES)
    return fingerprint.low == entry.a and fingerprint.high == entry.b


cdef inline uint32_t record_copy_slots(const BatchEntry* entry) noexcept nogil:
    """Slots of one copy of a record."""
    return max(<uint32_t>((entry.block + SLOT_BYTES - 1) // SLOT_BYTES), <uint32_t>1)


cdef bint record_verifies(LogReader* reader, uint32_t slot, const BatchEntry* entry) noexcept nogil:
    """Whether one copy of a record does."""
    cdef uint32_t i, count = record_copy_slots(entry)
    for i in range(entry.object):
        if reader.unread[slot + i]:
            return True
    for i in range(entry.object // count):
        if checksum64(reader.slots + <uint64_t>(slot + i * count) * SLOT_BYTES, entry.block) == entry.a:
            return True
    return False


cdef int cut_torn_tail(LogReader* reader, Run* run) noexcept nogil:
    """End the run before the first batch that may be torn and is."""
    cdef uint64_t i
    cdef bint sound = True
    cdef int failure = 0
    for i in range(0 if planted(BUG_TORN_PAYLOAD_TAKEN) else run.count):
        if run.batches[i].first_lsn + run.batches[i].lsn_count > run.durable_lsn:
            failure = payload_verifies(reader, &run.batches[i], &sound)
            if failure:
                break
            if not sound:
                run.count = i
                break
    return failure


cdef int tells_of_durable(LogReader* reader, uint32_t id, uint32_t index, uint64_t lsn, bint* found) noexcept nogil:
    """Whether a sound batch at or after `index` says that the log was durable beyond `lsn`."""
    cdef const BatchHeader* header = <const BatchHeader*>reader.slots
    cdef int failure = reader_turn(reader, id)
    while not failure and (<uint64_t>index + 1) * SLOT_BYTES <= reader.size_bytes and not found[0]:
        failure = medium_read(reader.segment.file, reader.slots, SLOT_BYTES, <uint64_t>index * SLOT_BYTES)
        found[0] = (failure == 0
                    and batch_recognise(reader.pool.segments, reader.segment, index, reader.slots) != 0
                    and header.durable_lsn > lsn)
        index += 1
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


cdef int write_batch_again(LogReader* reader, const BatchPlace* place) noexcept nogil:
    """Write a batch over itself, with both copies of its header; slots that cannot be read stay as they are."""
    cdef uint32_t i, first = 0, count = place.end_index - place.index
    cdef int failure = read_header(reader, place.segment_id, place.index)
    if failure:
        return failure
    read_payload(reader, place)
    memcpy(reader.slots + <uint64_t>(count - 1) * SLOT_BYTES, reader.slots, SLOT_BYTES)
    for i in range(count + 1):
        if failure or (i < count and not reader.unread[i]):
            continue
        if first < i:
            failure = medium_write(reader.segment.file, reader.slots + <uint64_t>first * SLOT_BYTES,
                                   <uint64_t>(i - first) * SLOT_BYTES, <uint64_t>(place.index + first) * SLOT_BYTES)
        first = i + 1
    return failure


cdef int point_blocks(
    NodeStore* store, LeafCursor* cursor, Disk* disk, uint64_t block, uint64_t count, uint64_t address
) noexcept nogil:
    """Let `count` blocks from `block` on be the one at `address` and those after it."""
    cdef uint64_t* place = NULL
    cdef int failure
    while count:
        if cursor.entries == NULL or cursor.disk != disk or cursor.leaf != block // NODE_FANOUT:
            failure = map_place(store, &disk.map, block, &place)
            if failure:
                return failure
            cursor.disk = disk
            cursor.leaf = block // NODE_FANOUT
            cursor.entries = place - block % NODE_FANOUT
        store_u64(&cursor.entries[block % NODE_FANOUT], address)
        block += 1
        address += 1
        count -= 1
    return 0


cdef class Replay:
    """One recovery: find the run, apply it, then make its end final on disk."""

    cdef Core core
    cdef Run run
    cdef LogReader reader
    cdef LeafCursor cursor
    cdef Disk* disks[DISKS_KNOWN]       # found lately, by the low bits of their ids
    cdef uint32_t first_segment
    cdef uint32_t first_index
    cdef uint64_t checkpoint_lsn
    cdef uint64_t resident_nodes_max
    cdef uint64_t dirty_nodes_max
    cdef dict objects
    cdef object on_record
    cdef object before_spill

    def __init__(self, Core core, uint32_t segment_id, uint32_t index, uint64_t lsn, dict objects,
                 uint64_t resident_nodes_max, uint64_t dirty_nodes_max, uint64_t kept_bytes_max):
        """objects: id -> DiskObject, of the checkpoint; `apply` adds to and takes from it through its callback."""
        self.core = core
        self.first_segment = segment_id
        self.first_index = index
        self.checkpoint_lsn = lsn
        self.objects = objects
        self.resident_nodes_max = resident_nodes_max
        self.dirty_nodes_max = dirty_nodes_max
        memset(&self.run, 0, sizeof(Run))
        self.run.durable_lsn = lsn
        self.run.entry_count_max = kept_bytes_max // sizeof(BatchEntry)
        memset(&self.reader, 0, sizeof(LogReader))
        self.reader.pool = core.state
        self.reader.slots = <char*>malloc(BATCH_SLOTS_MAX * SLOT_BYTES)
        if self.reader.slots == NULL:
            raise MemoryError()
        self.forget_disks()

    def __dealloc__(self):
        free(self.run.batches)
        free(self.run.entries)
        free(self.reader.slots)

    @property
    def batch_count(self):
        return self.run.count

    def find(self):
        """Find the run of sound batches.  Corrupt when something that was durable is missing from it."""
        cdef int failure
        with nogil:
            failure = self.collect()
            if not failure:
                failure = cut_torn_tail(&self.reader, &self.run)
            reader_leave(&self.reader)
        raise_unreadable(failure)
        self.refuse_lost()

    cdef int collect(self) noexcept nogil:
        cdef SegmentStore* segments = self.core.state.segments
        cdef uint64_t lsn = self.checkpoint_lsn
        cdef uint32_t id
        cdef int failure = 0
        expect_segment(self.core.state, self.first_segment)
        for id in range(self.first_segment, segments.id_end):
            expect_segment(self.core.state, id + 1)
            if segments_get(segments, id) != NULL and not failure:
                failure = collect_segment(&self.reader, id, self.first_index if id == self.first_segment else 1, &lsn,
                                          id == self.first_segment, &self.run)
        return failure

    def end(self):
        """(segment id, index) after the last batch, and the LSN there."""
        cdef BatchPlace* last
        if self.run.count == 0:
            return self.first_segment, self.first_index, self.checkpoint_lsn
        last = &self.run.batches[self.run.count - 1]
        return last.segment_id, last.end_index, max(self.checkpoint_lsn, last.first_lsn + last.lsn_count)

    cdef refuse_lost(self):
        """A gap before something that was durable is damage, not a power cut: nothing may be dropped silently."""
        cdef uint32_t id, index, end_id, end_index
        cdef uint64_t lsn
        cdef bint found = False
        cdef int failure = 0
        end_id, end_index, lsn = self.end()
        with nogil:
            for id in range(end_id, self.core.state.segments.id_end):
                index = end_index if id == end_id else 1
                if segments_get(self.core.state.segments, id) != NULL and not failure:
                    failure = tells_of_durable(&self.reader, id, index, lsn, &found)
            reader_leave(&self.reader)
        raise_unreadable(failure)
        if found:
            raise errors.Corrupt(
                f"the log is damaged at segment {end_id:08x} slot {end_index}: later batches were durable; "
                "restore that file from a copy, or open the pool's copy elsewhere")

    def apply(self, on_record, before_spill):
        """Apply the run to the maps.  on_record(bytes, lsn): called for each record, in its place.

        before_spill(): called before map nodes are written to slots that the checkpoint lists as free.
        """
        cdef uint64_t i
        self.on_record = on_record
        self.before_spill = before_spill
        try:
            with nogil:
                for i in range(self.run.count):
                    self.apply_batch(&self.run.batches[i])
        finally:
            reader_leave(&self.reader)

    cdef int apply_batch(self, const BatchPlace* place) except -1 nogil:
        cdef const BatchEntry* entry = &self.run.entries[place.kept]
        cdef uint32_t _i, count = place.kept_count, index = place.index + 1
        cdef uint64_t lsn = place.first_lsn
        cdef int failure
        if count == 0:
            failure = read_header(&self.reader, place.segment_id, place.index)
            if failure:
                with gil:
                    raise errors.MediumError(f"segment {place.segment_id:08x} cannot be read", failure)
            count = (<const BatchHeader*>self.reader.slots).entry_count
            entry = <const BatchEntry*>(self.reader.slots + sizeof(BatchHeader))
        for _i in range(count):
            if lsn + entry_lsn_count(entry) > self.checkpoint_lsn:
                self.apply_entry(make_address(place.segment_id, index), entry, lsn)
            lsn += entry_lsn_count(entry)
            if entry.kind == ENTRY_DATA:
                index += 1
            elif entry.kind == ENTRY_RECORD:
                index += entry.object
            entry += 1
        self.tend_memory()
        return 0

    cdef int apply_entry(self, uint64_t address, const BatchEntry* entry, uint64_t lsn) except -1 nogil:
        """Let an entry whose payload, if it has one, is at `address` take effect."""
        cdef PoolState* pool = self.core.state
        cdef uint64_t applied = 0               # blocks: the checkpoint may have been taken between two of a reference
        cdef Fingerprint fingerprint
        cdef Disk* disk
        cdef int failure = 0
        if entry.kind == ENTRY_RECORD:
            with gil:
                self.apply_record(address, entry, lsn)
            return 0
        disk = self.find_disk(entry, lsn)
        if entry.kind == ENTRY_DATA:
            fingerprint.low = entry.a
            fingerprint.high = entry.b
            failure = point_blocks(pool.nodes, &self.cursor, disk, entry.block, 1, address)
            dedup_insert(pool.dedup, fingerprint, address)
        elif entry.kind == ENTRY_REFERENCE:
            applied = max(self.checkpoint_lsn, lsn) - lsn
            failure = point_blocks(pool.nodes, &self.cursor, disk, entry.block + applied, entry.b - applied,
                                   entry.a + applied)
        elif entry.kind == ENTRY_HOLE:
            self.cursor.entries = NULL          # its leaf may be let go
            failure = map_punch(pool.nodes, &disk.map, entry.block, entry.a)
        if failure:
            with gil:
                if failure != EIO:
                    raise errors.medium_failure(f"the log at LSN {lsn} cannot be applied", failure)
                raise errors.Corrupt(
                    f"a map node that the log needs at LSN {lsn} is lost in map/nodes and in map/nodes-mirror; "
                    "restore one of the two, or the pool directory, from a copy")
        return 0

    cdef apply_record(self, uint64_t address, const BatchEntry* entry, uint64_t lsn):
        cdef uint64_t offset = <uint64_t>(<uint32_t>address) * SLOT_BYTES
        cdef uint32_t count = record_copy_slots(entry), _copy
        cdef bint sound = False, was_read = False
        cdef int failure = reader_turn(&self.reader, <uint32_t>(address >> 32))
        raise_unreadable(failure)
        self.forget_disks()
        record = PyBytes_FromStringAndSize(NULL, entry.block)
        for _copy in range(entry.object // count):
            if not sound:
                failure = medium_read(self.reader.segment.file, <char*>record, entry.block, offset)
                was_read = was_read or not failure
                sound = not failure and checksum64(<char*>record, entry.block) == entry.a
            offset += <uint64_t>count * SLOT_BYTES
        if not sound:
            raise_unreadable(0 if was_read else failure)
            raise errors.Corrupt(
                f"the record at LSN {lsn} (segment {address >> 32:08x} slot {<uint32_t>address}) does not verify; "
                "restore that file, or the pool directory, from a copy")
        self.on_record(record, lsn)

    cdef Disk* find_disk(self, const BatchEntry* entry, uint64_t lsn) except NULL nogil:
        """The vdisk that an entry writes to, within its bounds."""
        cdef Disk* disk = self.disks[entry.object % DISKS_KNOWN]
        if disk == NULL or disk.id != entry.object:
            with gil:
                disk = self.look_up(entry.object, lsn)
            self.disks[entry.object % DISKS_KNOWN] = disk
        if not entry_fits(disk, entry):
            with gil:
                raise errors.Corrupt(f"the log at LSN {lsn} writes beyond the end of object {entry.object}")
        return disk

    cdef Disk* look_up(self, uint32_t id, uint64_t lsn) except NULL:
        cdef DiskObject thing = self.objects.get(id)
        if thing is None or thing.disk.snapshot:
            raise errors.Corrupt(f"the log at LSN {lsn} writes to object {id}, which is no vdisk")
        return thing.disk

    cdef void forget_disks(self) noexcept nogil:
        """A record may take disks away, and nodes from being writable for them."""
        memset(self.disks, 0, sizeof(self.disks))
        self.cursor.entries = NULL

    cdef int tend_memory(self) except -1 nogil:
        """Keep the map nodes in memory within the budget: dirty ones are written, clean ones let go."""
        cdef NodeStore* nodes = self.core.state.nodes
        if nodes.dirty_count >= self.dirty_nodes_max:
            self.spill()
        if nodes.resident_count > self.resident_nodes_max:
            self.cursor.entries = NULL
            nodes_reclaim(nodes)
            nodes_evict(nodes, self.resident_nodes_max - self.resident_nodes_max // 8)
        return 0

    cdef int spill(self) except -1 nogil:
        """Write the dirty nodes to their slots, which no checkpoint holds: after a power cut they are free again."""
        cdef NodeStore* nodes = self.core.state.nodes
        cdef MapNode* frozen
        cdef int failure
        with gil:
            self.before_spill()
        self.cursor.entries = NULL
        frozen = nodes_freeze(nodes)
        failure = nodes_write(nodes, frozen)
        if failure:
            nodes_thaw(nodes, frozen)
            with gil:
                raise errors.MediumError(f"map nodes cannot be written: {os.strerror(failure)}", failure)
        nodes_finish(nodes, frozen)
        return 0

    def finish(self, str segments_path):
        """Make the end final: cut and seal the segments of the run, remove those after it.  Returns (next id, LSN).

        The caller syncs the directory.  Safe to be interrupted anywhere: the next recovery finds the same end.
        """
        cdef PoolState* pool = self.core.state
        cdef uint32_t id, end_id, end_index
        cdef Segment* segment
        cdef uint64_t lsn, freed_bytes = 0
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
                failure = segment_remove(pool.segments, segment, &freed_bytes)
                if failure:
                    raise errors.medium_failure(f"{path} cannot be removed", failure)
        return pool.segments.id_end, lsn

    cdef write_again(self):
        """Write the batches again that none tells to be durable.

        After a failed sync their pages may be clean in memory and not on the disk: a sync alone would leave them there.
        """
        cdef uint64_t i
        cdef int failure = 0
        with nogil:
            for i in range(0 if planted(BUG_NOT_WRITTEN_AGAIN) else self.run.count):
                if not failure and self.run.batches[i].first_lsn + self.run.batches[i].lsn_count > self.run.durable_lsn:
                    failure = write_batch_again(&self.reader, &self.run.batches[i])
            reader_leave(&self.reader)
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
