"""The walk that check and scrub make over the maps of disks that may be in use."""

from libc.errno cimport EIO, ENOENT
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from blockdev.types import Extent

from blockdev._cow cimport LeafCopy, SeenNodes
from blockdev._disk cimport PoolState, disk_next_leaf, fetch_run
from blockdev._pool cimport Core, DiskObject
from blockdev._segments cimport SLOT_BYTES, Segment, segment_pin, segment_unpin
from blockdev._sync cimport load_u32


cdef int check_block(PoolState* pool, uint64_t address, bint read) noexcept nogil:
    cdef char block[SLOT_BYTES]
    cdef Segment* segment = NULL
    cdef uint32_t index = <uint32_t>address
    cdef uint32_t bad = 0
    cdef int failure = segment_pin(pool.segments, address >> 32, &segment)
    if failure:
        return failure
    if index >= load_u32(&segment.slot_count):
        failure = EIO
    elif segment.fingerprints[index].low == 0 and segment.fingerprints[index].high == 0:
        failure = EIO                   # a header or a record, not a block
    segment_unpin(pool.segments, segment)
    if read and not failure:
        failure = fetch_run(pool, address, 1, block, &bad)
    return failure


cdef class Checker:
    """Walks the maps of disks, each shared subtree once.  Disks may be in use."""

    cdef Core core
    cdef SeenNodes seen
    cdef bint read_blocks
    cdef readonly uint64_t blocks

    def __init__(self, Core core, bint read_blocks):
        self.core = core
        self.read_blocks = read_blocks
        self.seen.id_count = core.state.nodes.next_id
        self.seen.bits = <uint8_t*>calloc(self.seen.id_count // 8 + 1, 1)
        if self.seen.bits == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.seen.bits)

    def walk(self, DiskObject thing):
        """Findings of one disk: [(Extent, what)]; what was walked through another disk is not looked at again."""
        cdef LeafCopy leaf
        cdef uint64_t block = 0, end
        cdef uint32_t i
        cdef int failures[512]
        cdef int failure = 0
        found = []
        end = (thing.size_bytes + SLOT_BYTES - 1) // SLOT_BYTES
        while failure != ENOENT:
            with nogil:
                failure = disk_next_leaf(thing.disk, &block, &self.seen, &leaf)
                if failure == 0:
                    self.blocks += check_leaf(self.core.state, &leaf, end, self.read_blocks, failures)
            if failure == EIO:
                span = <uint64_t>1 << (9 * (leaf.level + 1))
                found.append((Extent(leaf.base * SLOT_BYTES, span * SLOT_BYTES, "data"),
                              f"map node {leaf.id} does not verify"))
            for i in range(512):
                if failure == 0 and failures[i]:
                    found.append((Extent((leaf.base + i) * SLOT_BYTES, SLOT_BYTES, "data"),
                                  f"block {leaf.entries[i] >> 32:08x}:{<uint32_t>leaf.entries[i]} does not verify"))
        return found


cdef uint64_t check_leaf(PoolState* pool, LeafCopy* leaf, uint64_t end, bint read, int* failures) noexcept nogil:
    """Check what a leaf names; returns how many blocks that is."""
    cdef uint64_t blocks = 0
    cdef uint32_t i
    for i in range(512):
        failures[i] = 0
        if leaf.entries[i] and leaf.base + i < end:
            failures[i] = check_block(pool, leaf.entries[i], read)
            blocks += 1
    return blocks
