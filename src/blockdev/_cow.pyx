"""Maps: lookup, update, holes, runs and differences.  See _cow.pxd for the design."""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from blockdev._medium cimport BUG_SEALED_NODE_CHANGED, planted
from blockdev._nodes cimport (
    NODE_FANOUT, NODE_FANOUT_SHIFT, NODE_HEIGHT_MAX, MapNode, NodeStore, node_add, node_get, node_new, node_supersede,
    nodes_enter, nodes_leave,
)
from blockdev._statistics cimport CAUSE_LOCK, timed_lock
from blockdev._sync cimport (
    count_u64, load_u64, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_unlock, store_u64,
)


cdef void map_init(Map* map, uint64_t root, uint32_t height, uint64_t owner) noexcept nogil:
    map.root = root
    map.height = height
    map.owner = owner
    pthread_mutex_init(&map.lock, NULL)


cdef void map_destroy(Map* map) noexcept nogil:
    pthread_mutex_destroy(&map.lock)


cdef uint32_t map_height_for(uint64_t size_bytes) noexcept nogil:
    """The fewest levels whose tree covers `size_bytes`."""
    cdef uint32_t height = 1
    cdef uint64_t covered = <uint64_t>NODE_FANOUT * 4096
    while covered < size_bytes and height < NODE_HEIGHT_MAX:
        height += 1
        covered <<= NODE_FANOUT_SHIFT
    return height


cdef inline uint32_t slot_in(uint64_t block, uint32_t level) noexcept nogil:
    return <uint32_t>((block >> (NODE_FANOUT_SHIFT * level)) & (NODE_FANOUT - 1))


cdef int find_leaf(NodeStore* store, Map* map, uint64_t block, MapNode** leaf) noexcept nogil:
    """The leaf of `block`, NULL in a hole.  Caller is in a read section."""
    cdef uint64_t id = load_u64(&map.root)
    cdef uint32_t level = map.height
    cdef MapNode* node = NULL
    cdef int failure
    leaf[0] = NULL
    while id:
        level -= 1
        failure = node_get(store, id, level, &node)
        if failure:
            return failure
        if level == 0:
            leaf[0] = node
            return 0
        id = load_u64(&node.entries[slot_in(block, level)])
    return 0


cdef int map_lookup(NodeStore* store, Map* map, uint64_t block, uint64_t count, uint64_t* addresses) noexcept nogil:
    """The addresses of `count` blocks from `block` on; 0 is a hole."""
    cdef uint32_t token = nodes_enter(store)
    cdef MapNode* leaf
    cdef uint64_t done = 0
    cdef uint32_t i
    cdef int failure = 0
    while done < count:
        failure = find_leaf(store, map, block + done, &leaf)
        if failure:
            break
        i = slot_in(block + done, 0)
        while i < NODE_FANOUT and done < count:
            addresses[done] = 0 if leaf == NULL else load_u64(&leaf.entries[i])
            i += 1
            done += 1
    nodes_leave(store, token)
    return failure


cdef int probe(NodeStore* store, uint64_t id, uint32_t level, uint64_t base, uint64_t first, uint64_t last) noexcept nogil:
    """Read the nodes of a subtree, whose first block is `base`, that blocks first..last cover in part."""
    cdef uint64_t child_blocks = <uint64_t>1 << (NODE_FANOUT_SHIFT * level)
    cdef uint64_t end = base + (child_blocks << NODE_FANOUT_SHIFT) - 1
    cdef uint64_t i_first, i_last
    cdef MapNode* node = NULL
    cdef int failure
    if id == 0 or (first <= base and end <= last):
        return 0
    failure = node_get(store, id, level, &node)
    if failure or level == 0:
        return failure
    i_first = 0 if first <= base else (first - base) // child_blocks
    i_last = NODE_FANOUT - 1 if last >= end else (last - base) // child_blocks
    failure = probe(store, load_u64(&node.entries[i_first]), level - 1, base + i_first * child_blocks, first, last)
    if not failure and i_last != i_first:
        failure = probe(store, load_u64(&node.entries[i_last]), level - 1, base + i_last * child_blocks, first, last)
    return failure


cdef int map_probe(NodeStore* store, Map* map, uint64_t first, uint64_t count) noexcept nogil:
    """EIO when holes there would meet a node that does not verify."""
    cdef uint32_t token = nodes_enter(store)
    cdef int failure = probe(store, load_u64(&map.root), map.height - 1, 0, first, first + count - 1)
    nodes_leave(store, token)
    return failure


cdef int make_writable(NodeStore* store, Map* map, uint64_t* place, uint32_t level, MapNode** out) noexcept nogil:
    """The node at `place` (the root or an entry of a writable node), copied or created first where needed.

    Caller holds map.lock and is in a read section.
    """
    cdef uint64_t id = place[0]
    cdef MapNode* old = NULL
    cdef MapNode* node
    cdef int failure
    if id:
        failure = node_get(store, id, level, &old)
        if failure:
            return failure
        if old.owner == map.owner and (old.generation == load_u64(&store.generation) or planted(BUG_SEALED_NODE_CHANGED)):
            out[0] = old
            return 0
    node = node_new()
    if node == NULL:
        return ENOMEM
    if old != NULL:
        memcpy(node.entries, old.entries, sizeof(old.entries))
        count_u64(&store.nodes_copied, 1)
    node = node_add(store, node, map.owner, level)
    if node == NULL:
        return ENOMEM
    store_u64(place, node.id)
    if old != NULL and old.owner == map.owner:
        node_supersede(store, old)
    out[0] = node
    return 0


cdef int map_place(NodeStore* store, Map* map, uint64_t block, uint64_t** place) noexcept nogil:
    """Make the leaf of a block writable; `place` is where its address is to be stored.

    It stays so while the caller keeps snapshots of this map and the cut of a checkpoint away.
    """
    cdef uint32_t token = nodes_enter(store)
    cdef uint32_t level = map.height
    cdef MapNode* node
    cdef int failure = 0
    place[0] = &map.root
    timed_lock(&map.lock, CAUSE_LOCK)
    while level and not failure:
        level -= 1
        failure = make_writable(store, map, place[0], level, &node)
        if not failure:
            place[0] = &node.entries[slot_in(block, level)]
    pthread_mutex_unlock(&map.lock)
    nodes_leave(store, token)
    return failure


cdef int map_update(NodeStore* store, Map* map, uint64_t block, uint64_t address) noexcept nogil:
    cdef uint64_t* place = NULL
    cdef int failure = map_place(store, map, block, &place)
    if not failure:
        store_u64(place, address)
    return failure


cdef bint any_entry(MapNode* node, uint32_t first, uint32_t last) noexcept nogil:
    cdef uint32_t i
    for i in range(first, last + 1):
        if node.entries[i]:
            return True
    return False


cdef int punch(
    NodeStore* store, Map* map, uint64_t* place, uint32_t level, uint64_t base, uint64_t first, uint64_t last
) noexcept nogil:
    """Make holes of blocks first..last inside the subtree at `place`, whose first block is `base`."""
    cdef uint64_t child_blocks = <uint64_t>1 << (NODE_FANOUT_SHIFT * level)
    cdef uint64_t end = base + (child_blocks << NODE_FANOUT_SHIFT) - 1
    cdef uint32_t i, i_first, i_last
    cdef MapNode* node = NULL
    cdef int failure
    if place[0] == 0:
        return 0
    if first <= base and end <= last:
        store_u64(place, 0)
        return 0
    i_first = 0 if first <= base else <uint32_t>((first - base) // child_blocks)
    i_last = NODE_FANOUT - 1 if last >= end else <uint32_t>((last - base) // child_blocks)
    failure = node_get(store, place[0], level, &node)
    if failure:
        return failure
    if not any_entry(node, i_first, i_last):
        return 0
    failure = make_writable(store, map, place, level, &node)
    for i in range(i_first, i_last + 1):
        if failure:
            break
        if level == 0:
            store_u64(&node.entries[i], 0)
        else:
            failure = punch(store, map, &node.entries[i], level - 1, base + i * child_blocks, first, last)
    return failure


cdef int map_punch(NodeStore* store, Map* map, uint64_t first, uint64_t count) noexcept nogil:
    """Make holes.  Whole subtrees are let go in one store; the mark pass finds their slots."""
    cdef uint32_t token
    cdef int failure
    if count == 0:
        return 0
    token = nodes_enter(store)
    timed_lock(&map.lock, CAUSE_LOCK)
    failure = punch(store, map, &map.root, map.height - 1, 0, first, first + count - 1)
    pthread_mutex_unlock(&map.lock)
    nodes_leave(store, token)
    return failure


cdef int map_grow(NodeStore* store, Map* map, uint32_t height) noexcept nogil:
    """Put levels on top until the tree has `height`.  No reader of this map may be inside."""
    cdef MapNode* node
    while map.height < height:
        if map.root:
            node = node_new()
            if node == NULL:
                return ENOMEM
            node.entries[0] = map.root
            node = node_add(store, node, map.owner, map.height)
            if node == NULL:
                return ENOMEM
            store_u64(&map.root, node.id)
        map.height += 1
    return 0


cdef int run_at(
    NodeStore* store, Map* map, uint64_t block, uint64_t* count, bint* hole
) noexcept nogil:
    """The run of one state that starts at `block`, up to the end of its leaf or empty subtree."""
    cdef uint64_t id = load_u64(&map.root)
    cdef uint32_t level = map.height
    cdef uint64_t span
    cdef MapNode* node = NULL
    cdef uint32_t i
    cdef int failure
    while level and id:
        level -= 1
        failure = node_get(store, id, level, &node)
        if failure:
            return failure
        id = load_u64(&node.entries[slot_in(block, level)])
    if level:
        span = <uint64_t>1 << (NODE_FANOUT_SHIFT * level)
    else:
        span = 1
    hole[0] = id == 0
    count[0] = span - (block & (span - 1))
    if level == 0:
        i = slot_in(block, 0) + 1
        while i < NODE_FANOUT and (load_u64(&node.entries[i]) == 0) == hole[0]:
            count[0] += 1
            i += 1
    return 0


cdef int map_runs(
    NodeStore* store, Map* map, uint64_t first, uint64_t count, run_callback callback, void* opaque
) noexcept nogil:
    """Call back for each run of data or hole in order; neighbours of one state are not joined."""
    cdef uint32_t token = nodes_enter(store)
    cdef uint64_t block = first, end = first + count, run = 0
    cdef bint hole = False
    cdef int failure = 0
    while block < end and not failure:
        failure = run_at(store, map, block, &run, &hole)
        if not failure:
            if run > end - block:
                run = end - block
            failure = callback(opaque, block, run, hole)
            block += run
    nodes_leave(store, token)
    return failure


# --- diff ------------------------------------------------------------------------------------------------------------

cdef struct DiffSide:
    uint64_t id                     # of the subtree, 0: all holes
    uint32_t height                 # of the tree that id is the root of, counted from the leaves

cdef struct DiffWalk:
    NodeStore* store
    uint64_t next_block             # blocks before it are done with, or not asked for
    uint64_t block_count            # blocks from here on are outside the newer disk
    uint64_t nodes_left             # that may be looked at before the walk stops; what it looks at stays in memory
    bint stopped
    run_callback callback
    void* opaque


cdef int open_side(DiffWalk* walk, DiffSide* side, uint32_t level, MapNode** node) noexcept nogil:
    """The side's node at `level`; NULL when it has none there (hole, or its tree is lower than that)."""
    node[0] = NULL
    if side.id == 0 or side.height <= level:
        return 0
    walk.nodes_left -= walk.nodes_left != 0
    count_u64(&walk.store.nodes_visited, 1)
    return node_get(walk.store, side.id, level, node)


cdef DiffSide side_child(DiffSide* side, MapNode* node, uint32_t level, uint32_t i) noexcept nogil:
    cdef DiffSide child
    child.height = level
    child.id = 0
    if node != NULL:
        child.id = load_u64(&node.entries[i])
    elif side.id and i == 0 and side.height <= level:
        child = side[0]
    return child


cdef int diff_subtree(
    DiffWalk* walk, DiffSide* older, DiffSide* newer, uint32_t level, uint64_t base
) noexcept nogil:
    cdef MapNode* a
    cdef MapNode* b
    cdef DiffSide child_a, child_b
    cdef uint64_t child_blocks = <uint64_t>1 << (NODE_FANOUT_SHIFT * level)
    cdef uint64_t block
    cdef uint32_t i
    cdef int failure
    if older.id == newer.id and (older.id == 0 or older.height == newer.height):
        return 0
    if level == 0 and walk.nodes_left == 0:  # never before the first leaf: each walk comes a step further
        walk.stopped = True
        walk.next_block = base
        return 0
    failure = open_side(walk, older, level, &a)
    if not failure:
        failure = open_side(walk, newer, level, &b)
    for i in range(NODE_FANOUT):
        block = base + i * child_blocks
        if failure or walk.stopped or block >= walk.block_count:
            break
        if block + child_blocks <= walk.next_block:
            continue
        child_a = side_child(older, a, level, i)
        child_b = side_child(newer, b, level, i)
        if level:
            failure = diff_subtree(walk, &child_a, &child_b, level - 1, block)
        elif child_a.id != child_b.id:
            failure = walk.callback(walk.opaque, block, 1, child_b.id == 0)
    return failure


cdef int map_diff(
    NodeStore* store, Map* older, Map* newer, uint64_t* next_block, uint64_t block_count,
    run_callback callback, void* opaque
) noexcept nogil:
    """Call back for each block from `next_block` on whose address differs (one at a time, in order).

    `older` may be NULL: all holes.  After DIFF_NODES_MAX nodes it stops, so that not all of two maps must be in memory;
    next_block then says where to go on, else it is block_count.
    """
    cdef uint32_t token = nodes_enter(store)
    cdef DiffWalk walk
    cdef DiffSide a, b
    cdef int failure
    walk.store = store
    walk.next_block = next_block[0]
    walk.block_count = block_count
    walk.nodes_left = DIFF_NODES_MAX
    walk.stopped = False
    walk.callback = callback
    walk.opaque = opaque
    a.id = 0 if older == NULL else load_u64(&older.root)
    a.height = newer.height if older == NULL else older.height
    b.id = load_u64(&newer.root)
    b.height = newer.height
    failure = diff_subtree(&walk, &a, &b, max(a.height, b.height) - 1, 0)
    nodes_leave(store, token)
    next_block[0] = walk.next_block if walk.stopped else block_count
    return failure
