"""Maps: persistent 512-way trees from block number to block address.

A node is immutable except while it is *writable* for one map: its owner is that map's (vdisk, epoch) and its generation is
the store's current one.  Whoever changes anything else copies the node first, from the root down (path copying).
  - A snapshot keeps the root and raises the epoch: all nodes below stop being writable, at no cost.
  - A checkpoint raises the generation: all nodes freeze, are written to their slots, and become clean.

Lookups take no lock (see _nodes.pxd).  Writers of one map exclude each other by map.lock.
"""

from libc.stdint cimport uint32_t, uint64_t

from blockdev._nodes cimport NodeStore
from blockdev._sync cimport pthread_mutex_t

cdef struct Map:
    uint64_t root                   # node id, 0: all holes; atomic
    uint64_t owner                  # (vdisk id << 32) | epoch; 0 in a snapshot: nothing is writable
    uint32_t height                 # levels; changes only while no reader can be inside
    pthread_mutex_t lock            # writers

cdef enum:
    DIFF_NODES_MAX = 16384          # that one walk of map_diff looks at: 75 MB of memory, 10 ms when they are in it

# (first block, block count, is a hole, opaque) -> 0 to go on, errno to stop
ctypedef int (*run_callback)(void* opaque, uint64_t block, uint64_t count, bint hole) noexcept nogil

cdef void map_init(Map* map, uint64_t root, uint32_t height, uint64_t owner) noexcept nogil
cdef void map_destroy(Map* map) noexcept nogil
cdef uint32_t map_height_for(uint64_t size_bytes) noexcept nogil
cdef int map_lookup(NodeStore* store, Map* map, uint64_t block, uint64_t count, uint64_t* addresses) noexcept nogil
cdef int map_probe(NodeStore* store, Map* map, uint64_t first, uint64_t count) noexcept nogil
cdef int map_place(NodeStore* store, Map* map, uint64_t block, uint64_t** place) noexcept nogil
cdef int map_update(NodeStore* store, Map* map, uint64_t block, uint64_t address) noexcept nogil
cdef int map_punch(NodeStore* store, Map* map, uint64_t first, uint64_t count) noexcept nogil
cdef int map_grow(NodeStore* store, Map* map, uint32_t height) noexcept nogil
cdef int map_runs(
    NodeStore* store, Map* map, uint64_t first, uint64_t count, run_callback callback, void* opaque) noexcept nogil
cdef int map_diff(
    NodeStore* store, Map* older, Map* newer, uint64_t* next_block, uint64_t block_count,
    run_callback callback, void* opaque) noexcept nogil
