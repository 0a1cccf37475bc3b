"""A guest's requests: what the data path does, counted for its vdisk (_statistics.pxd).

A request begins when a front end has checked it, and ends when it may reply.  Who transfers (imports, exports, customises
a disk) is no guest: only the bytes of those are counted, apart.  As disk functions these return 0 or a positive errno, and
never need the GIL.
"""

from libc.stdint cimport uint32_t, uint64_t

from blockdev._disk cimport Disk

cdef int guest_read(Disk* disk, void* buffer, uint32_t count, uint64_t offset, bint transfers) noexcept nogil
# keep: what is written is in a file on return (disk_keep)
cdef int guest_write(
    Disk* disk, const void* buffer, uint32_t count, uint64_t offset, bint fua, bint keep, bint transfers) noexcept nogil
cdef int guest_flush(Disk* disk, bint transfers) noexcept nogil
# trim: the guest let go of the range, instead of asking for zeros; the same is done
cdef int guest_zero(
    Disk* disk, uint64_t count, uint64_t offset, bint trim, bint fua, bint keep, bint transfers) noexcept nogil
