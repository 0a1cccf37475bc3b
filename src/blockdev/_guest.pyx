"""A guest's requests, counted.  See _guest.pxd for the contract."""

from libc.stdint cimport uint32_t, uint64_t

from blockdev._disk cimport Disk, disk_flush, disk_keep, disk_read, disk_write, disk_zero
from blockdev._statistics cimport (
    KIND_DISCARD, KIND_FLUSH, KIND_READ, KIND_WRITE, KIND_ZERO, TRANSFERRED_READ, TRANSFERRED_WRITTEN, begin_request,
    count_service, end_request,
)

API_VERSION = 1


cdef int guest_read(Disk* disk, void* buffer, uint32_t count, uint64_t offset, bint transfers) noexcept nogil:
    cdef uint64_t begun_ns = 0 if transfers else begin_request(disk.statistics)
    cdef int failure = disk_read(disk, buffer, count, offset)
    if not transfers:
        end_request(disk.statistics, begun_ns, KIND_READ, count, failure)
    elif not failure:
        count_service(disk.statistics, TRANSFERRED_READ, count)
    return failure


cdef int guest_write(
    Disk* disk, const void* buffer, uint32_t count, uint64_t offset, bint fua, bint keep, bint transfers
) noexcept nogil:
    cdef uint64_t begun_ns = 0 if transfers else begin_request(disk.statistics)
    cdef int failure = disk_write(disk, buffer, count, offset, fua)
    if keep and not failure:
        failure = disk_keep(disk)
    if not transfers:
        end_request(disk.statistics, begun_ns, KIND_WRITE, count, failure)
    elif not failure:
        count_service(disk.statistics, TRANSFERRED_WRITTEN, count)
    return failure


cdef int guest_flush(Disk* disk, bint transfers) noexcept nogil:
    cdef uint64_t begun_ns = 0 if transfers else begin_request(disk.statistics)
    cdef int failure = disk_flush(disk)
    if not transfers:
        end_request(disk.statistics, begun_ns, KIND_FLUSH, 0, failure)
    return failure


cdef int guest_zero(
    Disk* disk, uint64_t count, uint64_t offset, bint trim, bint fua, bint keep, bint transfers
) noexcept nogil:
    cdef uint64_t begun_ns = 0 if transfers else begin_request(disk.statistics)
    cdef int failure = disk_zero(disk, count, offset, fua)
    if keep and not failure:
        failure = disk_keep(disk)
    if not transfers:
        end_request(disk.statistics, begun_ns, KIND_DISCARD if trim else KIND_ZERO, count, failure)
    return failure
