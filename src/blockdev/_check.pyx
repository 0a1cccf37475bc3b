"""The steps of check and scrub.  See _check.pxd for the design."""

from libc.errno cimport EIO, ENOENT
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memset

from blockdev._cold cimport ColdHeader, cold_heal
from blockdev._cow cimport map_runs
from blockdev._dedup cimport Fingerprint, fingerprint_block
from blockdev._disk cimport Disk, PoolState, fetch_run
from blockdev._log cimport Log
from blockdev._medium cimport medium_read, medium_sync, medium_write
from blockdev._nodes cimport (
    NODE_FANOUT, NODE_FANOUT_SHIFT, NODE_HEIGHT_MAX, MapNode, NodeStore, SlotVector, node_get, node_heal, nodes_enter,
    nodes_leave, nodes_place,
)
from blockdev._pool cimport Core, DiskObject
from blockdev._segments cimport (
    ENTRY_DATA, ENTRY_RECORD, SLOT_BYTES, BatchEntry, BatchHeader, Segment, batch_recognise, batch_slots, make_address,
    cold_identity, segment_header_holds, segment_holds_block, segment_index_holds, segment_pin, segment_read,
    segment_seal_again, segment_unpin, segment_write_header, segments_get,
)
from blockdev._sync cimport (
    load_pointer, load_u32, load_u64, pthread_mutex_lock, pthread_mutex_unlock, pthread_rwlock_rdlock,
    pthread_rwlock_unlock,
)

cpdef enum:
    READ_SLOTS = 256                # slots of a segment read at once, at the most

cdef enum:
    DAMAGES_MAX = 1 << 22           # blocks or nodes remembered; beyond that a pool needs a copy, not a list
    FAULTS_MAX = 1000
    PLACE_LEVEL_SHIFT = 56
    STOPPED = -1


# --- what was found --------------------------------------------------------------------------------------------------

cdef void note_damage(DamageList* damages, uint64_t address, uint32_t reason) noexcept nogil:
    cdef Damage* items
    if damages.count == DAMAGES_MAX:
        return
    if damages.count == damages.room:
        items = <Damage*>realloc(damages.items, (damages.room * 2 + 64) * sizeof(Damage))
        if items == NULL:
            return
        damages.items = items
        damages.room = damages.room * 2 + 64
    damages.items[damages.count].address = address
    damages.items[damages.count].reason = reason
    damages.count += 1


cdef void note_fault(
    FaultList* faults, uint32_t reason, uint64_t where, uint64_t place, uint64_t count, bint healed
) noexcept nogil:
    cdef Fault* items
    if faults.count == FAULTS_MAX:
        faults.dropped += 1
        return
    if faults.count == faults.room:
        items = <Fault*>realloc(faults.items, (faults.room * 2 + 16) * sizeof(Fault))
        if items == NULL:
            faults.dropped += 1
            return
        faults.items = items
        faults.room = faults.room * 2 + 16
    faults.items[faults.count].reason = reason
    faults.items[faults.count].healed = healed
    faults.items[faults.count].where = where
    faults.items[faults.count].place = place
    faults.items[faults.count].count = count
    faults.count += 1


cdef int by_address(const void* a, const void* b) noexcept nogil:
    cdef uint64_t left = (<Damage*>a).address
    cdef uint64_t right = (<Damage*>b).address
    return -1 if left < right else (left > right)


cdef void sort_damages(DamageList* damages) noexcept nogil:
    """By address, each once."""
    cdef uint64_t i, kept = 0
    if damages.count == 0:
        return
    qsort(damages.items, damages.count, sizeof(Damage), &by_address)
    for i in range(damages.count):
        if kept == 0 or damages.items[kept - 1].address != damages.items[i].address:
            damages.items[kept] = damages.items[i]
            kept += 1
    damages.count = kept


cdef uint32_t damage_of(const DamageList* damages, uint64_t address) noexcept nogil:
    """Why the block or node is in a sorted list; 0: it is not."""
    cdef uint64_t low = 0, high = damages.count, middle
    while low < high:
        middle = (low + high) // 2
        if damages.items[middle].address < address:
            low = middle + 1
        else:
            high = middle
    if low < damages.count and damages.items[low].address == address:
        return <uint32_t>damages.items[low].reason
    return 0


# --- addresses and blocks --------------------------------------------------------------------------------------------

cdef uint32_t slot_reason(Segment* segment, uint32_t index) noexcept nogil:
    """What is wrong with an address in a pinned segment; 0: it names a block."""
    if index >= load_u32(&segment.slot_count):
        return BEYOND_SEGMENT
    return 0 if segment_holds_block(segment, index) else NO_BLOCK


cdef void check_leaf(Walk* walk, MapNode* node) noexcept nogil:
    """Each address of a leaf names a block."""
    cdef Segment* segment = NULL
    cdef uint64_t address, pinned = 0
    cdef uint32_t i, reason
    for i in range(NODE_FANOUT):
        address = load_u64(&node.entries[i])
        if address == 0:
            continue
        walk.blocks += 1
        if segment == NULL or pinned != address >> 32:
            if segment != NULL:
                segment_unpin(walk.pool.segments, segment)
            pinned = address >> 32
            if segment_pin(walk.pool.segments, pinned, &segment):
                segment = NULL
        reason = NO_SEGMENT if segment == NULL else slot_reason(segment, <uint32_t>address)
        if reason:
            note_damage(&walk.blocks_damaged, address, reason)
    if segment != NULL:
        segment_unpin(walk.pool.segments, segment)


cdef void check_slot(Walk* walk, Segment* segment, uint32_t index, const char* block) noexcept nogil:
    """`block`: what the file has there; NULL: it cannot be read."""
    cdef Fingerprint fingerprint
    if block == NULL:
        note_damage(&walk.blocks_damaged, make_address(segment.id, index), UNREADABLE_BLOCK)
        return
    fingerprint = fingerprint_block(block)
    if (fingerprint.low != segment.fingerprints[index].low
            or fingerprint.high != segment.fingerprints[index].high):
        note_damage(&walk.blocks_damaged, make_address(segment.id, index), BAD_BLOCK)


cdef uint32_t written_slots(PoolState* pool, Segment* segment) noexcept nogil:
    """How many slots of a segment are in its file: the last batches of the log are in memory only."""
    cdef uint32_t count = load_u32(&segment.slot_count)
    cdef uint64_t unwritten = load_u64(&pool.log.first_unwritten)
    if unwritten >> 32 > segment.id:
        return count
    if unwritten >> 32 < segment.id:
        return 0
    return <uint32_t>unwritten if <uint32_t>unwritten < count else count


# --- maps ------------------------------------------------------------------------------------------------------------

cdef inline uint32_t slot_in(uint64_t block, uint32_t level) noexcept nogil:
    return <uint32_t>((block >> (NODE_FANOUT_SHIFT * level)) & (NODE_FANOUT - 1))


cdef inline uint64_t first_block(uint64_t block, uint32_t level) noexcept nogil:
    """Of the node of that level that maps `block`."""
    return block & ~((<uint64_t>1 << (NODE_FANOUT_SHIFT * (level + 1))) - 1)


cdef void verify_copies(Walk* walk, uint64_t id, uint32_t level) noexcept nogil:
    """Both copies of a node on disk, if it is there yet.  Caller is in a read section."""
    cdef MapNode** place = nodes_place(walk.pool.nodes, id)
    cdef MapNode* node = NULL if place == NULL else <MapNode*>load_pointer(<void**>place)
    cdef uint32_t bad = 0
    cdef int failure
    if node != NULL and not node.clean:
        return
    failure = node_heal(walk.pool.nodes, id, level, &bad)
    if bad == 1 or (bad and node != NULL):      # else the node is lost
        note_fault(&walk.faults, COPY_LOST, id, 0, bad, failure == 0)


cdef bint meet(Walk* walk, uint64_t id, uint32_t level, uint64_t first, MapNode** node) noexcept nogil:
    """Look at a node that a map reaches; False: there is nothing below it to look at.  Caller is in a read section."""
    cdef uint64_t place = (<uint64_t>level << PLACE_LEVEL_SHIFT) | first
    cdef uint8_t flags = walk.flags[id] if id < walk.id_count else 0
    if flags & NODE_DAMAGED:
        return False
    if flags & NODE_PASSED and walk.places[id] == place:
        return False
    if not flags & NODE_MET:
        verify_copies(walk, id, level)
    if node_get(walk.pool.nodes, id, level, node):
        note_damage(&walk.nodes_damaged, id, BAD_NODE)
        if id < walk.id_count:
            walk.flags[id] |= NODE_DAMAGED
        return False
    if id < walk.id_count and node[0].generation < walk.generation:     # else its slot was taken after we began
        if flags & NODE_MET and walk.places[id] != place:
            note_fault(&walk.faults, NODE_TWICE, id, 0, 0, False)
            return False
        if flags & NODE_UNUSED and not flags & NODE_MET:
            note_fault(&walk.faults, NODE_FREE, id, 0, 0, False)
    if not flags & NODE_MET:
        walk.nodes += 1
        if id < walk.id_count:
            walk.flags[id] |= NODE_MET
            walk.places[id] = place
    return True


cdef void mark_passed(Walk* walk, uint64_t id) noexcept nogil:
    if id < walk.id_count:
        walk.flags[id] |= NODE_PASSED


cdef inline uint64_t disk_end(Disk* disk) noexcept nogil:
    return (load_u64(&disk.size_bytes) + SLOT_BYTES - 1) // SLOT_BYTES


cdef void pass_step(
    Walk* walk, Disk* disk, uint64_t* block, const uint64_t* path, uint64_t id, uint32_t level
) noexcept nogil:
    """Go behind what a step has seen: the node `id` at `level`, or (0) the hole that is its missing child.

    Nodes on the path that end there are passed too.  Caller holds disk.lock shared.
    """
    cdef uint32_t below = level if id else level - 1
    cdef uint32_t above = below + 1
    if id:
        mark_passed(walk, id)
    while above < disk.map.height and slot_in(block[0], above) == NODE_FANOUT - 1:
        mark_passed(walk, path[above])
        above += 1
    block[0] = first_block(block[0], below) + (<uint64_t>1 << (NODE_FANOUT_SHIFT * (below + 1)))
    if block[0] >= disk_end(disk):
        for above in range(below + 1, disk.map.height):         # behind the end of the disk there is nothing
            mark_passed(walk, path[above])


cdef void walk_step(Walk* walk, Disk* disk, uint64_t* block) noexcept nogil:
    """Go down to `block` once, and move it behind what was seen.  Caller holds disk.lock shared.

    One read section a step, so that a long walk holds nobody up.
    """
    cdef uint32_t token = nodes_enter(walk.pool.nodes)
    cdef uint32_t level = disk.map.height
    cdef uint64_t id = load_u64(&disk.map.root)
    cdef uint64_t path[NODE_HEIGHT_MAX]
    cdef MapNode* node = NULL
    while id and level:
        level -= 1
        path[level] = id
        if not meet(walk, id, level, first_block(block[0], level), &node):
            break
        if level == 0:
            check_leaf(walk, node)
            break
        id = load_u64(&node.entries[slot_in(block[0], level)])
    pass_step(walk, disk, block, path, id, level)
    nodes_leave(walk.pool.nodes, token)


cdef int walk_disk(Walk* walk, Disk* disk, uint64_t* block, uint32_t steps) noexcept nogil:
    """So many steps; ENOENT: past the end."""
    cdef uint32_t _i
    cdef int failure = 0
    for _i in range(steps):
        pthread_rwlock_rdlock(&disk.lock)
        if disk.deleted or block[0] >= disk_end(disk):
            failure = ENOENT
        else:
            walk_step(walk, disk, block)
        pthread_rwlock_unlock(&disk.lock)
        if failure:
            break
    return failure


cdef int stop_at_data(void* opaque, uint64_t block, uint64_t count, bint hole) noexcept nogil:
    return 0 if hole else STOPPED


cdef bint map_fits(Disk* disk) noexcept nogil:
    """Whether a map covers its disk and has nothing behind the end: that would come back when the disk grows."""
    cdef uint64_t end, covered
    cdef bint fits = True
    pthread_rwlock_rdlock(&disk.lock)
    end = disk_end(disk)
    covered = <uint64_t>1 << (NODE_FANOUT_SHIFT * disk.map.height)
    if not disk.deleted and end != covered:
        fits = (end < covered and map_runs(
            disk.pool.nodes, &disk.map, end, covered - end, stop_at_data, NULL) != STOPPED)
    pthread_rwlock_unlock(&disk.lock)
    return fits


cdef int find_ids(Disk* disk, uint64_t block, uint64_t* ids) noexcept nogil:
    """What a map says of a block: ids[level] of the nodes on the way, ids[NODE_HEIGHT_MAX] its address; 0 where none."""
    cdef uint32_t token, level
    cdef uint64_t id
    cdef MapNode* node = NULL
    cdef int failure = 0
    memset(ids, 0, (NODE_HEIGHT_MAX + 1) * sizeof(uint64_t))
    pthread_rwlock_rdlock(&disk.lock)
    token = nodes_enter(disk.pool.nodes)
    level = disk.map.height
    id = 0 if disk.deleted or block >= disk_end(disk) else load_u64(&disk.map.root)
    while id and level and not failure:
        level -= 1
        ids[level] = id
        failure = node_get(disk.pool.nodes, id, level, &node)
        if not failure:
            id = load_u64(&node.entries[slot_in(block, level)])
            if level == 0:
                ids[NODE_HEIGHT_MAX] = id
    nodes_leave(disk.pool.nodes, token)
    pthread_rwlock_unlock(&disk.lock)
    return failure


# --- whom it hits ----------------------------------------------------------------------------------------------------

cdef struct Hit:
    uint64_t block                  # the first
    uint64_t count                  # blocks
    uint64_t address                # of the block; of a node: its id
    uint32_t reason
    uint32_t level                  # of a node


cdef struct Hits:                   # of one step
    Hit items[512]
    uint32_t count
    uint64_t blocks                 # damaged, named or not


cdef void add_hit(
    Hits* hits, uint64_t block, uint64_t count, uint64_t address, uint32_t reason, uint32_t level
) noexcept nogil:
    hits.items[hits.count].block = block
    hits.items[hits.count].count = count
    hits.items[hits.count].address = address
    hits.items[hits.count].reason = reason
    hits.items[hits.count].level = level
    hits.count += 1
    hits.blocks += count


cdef void hit_leaf(Walk* walk, MapNode* node, uint64_t first, uint64_t end, Hits* hits) noexcept nogil:
    cdef uint64_t address
    cdef uint32_t i, reason
    for i in range(NODE_FANOUT):
        address = load_u64(&node.entries[i])
        reason = damage_of(&walk.blocks_damaged, address) if address and first + i < end else 0
        if reason:
            add_hit(hits, first + i, 1, address, reason, 0)


cdef void hit_node(Walk* walk, uint64_t id, uint32_t level, uint64_t first, uint64_t end, Hits* hits) noexcept nogil:
    cdef uint64_t count = <uint64_t>1 << (NODE_FANOUT_SHIFT * (level + 1))
    add_hit(hits, first, min(count, end - first), id, BAD_NODE, level)


cdef bint is_told(Walk* walk, uint64_t id, bint detail, Hits* hits) noexcept nogil:
    """Whether a subtree was gone through before, and need not be again: it has nothing, or its number is enough."""
    if id >= walk.id_count or not walk.flags[id] & NODE_PASSED or (walk.counts[id] and detail):
        return False
    hits.blocks = walk.counts[id]
    return True


cdef void attribute_step(Walk* walk, Disk* disk, uint64_t* block, bint detail, Hits* hits) noexcept nogil:
    """Like walk_step: what is damaged there.  Caller holds disk.lock shared."""
    cdef uint32_t token = nodes_enter(walk.pool.nodes)
    cdef uint32_t level = disk.map.height, above
    cdef uint64_t id = load_u64(&disk.map.root), first
    cdef uint64_t path[NODE_HEIGHT_MAX]
    cdef MapNode* node = NULL
    hits.count = 0
    hits.blocks = 0
    while id and level:
        level -= 1
        path[level] = id
        first = first_block(block[0], level)
        if is_told(walk, id, detail, hits):
            break
        if damage_of(&walk.nodes_damaged, id) or node_get(walk.pool.nodes, id, level, &node):
            hit_node(walk, id, level, first, disk_end(disk), hits)
            break
        if level == 0:
            hit_leaf(walk, node, first, disk_end(disk), hits)
            break
        id = load_u64(&node.entries[slot_in(block[0], level)])
    for above in range(level, disk.map.height):
        if path[above] < walk.id_count and not walk.flags[path[above]] & NODE_PASSED:
            walk.counts[path[above]] += hits.blocks
    pass_step(walk, disk, block, path, id, level)
    nodes_leave(walk.pool.nodes, token)


cdef int attribute_disk(
    Walk* walk, Disk* disk, uint64_t* block, bint detail, uint32_t steps, Hits* hits, uint64_t* blocks
) noexcept nogil:
    """So many steps, or up to the first that has hits; `blocks` counts the damaged ones.  ENOENT: past the end."""
    cdef uint32_t _i
    cdef int failure = 0
    hits.count = 0
    for _i in range(steps):
        pthread_rwlock_rdlock(&disk.lock)
        if disk.deleted or block[0] >= disk_end(disk):
            failure = ENOENT
        else:
            attribute_step(walk, disk, block, detail, hits)
            blocks[0] += hits.blocks
        pthread_rwlock_unlock(&disk.lock)
        if failure or hits.count:
            break
    return failure


# --- segments --------------------------------------------------------------------------------------------------------

cdef void rewrite_header(Walk* walk, Segment* segment, uint32_t index, uint32_t place, const char* slot) noexcept nogil:
    """One copy of the header of the batch at `index` is lost, that at `place`: write it anew from the other."""
    cdef int failure = EIO
    if walk.heal:
        failure = medium_write(segment.file, slot, SLOT_BYTES, <uint64_t>place * SLOT_BYTES)
    note_fault(&walk.faults, BATCH_COPY_LOST, segment.id, index, 1, failure == 0)


cdef bint index_agrees(Segment* segment, uint32_t index, const char* slot) noexcept nogil:
    """Whether the fingerprints in memory, which are those of the segment's index, are those of a batch header."""
    cdef const BatchHeader* header = <const BatchHeader*>slot
    cdef const BatchEntry* entry = <const BatchEntry*>(slot + sizeof(BatchHeader))
    cdef uint32_t _i, place = index + 1
    for _i in range(header.entry_count):
        if entry.kind == ENTRY_DATA:
            if segment.fingerprints[place].low != entry.a or segment.fingerprints[place].high != entry.b:
                return False
            place += 1
        elif entry.kind == ENTRY_RECORD:
            place += entry.object
        entry += 1
    return True


cdef void check_batch(Walk* walk, Segment* segment, uint32_t index, uint32_t place, const char* slot) noexcept nogil:
    """`slot`: the header of the batch at `index`, found at `place`, which is that or the place of the second copy."""
    cdef char other[SLOT_BYTES]
    cdef const BatchHeader* header = <const BatchHeader*>slot
    cdef uint32_t second = index + batch_slots(header) - 1
    if place != index:
        rewrite_header(walk, segment, index, index, slot)
    elif (medium_read(segment.file, other, SLOT_BYTES, <uint64_t>second * SLOT_BYTES)
            or memcmp(slot, other, SLOT_BYTES) != 0):
        rewrite_header(walk, segment, index, second, slot)
    if not index_agrees(segment, index, slot):
        note_fault(&walk.faults, INDEX_WRONG, segment.id, index, header.payload_count, False)


cdef bint check_batches(Walk* walk, Segment* segment, uint32_t end) noexcept nogil:
    """Both copies of every batch header below slot `end`; False: a batch has none."""
    cdef char slot[SLOT_BYTES]
    cdef const BatchHeader* header = <const BatchHeader*>slot
    cdef uint32_t index = 1, place = 1, found
    cdef bint complete = True
    while place < end:
        found = 0
        if medium_read(segment.file, slot, SLOT_BYTES, <uint64_t>place * SLOT_BYTES) == 0:
            found = batch_recognise(walk.pool.segments, segment, place, slot)
        if found < index or found + batch_slots(header) > end:
            place += 1
            continue
        if found > index:
            note_fault(&walk.faults, BATCH_LOST, segment.id, index, found - index, False)
            complete = False
        check_batch(walk, segment, found, place, slot)
        index = place = found + batch_slots(header)
    if index < end:
        note_fault(&walk.faults, BATCH_LOST, segment.id, index, end - index, False)
    return complete and index == end


cdef void check_ends(Walk* walk, Segment* segment, bint growing, bint complete) noexcept nogil:
    """Header slot, and, once it is not written to any more, index and trailer.  complete: every batch has a header."""
    cdef int failure = EIO
    if not segment_header_holds(walk.pool.segments, segment):
        if walk.heal:
            failure = segment_write_header(walk.pool.segments, segment)
        note_fault(&walk.faults, HEADER_LOST, segment.id, 0, 1, failure == 0)
    if growing or (segment.sealed and segment_index_holds(walk.pool.segments, segment)):
        return
    failure = EIO
    if walk.heal and (segment.sealed or (complete and not segment.unread)):
        failure = segment_seal_again(walk.pool.segments, segment)
    note_fault(&walk.faults, INDEX_LOST, segment.id, segment.slot_count, 1, failure == 0)


cdef bint is_growing(Log* log, Segment* segment) noexcept nogil:
    """Whether the log may still write to a segment, or seal it."""
    cdef uint32_t i
    cdef bint growing
    pthread_mutex_lock(&log.lock)
    growing = segment == log.segment
    for i in range(log.unsynced_count):
        growing = growing or segment == log.unsynced[i]
    pthread_mutex_unlock(&log.lock)
    return growing


cdef void check_cold(Walk* walk, Segment* segment) noexcept nogil:
    """Both copies of header and index of a compacted segment."""
    cdef ColdHeader header
    cdef uint32_t bad = 0, lost = 0
    cdef int failure
    cold_identity(walk.pool.segments, segment, &header)
    failure = cold_heal(segment.file, &header, walk.heal, &bad, &lost)
    if not failure and walk.heal and bad:
        failure = medium_sync(segment.file)
    if bad or failure:
        note_fault(&walk.faults, INDEX_LOST, segment.id, segment.slot_count, 1, failure == 0 and not lost)


cdef void check_segment(Walk* walk, uint64_t id, uint32_t* slot_count) noexcept nogil:
    cdef Segment* segment = NULL
    cdef bint growing, complete
    slot_count[0] = 0
    if segment_pin(walk.pool.segments, id, &segment):
        if segments_get(walk.pool.segments, id) != NULL:        # else compaction removed it meanwhile
            note_fault(&walk.faults, SEGMENT_LOST, id, 0, 0, False)
        return
    if segment.cold != NULL:
        slot_count[0] = segment.slot_count
        check_cold(walk, segment)
        segment_unpin(walk.pool.segments, segment)
        return
    # before its slots are counted: it may end meanwhile
    growing = is_growing(walk.pool.log, segment) or (segment.id >= walk.unsettled and not segment.sealed)
    slot_count[0] = written_slots(walk.pool, segment)
    complete = check_batches(walk, segment, slot_count[0])
    check_ends(walk, segment, growing, complete)
    segment_unpin(walk.pool.segments, segment)


cdef void check_slots(Walk* walk, uint64_t id, uint32_t first, uint32_t count, char* buffer) noexcept nogil:
    """Verify the blocks in `count` slots of a segment; headers are verified on their own, records are for replay."""
    cdef Segment* segment = NULL
    cdef uint32_t i = first, run
    if segment_pin(walk.pool.segments, id, &segment):
        return                          # check_segment said so
    while i < first + count:
        run = 0
        while i + run < first + count and slot_reason(segment, i + run) == 0:
            run += 1
        if run:
            check_run(walk, segment, i, run, buffer)
        i += run + 1
    segment_unpin(walk.pool.segments, segment)


cdef void check_run(Walk* walk, Segment* segment, uint32_t first, uint32_t count, char* buffer) noexcept nogil:
    """Verify the blocks in slots that each hold one."""
    cdef bint whole = segment_read(segment, first, count, buffer) == 0
    cdef char* slot
    cdef uint32_t i
    for i in range(count):
        slot = buffer + <uint64_t>i * SLOT_BYTES
        if not whole and segment_read(segment, first + i, 1, slot):
            slot = NULL
        check_slot(walk, segment, first + i, slot)


# --- one pass --------------------------------------------------------------------------------------------------------

cdef void mark_unused(Walk* walk, const SlotVector* slots) noexcept nogil:
    """Caller holds the store's lock."""
    cdef uint64_t i, id
    for i in range(slots.count):
        id = slots.items[i].id
        if id >= walk.id_count or walk.flags[id] & NODE_UNUSED:
            note_fault(&walk.faults, SLOT_LISTED_TWICE, id, 0, 0, False)
        else:
            walk.flags[id] |= NODE_UNUSED


cdef class Checker:
    """One pass over an open pool.  See _check.pxd for its parts and their order; one thread at a time.

    The counters `nodes` and `blocks` tell how many were looked at.
    """

    cdef Core core
    cdef Walk pass_
    cdef char* buffer                   # READ_SLOTS slots

    def __cinit__(self, Core core, bint heal, uint32_t unsettled):
        """heal: write copies that do not verify anew from those that do.  unsettled: see Walk."""
        cdef NodeStore* store = core.state.nodes
        self.core = core
        memset(&self.pass_, 0, sizeof(Walk))
        self.pass_.pool = core.state
        self.pass_.heal = heal
        self.pass_.unsettled = unsettled
        self.buffer = <char*>malloc(READ_SLOTS * SLOT_BYTES)
        pthread_mutex_lock(&store.lock)
        self.pass_.id_count = store.next_id
        self.pass_.generation = load_u64(&store.generation)
        self.pass_.flags = <uint8_t*>calloc(self.pass_.id_count, 1)
        self.pass_.places = <uint64_t*>calloc(self.pass_.id_count, sizeof(uint64_t))
        if self.pass_.flags != NULL:
            mark_unused(&self.pass_, &store.free_slots)
            mark_unused(&self.pass_, &store.retired_slots)
        pthread_mutex_unlock(&store.lock)
        if self.buffer == NULL or self.pass_.flags == NULL or self.pass_.places == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.buffer)
        free(self.pass_.flags)
        free(self.pass_.places)
        free(self.pass_.counts)
        free(self.pass_.nodes_damaged.items)
        free(self.pass_.blocks_damaged.items)
        free(self.pass_.faults.items)

    @property
    def nodes(self):
        return self.pass_.nodes

    @property
    def blocks(self):
        return self.pass_.blocks

    @property
    def damage_count(self):
        """How many nodes and blocks are damaged, as far as is known."""
        return self.pass_.nodes_damaged.count + self.pass_.blocks_damaged.count

    @property
    def nodes_expected(self):
        """How many nodes the maps can reach, at the most."""
        cdef uint64_t id, count = 0
        for id in range(1, self.pass_.id_count):
            count += not self.pass_.flags[id] & NODE_UNUSED
        return count

    def walk(self, DiskObject thing, uint64_t block, uint32_t steps):
        """Part of the walk of one disk, from `block` on; returns where to go on, None at its end."""
        cdef int failure
        with nogil:
            failure = walk_disk(&self.pass_, thing.disk, &block, steps)
        return None if failure else block

    def segment_ids(self):
        """Of the segments that are there now."""
        cdef uint32_t id
        return [id for id in range(1, load_u32(&self.core.state.segments.id_end))
                if segments_get(self.core.state.segments, id) != NULL]

    def check_segment(self, uint32_t id):
        """What describes a segment; returns how many slots it has in its file."""
        cdef uint32_t slot_count = 0
        with nogil:
            check_segment(&self.pass_, id, &slot_count)
        return slot_count

    def check_slots(self, uint32_t id, uint32_t first, uint32_t count):
        """The blocks in some slots of a segment, at most READ_SLOTS."""
        assert count <= READ_SLOTS
        with nogil:
            check_slots(&self.pass_, id, first, count, self.buffer)

    def faults(self):
        """What no disk is named for: [(Reason, healed, segment or node id, slot, slots)], and how many more there are."""
        cdef FaultList* faults = &self.pass_.faults
        return [(Reason(faults.items[i].reason), bool(faults.items[i].healed), faults.items[i].where,
                 faults.items[i].place, faults.items[i].count) for i in range(faults.count)], faults.dropped

    def sync(self):
        """Make durable what was healed in the node files.  Segments that were healed are synced one by one."""
        for file in self.core.state.node_files:
            medium_sync(file)

    def begin_attribution(self):
        """From here on: attribute."""
        cdef uint64_t id
        for id in range(self.pass_.id_count):
            self.pass_.flags[id] = 0
        sort_damages(&self.pass_.nodes_damaged)
        sort_damages(&self.pass_.blocks_damaged)
        self.pass_.counts = <uint64_t*>calloc(self.pass_.id_count, sizeof(uint64_t))
        if self.pass_.counts == NULL:
            raise MemoryError()

    def attribute(self, DiskObject thing, uint64_t block, bint detail, uint32_t steps):
        """Part of what one disk reaches of the damage, from `block` on.

        detail: name it; else what was gone through by way of another disk is only counted.
        Returns (where to go on, None at its end; damaged blocks; [(block, blocks, address or node id, Reason, level)]).
        """
        cdef Hits hits
        cdef uint64_t blocks = 0
        cdef uint32_t i
        cdef int failure
        with nogil:
            failure = attribute_disk(&self.pass_, thing.disk, &block, detail, steps, &hits, &blocks)
        found = [(hits.items[i].block, hits.items[i].count, hits.items[i].address, Reason(hits.items[i].reason),
                  hits.items[i].level) for i in range(hits.count)]
        return (None if failure else block), blocks, found


def has_fitting_map(DiskObject thing):
    """Whether the map of a disk covers it and has nothing behind its end; a node that does not verify counts as fitting."""
    cdef bint fits
    with nogil:
        fits = map_fits(thing.disk)
    return bool(fits)


def map_ids(DiskObject thing, uint64_t block):
    """What the map of a disk says of a block: [node id at level 0, 1, ...], and its address; 0 where there is none.

    Above a node that does not verify the rest is 0 as well.
    """
    cdef uint64_t ids[NODE_HEIGHT_MAX + 1]
    with nogil:
        find_ids(thing.disk, block, ids)
    return [ids[level] for level in range(NODE_HEIGHT_MAX)], ids[NODE_HEIGHT_MAX]


def block_verifies(DiskObject thing, uint64_t address):
    """Whether the block at an address can be read and verifies."""
    cdef char block[SLOT_BYTES]
    cdef uint32_t bad = 0
    cdef int failure
    with nogil:
        failure = fetch_run(thing.disk.pool, address, 1, block, &bad)
    return failure == 0
