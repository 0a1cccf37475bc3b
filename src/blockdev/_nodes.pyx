"""The store of map nodes.  See _nodes.pxd for the design and docs/format/pool.md for the node record."""

from libc.errno cimport EIO, ENOMEM, EROFS
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from blockdev._dedup cimport checksum64
from blockdev._medium cimport (
    BUG_NODES_NOT_SYNCED, BUG_SLOTS_REUSED_EARLY, medium_read, medium_report, medium_sync,
    medium_truncate, medium_write, planted,
)
from blockdev._statistics cimport CAUSE_LOCK, timed_lock
from blockdev._sync cimport (
    add_u64, aligned_zeroed, count_u64, load_hint, load_pointer, load_u64, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, store_hint, store_pointer, store_u64, thread_stripe,
)

cdef enum:
    WRITE_RUN_NODES = 227                       # about 1 MiB of records in one write

cdef extern from "<stdio.h>" nogil:
    int dprintf(int fd, const char* format, ...)

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)

cdef extern from *:
    """
    #ifdef BLOCKDEV_DEBUG
    #define DEBUG_BUILD 1
    #else
    #define DEBUG_BUILD 0
    #endif
    """
    bint DEBUG_BUILD

cdef uint64_t NODE_MAGIC = 0x3145444F4E4442     # "BDNODE1" little-endian

cdef struct NodeHeader:                         # the first 64 bytes of a record; the rest of its sector is zero
    uint64_t magic
    uint64_t checksum                           # XXH3-64 of all that follows in the record
    uint8_t uuid[16]
    uint64_t id
    uint64_t owner
    uint64_t generation
    uint32_t level
    uint32_t reserved


# --- the store -------------------------------------------------------------------------------------------------------

cdef NodeStore* nodes_create(
    int file, int mirror, const uint8_t* uuid, uint64_t generation, uint64_t next_id
) noexcept nogil:
    cdef NodeStore* store = <NodeStore*>aligned_zeroed(64, sizeof(NodeStore))
    cdef int i
    if store == NULL:
        return NULL
    store.chunks = <MapNode***>calloc(NODE_CHUNKS_MAX, sizeof(MapNode**))
    if store.chunks == NULL:
        free(store)
        return NULL
    store.files[0] = file
    store.files[1] = mirror
    memcpy(store.uuid, uuid, 16)
    store.generation = generation
    store.next_id = next_id
    pthread_mutex_init(&store.lock, NULL)
    pthread_mutex_init(&store.reclaim_lock, NULL)
    for i in range(FAULT_LOCKS):
        pthread_mutex_init(&store.fault_locks[i], NULL)
    return store


cdef NodeCounts nodes_counts(NodeStore* store) noexcept nogil:
    cdef NodeCounts counts
    pthread_mutex_lock(&store.lock)
    counts.used = store.next_id
    counts.resident = store.resident_count
    counts.dirty = store.dirty_count
    pthread_mutex_unlock(&store.lock)
    return counts


cdef void nodes_destroy(NodeStore* store) noexcept nogil:
    cdef uint64_t chunk
    cdef int i
    cdef MapNode* node
    if store == NULL:
        return
    for chunk in range(store.chunk_end):
        if store.chunks[chunk] != NULL:
            for i in range(NODE_CHUNK):
                free(store.chunks[chunk][i])
            free(store.chunks[chunk])
    free(store.chunks)
    while store.limbo != NULL:
        node = store.limbo
        store.limbo = node.next
        free(node)
    free(store.free_slots.items)
    free(store.retired_slots.items)
    pthread_mutex_destroy(&store.lock)
    pthread_mutex_destroy(&store.reclaim_lock)
    for i in range(FAULT_LOCKS):
        pthread_mutex_destroy(&store.fault_locks[i])
    free(store)


cdef int slots_push(SlotVector* slots, uint64_t id, uint64_t generation) noexcept nogil:
    cdef RetiredSlot* items
    if slots.count == slots.room:
        items = <RetiredSlot*>realloc(slots.items, (slots.room * 2 + 64) * sizeof(RetiredSlot))
        if items == NULL:
            return ENOMEM
        slots.items = items
        slots.room = slots.room * 2 + 64
    slots.items[slots.count].id = id
    slots.items[slots.count].generation = generation
    slots.count += 1
    return 0


cdef MapNode** table_make_place(NodeStore* store, uint64_t id) noexcept nogil:
    """Like nodes_place, making the chunk.  Caller holds store.lock."""
    cdef MapNode** chunk
    if id >= <uint64_t>NODE_CHUNKS_MAX * NODE_CHUNK:
        return NULL
    if store.chunks[id // NODE_CHUNK] == NULL:
        chunk = <MapNode**>calloc(NODE_CHUNK, sizeof(MapNode*))
        if chunk == NULL:
            return NULL
        store_pointer(<void**>&store.chunks[id // NODE_CHUNK], chunk)
        store.chunk_end = max(store.chunk_end, id // NODE_CHUNK + 1)
    return &store.chunks[id // NODE_CHUNK][id % NODE_CHUNK]


cdef MapNode* node_new() noexcept nogil:
    cdef MapNode* node = <MapNode*>aligned_zeroed(64, sizeof(MapNode))
    return node


cdef MapNode* node_add(NodeStore* store, MapNode* node, uint64_t owner, uint32_t level) noexcept nogil:
    """Give a new node its slot and publish it; NULL when memory is out (the node is freed)."""
    cdef MapNode** place
    pthread_mutex_lock(&store.lock)
    if store.free_slots.count:
        store.free_slots.count -= 1
        node.id = store.free_slots.items[store.free_slots.count].id
    else:
        node.id = store.next_id
        store.next_id += 1
    node.owner = owner
    node.level = level
    node.generation = load_u64(&store.generation)
    place = table_make_place(store, node.id)
    if place == NULL:
        pthread_mutex_unlock(&store.lock)
        free(node)
        return NULL
    node.next = store.dirty
    store.dirty = node
    store.dirty_count += 1
    store.resident_count += 1
    store_pointer(<void**>place, node)
    pthread_mutex_unlock(&store.lock)
    return node


cdef void unpublish(NodeStore* store, MapNode* node) noexcept nogil:
    """Take a clean node out of the table; it is freed after the read sections of now.  Caller holds store.lock."""
    store_pointer(<void**>nodes_place(store, node.id), NULL)
    store.resident_count -= 1
    node.next = store.limbo
    store.limbo = node


cdef void node_supersede(NodeStore* store, MapNode* old) noexcept nogil:
    """`old` was reached by one head only and no longer is."""
    cdef MapNode** place = nodes_place(store, old.id)
    pthread_mutex_lock(&store.lock)
    # a slot that finds no memory to be remembered in is found again by the mark pass
    slots_push(&store.retired_slots, old.id, load_u64(&store.generation))
    if not old.clean:
        old.superseded = 1
    elif place[0] != NULL:
        # not always `old`: it may have been evicted since the caller got it (then it is in limbo), and read in again
        unpublish(store, place[0])
    pthread_mutex_unlock(&store.lock)


# --- records ---------------------------------------------------------------------------------------------------------

cdef void encode_node(NodeStore* store, MapNode* node, char* record) noexcept nogil:
    cdef NodeHeader* header = <NodeHeader*>record
    memset(record, 0, NODE_HEADER_BYTES)
    header.magic = NODE_MAGIC
    memcpy(header.uuid, store.uuid, 16)
    header.id = node.id
    header.owner = node.owner
    header.generation = node.generation
    header.level = node.level
    memcpy(record + NODE_HEADER_BYTES, node.entries, sizeof(node.entries))
    header.checksum = checksum64(record + 16, NODE_RECORD_BYTES - 16)


cdef bint record_holds(NodeStore* store, uint64_t id, uint32_t level, const char* record) noexcept nogil:
    """Whether a record is that node, whole, of this pool and at this level."""
    cdef const NodeHeader* header = <const NodeHeader*>record
    return (header.magic == NODE_MAGIC and header.id == id and header.level == level
            and memcmp(header.uuid, store.uuid, 16) == 0
            and header.checksum == checksum64(record + 16, NODE_RECORD_BYTES - 16))


cdef int read_copy(NodeStore* store, int which, uint64_t id, uint32_t level, char* record) noexcept nogil:
    """One copy of a node's record; EIO, or why it cannot be read, when it does not verify."""
    cdef int failure = medium_read(store.files[which], record, NODE_RECORD_BYTES, id * NODE_RECORD_BYTES)
    if failure:
        return failure
    return 0 if record_holds(store, id, level, record) else EIO


cdef int read_record(NodeStore* store, uint64_t id, uint32_t level, char* record) noexcept nogil:
    """A node's record from either copy.  One that is bad is written anew from the other."""
    cdef int failure = read_copy(store, 0, id, level, record)
    if failure == 0:
        return 0
    if read_copy(store, 1, id, level, record):
        return failure
    rewrite_copy(store, 0, id, record)
    return 0


cdef int rewrite_copy(NodeStore* store, int which, uint64_t id, const char* record) noexcept nogil:
    """Write one copy of a node anew.  Power may go meanwhile: the other copy is whole."""
    cdef int failure
    if store.read_only:
        return EROFS
    failure = medium_write(store.files[which], record, NODE_RECORD_BYTES, id * NODE_RECORD_BYTES)
    if failure:
        medium_report(b"blockdev: %s: a copy of map node %lu is bad and cannot be written anew\n", failure, id, 0)
        return failure
    count_u64(&store.nodes_healed, 1)
    return 0


cdef int node_heal(NodeStore* store, uint64_t id, uint32_t level, uint32_t* bad) noexcept nogil:
    """Verify both copies of a clean node, and write those that are bad anew.  For check and scrub.

    bad: how many do not verify, or are of an earlier life of the slot.  Returns why one could not be written anew.
    Caller is in a read section and reached the node by a map.
    """
    cdef char records[2 * NODE_RECORD_BYTES]
    cdef char* first = records
    cdef char* second = records + NODE_RECORD_BYTES
    cdef pthread_mutex_t* lock = &store.fault_locks[id % FAULT_LOCKS]
    cdef bint first_holds, second_holds
    cdef int failure = 0
    pthread_mutex_lock(lock)
    first_holds = read_copy(store, 0, id, level, first) == 0
    second_holds = read_copy(store, 1, id, level, second) == 0
    if first_holds and second_holds and memcmp(first, second, NODE_RECORD_BYTES) != 0:
        first_holds = (<NodeHeader*>first).generation > (<NodeHeader*>second).generation
        second_holds = not first_holds
    bad[0] = 2 - first_holds - second_holds
    if not first_holds and not second_holds:
        failure = write_from_memory(store, id, first)
    elif not first_holds:
        failure = rewrite_copy(store, 0, id, second)
    elif not second_holds:
        failure = rewrite_copy(store, 1, id, first)
    pthread_mutex_unlock(lock)
    return failure


cdef int write_from_memory(NodeStore* store, uint64_t id, char* record) noexcept nogil:
    """Write both copies of a clean node anew; EIO when it is not in memory.  Caller holds its fault lock."""
    cdef MapNode** place = nodes_place(store, id)
    cdef MapNode* node = NULL if place == NULL else <MapNode*>load_pointer(<void**>place)
    cdef int failure
    if node == NULL:
        return EIO
    encode_node(store, node, record)
    failure = rewrite_copy(store, 0, id, record)
    if not failure:
        failure = medium_sync(store.files[0])
    return failure or rewrite_copy(store, 1, id, record)


cdef MapNode* decode_node(const char* record) noexcept nogil:
    """The node in a record that verifies."""
    cdef const NodeHeader* header = <const NodeHeader*>record
    cdef MapNode* node = node_new()
    if node != NULL:
        memcpy(node.entries, record + NODE_HEADER_BYTES, sizeof(node.entries))
        node.id = header.id
        node.owner = header.owner
        node.generation = header.generation
        node.level = header.level
        node.clean = 1
    return node


cdef int node_copy(NodeStore* store, uint64_t id, uint32_t level, uint64_t* entries) noexcept nogil:
    """The 512 entries of a node, from memory or from its slot; it is not brought in.  Caller is in a read section."""
    cdef char record[NODE_RECORD_BYTES]
    cdef MapNode** place = nodes_place(store, id)
    cdef MapNode* node = NULL if place == NULL else <MapNode*>load_pointer(<void**>place)
    cdef pthread_mutex_t* lock = &store.fault_locks[id % FAULT_LOCKS]
    cdef int failure
    if node != NULL:
        if node.level != level:
            return EIO
        memcpy(entries, node.entries, sizeof(node.entries))
        return 0
    pthread_mutex_lock(lock)
    failure = read_record(store, id, level, record)
    pthread_mutex_unlock(lock)
    if not failure:
        memcpy(entries, record + NODE_HEADER_BYTES, sizeof(node.entries))
    return failure


cdef int node_fault(NodeStore* store, uint64_t id, uint32_t level, MapNode** out) noexcept nogil:
    """Bring a node in from its slot.  Caller is in a read section."""
    cdef char record[NODE_RECORD_BYTES]
    cdef MapNode* node
    cdef MapNode** place
    cdef pthread_mutex_t* lock = &store.fault_locks[id % FAULT_LOCKS]
    cdef int failure
    timed_lock(lock, CAUSE_LOCK)
    place = nodes_place(store, id)
    node = NULL if place == NULL else <MapNode*>load_pointer(<void**>place)
    if node != NULL:
        pthread_mutex_unlock(lock)
        out[0] = node
        return 0 if node.level == level else EIO
    failure = read_record(store, id, level, record)
    if failure:
        pthread_mutex_unlock(lock)
        medium_report(b"blockdev: %s: map node %lu (level %lu) does not verify; run blockdevctl pool check\n",
                      failure, id, level)
        return failure
    node = decode_node(record)
    if node == NULL:
        pthread_mutex_unlock(lock)
        return ENOMEM
    count_u64(&store.nodes_faulted, 1)
    pthread_mutex_lock(&store.lock)
    place = table_make_place(store, id)
    if place != NULL:
        store.resident_count += 1
        store_pointer(<void**>place, node)
    pthread_mutex_unlock(&store.lock)
    pthread_mutex_unlock(lock)
    if place == NULL:
        free(node)
        return ENOMEM
    out[0] = node
    return 0


# --- read sections and reclamation -----------------------------------------------------------------------------------

cdef uint32_t nodes_enter(NodeStore* store) noexcept nogil:
    cdef uint32_t token = ((thread_stripe() % READ_STRIPES) << 1) | <uint32_t>(load_u64(&store.phase) & 1)
    add_u64(&store.stripes[token >> 1].active[token & 1], 1)
    return token


cdef void nodes_leave(NodeStore* store, uint32_t token) noexcept nogil:
    add_u64(&store.stripes[token >> 1].active[token & 1], <uint64_t>-1)


cdef void wait_for_phase(NodeStore* store, int phase) noexcept nogil:
    cdef int i
    cdef uint64_t active
    while True:
        active = 0
        for i in range(READ_STRIPES):
            active += add_u64(&store.stripes[i].active[phase], 0)
        if active == 0:
            return
        usleep(50)          # a reader may be waiting for its disk


cdef void wait_for_readers(NodeStore* store) noexcept nogil:
    """Return when every read section of now has ended.  Two flips: a reader may enter under a phase it loaded before one.

    Caller holds reclaim_lock.
    """
    cdef int _i
    for _i in range(2):
        wait_for_phase(store, <int>(add_u64(&store.phase, 1) & 1))


cdef void nodes_reclaim(NodeStore* store) noexcept nogil:
    """Free what is in limbo."""
    cdef MapNode* limbo
    cdef MapNode* node
    pthread_mutex_lock(&store.reclaim_lock)
    pthread_mutex_lock(&store.lock)
    limbo = store.limbo
    store.limbo = NULL
    pthread_mutex_unlock(&store.lock)
    if limbo != NULL:
        wait_for_readers(store)
    while limbo != NULL:
        node = limbo
        limbo = node.next
        free(node)
    pthread_mutex_unlock(&store.reclaim_lock)


cdef uint64_t nodes_evict(NodeStore* store, uint64_t keep_count) noexcept nogil:
    """Unpublish clean nodes that no lookup used since the last round, until `keep_count` stay; returns how many went."""
    cdef uint64_t evicted = 0, scanned = 0, limit
    cdef MapNode** place
    cdef MapNode* node
    pthread_mutex_lock(&store.lock)
    limit = store.next_id * 2
    while store.resident_count > keep_count and scanned < limit:
        scanned += 1
        store.clock_hand += 1
        if store.clock_hand >= store.next_id:
            store.clock_hand = 1
        place = nodes_place(store, store.clock_hand)
        if place == NULL:
            continue
        node = place[0]
        if node == NULL or not node.clean:
            continue
        if load_hint(&node.referenced):
            store_hint(&node.referenced, 0)
            continue
        unpublish(store, node)
        evicted += 1
        if (scanned & 0xFFF) == 0:      # let writers have the lock now and then
            pthread_mutex_unlock(&store.lock)
            pthread_mutex_lock(&store.lock)
    pthread_mutex_unlock(&store.lock)
    count_u64(&store.nodes_evicted, evicted)
    if evicted:
        nodes_reclaim(store)
    return evicted


# --- checkpoint ------------------------------------------------------------------------------------------------------

cdef MapNode* nodes_freeze(NodeStore* store) noexcept nogil:
    """Raise the generation and take the list of nodes to write.  The pool's cut_lock is held exclusively."""
    cdef MapNode* frozen
    pthread_mutex_lock(&store.lock)
    frozen = store.dirty
    store.dirty = NULL
    store.dirty_count = 0
    store_u64(&store.generation, store.generation + 1)
    pthread_mutex_unlock(&store.lock)
    return frozen


cdef int by_id(const void* a, const void* b) noexcept nogil:
    cdef uint64_t left = (<MapNode**>a)[0].id
    cdef uint64_t right = (<MapNode**>b)[0].id
    return -1 if left < right else (left > right)


cdef int write_sorted(NodeStore* store, MapNode** nodes, uint64_t count, char* buffer) noexcept nogil:
    """Write nodes in the order of their slots, neighbours together."""
    cdef uint64_t first = 0, n
    cdef int failure, which
    while first < count:
        n = 0
        while (first + n < count and n < WRITE_RUN_NODES
               and nodes[first + n].id == nodes[first].id + n):
            encode_node(store, nodes[first + n], buffer + n * NODE_RECORD_BYTES)
            n += 1
        for which in range(2):
            failure = medium_write(store.files[which], buffer, n * NODE_RECORD_BYTES,
                                   nodes[first].id * NODE_RECORD_BYTES)
            if failure:
                return failure
        first += n
    return 0


cdef int nodes_write(NodeStore* store, MapNode* frozen) noexcept nogil:
    """Write frozen nodes to their slots in both files, and sync these."""
    cdef uint64_t count = 0
    cdef MapNode* node = frozen
    cdef MapNode** nodes
    cdef char* buffer
    cdef int failure = ENOMEM
    while node != NULL:
        count += 1
        node = node.next
    if count == 0:
        return 0
    nodes = <MapNode**>malloc(count * sizeof(MapNode*))
    buffer = <char*>malloc(WRITE_RUN_NODES * NODE_RECORD_BYTES)
    if nodes != NULL and buffer != NULL:
        count = 0
        node = frozen
        while node != NULL:
            nodes[count] = node
            count += 1
            node = node.next
        qsort(nodes, count, sizeof(MapNode*), &by_id)
        failure = write_sorted(store, nodes, count, buffer)
    free(nodes)
    free(buffer)
    if planted(BUG_NODES_NOT_SYNCED):
        return failure
    if not failure:
        failure = medium_sync(store.files[0])
    return failure or medium_sync(store.files[1])


cdef void nodes_thaw(NodeStore* store, MapNode* frozen) noexcept nogil:
    """Put the nodes of a checkpoint that failed back among the dirty ones: the next one writes them."""
    cdef MapNode* node
    pthread_mutex_lock(&store.lock)
    while frozen != NULL:
        node = frozen
        frozen = node.next
        node.next = store.dirty
        store.dirty = node
        store.dirty_count += 1
    pthread_mutex_unlock(&store.lock)


cdef void verify_resident(NodeStore* store) noexcept nogil:
    """Debug builds: every clean node in memory still is what its slot holds, and the count of nodes is right."""
    cdef char* record = <char*>malloc(2 * NODE_RECORD_BYTES)
    cdef MapNode** place
    cdef MapNode* node
    cdef uint64_t id, found = 0
    if record == NULL:
        return
    for id in range(1, store.next_id):
        place = nodes_place(store, id)
        node = NULL if place == NULL else place[0]
        if node == NULL:
            continue
        found += 1
        if not node.clean:
            continue
        encode_node(store, node, record)
        if medium_read(store.files[0], record + NODE_RECORD_BYTES, NODE_RECORD_BYTES, id * NODE_RECORD_BYTES):
            continue            # a medium that fails is no bug of ours
        if memcmp(record, record + NODE_RECORD_BYTES, NODE_RECORD_BYTES) != 0:
            dprintf(2, b"blockdev: bug: clean map node %lu is not what its slot holds\n", <unsigned long>id)
            abort()
    if found != store.resident_count:
        dprintf(2, b"blockdev: bug: %lu map nodes in memory, %lu counted\n", <unsigned long>found,
                <unsigned long>store.resident_count)
        abort()
    free(record)


cdef void nodes_finish(NodeStore* store, MapNode* frozen) noexcept nogil:
    cdef MapNode* node
    pthread_mutex_lock(&store.lock)
    while frozen != NULL:
        node = frozen
        frozen = node.next
        node.clean = 1
        if node.superseded:
            unpublish(store, node)
    if DEBUG_BUILD:
        verify_resident(store)
    pthread_mutex_unlock(&store.lock)
    nodes_reclaim(store)


cdef void nodes_release_slots(NodeStore* store, uint64_t generation) noexcept nogil:
    """Make slots usable that left their head in `generation` or earlier."""
    cdef uint64_t i, kept = 0
    cdef RetiredSlot slot
    cdef MapNode** place
    # a reader that took such an id from a parent before it was replaced may still be on its way to it
    nodes_wait_for_readers(store)
    pthread_mutex_lock(&store.lock)
    for i in range(store.retired_slots.count):
        slot = store.retired_slots.items[i]
        if slot.generation > generation + planted(BUG_SLOTS_REUSED_EARLY) or slots_push(&store.free_slots, slot.id, 0):
            store.retired_slots.items[kept] = slot
            kept += 1
            continue
        place = nodes_place(store, slot.id)
        if place != NULL and place[0] != NULL:      # such a reader faulted it in again
            unpublish(store, place[0])
    store.retired_slots.count = kept
    pthread_mutex_unlock(&store.lock)


# --- compaction ------------------------------------------------------------------------------------------------------

cdef void nodes_wait_for_readers(NodeStore* store) noexcept nogil:
    """Return when every read section of now has ended."""
    pthread_mutex_lock(&store.reclaim_lock)
    wait_for_readers(store)
    pthread_mutex_unlock(&store.reclaim_lock)


cdef int nodes_retire(NodeStore* store, uint64_t id, uint64_t generation) noexcept nogil:
    """Give up a slot that no map reached when `generation` ended."""
    cdef int failure
    pthread_mutex_lock(&store.lock)
    failure = slots_push(&store.retired_slots, id, generation)
    pthread_mutex_unlock(&store.lock)
    return failure


cdef int by_descending_id(const void* a, const void* b) noexcept nogil:
    cdef uint64_t left = (<RetiredSlot*>a).id
    cdef uint64_t right = (<RetiredSlot*>b).id
    return 1 if left < right else -(left > right)


cdef int nodes_trim(NodeStore* store, uint64_t* count) noexcept nogil:
    """Cut free slots off the end of the node files, and let the lowest of the others be used first.

    No checkpoint may be under way: it would write behind the end.
    """
    cdef uint64_t cut = 0
    cdef int failure = 0, which
    pthread_mutex_lock(&store.lock)
    if store.free_slots.count:
        qsort(store.free_slots.items, store.free_slots.count, sizeof(RetiredSlot), &by_descending_id)
    while cut < store.free_slots.count and store.free_slots.items[cut].id + 1 == store.next_id:
        cut += 1
        store.next_id -= 1
    store.free_slots.count -= cut
    if cut:
        memmove(store.free_slots.items, store.free_slots.items + cut, store.free_slots.count * sizeof(RetiredSlot))
    pthread_mutex_unlock(&store.lock)
    count[0] = cut
    for which in range(2):
        if cut and not failure:
            failure = medium_truncate(store.files[which], store.next_id * NODE_RECORD_BYTES)
    return failure
