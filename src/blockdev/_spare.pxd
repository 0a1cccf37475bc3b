"""The spare segment: room on the disk that is kept for what must go on when there is no other, deletes and discards.

It is an empty file with its room reserved, beside the segments.  It becomes the next segment when no other can be made, and
its room is lent to compaction, whose checkpoints make room, when these find none.  Callers exclude each other.
"""

from libc.stdint cimport uint32_t

cdef enum:
    SPARE_SLOTS_MIN = 512           # a spare of less is of no use

cdef struct Spare:
    int file                        # -1: there is none
    uint32_t slots                  # how much room it has
    uint32_t slots_wanted           # with less than this, what is left is not for guests' data
    bint lent                       # its room is for compaction's checkpoints now

cdef void spare_init(Spare* spare, uint32_t slots_wanted) noexcept nogil
cdef int spare_keep(Spare* spare, const char* directory) noexcept nogil
cdef void spare_lend(Spare* spare, const char* directory, bint lent) noexcept nogil
cdef int spare_take(Spare* spare, const char* directory, const char* path, int* file, uint32_t* slots) noexcept nogil
cdef void spare_close(Spare* spare) noexcept nogil
