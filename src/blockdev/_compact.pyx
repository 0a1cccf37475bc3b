"""The steps of mark and compact.  See _compact.pxd for the design."""

from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from blockdev import errors

from blockdev._cold cimport (
    CODEC_PLAIN, CODEC_ZSTD, FRAME_BLOCKS, ColdHeader, ColdWriter, cold_add, cold_begin, cold_finish, cold_frames,
    cold_writer_destroy, cold_writer_init, frame_codec,
)
from blockdev._dedup cimport Fingerprint, dedup_forget, dedup_insert, fingerprint_block
from blockdev._disk cimport PoolState
from blockdev._log cimport log_lend_spare, log_poison, log_roll
from blockdev._medium cimport BUG_SWAP_NOT_SYNCED, medium_size, medium_sync_directory, planted
from blockdev._nodes cimport (
    NODE_FANOUT, NODE_RECORD_BYTES, RetiredSlot, node_copy, nodes_enter, nodes_leave, nodes_retire, nodes_trim,
    nodes_wait_for_readers,
)
from blockdev._pool cimport Core
from blockdev._segments cimport (
    SLOT_BYTES, Segment, cold_identity, make_address, segment_drop, segment_pin, segment_read, segment_remove,
    segment_holds_block, segment_let_go, segment_peek, segment_rewrite_abandon, segment_rewrite_begin, segment_swap,
    segment_unpin, segments_get,
)
from blockdev._sync cimport (
    load_pointer, load_u32, load_u64, or_u64, pthread_rwlock_unlock, pthread_rwlock_wrlock, store_pointer, store_u32,
)

cdef extern from * nogil:
    int __builtin_popcountll(unsigned long long value)

cdef enum:
    COPY_BLOCKS = 16                # read at once


# --- bits ------------------------------------------------------------------------------------------------------------

cdef inline bint bit_of(const uint64_t* bits, uint64_t i) noexcept nogil:
    return (load_u64(&bits[i >> 6]) >> (i & 63)) & 1


cdef inline void set_bit(uint64_t* bits, uint64_t i) noexcept nogil:
    or_u64(&bits[i >> 6], <uint64_t>1 << (i & 63))


cdef uint32_t count_bits(const uint64_t* bits, uint32_t end) noexcept nogil:
    """How many are set below `end`, a multiple of 64."""
    cdef uint32_t word, count = 0
    for word in range(end // 64):
        count += __builtin_popcountll(load_u64(&bits[word]))
    return count


# --- marking ---------------------------------------------------------------------------------------------------------

cdef int push(NodeStack* stack, uint64_t id, uint32_t level, int packing) noexcept nogil:
    cdef NodeToMark* items
    if stack.count == stack.room:
        items = <NodeToMark*>realloc(stack.items, (stack.room * 2 + NODE_FANOUT) * sizeof(NodeToMark))
        if items == NULL:
            return ENOMEM
        stack.items = items
        stack.room = stack.room * 2 + NODE_FANOUT
    stack.items[stack.count].id = id
    stack.items[stack.count].level = level
    stack.items[stack.count].packing = packing
    stack.count += 1
    return 0


cdef uint64_t* plain_bits(Marks* marks, uint32_t id) noexcept nogil:
    """The bitmap of blocks to be kept plain in a segment; NULL when there is no memory."""
    if marks.plain[id] == NULL:
        marks.plain[id] = <uint64_t*>calloc((marks.pool.segments.segment_slots + 63) // 64, sizeof(uint64_t))
    return marks.plain[id]


cdef int mark_leaf(Marks* marks, const uint64_t* entries) noexcept nogil:
    """Set the bits of the blocks that a leaf names."""
    cdef uint64_t* live = NULL
    cdef uint64_t* plain
    cdef Segment* segment
    cdef uint64_t known = 0
    cdef uint32_t i, index
    for i in range(NODE_FANOUT):
        if entries[i] == 0 or entries[i] >> 32 >= marks.segment_end:
            continue
        if entries[i] >> 32 != known:
            known = entries[i] >> 32
            segment = segments_get(marks.pool.segments, known)
            live = NULL if segment == NULL else <uint64_t*>load_pointer(<void**>&segment.live)
        index = <uint32_t>entries[i]
        if live == NULL or index >= marks.pool.segments.segment_slots:
            continue
        if marks.packing == PACK_SOON and not bit_of(live, index):
            marks.soon[known] += 1
        set_bit(live, index)
        if marks.packing == PACK_NEVER:
            plain = plain_bits(marks, known)
            if plain == NULL:
                return ENOMEM
            set_bit(plain, index)
    return 0


cdef int mark_node(Marks* marks) noexcept nogil:
    """Take the next node from the stack: a leaf's blocks are live, others' children are to be marked."""
    cdef uint64_t entries[NODE_FANOUT]
    cdef NodeToMark node
    cdef uint32_t i
    cdef int failure
    marks.stack.count -= 1
    node = marks.stack.items[marks.stack.count]
    failure = node_copy(marks.pool.nodes, node.id, node.level, entries)
    if failure:
        return failure
    if node.level == 0:
        return mark_leaf(marks, entries)
    for i in range(NODE_FANOUT):
        if entries[i] >= marks.node_end:
            return EIO
        if entries[i] and not bit_of(marks.met, entries[i]):
            set_bit(marks.met, entries[i])
            failure = failure or push(&marks.stack, entries[i], node.level - 1, 0)
    return failure


cdef int next_root(Marks* marks) noexcept nogil:
    """Put the root of the next map that was not met on the empty stack."""
    cdef NodeToMark* root
    while marks.roots.count and marks.stack.count == 0:
        marks.roots.count -= 1
        root = &marks.roots.items[marks.roots.count]
        if not bit_of(marks.met, root.id):
            set_bit(marks.met, root.id)
            marks.packing = root.packing
            if push(&marks.stack, root.id, root.level, 0):
                return ENOMEM
    return 0


# --- rewriting -------------------------------------------------------------------------------------------------------

cdef void forget(PoolState* pool, Segment* segment, uint32_t slot) noexcept nogil:
    """Drop the hint to a block of a pinned segment, if there is one."""
    if segment_holds_block(segment, slot):
        dedup_forget(pool.dedup, segment.fingerprints[slot], make_address(segment.id, slot))


cdef int copy_run(
    ColdWriter* writer, Segment* segment, const uint64_t* plain, uint32_t first, uint32_t count
) noexcept nogil:
    """Read live blocks, verify them, and give them to the writer; EIO when one does not verify."""
    cdef char blocks[COPY_BLOCKS * SLOT_BYTES]
    cdef Fingerprint found
    cdef uint32_t i
    cdef int failure = segment_read(segment, first, count, blocks)
    for i in range(count):
        if failure:
            break
        found = fingerprint_block(blocks + <uint64_t>i * SLOT_BYTES)
        if found.low != segment.fingerprints[first + i].low or found.high != segment.fingerprints[first + i].high:
            failure = EIO               # it must not get a new fingerprint that fits
        else:
            failure = cold_add(writer, first + i, found, blocks + <uint64_t>i * SLOT_BYTES,
                               plain != NULL and bit_of(plain, first + i))
    return failure


cdef int copy_slots(
    PoolState* pool, ColdWriter* writer, Segment* segment, const uint64_t* plain, uint32_t* slot, uint32_t slots
) noexcept nogil:
    """Go through the next `slots` slots: live blocks are copied, hints to the others are dropped."""
    cdef uint32_t end = min(segment.slot_count, slot[0] + slots), run
    cdef int failure = 0
    while slot[0] < end and not failure:
        if not bit_of(segment.live, slot[0]):
            forget(pool, segment, slot[0])
            slot[0] += 1
            continue
        run = 0
        while run < COPY_BLOCKS and slot[0] + run < end and bit_of(segment.live, slot[0] + run):
            if not segment_holds_block(segment, slot[0] + run):
                return EIO              # what the index does not know must not be dropped for good
            run += 1
        failure = copy_run(writer, segment, plain, slot[0], run)
        slot[0] += run
    return failure


cdef int count_odd(Segment* segment, const uint64_t* plain, uint32_t* odd) noexcept nogil:
    """Count the frames of a compacted segment that are compressed though a block of theirs is to be plain, and those
    that are plain for no block any more."""
    cdef uint32_t frames = cold_frames(segment.cold), frame, slot, codec
    cdef uint8_t* wanted = <uint8_t*>calloc(frames + 1, 1)
    if wanted == NULL:
        return ENOMEM
    for slot in range(segment.slot_count):
        if segment.cold.ranks[slot] and bit_of(segment.live, slot) and plain != NULL and bit_of(plain, slot):
            wanted[(segment.cold.ranks[slot] - 1) // FRAME_BLOCKS] = 1
    for frame in range(frames):
        codec = frame_codec(segment.cold.frames[frame])
        odd[0] += codec == CODEC_ZSTD if wanted[frame] else codec == CODEC_PLAIN
    free(wanted)
    return 0


cdef class Marker:
    """One round of mark and compact; its methods are called in the order of _compact.pxd, by one thread."""

    cdef Core core
    cdef uint64_t** bitmaps             # of each segment id below `bitmaps_end` that has one; owned
    cdef uint32_t bitmaps_end
    cdef Marks marks
    cdef ColdWriter writer
    cdef Segment* segment               # that is being rewritten, pinned
    cdef uint32_t slot                  # the next of it
    cdef readonly uint64_t nodes        # marked

    def __cinit__(self, Core core):
        self.core = core
        self.marks.pool = core.state
        if cold_writer_init(&self.writer):
            raise MemoryError()

    def __dealloc__(self):
        if self.core is not None:
            self.end()
        free(self.marks.met)
        free(self.marks.roots.items)
        free(self.marks.stack.items)
        cold_writer_destroy(&self.writer)

    cdef uint32_t bits_end(self) noexcept nogil:
        return (self.core.state.segments.segment_slots + 63) // 64 * 64

    def begin(self, uint32_t segment_end):
        """Let dedup hits on blocks in segments below `segment_end` be noted from here on."""
        cdef Segment* segment
        cdef uint32_t id
        self.bitmaps = <uint64_t**>calloc(segment_end, sizeof(uint64_t*))
        self.marks.plain = <uint64_t**>calloc(segment_end, sizeof(uint64_t*))
        self.marks.soon = <uint32_t*>calloc(segment_end, sizeof(uint32_t))
        self.bitmaps_end = segment_end
        if self.bitmaps == NULL or self.marks.plain == NULL or self.marks.soon == NULL:
            raise MemoryError()
        self.marks.segment_end = segment_end
        for id in range(1, segment_end):
            segment = segments_get(self.core.state.segments, id)
            if segment == NULL:
                continue
            self.bitmaps[id] = <uint64_t*>calloc(self.bits_end() // 64, sizeof(uint64_t))
            if self.bitmaps[id] == NULL:
                raise MemoryError()
            store_pointer(<void**>&segment.live, self.bitmaps[id])

    def aim(self, uint32_t segment_end, uint64_t node_end, roots, bytes free_ids, bytes retired):
        """What a checkpoint says that was cut after `begin`.

        segment_end: those from here on a replay may read; roots: (node id, height, Packing) of each map; free_ids: u64
        each; retired: (u64 id, u64 generation) each.
        """
        cdef const uint64_t* ids = <const uint64_t*><const char*>free_ids
        cdef const RetiredSlot* slots = <const RetiredSlot*><const char*>retired
        cdef Marks* marks = &self.marks
        cdef uint64_t i, root
        marks.segment_end = min(marks.segment_end, segment_end)
        marks.node_end = node_end
        marks.roots.count = marks.stack.count = 0
        free(marks.met)
        marks.met = <uint64_t*>calloc(node_end // 64 + 1, sizeof(uint64_t))
        if marks.met == NULL:
            raise MemoryError()
        for root, height, packing in sorted(roots, key=lambda one: one[2], reverse=True):
            if root >= node_end:
                raise errors.Corrupt(f"a map begins at map node {root}, which was never used; run blockdevctl pool check")
            if root and push(&marks.roots, root, height - 1, packing):
                raise MemoryError()
        for i in range(len(free_ids) // sizeof(uint64_t)):
            set_bit(marks.met, ids[i])
        for i in range(len(retired) // sizeof(RetiredSlot)):
            set_bit(marks.met, slots[i].id)
        for i in range(marks.roots.count):
            if bit_of(marks.met, marks.roots.items[i].id):
                raise errors.Corrupt("a checkpoint lists the root of a map as free, so it is not known what is live; run "
                                     "blockdevctl pool check")

    def mark(self, uint32_t nodes):
        """Mark up to so many nodes; False when none is left.  Corrupt when one cannot be read: then nothing is known."""
        cdef uint32_t token, done = 0
        cdef int failure = 0
        with nogil:
            token = nodes_enter(self.core.state.nodes)
            failure = next_root(&self.marks)
            while self.marks.stack.count and done < nodes and not failure:
                failure = mark_node(&self.marks) or next_root(&self.marks)
                done += 1
            nodes_leave(self.core.state.nodes, token)
        self.nodes += done
        if failure == ENOMEM:
            raise MemoryError()
        if failure:
            raise errors.Corrupt("a map node does not verify, so it is not known what is live; run blockdevctl pool check")
        return self.marks.stack.count > 0

    def live_blocks(self, ids=None):
        """{segment id: live blocks} of the segments that may be compacted, or of those named."""
        cdef Segment* segment
        cdef uint32_t id
        live = {}
        for id in range(1, self.marks.segment_end) if ids is None else ids:
            segment = segments_get(self.core.state.segments, id)
            if segment != NULL and segment.live != NULL:
                live[id] = count_bits(segment.live, self.bits_end())
        return live

    def plain_blocks(self, uint32_t id):
        """How many live blocks of a segment are to be kept plain."""
        return 0 if self.marks.plain[id] == NULL else count_bits(self.marks.plain[id], self.bits_end())

    def soon_blocks(self, uint32_t id):
        """How many live blocks of a segment are to be compressed soon."""
        return self.marks.soon[id]

    def retire(self, uint64_t generation):
        """Give up the node slots that the checkpoint of `generation` neither reaches nor lists; returns how many."""
        cdef uint64_t id, count = 0, size_bytes = 0
        cdef uint64_t end = self.marks.node_end
        cdef int failure = 0
        with nogil:
            if medium_size(self.core.state.nodes.files[0], &size_bytes) == 0:
                end = min(end, size_bytes // NODE_RECORD_BYTES)     # ids behind the end were never written
            for id in range(1, end):
                if not bit_of(self.marks.met, id) and not failure:
                    failure = nodes_retire(self.core.state.nodes, id, generation)
                    count += 1
        if failure:
            raise MemoryError()
        return count

    def close(self, ids):
        """Let segments take no more references.  On return every bit that will be set is set."""
        for id in ids:
            store_u32(&self.get(id).closed, 1)
        with nogil:
            self.let_writers_pass()
            nodes_wait_for_readers(self.core.state.nodes)

    cdef Segment* get(self, uint32_t id) except NULL:
        cdef Segment* segment = segments_get(self.core.state.segments, id)
        if segment == NULL or segment.live == NULL:
            raise errors.NotFound(f"segment {id:08x} is not there to be compacted")
        return segment

    cdef void let_writers_pass(self) noexcept nogil:
        """Return when whoever may have looked at a segment before has done with it."""
        pthread_rwlock_wrlock(&self.core.state.cut_lock)
        pthread_rwlock_unlock(&self.core.state.cut_lock)

    def block_count(self, uint32_t id):
        """How many blocks a segment has in its file, live or not; None when it cannot be compacted."""
        cdef Segment* segment = self.get(id)
        cdef uint32_t slot, count = 0
        cdef bint was_open = False
        cdef int failure
        if segment.block_count:
            return segment.block_count
        with nogil:
            failure = segment_peek(self.core.state.segments, id, &segment, &was_open)
        if failure:
            return None
        with nogil:
            for slot in range(segment.slot_count):
                count += segment_holds_block(segment, slot)
            if segment.sealed and not segment.unread:
                segment.block_count = count
            segment_let_go(self.core.state.segments, segment, was_open)
        return segment.block_count or None

    def odd_frames(self, uint32_t id):
        """(frames of a compacted segment that policies want the other way, all its frames)."""
        cdef Segment* segment = NULL
        cdef bint was_open = False
        cdef uint32_t odd = 0, frames = 0
        cdef int failure = 0
        with nogil:
            if segment_peek(self.core.state.segments, id, &segment, &was_open) == 0:
                if segment.cold != NULL:
                    frames = cold_frames(segment.cold)
                    failure = count_odd(segment, self.marks.plain[id], &odd)
                segment_let_go(self.core.state.segments, segment, was_open)
        if failure:
            raise MemoryError()
        return odd, frames

    def remove(self, uint32_t id):
        """Remove a closed segment without live blocks; returns the bytes that gives back."""
        cdef Segment* segment = self.get(id)
        cdef uint32_t slot
        cdef uint64_t freed_bytes = 0
        cdef int failure
        with nogil:
            if segment_pin(self.core.state.segments, id, &segment) == 0:
                for slot in range(segment.slot_count):
                    forget(self.core.state, segment, slot)
                segment_unpin(self.core.state.segments, segment)
            failure = segment_remove(self.core.state.segments, segment, &freed_bytes)
        if failure:
            raise errors.medium_failure(f"segment {id:08x} cannot be removed", failure)
        return freed_bytes

    def rewrite_begin(self, uint32_t id, int level):
        """Begin to rewrite a closed segment.  level: of zstd."""
        cdef ColdHeader header
        cdef Segment* segment = self.get(id)
        cdef int file = -1
        cdef int failure = segment_pin(self.core.state.segments, id, &segment)
        if not failure:
            # opened once more since its blocks were counted, it may not be read as well as then
            failure = EIO if not segment.sealed or segment.unread else 0
            if not failure:
                failure = segment_rewrite_begin(self.core.state.segments, &file)
            if failure:
                segment_unpin(self.core.state.segments, segment)
        if failure:
            raise errors.medium_failure(f"segment {id:08x} cannot be rewritten", failure)
        cold_identity(self.core.state.segments, segment, &header)
        header.generation = segment.generation + 1
        header.slot_count = segment.slot_count
        header.first_lsn = segment.first_lsn
        header.end_lsn = segment.end_lsn
        cold_begin(&self.writer, file, &header, level)
        self.segment = segment
        self.slot = 0

    def rewrite(self, uint32_t slots):
        """Go through so many slots of the segment that was begun; False at its end.  An error leaves it as it was."""
        cdef int failure
        with nogil:
            failure = copy_slots(
                self.core.state, &self.writer, self.segment, self.marks.plain[self.segment.id], &self.slot, slots)
        if failure:
            self.rewrite_failed(failure)
        return self.slot < self.segment.slot_count

    cdef rewrite_failed(self, int failure):
        cdef uint32_t id = self.segment.id
        self.rewrite_abandon()
        if failure == EIO:
            raise errors.MediumError(f"segment {id:08x} has blocks that do not verify and stays as it is: run pool scrub")
        raise errors.medium_failure(f"segment {id:08x} cannot be rewritten", failure)

    def rewrite_abandon(self):
        """Leave the segment that was begun as it was; nothing to do when there is none."""
        if self.segment != NULL:
            segment_unpin(self.core.state.segments, self.segment)
            segment_rewrite_abandon(self.core.state.segments, self.writer.file)
            self.segment = NULL

    def rewrite_end(self):
        """Let what was written take the segment's place, durably; returns the bytes that gives back (may be negative)."""
        cdef PoolState* pool = self.core.state
        cdef Segment* segment = self.segment
        cdef uint64_t old_bytes = 0, new_bytes = 0
        cdef bint unsure = False
        cdef int failure
        if self.writer.header.block_count != count_bits(segment.live, self.bits_end()):
            self.rewrite_failed(EIO)    # what a map reaches is not all there
        with nogil:
            failure = cold_finish(&self.writer, &new_bytes)
        if failure:
            self.rewrite_failed(failure)
        self.segment = NULL             # the swap takes the pin
        with nogil:
            failure = segment_swap(pool.segments, segment, self.writer.file, &old_bytes, &new_bytes, &unsure)
            if unsure:
                log_poison(pool.log, failure)
            if not failure and not planted(BUG_SWAP_NOT_SYNCED):
                failure = medium_sync_directory(pool.segments.path)
                if failure:
                    log_poison(pool.log, failure)       # names of the log's segments may be among what is lost
            if not failure:
                failure = segment_drop(pool.segments, segment, segment.generation - 1, old_bytes, new_bytes)
        if failure:
            raise errors.medium_failure(f"segment {segment.id:08x} cannot be replaced", failure)
        return <long long>(old_bytes - new_bytes)

    def reopen(self, ids):
        """Let segments take references again."""
        cdef Segment* segment
        for id in ids:
            segment = segments_get(self.core.state.segments, id)
            if segment != NULL:
                store_u32(&segment.closed, 0)

    def end(self):
        """Be done with the round, wherever it is."""
        cdef Segment* segment
        cdef uint32_t id
        self.rewrite_abandon()
        if self.bitmaps == NULL:
            return
        for id in range(1, self.bitmaps_end):
            segment = segments_get(self.core.state.segments, id)
            if segment != NULL:
                store_pointer(<void**>&segment.live, NULL)
                store_u32(&segment.closed, 0)
        with nogil:
            self.let_writers_pass()
        for id in range(1, self.bitmaps_end):
            free(self.bitmaps[id])
            if self.marks.plain != NULL:
                free(self.marks.plain[id])
        free(self.bitmaps)
        free(self.marks.plain)
        free(self.marks.soon)
        self.bitmaps = self.marks.plain = NULL
        self.marks.soon = NULL


def index_segment(Core core, uint32_t id):
    """Insert the fingerprints of all blocks of a segment into the index; one that cannot be opened is passed over."""
    cdef Segment* segment = NULL
    cdef bint was_open = False
    cdef uint32_t slot
    with nogil:
        if segment_peek(core.state.segments, id, &segment, &was_open) == 0:
            for slot in range(load_u32(&segment.slot_count)):
                if segment_holds_block(segment, slot):
                    dedup_insert(core.state.dedup, segment.fingerprints[slot], make_address(id, slot))
            segment_let_go(core.state.segments, segment, was_open)


def roll_log(Core core):
    """Let the log go on in a new segment, so that the one before can be compacted.  PoolFull: there is no room for one."""
    cdef int failure
    with nogil:
        failure = log_roll(core.state.log)
    core.raise_for(failure, "beginning a new segment")


def lend_spare(Core core, bint lent):
    """Let a round have the room of the spare file, on a file system that has no other; or let it be kept again."""
    with nogil:
        log_lend_spare(core.state.log, lent)


def trim_nodes(Core core):
    """Cut free slots off the end of the node files; returns how many.  No checkpoint may be under way."""
    cdef uint64_t count = 0
    cdef int failure
    with nogil:
        failure = nodes_trim(core.state.nodes, &count)
    core.raise_for(failure, "shortening the node files")
    return count
