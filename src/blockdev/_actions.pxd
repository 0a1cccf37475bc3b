"""What a pool operation does to disks: one record in the log, one LSN, and each disk's change at it.

The caller makes the record and the actions; here they take effect, with the disks that guests use standing still.
"""

from libc.stdint cimport uint32_t, uint64_t

from blockdev._disk cimport Disk, PoolState

cpdef enum RecordType:              # of log records; also what an action does when the record takes effect
    CREATE = 1
    SNAPSHOT = 2
    CLONE = 3
    RESTORE = 4
    RELABEL = 5
    DELETE = 6
    RESIZE = 7
    POLICY = 8

cdef struct Action:
    int kind                        # RecordType
    Disk* target
    Disk* source
    uint64_t value                  # RESIZE: size in bytes; POLICY: the code of a disk's policy (policies.py)

# `locked`: room for a disk of each action; the caller has appended nothing yet
cdef int commit_actions(
    PoolState* pool, Action* actions, Disk** locked, uint32_t action_count, const char* record, uint64_t record_bytes,
    uint32_t slots, uint64_t* end_lsn) noexcept nogil
cdef int apply_action(PoolState* pool, Action* action, uint64_t lsn) noexcept nogil
