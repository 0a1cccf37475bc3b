"""What two pools tell each other of blocks, so that only those travel which the other has not.

The sender *offers* the blocks that changed, each by its number and fingerprint; the receiver says of which it may have the
bytes somewhere in its pool.  A fingerprint finds a block but proves nothing: a guest can make two blocks of one, and must
never get another guest's data by it.  So for these the sender sends the SHA-256 (FIPS 180-4), and the receiver takes the
block that it found only if the SHA-256 of its bytes is the same.  The others travel, and are fingerprinted on arrival.

The *content digest* of a map is the sum, modulo 2^128, of the XXH3-128 of each of its offers.  It does not depend on order,
so that of a snapshot comes of the one before it and what changed, at the cost of a diff.  It finds mistakes, not forgery.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blockdev._dedup cimport Fingerprint
from blockdev._disk cimport Disk

cdef enum:
    OFFER_BYTES = 24                # on the wire: little-endian
    PROOF_BYTES = 32                # SHA-256
    OFFERS_MAX = 65536              # in one call

cdef struct Offer:
    uint64_t block
    Fingerprint fingerprint         # zero: a hole

cdef struct ContentDigest:          # 128 bits, little-endian
    uint64_t low
    uint64_t high

# They return 0 or an errno, as the functions of _disk.pxd; `disk` is locked by them.
# offers in order of their blocks from next_block on, which then says where to go on (block_count: the end)
cdef int exchange_changes(
    Disk* older, Disk* newer, uint64_t* next_block, Offer* offers, uint32_t max_count, uint32_t* count) noexcept nogil
cdef int exchange_fetch(Disk* disk, const uint64_t* blocks, uint32_t count, char* out, uint8_t* proofs) noexcept nogil
cdef int exchange_known(Disk* disk, const Offer* offers, uint32_t count, uint8_t* known) noexcept nogil
cdef int exchange_take(
    Disk* disk, const Offer* offers, const uint8_t* proofs, uint32_t count, uint8_t* taken) noexcept nogil
cdef int exchange_put(Disk* disk, const Offer* offers, const char* data, uint32_t count) noexcept nogil
