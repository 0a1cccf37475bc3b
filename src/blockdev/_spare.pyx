"""The spare segment.  See _spare.pxd."""

from libc.errno cimport EEXIST, ENOSPC
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf

from blockdev._medium cimport (
    BUG_EMPTIED_SPARE_NOT_SYNCED, BUG_SPARE_NOT_EMPTIED, MEDIUM_CREATE, MEDIUM_WRITE, medium_allocate, medium_close,
    medium_open, medium_rename, medium_size, medium_sync, medium_truncate, medium_unlink, planted,
)

cdef enum:
    PATH_BYTES = 4096
    SLOT_BYTES = 4096


cdef void spare_init(Spare* spare, uint32_t slots_wanted) noexcept nogil:
    spare.file = -1
    spare.slots = 0
    spare.slots_wanted = slots_wanted
    spare.lent = False


cdef void path_of(const char* directory, char* path) noexcept nogil:
    snprintf(path, PATH_BYTES, b"%s/spare", directory)


cdef int spare_keep(Spare* spare, const char* directory) noexcept nogil:
    """Have a spare file, empty, with room on the disk; ENOSPC when there is less room than wanted, or none."""
    cdef int failure = 0
    if spare.slots == spare.slots_wanted:
        return 0
    if spare.lent:
        return ENOSPC
    if spare.file < 0:
        failure = open_file(spare, directory)
    return failure or allocate(spare, directory)


cdef int open_file(Spare* spare, const char* directory) noexcept nogil:
    cdef char path[PATH_BYTES]
    cdef uint64_t size_bytes = 0
    cdef int failure
    path_of(directory, path)
    failure = medium_open(path, MEDIUM_CREATE, &spare.file)
    if failure == EEXIST:           # of the engine before
        failure = medium_open(path, MEDIUM_WRITE, &spare.file)
        if not failure:
            failure = medium_size(spare.file, &size_bytes)
        if not failure and size_bytes and not planted(BUG_SPARE_NOT_EMPTIED):
            # it was a segment whose name did not become durable: what is in it must not be found in the next one, nor
            # instead of it when the power goes before that is written
            failure = medium_truncate(spare.file, 0)
            if not failure and not planted(BUG_EMPTIED_SPARE_NOT_SYNCED):
                failure = medium_sync(spare.file)
    if failure:
        remove_file(spare, directory)
    return failure


cdef int allocate(Spare* spare, const char* directory) noexcept nogil:
    """Reserve room for the file, less when there is not more; without any it is removed."""
    cdef uint32_t slots = spare.slots_wanted
    cdef int failure = medium_allocate(spare.file, 0, <uint64_t>slots * SLOT_BYTES)
    if failure == ENOSPC and spare.slots:
        return ENOSPC
    while failure == ENOSPC and slots // 2 >= SPARE_SLOTS_MIN:
        slots //= 2
        failure = medium_allocate(spare.file, 0, <uint64_t>slots * SLOT_BYTES)
    if failure:
        remove_file(spare, directory)
        return failure
    spare.slots = slots
    return ENOSPC if slots < spare.slots_wanted else 0


cdef void remove_file(Spare* spare, const char* directory) noexcept nogil:
    cdef char path[PATH_BYTES]
    spare_close(spare)
    path_of(directory, path)
    medium_unlink(path)


cdef void spare_lend(Spare* spare, const char* directory, bint lent) noexcept nogil:
    """Give up the room for what makes room, or let it come back with the next spare_keep."""
    spare.lent = lent
    if lent and spare.file >= 0:
        remove_file(spare, directory)


cdef int spare_take(Spare* spare, const char* directory, const char* path, int* file, uint32_t* slots) noexcept nogil:
    """Let the spare file be `path` from now on; ENOSPC when there is none."""
    cdef char source[PATH_BYTES]
    cdef int failure
    if spare.file < 0:
        return ENOSPC
    path_of(directory, source)
    failure = medium_rename(source, path)
    if not failure:
        file[0] = spare.file
        slots[0] = spare.slots
        spare.file = -1
        spare.slots = 0
    return failure


cdef void spare_close(Spare* spare) noexcept nogil:
    if spare.file >= 0:
        medium_close(spare.file)
    spare.file = -1
    spare.slots = 0
