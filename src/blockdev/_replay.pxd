"""Reading a pool back: replay of the log after a checkpoint.

Replay takes the longest run of batches that verify, from the checkpoint's position on, with LSNs that follow each other.
A batch at or after the highest `durable_lsn` seen also needs its payload to verify: only there may a write be torn.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef struct BatchPlace:
    uint32_t segment_id
    uint32_t index
    uint32_t end_index              # after its payload
    uint32_t lsn_count
    uint64_t first_lsn

cdef struct Run:                    # the batches that replay found, in order
    BatchPlace* batches
    uint64_t count
    uint64_t room
    uint64_t durable_lsn            # highest that any of them tells of
