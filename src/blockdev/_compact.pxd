"""Mark and compact: which blocks and node slots no map reaches any more, and giving their space back.

One Marker makes one round.  Liveness is reachability in the maps of a *durable* checkpoint: whatever a power cut leaves is
that checkpoint or later.  What came after its cut is live because it is either
  - in a segment that is not looked at: those from where the older superblock's replay begins on are the log's, or
  - an old block that a dedup hit referred to: then its bit was set (take_reference in _disk.pyx).

  1. begin      a bitmap for each segment below; from here on dedup hits set bits
     (two checkpoints; their cuts come after begin)
  2. aim, mark  every map of the newer checkpoint, each shared subtree once, without bringing nodes into memory
  3. retire     node slots that were not met and are not listed as free: two checkpoints later they are
  4. close      the segments to rewrite take no more references; then every bit that will be set is set
  5. rewrite    the live blocks of a segment into a file of the next generation, which takes its place; or remove it
  6. end        segments take references again

Readers may hold an address whose block dies meanwhile: they find it gone, and look the map up again (read_blocks).
"""

from libc.stdint cimport uint32_t, uint64_t

cdef struct NodeToMark:
    uint64_t id
    uint32_t level

cdef struct NodeStack:
    NodeToMark* items
    uint64_t count
    uint64_t room
