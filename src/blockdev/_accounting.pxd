"""Whose the blocks are: one walk over the maps of a checkpoint that gives each block and node the narrowest owner.

Owners are a tree whose root is the pool (groups below it, what they are made of below them).  What two owners reach is
their nearest common ancestor's.  A node's owner is known before its children are looked at, and it is looked at again only
when its owner changes: at most as often as the tree is deep.  Leaves are read when all owners of nodes are known, so once
for each range of segments, however many maps share them.

Memory: 4 bytes a block of the range of segments that is looked at, 21 bytes a node.

Whether a disk as it is now reaches a block (or only snapshots do) goes along as the top bit of the owner.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blockdev._disk cimport PoolState

cdef enum:
    POOL_OWNER = 1                  # 0 is nobody
    OWNER_MASK = 0x7FFFFFFF

cdef struct Owners:
    uint32_t count                  # ids below; owned:
    uint32_t* parents
    uint32_t* depths                # of the pool: 0

cdef struct NodeVisit:
    uint64_t id
    uint32_t level
    uint32_t owner                  # from above, with the bit of disks

cdef struct VisitStack:
    NodeVisit* items                # owned
    uint64_t count
    uint64_t room

cdef struct Sums:                   # of one owner; bytes are as stored
    uint64_t blocks
    uint64_t disk_blocks            # of them, those that a disk reaches
    uint64_t stored_bytes
    uint64_t nodes                  # of maps

cdef struct Side:                   # of a comparison of two maps
    uint64_t id                     # of the subtree, 0: all holes
    uint32_t height                 # of the tree that it is the root of

cdef struct Pair:                   # to be compared
    Side before
    Side after
    uint32_t level

cdef struct Account:
    PoolState* pool
    Owners owners
    VisitStack stack
    uint64_t node_end               # node ids below were known at the cut; by node id, owned:
    uint32_t* node_owners
    uint8_t* node_levels            # one more than the level; 0: no map reaches it
    uint64_t* mapped                # blocks that the subtree maps, as often as it does
    uint64_t* shared                # of them, those that are the pool's
    uint32_t first_segment          # of the range that is looked at
    uint32_t segment_end
    uint32_t** block_owners         # by segment id - first_segment, then by slot; owned
    Sums* sums                      # by owner; owned
    uint64_t dead_bytes             # stored by blocks that nobody reaches
    Pair* pairs                     # owned
    uint64_t pair_count
    uint64_t pair_room
