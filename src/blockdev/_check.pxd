"""Verifying a pool that is open: maps and both copies of their nodes, segments and all that describes them, blocks.

One Checker makes one pass.  It goes in small steps, so that its caller can pace, show and cancel it, and it may run
while guests write: what it meets was reached by a map at that moment, in a read section, so it is not reused meanwhile.
  1. walk      every map, each shared subtree once: nodes verify (a bad copy is written anew from the other), node slots
               are in one place of the maps and not free, addresses name blocks
  2. segments  header, batch headers (both copies), index and trailer say the same; what is there twice is healed
  3. blocks    every block of a segment verifies (scrub only)
  4. attribute only if something was found: which bytes of which disks and snapshots reach it

Nothing is ever changed but a copy that does not verify, and that by one that does.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blockdev._disk cimport PoolState

cdef enum:
    NODE_MET = 1                    # a walk has verified it
    NODE_PASSED = 2                 # and all that is below
    NODE_UNUSED = 4                 # its slot was on a list of free or retired ones when the pass began
    NODE_DAMAGED = 8                # it cannot be read

cpdef enum Reason:                  # what is wrong
    NO_SEGMENT = 1                  # an address names a segment that is not there or cannot be opened
    BEYOND_SEGMENT = 2              # an address is beyond the end of its segment
    NO_BLOCK = 3                    # an address names a slot that holds no block
    BAD_BLOCK = 4                   # a block does not verify
    UNREADABLE_BLOCK = 5            # a block cannot be read
    BAD_NODE = 6                    # a map node does not verify in either copy
    NODE_TWICE = 7                  # one slot is in two places of the maps
    NODE_FREE = 8                   # one slot is in a map and free
    COPY_LOST = 9                   # one copy of a map node does not verify and could not be written anew
    HEADER_LOST = 10                # the header slot of a segment does not verify
    BATCH_LOST = 11                 # both copies of a batch header do not verify: slots `place` to `place + count - 1`
    BATCH_COPY_LOST = 12            # one of them
    INDEX_LOST = 13                 # index or trailer of a segment do not verify
    INDEX_WRONG = 14                # the index says other than a batch header
    SEGMENT_LOST = 15               # a segment's file cannot be opened
    SLOT_LISTED_TWICE = 16          # a slot of the node files is twice on the lists of free and retired ones

cdef struct Damage:                 # something that maps may reach
    uint64_t address                # of the block; of a node: its id
    uint64_t reason

cdef struct DamageList:
    Damage* items
    uint64_t count
    uint64_t room

cdef struct Fault:                  # something that no disk is named for
    uint32_t reason
    bint healed
    uint64_t where                  # segment or node id
    uint64_t place                  # slot in the segment
    uint64_t count                  # slots

cdef struct FaultList:
    Fault* items
    uint64_t count
    uint64_t room
    uint64_t dropped                # beyond FAULTS_MAX

cdef struct Walk:
    PoolState* pool
    bint heal                       # write over copies that do not verify
    uint32_t unsettled              # segments from this one on may be without an index: nobody has settled the log's end
    uint8_t* flags                  # of each node id below id_count: NODE_...
    uint64_t* places                # of each node that was met: level << 56 | number of its first block
    uint64_t* counts                # of each node that was passed by attribution: damaged blocks below
    uint64_t id_count               # ids from here on were first used after the pass began: never marked
    uint64_t generation             # of the store when the pass began
    uint64_t nodes                  # read
    uint64_t blocks                 # addresses looked at
    DamageList nodes_damaged        # sorted by address for attribution
    DamageList blocks_damaged
    FaultList faults
