"""The steps of accounting.  See _accounting.pxd for the design."""

from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from blockdev import errors

from blockdev._cold cimport cold_share
from blockdev._nodes cimport NODE_FANOUT, node_copy, nodes_enter, nodes_leave
from blockdev._pool cimport Core
from blockdev._segments cimport (
    SLOT_BYTES, Segment, segment_holds_block, segment_let_go, segment_peek, segments_get,
)
from blockdev._sync cimport load_u32

cdef enum:
    DISK_BIT = 0x80000000


# --- owners ----------------------------------------------------------------------------------------------------------

cdef uint32_t join(const Owners* owners, uint32_t a, uint32_t b) noexcept nogil:
    """The owner of what both reach; either may be nobody."""
    cdef uint32_t bit = (a | b) & DISK_BIT
    a &= OWNER_MASK
    b &= OWNER_MASK
    if a == 0 or b == 0:
        return a | b | bit
    while a != b:
        if owners.depths[a] >= owners.depths[b]:
            a = owners.parents[a]
        else:
            b = owners.parents[b]
    return a | bit


# --- nodes -----------------------------------------------------------------------------------------------------------

cdef int push(VisitStack* stack, uint64_t id, uint32_t level, uint32_t owner) noexcept nogil:
    cdef NodeVisit* items
    if stack.count == stack.room:
        items = <NodeVisit*>realloc(stack.items, (stack.room * 2 + NODE_FANOUT) * sizeof(NodeVisit))
        if items == NULL:
            return ENOMEM
        stack.items = items
        stack.room = stack.room * 2 + NODE_FANOUT
    stack.items[stack.count].id = id
    stack.items[stack.count].level = level
    stack.items[stack.count].owner = owner
    stack.count += 1
    return 0


cdef int visit(Account* account) noexcept nogil:
    """Take the next node from the stack; where its owner is another now, its children are to be visited."""
    cdef uint64_t entries[NODE_FANOUT]
    cdef NodeVisit node
    cdef uint32_t owner, i
    cdef int failure
    account.stack.count -= 1
    node = account.stack.items[account.stack.count]
    if account.node_levels[node.id] and account.node_levels[node.id] != node.level + 1:
        return EIO
    owner = join(&account.owners, account.node_owners[node.id], node.owner)
    if owner == account.node_owners[node.id]:
        return 0
    account.node_owners[node.id] = owner
    account.node_levels[node.id] = <uint8_t>(node.level + 1)
    if node.level == 0:
        return 0
    failure = node_copy(account.pool.nodes, node.id, node.level, entries)
    for i in range(NODE_FANOUT):
        if failure:
            break
        if entries[i] >= account.node_end:
            failure = EIO
        elif entries[i]:
            failure = push(&account.stack, entries[i], node.level - 1, owner)
    return failure


cdef int sum_children(Account* account, uint64_t id, uint32_t level) noexcept nogil:
    """What an inner node maps, when that is known of its children."""
    cdef uint64_t entries[NODE_FANOUT]
    cdef uint32_t i
    cdef int failure = node_copy(account.pool.nodes, id, level, entries)
    for i in range(NODE_FANOUT):
        if not failure and entries[i]:
            account.mapped[id] += account.mapped[entries[i]]
            account.shared[id] += account.shared[entries[i]]
    return failure


# --- blocks ----------------------------------------------------------------------------------------------------------

cdef uint32_t* owner_of_block(Account* account, uint64_t address) noexcept nogil:
    """Where the owner of a block is kept; NULL: it is in none of the segments that are looked at."""
    cdef uint64_t id = address >> 32
    if id < account.first_segment or id >= account.segment_end:
        return NULL
    if <uint32_t>address >= account.pool.segments.segment_slots:
        return NULL
    if account.block_owners[id - account.first_segment] == NULL:
        return NULL
    return &account.block_owners[id - account.first_segment][<uint32_t>address]


cdef int own_blocks(Account* account, uint64_t id, bint counts) noexcept nogil:
    """Let the blocks that a leaf names be its owner's; `counts`: they are counted, too."""
    cdef uint64_t entries[NODE_FANOUT]
    cdef uint32_t* owner
    cdef uint32_t i
    cdef int failure = node_copy(account.pool.nodes, id, 0, entries)
    for i in range(NODE_FANOUT):
        if failure or entries[i] == 0:
            continue
        account.mapped[id] += counts
        owner = owner_of_block(account, entries[i])
        if owner != NULL:
            owner[0] = join(&account.owners, owner[0], account.node_owners[id])
    return failure


cdef int count_shared(Account* account, uint64_t id) noexcept nogil:
    """How many of the blocks that a leaf names are the pool's, of those in the segments that are looked at."""
    cdef uint64_t entries[NODE_FANOUT]
    cdef uint32_t* owner
    cdef uint32_t i
    cdef int failure = node_copy(account.pool.nodes, id, 0, entries)
    for i in range(NODE_FANOUT):
        if failure or entries[i] == 0:
            continue
        owner = owner_of_block(account, entries[i])
        if owner != NULL and (owner[0] & OWNER_MASK) == POOL_OWNER:
            account.shared[id] += 1
    return failure


cdef int sum_segment(Account* account, uint32_t id, uint32_t slot_end) noexcept nogil:
    """Count the blocks of one segment.  From `slot_end` on the cut's batch was open: what nobody has there came later."""
    cdef const uint32_t* owners = account.block_owners[id - account.first_segment]
    cdef Segment* segment = NULL
    cdef bint was_open = False
    cdef uint32_t slot, owner
    cdef uint64_t stored_bytes
    cdef int failure
    if owners == NULL:
        return 0
    failure = segment_peek(account.pool.segments, id, &segment, &was_open)
    if failure:                         # compaction may have removed it meanwhile
        return 0 if segments_get(account.pool.segments, id) == NULL else failure
    for slot in range(load_u32(&segment.slot_count)):
        if not segment_holds_block(segment, slot):
            continue
        stored_bytes = SLOT_BYTES if segment.cold == NULL else cold_share(segment.cold, slot)
        owner = owners[slot] & OWNER_MASK
        if owner == 0:
            account.dead_bytes += stored_bytes if slot < slot_end else 0
            continue
        account.sums[owner].blocks += 1
        account.sums[owner].disk_blocks += (owners[slot] & DISK_BIT) != 0
        account.sums[owner].stored_bytes += stored_bytes
    segment_let_go(account.pool.segments, segment, was_open)
    return 0


# --- differences -----------------------------------------------------------------------------------------------------

cdef int child_entries(Account* account, const Side* side, uint32_t level, uint64_t* entries) noexcept nogil:
    """What a side has at `level`: nothing in a hole, itself as the first child where its map is lower than that."""
    memset(entries, 0, NODE_FANOUT * sizeof(uint64_t))
    if side.id and side.height <= level:
        entries[0] = side.id
        return 0
    return node_copy(account.pool.nodes, side.id, level, entries) if side.id else 0


cdef int compare(Account* account, uint64_t* different) noexcept nogil:
    """Take the next pair from the stack and count blocks that differ, or push the pairs of children that do."""
    cdef uint64_t before[NODE_FANOUT]
    cdef uint64_t after[NODE_FANOUT]
    cdef Pair pair, child
    cdef uint32_t i
    cdef int failure
    account.pair_count -= 1
    pair = account.pairs[account.pair_count]
    failure = child_entries(account, &pair.before, pair.level, before)
    failure = failure or child_entries(account, &pair.after, pair.level, after)
    for i in range(NODE_FANOUT):
        if failure:
            break
        if max(before[i], after[i]) >= account.node_end and pair.level:
            return EIO
        # one id at two heights is two things: a map that grew has its old root below
        child.before.id = before[i]
        child.after.id = after[i]
        child.before.height = min(pair.before.height, pair.level)
        child.after.height = min(pair.after.height, pair.level)
        if before[i] == after[i] and (before[i] == 0 or child.before.height == child.after.height):
            continue
        if pair.level == 0:
            different[0] += 1
            continue
        child.level = pair.level - 1
        failure = push_pair(account, &child)
    return failure


cdef int push_pair(Account* account, const Pair* pair) noexcept nogil:
    cdef Pair* pairs
    if account.pair_count == account.pair_room:
        pairs = <Pair*>realloc(account.pairs, (account.pair_room * 2 + NODE_FANOUT) * sizeof(Pair))
        if pairs == NULL:
            return ENOMEM
        account.pairs = pairs
        account.pair_room = account.pair_room * 2 + NODE_FANOUT
    account.pairs[account.pair_count] = pair[0]
    account.pair_count += 1
    return 0


cdef class Accountant:
    """One walk; its methods are called in the order that they stand in, by one thread.  MemoryError; Corrupt."""

    cdef Core core
    cdef Account account
    cdef uint64_t next                  # node id, of the step that goes through all
    cdef readonly uint64_t different    # blocks, of the two maps that were compared last
    cdef uint64_t counted               # leaves up to here were counted already, in the first range of segments

    def __cinit__(self, Core core, uint64_t node_end, list parents):
        """node_end: node ids at the cut are below; parents: of each owner from 1 on, 0 for the pool, which is the first."""
        cdef Account* account = &self.account
        cdef uint32_t i
        self.core = core
        account.pool = core.state
        account.node_end = node_end
        account.owners.count = len(parents) + 1
        account.owners.parents = <uint32_t*>calloc(account.owners.count, sizeof(uint32_t))
        account.owners.depths = <uint32_t*>calloc(account.owners.count, sizeof(uint32_t))
        account.sums = <Sums*>calloc(account.owners.count, sizeof(Sums))
        account.node_owners = <uint32_t*>calloc(node_end, sizeof(uint32_t))
        account.node_levels = <uint8_t*>calloc(node_end, 1)
        account.mapped = <uint64_t*>calloc(node_end, sizeof(uint64_t))
        account.shared = <uint64_t*>calloc(node_end, sizeof(uint64_t))
        if (account.owners.parents == NULL or account.owners.depths == NULL or account.sums == NULL
                or account.node_owners == NULL or account.node_levels == NULL or account.mapped == NULL
                or account.shared == NULL):
            raise MemoryError()
        for i in range(1, account.owners.count):
            account.owners.parents[i] = parents[i - 1]
            if i > POOL_OWNER:
                account.owners.depths[i] = account.owners.depths[account.owners.parents[i]] + 1

    def __dealloc__(self):
        self.forget_blocks()
        free(self.account.owners.parents)
        free(self.account.owners.depths)
        free(self.account.sums)
        free(self.account.node_owners)
        free(self.account.node_levels)
        free(self.account.mapped)
        free(self.account.shared)
        free(self.account.stack.items)
        free(self.account.pairs)

    cdef void forget_blocks(self) noexcept:
        cdef uint32_t i
        if self.account.block_owners != NULL:
            for i in range(self.account.segment_end - self.account.first_segment):
                free(self.account.block_owners[i])
        free(self.account.block_owners)
        self.account.block_owners = NULL

    cdef int check(self, int failure) except -1:
        if failure == ENOMEM:
            raise MemoryError()
        if failure:
            raise errors.Corrupt("a map node does not verify, so nothing can be counted; run blockdevctl pool check")
        return 0

    def add_map(self, uint64_t root, uint32_t height, uint32_t owner, bint disk):
        """A map to be walked.  disk: it is a disk's as it is now."""
        if root >= self.account.node_end:
            self.check(EIO)
        if root:
            self.check(push(&self.account.stack, root, height - 1, owner | (DISK_BIT if disk else 0)))

    def own_nodes(self, uint32_t nodes):
        """Visit up to so many nodes; False when all have their owners."""
        cdef uint32_t token, done = 0
        cdef int failure = 0
        with nogil:
            token = nodes_enter(self.account.pool.nodes)
            while self.account.stack.count and done < nodes and not failure:
                failure = visit(&self.account)
                done += 1
            nodes_leave(self.account.pool.nodes, token)
        self.check(failure)
        return self.account.stack.count > 0

    def begin_segments(self, uint32_t first, uint32_t end):
        """Look at the blocks of these segments from here on."""
        cdef uint32_t id
        self.forget_blocks()
        self.account.first_segment = first
        self.account.segment_end = end
        self.account.block_owners = <uint32_t**>calloc(end - first, sizeof(uint32_t*))
        if self.account.block_owners == NULL:
            raise MemoryError()
        for id in range(first, end):
            if segments_get(self.account.pool.segments, id) != NULL:
                self.account.block_owners[id - first] = <uint32_t*>calloc(
                    self.account.pool.segments.segment_slots, sizeof(uint32_t))
                if self.account.block_owners[id - first] == NULL:
                    raise MemoryError()
        self.next = 0

    def own_leaves(self, uint32_t nodes):
        """Go through up to so many nodes: the blocks of leaves get their owners.  False after the last one."""
        return self.each_leaf(nodes, False)

    def share_leaves(self, uint32_t nodes):
        """Likewise, when all blocks have their owners: those that leaves share are counted."""
        return self.each_leaf(nodes, True)

    cdef bint each_leaf(self, uint32_t nodes, bint owned) except -1:
        cdef uint64_t end = min(self.account.node_end, self.next + nodes)
        cdef uint32_t token
        cdef int failure = 0
        with nogil:
            token = nodes_enter(self.account.pool.nodes)
            while self.next < end and not failure:
                if self.account.node_levels[self.next] == 1:
                    if owned:
                        failure = count_shared(&self.account, self.next)
                    else:
                        failure = own_blocks(&self.account, self.next, self.next >= self.counted)
                self.next += 1
            nodes_leave(self.account.pool.nodes, token)
        self.check(failure)
        if not owned:
            self.counted = max(self.counted, self.next)
        if self.next < self.account.node_end:
            return True
        self.next = 0
        return False

    def sum_segment(self, uint32_t id, uint32_t slot_end):
        """Count the blocks of one of the segments that are looked at; from `slot_end` on only those that have an owner."""
        cdef int failure
        with nogil:
            failure = sum_segment(&self.account, id, slot_end)
        if failure == ENOMEM:
            raise MemoryError()
        if failure:
            raise errors.Corrupt(f"segment {id:08x} cannot be read, so nothing can be counted; run blockdevctl pool scrub")

    def sum_nodes(self, uint32_t level, uint32_t nodes):
        """Go through up to so many nodes: those of `level` get the sums of their children.  False after the last one."""
        cdef uint64_t end = min(self.account.node_end, self.next + nodes)
        cdef uint32_t token
        cdef int failure = 0
        with nogil:
            token = nodes_enter(self.account.pool.nodes)
            while self.next < end and not failure:
                if self.account.node_levels[self.next] == level + 1:
                    failure = sum_children(&self.account, self.next, level)
                self.next += 1
            nodes_leave(self.account.pool.nodes, token)
        self.check(failure)
        if self.next < self.account.node_end:
            return True
        self.next = 0
        return False

    def of_map(self, uint64_t root):
        """(blocks that a map maps, those of them that are the pool's)."""
        return self.account.mapped[root], self.account.shared[root]     # 0, no node, maps nothing

    def begin_difference(self, uint64_t before, uint32_t before_height, uint64_t after, uint32_t after_height):
        """Two maps to be compared, by root and height."""
        cdef Pair pair
        pair.before.id = before
        pair.before.height = before_height
        pair.after.id = after
        pair.after.height = after_height
        pair.level = max(before_height, after_height) - 1
        self.account.pair_count = 0
        self.different = 0
        if before != after or before_height != after_height:
            self.check(push_pair(&self.account, &pair))

    def compare(self, uint32_t nodes):
        """Compare up to so many pairs of nodes; False when all are."""
        cdef uint32_t token, done = 0
        cdef int failure = 0
        with nogil:
            token = nodes_enter(self.account.pool.nodes)
            while self.account.pair_count and done < nodes and not failure:
                failure = compare(&self.account, &self.different)
                done += 1
            nodes_leave(self.account.pool.nodes, token)
        self.check(failure)
        return self.account.pair_count > 0

    def count_nodes(self):
        """Count the nodes of each owner, once all nodes have theirs."""
        cdef uint64_t id
        with nogil:
            for id in range(self.account.node_end):
                if self.account.node_levels[id] != 0:
                    self.account.sums[self.account.node_owners[id] & OWNER_MASK].nodes += 1

    def of_owner(self, uint32_t owner):
        """(blocks, those of them that a disk reaches, stored bytes, nodes) of this owner, and not of one below it."""
        cdef Sums* sums = &self.account.sums[owner]
        return sums.blocks, sums.disk_blocks, sums.stored_bytes, sums.nodes

    def dead_bytes(self):
        """Stored by blocks that nobody reaches."""
        return self.account.dead_bytes

    def node_count(self):
        """Nodes that a map reaches."""
        cdef uint64_t id, count = 0
        for id in range(self.account.node_end):
            count += self.account.node_levels[id] != 0
        return count
