"""What two pools tell each other of blocks.  See _exchange.pxd for the contract.

Threads: any.  A disk's lock is held shared for a piece of a call, never while a write waits for room.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINVAL, EIO, ENOMEM, ENOSPC
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from blockdev import errors

from blockdev._cow cimport Map, map_lookup
from blockdev._dedup cimport Fingerprint, dedup_prefetch, fingerprint_block
from blockdev._disk cimport (
    BLOCK_BYTES, READ_CHUNK_BLOCKS, WRITE_CHUNK_BLOCKS, Disk, PoolState, check_writable, disk_diff, fetch_block, find_known,
    read_blocks, wait_for_room, write_blocks,
)
from blockdev._pool cimport DiskObject, VDisk
from blockdev._segments cimport Segment, segment_pin, segment_unpin
from blockdev._statistics cimport REPLICATED_READ, REPLICATED_WRITTEN, count_service
from blockdev._sync cimport (
    load_u64, pthread_rwlock_rdlock, pthread_rwlock_unlock,
)

cdef extern from "<errno.h>" nogil:
    enum:
        ESHUTDOWN

cdef extern from *:
    """
    #define XXH_INLINE_ALL
    #include <xxhash.h>

    static inline void offer_hash(const void *offer, uint64_t *low, uint64_t *high)
    {
        XXH128_hash_t found = XXH3_128bits(offer, 24);
        *low = found.low64;
        *high = found.high64;
    }
    """
    void offer_hash(const void* offer, uint64_t* low, uint64_t* high) noexcept nogil

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_MD_CTX
    ctypedef struct EVP_MD
    ctypedef struct ENGINE
    EVP_MD_CTX* EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX* context)
    const EVP_MD* EVP_sha256()
    int EVP_DigestInit_ex(EVP_MD_CTX* context, const EVP_MD* kind, ENGINE* engine)
    int EVP_DigestUpdate(EVP_MD_CTX* context, const void* data, size_t count)
    int EVP_DigestFinal_ex(EVP_MD_CTX* context, unsigned char* out, unsigned int* size)

cdef enum:
    PIECE_BLOCKS = 64               # under one hold of a disk's lock

API_VERSION = 1


# --- proofs ----------------------------------------------------------------------------------------------------------

cdef int prove_block(EVP_MD_CTX* context, const char* block, uint8_t* proof) noexcept nogil:
    # NULL: the kind that the context has already, which saves OpenSSL 3 to look for it each time
    if (EVP_DigestInit_ex(context, NULL, NULL) != 1 or EVP_DigestUpdate(context, block, BLOCK_BYTES) != 1
            or EVP_DigestFinal_ex(context, proof, NULL) != 1):
        return EIO
    return 0


cdef EVP_MD_CTX* new_prover() noexcept nogil:
    """NULL: out of memory."""
    cdef EVP_MD_CTX* context = EVP_MD_CTX_new()
    if context != NULL and EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1:
        EVP_MD_CTX_free(context)
        return NULL
    return context


# --- what changed ----------------------------------------------------------------------------------------------------

cdef struct ChangeCollect:
    Offer* offers
    uint32_t max_count
    uint32_t count
    uint64_t rest_begins            # set when the offers did not have room for all
    bint full


cdef int collect_change(void* opaque, uint64_t block, uint64_t count, bint hole) noexcept nogil:
    cdef ChangeCollect* collect = <ChangeCollect*>opaque
    if collect.count == collect.max_count:
        collect.full = True
        collect.rest_begins = block
        return EAGAIN               # any errno ends the walk
    collect.offers[collect.count].block = block
    collect.count += 1
    return 0


cdef int fingerprint_offers(PoolState* pool, Map* map, Offer* offers, uint32_t count) noexcept nogil:
    """Fill in what the map has for each block; zeros for a hole.  Nothing is read but the segments' indexes."""
    cdef Segment* segment = NULL
    cdef uint64_t address = 0
    cdef uint32_t i
    cdef int failure = 0
    for i in range(count):
        failure = map_lookup(pool.nodes, map, offers[i].block, 1, &address)
        if not failure and address and (segment == NULL or segment.id != address >> 32):
            if segment != NULL:
                segment_unpin(pool.segments, segment)
                segment = NULL
            failure = segment_pin(pool.segments, address >> 32, &segment)
        if failure:
            break
        offers[i].fingerprint.low = offers[i].fingerprint.high = 0
        if address:
            offers[i].fingerprint = segment.fingerprints[<uint32_t>address]
    if segment != NULL:
        segment_unpin(pool.segments, segment)
    return failure


cdef int fingerprint_disk(Disk* disk, Offer* offers, uint32_t count) noexcept nogil:
    cdef int failure = ESHUTDOWN
    pthread_rwlock_rdlock(&disk.lock)
    if not disk.deleted:
        failure = fingerprint_offers(disk.pool, &disk.map, offers, count)
    pthread_rwlock_unlock(&disk.lock)
    return failure


cdef int list_changes(
    Disk* older, Disk* newer, uint64_t* next_block, Offer* offers, uint32_t max_count, uint32_t* count
) noexcept nogil:
    """The numbers of changed blocks, as exchange_changes."""
    cdef ChangeCollect collect
    cdef int failure
    collect.offers = offers
    collect.max_count = max_count
    collect.count = 0
    collect.full = False
    failure = disk_diff(older, newer, next_block, collect_change, &collect)
    if collect.full:
        next_block[0] = collect.rest_begins
        failure = 0
    count[0] = collect.count
    return failure


cdef int exchange_changes(
    Disk* older, Disk* newer, uint64_t* next_block, Offer* offers, uint32_t max_count, uint32_t* count
) noexcept nogil:
    cdef int failure = list_changes(older, newer, next_block, offers, max_count, count)
    return failure if failure else fingerprint_disk(newer, offers, count[0])


cdef void digest_add(ContentDigest* digest, const Offer* offers, uint32_t count, bint subtract) noexcept nogil:
    cdef uint64_t low = 0, high = 0
    cdef uint32_t i
    for i in range(count):
        if offers[i].fingerprint.low == 0 and offers[i].fingerprint.high == 0:
            continue
        offer_hash(&offers[i], &low, &high)
        if subtract:
            low = ~low + 1
            high = ~high + (low == 0)
        digest.low += low
        digest.high += high + (digest.low < low)


# --- blocks ----------------------------------------------------------------------------------------------------------

cdef uint64_t block_count(Disk* disk) noexcept nogil:
    return (load_u64(&disk.size_bytes) + BLOCK_BYTES - 1) // BLOCK_BYTES


cdef int fetch_piece(Disk* disk, const uint64_t* blocks, uint32_t count, char* out) noexcept nogil:
    """Blocks in any order; neighbours are read together."""
    cdef uint32_t i = 0, run
    cdef int failure = 0
    pthread_rwlock_rdlock(&disk.lock)
    if disk.deleted:
        failure = ESHUTDOWN
    while i < count and not failure:
        run = 1
        while i + run < count and run < READ_CHUNK_BLOCKS and blocks[i + run] == blocks[i] + run:
            run += 1
        if run > block_count(disk) or blocks[i] > block_count(disk) - run:
            failure = EINVAL
        else:
            failure = read_blocks(disk, blocks[i], run, out + <uint64_t>i * BLOCK_BYTES)
        i += run
    pthread_rwlock_unlock(&disk.lock)
    return failure


cdef int exchange_fetch(Disk* disk, const uint64_t* blocks, uint32_t count, char* out, uint8_t* proofs) noexcept nogil:
    """The bytes of blocks, or with `proofs` (PROOF_BYTES each) their SHA-256: then `out` has room for PIECE_BLOCKS."""
    cdef EVP_MD_CTX* prover = NULL if proofs == NULL else new_prover()
    cdef char* place
    cdef uint32_t done = 0, piece, i
    cdef int failure = ENOMEM if proofs != NULL and prover == NULL else 0
    while done < count and not failure:
        piece = min(count - done, <uint32_t>PIECE_BLOCKS)
        place = out if proofs != NULL else out + <uint64_t>done * BLOCK_BYTES
        failure = fetch_piece(disk, blocks + done, piece, place)
        if proofs != NULL:
            for i in range(piece):
                if not failure:
                    failure = prove_block(
                        prover, place + <uint64_t>i * BLOCK_BYTES, proofs + <uint64_t>(done + i) * PROOF_BYTES)
        done += piece
    EVP_MD_CTX_free(prover)
    return failure


cdef int exchange_known(Disk* disk, const Offer* offers, uint32_t count, uint8_t* known) noexcept nogil:
    """One byte for each offer: whether a block of its fingerprint may be in the pool."""
    cdef uint32_t i
    for i in range(count):
        known[i] = find_known(disk, offers[i].fingerprint) != 0
    return 0


cdef int put_piece(Disk* disk, const Offer* offers, const char* data, uint32_t count, uint32_t* done) noexcept nogil:
    """Write whole blocks until one fails; the last one of a disk may reach beyond its end."""
    cdef int failure
    pthread_rwlock_rdlock(&disk.lock)
    failure = check_writable(disk, 0, 0)
    pthread_rwlock_rdlock(&disk.pool.cut_lock)
    while done[0] < count and not failure:
        if offers[done[0]].block >= block_count(disk):
            failure = EINVAL
        else:
            failure = write_blocks(disk, offers[done[0]].block, 1, data + <uint64_t>done[0] * BLOCK_BYTES)
        done[0] += failure == 0
    pthread_rwlock_unlock(&disk.pool.cut_lock)
    pthread_rwlock_unlock(&disk.lock)
    return failure


cdef int put_or_wait(Disk* disk, const Offer* offers, const char* data, uint32_t count) noexcept nogil:
    """Write blocks; as a guest's write, it waits for compaction when there is no room."""
    cdef uint32_t done = 0, waits = 0
    cdef int failure = put_piece(disk, offers, data, count, &done)
    while failure == ENOSPC and wait_for_room(disk.pool, &waits):
        failure = put_piece(disk, offers, data, count, &done)
    count_service(disk.statistics, REPLICATED_WRITTEN, <uint64_t>done * BLOCK_BYTES)
    return failure


cdef int exchange_put(Disk* disk, const Offer* offers, const char* data, uint32_t count) noexcept nogil:
    """Write blocks that came from elsewhere.  EIO, with those before it written: one is not what its offer said."""
    cdef Fingerprint found
    cdef uint32_t done = 0, piece, i
    cdef int failure = 0
    while done < count and not failure:
        piece = min(count - done, <uint32_t>WRITE_CHUNK_BLOCKS)
        for i in range(done, done + piece):
            found = fingerprint_block(data + <uint64_t>i * BLOCK_BYTES)
            if found.low != offers[i].fingerprint.low or found.high != offers[i].fingerprint.high:
                return EIO
            dedup_prefetch(disk.pool.dedup, found)
        failure = put_or_wait(disk, offers + done, data + <uint64_t>done * BLOCK_BYTES, piece)
        done += piece
    return failure


cdef int exchange_take(
    Disk* disk, const Offer* offers, const uint8_t* proofs, uint32_t count, uint8_t* taken
) noexcept nogil:
    """Let the disk have blocks that the pool has.  One byte for each says whether: the bytes of the others must come."""
    cdef char block[BLOCK_BYTES]
    cdef uint8_t proof[PROOF_BYTES]
    cdef EVP_MD_CTX* prover = new_prover()
    cdef uint64_t address
    cdef uint32_t i
    cdef int failure = ENOMEM if prover == NULL else 0
    for i in range(count):
        if failure:
            break
        taken[i] = False
        address = find_known(disk, offers[i].fingerprint)
        if address == 0 or fetch_block(disk.pool, address, offers[i].fingerprint, block):
            continue
        failure = prove_block(prover, block, proof)
        if not failure and memcmp(proof, proofs + <uint64_t>i * PROOF_BYTES, PROOF_BYTES) == 0:
            failure = put_or_wait(disk, &offers[i], block, 1)   # which finds the block again and refers to it
            taken[i] = failure == 0
    EVP_MD_CTX_free(prover)
    return failure


# --- for Python ------------------------------------------------------------------------------------------------------

cdef check_count(uint64_t byte_count, uint32_t item_bytes, str what):
    if byte_count % item_bytes or byte_count // item_bytes > OFFERS_MAX:
        raise errors.InvalidArgument(
            f"{byte_count} bytes of {what}: they have {item_bytes} each, at most {OFFERS_MAX} at once")


cdef check_pools(DiskObject older, DiskObject newer):
    if older is not None and older.core is not newer.core:
        raise errors.InvalidArgument(f"{older!r} and {newer!r} are in different pools")


cdef check(DiskObject disk, int failure, str verb):
    if failure == EINVAL:
        raise errors.InvalidArgument(f"{verb} {disk.name or disk.id}: there is a block beyond its end")
    disk.fail(failure, verb, 0, disk.size_bytes)


def changed_blocks(DiskObject older, DiskObject newer not None, first_block=0, max_count=OFFERS_MAX):
    """(offers, next): of blocks from first_block on that differ from `older`'s (None: from nothing); where the rest begins.

    24 bytes each: u64 block, its fingerprint of 16 bytes (zeros: a hole), little-endian.  next None: there is no rest.
    Nothing is read but maps and indexes; a call looks at 64 MiB of maps at the most, so it may bring few, or none.
    """
    cdef uint64_t next_block = first_block
    cdef uint32_t room = max_count, count = 0
    cdef Disk* base = NULL if older is None else older.disk
    cdef bytes offers
    cdef Offer* place
    cdef int failure
    check_pools(older, newer)
    if not 0 < room <= OFFERS_MAX:
        raise errors.InvalidArgument(f"{max_count} offers cannot be made at once: 1 to {OFFERS_MAX}")
    offers = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>room * OFFER_BYTES)
    place = <Offer*>PyBytes_AS_STRING(offers)
    with nogil:
        failure = exchange_changes(base, newer.disk, &next_block, place, room, &count)
    check(newer, failure, "comparing")
    return offers[:count * OFFER_BYTES], (next_block if next_block < block_count(newer.disk) else None)


cdef int digest_walk(
    DiskObject older, DiskObject newer, uint64_t first_block, bint subtract, bytes room, ContentDigest* digest
) except -1:
    """Add what the blocks of `newer` from first_block on have that differ from `older`'s, and take away what `older` has."""
    cdef Disk* base = NULL if older is None else older.disk
    cdef Offer* offers = <Offer*>PyBytes_AS_STRING(room)
    cdef uint32_t max_count = <uint32_t>(len(room) // OFFER_BYTES), count = 0
    cdef uint64_t next_block = first_block, end_block = block_count(newer.disk)
    cdef int failure = 0
    while next_block < end_block:
        with nogil:
            failure = exchange_changes(base, newer.disk, &next_block, offers, max_count, &count)
            if not failure:
                digest_add(digest, offers, count, subtract)
            if not failure and base != NULL:
                failure = fingerprint_disk(base, offers, count)
                if not failure:
                    digest_add(digest, offers, count, not subtract)
        check(newer, failure, "digesting")
    return 0


def content_digest(DiskObject older, bytes older_digest, DiskObject newer not None):
    """The content digest of `newer`, from that of `older` and what changed; with None and b"": of all that it holds."""
    cdef ContentDigest digest
    cdef bytes room = PyBytes_FromStringAndSize(NULL, 8192 * OFFER_BYTES)
    check_pools(older, newer)
    if len(older_digest) != (0 if older is None else sizeof(ContentDigest)):
        raise errors.InvalidArgument("a content digest has 16 bytes")
    digest.low = int.from_bytes(older_digest[:8], "little")
    digest.high = int.from_bytes(older_digest[8:], "little")
    digest_walk(older, newer, 0, False, room, &digest)
    if older is not None:           # what was cut off
        digest_walk(None, older, block_count(newer.disk), True, room, &digest)
    return (<char*>&digest)[:sizeof(ContentDigest)]


def fetch_blocks(DiskObject disk not None, bytes blocks not None, out):
    """Fill `out`, writable, with the bytes of blocks, given by their numbers (u64 each): 4096 for each, or more room."""
    cdef const uint64_t* numbers = <const uint64_t*>PyBytes_AS_STRING(blocks)
    cdef uint32_t count
    cdef Py_buffer view
    cdef int failure
    check_count(len(blocks), sizeof(uint64_t), "block numbers")
    count = <uint32_t>(len(blocks) // sizeof(uint64_t))
    PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
    try:
        if view.len < <Py_ssize_t>count * BLOCK_BYTES:
            raise errors.InvalidArgument(f"{view.len} bytes of room for {count} blocks")
        with nogil:
            failure = exchange_fetch(disk.disk, numbers, count, <char*>view.buf, NULL)
            if not failure:
                count_service(disk.disk.statistics, REPLICATED_READ, <uint64_t>count * BLOCK_BYTES)
    finally:
        PyBuffer_Release(&view)
    check(disk, failure, "reading blocks of")


def prove_blocks(DiskObject disk not None, bytes blocks not None):
    """The SHA-256 of blocks, given by their numbers (u64 each): 32 bytes for each."""
    cdef const uint64_t* numbers = <const uint64_t*>PyBytes_AS_STRING(blocks)
    cdef uint32_t count
    cdef bytes room = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>PIECE_BLOCKS * BLOCK_BYTES), proofs
    cdef char* out = PyBytes_AS_STRING(room)
    cdef uint8_t* proof
    cdef int failure
    check_count(len(blocks), sizeof(uint64_t), "block numbers")
    count = <uint32_t>(len(blocks) // sizeof(uint64_t))
    proofs = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>count * PROOF_BYTES)
    proof = <uint8_t*>PyBytes_AS_STRING(proofs)
    with nogil:
        failure = exchange_fetch(disk.disk, numbers, count, out, proof)
    check(disk, failure, "reading blocks of")
    return proofs


def known_blocks(VDisk disk not None, bytes offers not None):
    """One byte for each offer: 1 if the pool may have its bytes.  The disk is the one that is to have them."""
    return ask(disk, offers, None)


def take_blocks(VDisk disk not None, bytes offers not None, bytes proofs not None):
    """Let the disk have those of the offered blocks that the pool has, proved by their SHA-256; one byte each says which."""
    return ask(disk, offers, proofs)


cdef bytes ask(VDisk disk, bytes offers, bytes proofs):
    cdef const Offer* offer = <const Offer*>PyBytes_AS_STRING(offers)
    cdef const uint8_t* proof
    cdef uint32_t count
    cdef bytes answers
    cdef uint8_t* answer
    cdef int failure
    disk.core.check_here()
    check_count(len(offers), OFFER_BYTES, "offers")
    count = <uint32_t>(len(offers) // OFFER_BYTES)
    answers = PyBytes_FromStringAndSize(NULL, count)
    answer = <uint8_t*>PyBytes_AS_STRING(answers)
    if proofs is None:
        with nogil:
            failure = exchange_known(disk.disk, offer, count, answer)
    else:
        if len(proofs) != count * PROOF_BYTES:
            raise errors.InvalidArgument(f"{len(proofs)} bytes of proofs for {count} offers")
        proof = <const uint8_t*>PyBytes_AS_STRING(proofs)
        with nogil:
            failure = exchange_take(disk.disk, offer, proof, count, answer)
    check(disk, failure, "taking blocks for")
    return answers


def put_blocks(VDisk disk not None, bytes offers not None, data):
    """Write offered blocks, 4096 bytes each of `data`, a buffer that nobody changes meanwhile.

    Corrupt, with those before it written: one is not what its offer said.
    """
    cdef const Offer* offer = <const Offer*>PyBytes_AS_STRING(offers)
    cdef Py_buffer view
    cdef uint32_t count
    cdef int failure
    disk.core.check_here()
    check_count(len(offers), OFFER_BYTES, "offers")
    count = <uint32_t>(len(offers) // OFFER_BYTES)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len != <Py_ssize_t>count * BLOCK_BYTES:
            raise errors.InvalidArgument(f"{view.len} bytes of blocks for {count} offers")
        with nogil:
            failure = exchange_put(disk.disk, offer, <const char*>view.buf, count)
    finally:
        PyBuffer_Release(&view)
    check(disk, failure, "writing blocks of")
