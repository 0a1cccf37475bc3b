"""The Python objects around the data path, and the primitives from which pool.py builds its operations."""

from libc.stdint cimport uint32_t, uint64_t

from blockdev._disk cimport Disk, PoolState
from blockdev._statistics cimport DiskStatistics

cdef class Core:                    # owns the C state of one open pool
    cdef PoolState* state
    cdef str path
    cdef public int process_id      # that uses it; a fork of it does not, unless it takes it over
    cdef readonly bint closed
    cdef public object pool         # weak reference to the Pool, for operations called on a disk
    cdef readonly object statistics     # vdisk id -> DiskStatistics, of those that live or have snapshots; weak
    cdef readonly object segment_work   # a lock: one segment is inspected, or one is replaced, which waits for its users
    cpdef bint is_here(self)
    cpdef check_here(self)
    cdef check_slot(self, uint64_t id)
    cdef raise_for(self, int failure, str what)

cdef struct DiffCollect:            # what a comparison has found
    void* found                     # a list of Extent, borrowed; NULL: none is made
    uint64_t extents_left           # that are still taken
    bint full                       # it met one more than that, at rest_begins
    uint64_t rest_begins            # bytes
    uint64_t end_bytes              # of the newer disk
    uint64_t offset                 # of the run being joined
    uint64_t length                 # bytes, 0: there is none
    bint hole
    uint64_t all_bytes
    uint64_t all_extents

cdef class DiskObject:
    cdef Disk* disk
    cdef DiskStatistics statistics  # what disk.statistics is borrowed from
    cdef readonly Core core         # keeps the pool's memory alive
    cdef readonly object name       # str or None
    cdef readonly bytes tag
    cdef readonly uint32_t origin_id
    cdef fail(self, int failure, str verb, uint64_t offset, uint64_t length)
    cdef _read(self, char* out, uint64_t offset, uint64_t length, bint transfers)
    cdef int compare(self, DiskObject older, uint64_t first_block, DiffCollect* collect) except -1

cdef class VDisk(DiskObject):
    cdef _zero(self, offset, length, str verb, bint trim, bint fua, bint keep, bint transfers)

cdef class VDiskSnapshot(DiskObject):
    pass
