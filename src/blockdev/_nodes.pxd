"""The store of map nodes: their slots in the node file, the table of those in memory, and checkpoints of them.

A node's id is its slot in the node file, and in the mirror, which holds every node once more: what does not verify in
one is taken from the other and written back.  A slot that a durable checkpoint holds is never rewritten otherwise.  A
node that is clean (its slot holds it) never changes again; nodes of the current generation may be changed in place by
their owner.

Readers take no lock: they enter a read section, load ids, get nodes.  Nodes that were unpublished are freed only after
every read section that could see them has ended (nodes_reclaim).
"""

from libc.errno cimport EIO
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blockdev._sync cimport load_hint, load_pointer, pthread_mutex_t, store_hint

cdef enum:
    NODE_FANOUT = 512
    NODE_FANOUT_SHIFT = 9
    NODE_HEIGHT_MAX = 4             # 512**4 blocks of 4 KiB = 256 TiB
    NODE_HEADER_BYTES = 512         # one sector: what the node is, and its checksum
    NODE_RECORD_BYTES = 4608        # header, then 512 little-endian u64
    NODE_CHUNK = 4096               # pointers in one chunk of the node table
    NODE_CHUNKS_MAX = 1 << 20
    READ_STRIPES = 64
    FAULT_LOCKS = 64

cdef struct MapNode:
    uint64_t entries[512]           # leaf: block addresses; above: node ids; 0: hole.  Written with release stores
    uint64_t id                     # slot in the node file
    uint64_t owner                  # (vdisk id << 32) | epoch that created it
    uint64_t generation             # of the store, at creation
    uint32_t level                  # 0: leaf
    uint32_t clean                  # 1: the slot holds it; under store.lock
    uint32_t superseded             # 1: no head reaches it any more, free it when clean; under store.lock
    uint32_t referenced             # set by lookups, cleared by the eviction clock
    MapNode* next                   # in store.dirty, in a frozen list, or in store.limbo

cdef struct ReadStripe:
    uint64_t active[2]              # read sections entered in each phase and not yet left; atomic
    uint64_t padding[6]             # one cache line each

cdef struct RetiredSlot:
    uint64_t id
    uint64_t generation             # current when the slot left its head

cdef struct SlotVector:
    RetiredSlot* items
    uint64_t count
    uint64_t room

cdef struct NodeCounts:
    uint64_t used                   # slots of the node file, ever
    uint64_t resident               # in memory
    uint64_t dirty

cdef struct NodeStore:
    int files[2]                    # map/nodes and map/nodes-mirror
    bint read_only                  # copies that are bad are left as they are
    uint8_t uuid[16]                # of the pool, in every record
    uint64_t generation             # atomic; changes only while the pool's cut_lock is held exclusively
    MapNode*** chunks               # node table: id -> node in memory or NULL
    pthread_mutex_t lock            # guards what follows
    uint64_t next_id                # first id never used
    uint64_t chunk_end              # no chunk of the table is at or after this
    SlotVector free_slots           # usable now
    SlotVector retired_slots        # usable once two newer checkpoints do not hold them
    MapNode* dirty                  # nodes of the current generation
    MapNode* limbo                  # unpublished, waiting for read sections to end
    uint64_t dirty_count
    uint64_t resident_count         # nodes in memory
    uint64_t clock_hand
    # read sections
    uint64_t phase
    ReadStripe stripes[64]
    pthread_mutex_t reclaim_lock
    pthread_mutex_t fault_locks[64]
    # statistics, atomic
    uint64_t nodes_copied
    uint64_t nodes_visited          # by diff
    uint64_t nodes_faulted
    uint64_t nodes_healed           # copies written anew from the other one
    uint64_t nodes_evicted

cdef NodeStore* nodes_create(
    int file, int mirror, const uint8_t* uuid, uint64_t generation, uint64_t next_id) noexcept nogil
cdef void nodes_destroy(NodeStore* store) noexcept nogil
cdef NodeCounts nodes_counts(NodeStore* store) noexcept nogil

cdef uint32_t nodes_enter(NodeStore* store) noexcept nogil          # begin a read section; returns the token to leave with
cdef void nodes_leave(NodeStore* store, uint32_t token) noexcept nogil
cdef void nodes_reclaim(NodeStore* store) noexcept nogil            # free limbo; waits for read sections
cdef uint64_t nodes_evict(NodeStore* store, uint64_t keep_count) noexcept nogil
cdef int slots_push(SlotVector* slots, uint64_t id, uint64_t generation) noexcept nogil

# one node: found, made, let go.  Callers are in a read section
cdef int node_fault(NodeStore* store, uint64_t id, uint32_t level, MapNode** out) noexcept nogil
cdef MapNode* node_new() noexcept nogil                             # zeroed, not in the store yet
cdef MapNode* node_add(NodeStore* store, MapNode* node, uint64_t owner, uint32_t level) noexcept nogil
cdef void node_supersede(NodeStore* store, MapNode* old) noexcept nogil
cdef int node_copy(NodeStore* store, uint64_t id, uint32_t level, uint64_t* entries) noexcept nogil

cdef inline MapNode** nodes_place(NodeStore* store, uint64_t id) noexcept nogil:
    """Where the node table keeps `id`; NULL when the chunk is not there (or the id is beyond all bounds)."""
    cdef MapNode** chunk
    if id >= <uint64_t>NODE_CHUNKS_MAX * NODE_CHUNK:
        return NULL
    chunk = <MapNode**>load_pointer(<void**>&store.chunks[id // NODE_CHUNK])
    return NULL if chunk == NULL else &chunk[id % NODE_CHUNK]


cdef inline int node_get(NodeStore* store, uint64_t id, uint32_t level, MapNode** out) noexcept nogil:
    """The node `id`, which must be of `level`.  Caller is in a read section."""
    cdef MapNode** place = nodes_place(store, id)
    cdef MapNode* node = NULL if place == NULL else <MapNode*>load_pointer(<void**>place)
    if node == NULL:
        return node_fault(store, id, level, out)
    if node.level != level:
        return EIO
    if not load_hint(&node.referenced):
        store_hint(&node.referenced, 1)
    out[0] = node
    return 0


cdef int node_heal(NodeStore* store, uint64_t id, uint32_t level, uint32_t* bad) noexcept nogil

# checkpoint: freeze while the pool's cut_lock is held exclusively; write and finish at leisure
cdef MapNode* nodes_freeze(NodeStore* store) noexcept nogil
cdef int nodes_write(NodeStore* store, MapNode* frozen) noexcept nogil          # both copies, synced
cdef void nodes_thaw(NodeStore* store, MapNode* frozen) noexcept nogil         # a failed checkpoint: dirty again
cdef void nodes_finish(NodeStore* store, MapNode* frozen) noexcept nogil       # written and synced: clean
cdef void nodes_release_slots(NodeStore* store, uint64_t generation) noexcept nogil

# for compaction
cdef void nodes_wait_for_readers(NodeStore* store) noexcept nogil
cdef int nodes_retire(NodeStore* store, uint64_t id, uint64_t generation) noexcept nogil
cdef int nodes_trim(NodeStore* store, uint64_t* count) noexcept nogil
