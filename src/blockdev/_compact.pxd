"""Mark and compact: which blocks and node slots no map reaches any more, and giving their space back.

One Marker makes one round.  Liveness is reachability in the maps of a *durable* checkpoint: whatever a power cut leaves is
that checkpoint or later.  What came after its cut is live because it is either
  - in a segment that is not looked at: those from where the older superblock's replay begins on are the log's, or
  - an old block that a dedup hit referred to: then its bit was set (take_reference in _disk.pyx).

  1. begin      a bitmap for each segment below; from here on dedup hits set bits
     (two checkpoints; their cuts come after begin)
  2. aim, mark  every map of the newer checkpoint, each shared subtree once, without bringing nodes into memory;
                first those whose blocks are to be kept plain, so that what they share is, too
  3. retire     node slots that were not met and are not listed as free: two checkpoints later they are
  4. close      the segments to rewrite take no more references; then every bit that will be set is set
  5. rewrite    the live blocks of a segment into a file of the next generation, which takes its place; or remove it
  6. end        segments take references again

Readers may hold an address whose block dies meanwhile: they find it gone, and look the map up again (read_blocks).
"""

from libc.stdint cimport uint32_t, uint64_t

from blockdev._disk cimport PoolState

cpdef enum Packing:                 # what a map's policy says of its blocks
    PACK_NEVER = 0                  # a block that such a map reaches is kept plain
    PACK_SOON = 1                   # compressed once its segment is full
    PACK_COLD = 2                   # compressed once a round has seen its segment before

cdef struct NodeToMark:
    uint64_t id
    uint32_t level
    int packing                     # of the map, where the node is its root

cdef struct NodeStack:
    NodeToMark* items
    uint64_t count
    uint64_t room

cdef struct Marks:                  # what is known of liveness, and what is still to be looked at
    PoolState* pool
    uint32_t segment_end            # segments below are looked at
    uint64_t node_end               # node ids below were known at the cut
    uint64_t* met                   # one bit a node id: reached by a map, or listed as free or retired; owned
    NodeStack roots                 # of maps not yet begun, the next one last
    NodeStack stack                 # below the root that is being walked
    int packing                     # of its map
    uint64_t** plain                # by segment id, one bit a slot: blocks that PACK_NEVER maps reach; NULL: none; owned
    uint32_t* soon                  # by segment id: live blocks that PACK_SOON maps reach and no PACK_NEVER map; owned
