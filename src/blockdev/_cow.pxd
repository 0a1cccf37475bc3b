"""Maps: persistent 512-way trees from block number to block address, and the store of their nodes.

A node is immutable except while it is *writable* for one map: its owner is that map's (vdisk, epoch) and its generation is
the store's current one.  Whoever changes anything else copies the node first, from the root down (path copying).
  - A snapshot keeps the root and raises the epoch: all nodes below stop being writable, at no cost.
  - A checkpoint raises the generation: all nodes freeze, are written to their slots, and become clean.
A node's id is its slot in the node file.  A slot that a durable checkpoint holds is never rewritten.

Readers take no lock: they enter a read section, load the root, walk.  Nodes that were unpublished are freed only after
every read section that could see them has ended (nodes_reclaim).  Writers of one map exclude each other by map.lock.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blockdev._sync cimport pthread_mutex_t

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

cdef struct NodeStore:
    int file                        # map/nodes
    uint8_t uuid[16]                # of the pool, in every record
    uint64_t generation             # atomic; changes only while the pool's cut_lock is held exclusively
    MapNode*** chunks               # node table: id -> node in memory or NULL
    pthread_mutex_t lock            # guards what follows
    uint64_t next_id                # first id never used
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
    uint64_t nodes_evicted

cdef struct Map:
    uint64_t root                   # node id, 0: all holes; atomic
    uint64_t owner                  # (vdisk id << 32) | epoch; 0 in a snapshot: nothing is writable
    uint32_t height                 # levels; changes only while no reader can be inside
    pthread_mutex_t lock            # writers

# (first block, block count, is a hole, opaque) -> 0 to go on, errno to stop
ctypedef int (*run_callback)(void* opaque, uint64_t block, uint64_t count, bint hole) noexcept nogil
# a leaf with its first block number; entries is NULL for a node that could not be read (id, level, error given)
ctypedef int (*leaf_callback)(
    void* opaque, uint64_t base, const uint64_t* entries, uint64_t id, uint32_t level, int error) noexcept nogil

cdef NodeStore* nodes_create(int file, const uint8_t* uuid, uint64_t generation, uint64_t next_id) noexcept nogil
cdef void nodes_destroy(NodeStore* store) noexcept nogil

cdef uint32_t nodes_enter(NodeStore* store) noexcept nogil          # begin a read section; returns the token to leave with
cdef void nodes_leave(NodeStore* store, uint32_t token) noexcept nogil
cdef void nodes_reclaim(NodeStore* store) noexcept nogil            # free limbo; waits for read sections
cdef uint64_t nodes_evict(NodeStore* store, uint64_t keep_count) noexcept nogil
cdef int slots_push(SlotVector* slots, uint64_t id, uint64_t generation) noexcept nogil

cdef void map_init(Map* map, uint64_t root, uint32_t height, uint64_t owner) noexcept nogil
cdef void map_destroy(Map* map) noexcept nogil
cdef uint32_t map_height_for(uint64_t size_bytes) noexcept nogil
cdef int map_lookup(NodeStore* store, Map* map, uint64_t block, uint64_t count, uint64_t* addresses) noexcept nogil
cdef int map_update(NodeStore* store, Map* map, uint64_t block, uint64_t address) noexcept nogil
cdef int map_punch(NodeStore* store, Map* map, uint64_t first, uint64_t count) noexcept nogil
cdef int map_grow(NodeStore* store, Map* map, uint32_t height) noexcept nogil
cdef int map_runs(
    NodeStore* store, Map* map, uint64_t first, uint64_t count, run_callback callback, void* opaque) noexcept nogil
cdef int map_diff(
    NodeStore* store, Map* older, Map* newer, uint64_t block_count, run_callback callback, void* opaque) noexcept nogil
cdef int map_leaves(
    NodeStore* store, uint64_t root, uint32_t height, uint8_t* seen, uint64_t seen_ids, leaf_callback callback,
    void* opaque) noexcept nogil

# checkpoint: freeze while the pool's cut_lock is held exclusively; write and finish at leisure
cdef MapNode* nodes_freeze(NodeStore* store) noexcept nogil
cdef int nodes_write(NodeStore* store, MapNode* frozen) noexcept nogil
cdef void nodes_thaw(NodeStore* store, MapNode* frozen) noexcept nogil         # a failed checkpoint: dirty again
cdef void nodes_finish(NodeStore* store, MapNode* frozen) noexcept nogil       # written and synced: clean
cdef void nodes_release_slots(NodeStore* store, uint64_t generation) noexcept nogil
