"""The data path: what a read, write, flush and hole do.  See _disk.pxd for the contract."""

from libc.errno cimport EINVAL, EIO, ENOENT, ENOMEM, ENOSPC, EPERM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from blockdev._cow cimport (
    map_diff, map_lookup, map_place, map_probe, map_punch, map_runs, run_callback,
)
from blockdev._dedup cimport (
    Fingerprint, dedup_forget, dedup_insert, dedup_lookup, fingerprint_block, is_zero_block,
)
from blockdev._log cimport log_append, log_flush, log_keep, log_poison, log_read_unwritten
from blockdev._segments cimport (
    ENTRY_DATA, ENTRY_HOLE, ENTRY_REFERENCE, Segment, make_address, segment_holds_block, segment_pin, segment_read,
    segment_unpin, segments_get,
)
from blockdev._medium cimport BUG_FUA_IGNORED, BUG_REVIVED_LOST, planted
from blockdev._statistics cimport (
    BLOCKS_APPENDED, BLOCKS_DEDUPLICATED, BLOCKS_UNCHANGED, BLOCKS_ZERO, CAUSE_COMPACTION, CAUSE_LOCK, begin_wait, end_wait,
    tally_blocks, timed_exclude, timed_lock, timed_share,
)
from blockdev._sync cimport (
    count_u64, load_hint, load_pointer, load_u32, load_u64, or_u64, pthread_mutex_t, pthread_mutex_unlock,
    pthread_rwlock_rdlock, pthread_rwlock_unlock, store_u32, store_u64,
)

cdef extern from "<errno.h>" nogil:
    enum:
        ESHUTDOWN

cdef extern from "<stdio.h>" nogil:
    int dprintf(int fd, const char* format, ...)

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)

cdef enum:
    ROOM_WAIT_US = 10000
    ROOM_WAITS_MAX = 3000           # half a minute
    BEHIND_SLOTS = 4                # looked at for the block behind another


# --- reading ---------------------------------------------------------------------------------------------------------

cdef void report_bad_block(Disk* disk, uint64_t offset, uint64_t address) noexcept nogil:
    count_u64(&disk.pool.counters.checksum_errors, 1)
    dprintf(2, b"blockdev: a block does not verify: %s offset %lu, segment %08lx slot %lu; run blockdevctl pool scrub\n",
            disk.label, <unsigned long>offset, <unsigned long>(address >> 32), <unsigned long><uint32_t>address)


cdef int fetch_mixed(
    PoolState* pool, Segment* segment, uint64_t address, uint32_t count, char* out
) noexcept nogil:
    """Read blocks of which some are in memory and some in the file."""
    cdef uint32_t i
    cdef int failure
    for i in range(count):
        if (address + i >= load_u64(&pool.log.first_unwritten)
                and log_read_unwritten(pool.log, address + i, out + <uint64_t>i * BLOCK_BYTES)):
            continue
        failure = segment_read(segment, <uint32_t>address + i, 1, out + <uint64_t>i * BLOCK_BYTES)
        if failure:
            return failure
    return 0


cdef int fetch_piece(
    PoolState* pool, Segment* segment, uint64_t address, uint32_t count, char* out, uint32_t* bad
) noexcept nogil:
    """Read `count` blocks and verify each; on EIO `bad` is the first that failed."""
    cdef Fingerprint* expected = segment.fingerprints + <uint32_t>address
    cdef Fingerprint found
    cdef int failure
    bad[0] = 0
    if address + count > load_u64(&pool.log.first_unwritten):
        failure = fetch_mixed(pool, segment, address, count, out)
    else:
        failure = segment_read(segment, <uint32_t>address, count, out)
    while not failure and bad[0] < count:
        found = fingerprint_block(out + <uint64_t>bad[0] * BLOCK_BYTES)
        if found.low != expected[bad[0]].low or found.high != expected[bad[0]].high:
            failure = EIO
        else:
            bad[0] += 1
    return failure


cdef int fetch_run(PoolState* pool, uint64_t address, uint32_t count, char* out, uint32_t* bad) noexcept nogil:
    """Read `count` blocks at consecutive addresses, in pieces that are still in the CPU's cache when they are verified."""
    cdef Segment* segment = NULL
    cdef uint32_t done = 0, piece
    cdef int failure = segment_pin(pool.segments, address >> 32, &segment)
    bad[0] = 0
    if failure:
        return failure
    while done < count and not failure:
        piece = count - done if count - done < READ_PIECE_BLOCKS else READ_PIECE_BLOCKS
        failure = fetch_piece(pool, segment, address + done, piece, out + <uint64_t>done * BLOCK_BYTES, bad)
        bad[0] += done
        done += piece
    segment_unpin(pool.segments, segment)
    return failure


cdef bint moved(Disk* disk, uint64_t first, uint32_t count, const uint64_t* addresses) noexcept nogil:
    """Whether the map has other addresses for some blocks by now."""
    cdef uint64_t now[READ_CHUNK_BLOCKS]
    return (map_lookup(disk.pool.nodes, &disk.map, first, count, now) == 0
            and memcmp(now, addresses, count * sizeof(uint64_t)) != 0)


cdef int read_blocks(Disk* disk, uint64_t first, uint32_t count, char* out) noexcept nogil:
    """Read whole blocks, up to READ_CHUNK_BLOCKS of them."""
    cdef uint64_t addresses[READ_CHUNK_BLOCKS]
    cdef uint32_t i = 0, run, bad = 0
    cdef int failure = map_lookup(disk.pool.nodes, &disk.map, first, count, addresses)
    while i < count and not failure:
        run = 1
        if addresses[i] == 0:
            while i + run < count and addresses[i + run] == 0:
                run += 1
            memset(out + <uint64_t>i * BLOCK_BYTES, 0, <uint64_t>run * BLOCK_BYTES)
        else:
            while i + run < count and addresses[i + run] == addresses[i] + run:
                run += 1
            failure = fetch_run(disk.pool, addresses[i], run, out + <uint64_t>i * BLOCK_BYTES, &bad)
            if failure:
                # overwritten since it was looked up, a block may be gone by now
                if moved(disk, first + i, run, &addresses[i]):
                    failure = map_lookup(disk.pool.nodes, &disk.map, first + i, count - i, &addresses[i])
                    continue
                report_bad_block(disk, (first + i + bad) * BLOCK_BYTES, addresses[i] + bad)
                if failure == ENOENT:  # a segment's file is gone; NBD has no word for it, and EINVAL would blame the client
                    failure = EIO
        i += run
    count_u64(&disk.pool.counters.blocks_read, count)
    return failure


cdef int read_part(Disk* disk, uint64_t offset, uint32_t count, char* out) noexcept nogil:
    """Read bytes inside one block."""
    cdef char block[BLOCK_BYTES]
    cdef int failure = read_blocks(disk, offset // BLOCK_BYTES, 1, block)
    if not failure:
        memcpy(out, block + offset % BLOCK_BYTES, count)
    return failure


cdef inline uint32_t part_length(uint64_t offset, uint64_t count) noexcept nogil:
    """How many of `count` bytes from `offset` on are to be treated as part of one block; 0: whole blocks follow."""
    cdef uint64_t room = BLOCK_BYTES - offset % BLOCK_BYTES
    if room == BLOCK_BYTES and count >= BLOCK_BYTES:
        return 0
    return <uint32_t>(count if count < room else room)


cdef int disk_read(Disk* disk, void* buffer, uint32_t count, uint64_t offset) noexcept nogil:
    cdef char* out = <char*>buffer
    cdef uint32_t part, blocks
    cdef int failure = 0
    timed_share(&disk.lock)
    if disk.deleted:
        failure = ESHUTDOWN
    elif offset + count > disk.size_bytes:
        failure = EINVAL
    while count and not failure:
        part = part_length(offset, count)
        if part:
            failure = read_part(disk, offset, part, out)
        else:
            blocks = count // BLOCK_BYTES
            if blocks > READ_CHUNK_BLOCKS:
                blocks = READ_CHUNK_BLOCKS
            part = blocks * BLOCK_BYTES
            failure = read_blocks(disk, offset // BLOCK_BYTES, blocks, out)
        out += part
        offset += part
        count -= part
    pthread_rwlock_unlock(&disk.lock)
    return failure


# --- writing ---------------------------------------------------------------------------------------------------------

cdef inline pthread_mutex_t* block_lock(Disk* disk, uint64_t block) noexcept nogil:
    cdef uint64_t mixed = (block + disk.id * 0x9E3779B97F4A7C15ULL) * 0xD6E8FEB86659FD93ULL
    return &disk.pool.block_locks[mixed >> 54]


cdef int fetch_as(PoolState* pool, uint64_t address, Fingerprint fingerprint, char* out) noexcept nogil:
    """Read the block at `address`, unverified, if it is said to have this fingerprint; ENOENT: it is not."""
    cdef Segment* segment = NULL
    cdef uint32_t index = <uint32_t>address
    cdef int failure = segment_pin(pool.segments, address >> 32, &segment)
    if failure:
        return failure
    failure = ENOENT
    if (index < load_u32(&segment.slot_count) and segment.fingerprints[index].low == fingerprint.low
            and segment.fingerprints[index].high == fingerprint.high):
        failure = fetch_mixed(pool, segment, address, 1, out)
    segment_unpin(pool.segments, segment)
    return failure


cdef bint holds_bytes(PoolState* pool, uint64_t address, Fingerprint fingerprint, const char* data) noexcept nogil:
    """Whether the block at `address` is byte for byte `data`."""
    cdef char block[BLOCK_BYTES]
    return fetch_as(pool, address, fingerprint, block) == 0 and memcmp(block, data, BLOCK_BYTES) == 0


cdef int fetch_block(PoolState* pool, uint64_t address, Fingerprint fingerprint, char* out) noexcept nogil:
    cdef Fingerprint found
    cdef int failure = fetch_as(pool, address, fingerprint, out)
    if not failure:
        found = fingerprint_block(out)
        if found.low != fingerprint.low or found.high != fingerprint.high:
            failure = EIO
    return failure


cdef bint take_reference(PoolState* pool, uint64_t address) noexcept nogil:
    """Count a block that is about to be referred to as live; False: compaction is about to rewrite its segment without it.

    The caller holds cut_lock shared until the log has the reference.
    """
    cdef Segment* segment = segments_get(pool.segments, address >> 32)
    cdef uint32_t index = <uint32_t>address
    cdef uint64_t* live
    if segment == NULL or load_u32(&segment.closed) or index >= pool.segments.segment_slots:
        return False
    live = <uint64_t*>load_pointer(<void**>&segment.live)
    if live != NULL and not planted(BUG_REVIVED_LOST):
        or_u64(&live[index >> 6], <uint64_t>1 << (index & 63))
    return True


cdef uint64_t block_behind(PoolState* pool, uint64_t address, Fingerprint fingerprint) noexcept nogil:
    """The block behind the one at `address` in its segment, if it has this fingerprint; 0: it has not.

    What was written in a run is often written in one again: so an index that holds a few of a run's blocks finds them all.
    """
    cdef Segment* segment = NULL
    cdef uint32_t index = <uint32_t>address + 1, end
    cdef uint64_t found = 0
    if segment_pin(pool.segments, address >> 32, &segment):
        return 0
    end = min(load_u32(&segment.slot_count), index + BEHIND_SLOTS)
    while index < end and not segment_holds_block(segment, index):
        index += 1
    if (index < end and segment.fingerprints[index].low == fingerprint.low
            and segment.fingerprints[index].high == fingerprint.high):
        found = make_address(segment.id, index)
    segment_unpin(pool.segments, segment)
    return found


cdef uint64_t find_known(Disk* disk, Fingerprint fingerprint) noexcept nogil:
    """Where a block of this fingerprint may be; 0: nobody knows."""
    cdef uint64_t address = dedup_lookup(disk.pool.dedup, fingerprint)
    cdef uint64_t before = load_u64(&disk.follows)
    if address == 0 and before:
        address = block_behind(disk.pool, before, fingerprint)
        if address:
            count_u64(&disk.pool.counters.found_behind, 1)
    if address != before:               # many threads write new data: they only read it
        store_u64(&disk.follows, address)
    return address


cdef inline bint deduplicates(Disk* disk) noexcept nogil:
    cdef uint32_t policy = load_hint(&disk.policy)
    if policy & POLICY_DEDUP_OFF:
        return False
    return policy & POLICY_DEDUP_ON or not load_hint(&disk.pool.dedup_off)


cdef int write_zero_block(Disk* disk, uint64_t block) noexcept nogil:
    cdef uint64_t address = 0, lsn = 0
    cdef uint64_t* place = NULL
    cdef int failure = map_lookup(disk.pool.nodes, &disk.map, block, 1, &address)
    if failure or address == 0:
        return failure
    count_u64(&disk.pool.counters.blocks_zero, 1)
    tally_blocks(BLOCKS_ZERO, 1)
    failure = map_place(disk.pool.nodes, &disk.map, block, &place)
    if not failure:
        failure = log_append(disk.pool.log, ENTRY_HOLE, disk.id, block, 1, 0, NULL, 0, &address, &lsn)
    if not failure:
        store_u64(place, 0)
    return failure


cdef int write_known_block(
    Disk* disk, uint64_t block, const char* data, Fingerprint fingerprint, uint64_t known, bint* done
) noexcept nogil:
    """Refer to the block at `known` if it really holds these bytes; `done` says whether."""
    cdef PoolState* pool = disk.pool
    cdef uint64_t current = 0, ignored = 0, lsn = 0
    cdef uint64_t* place = NULL
    cdef int failure
    done[0] = False
    if not holds_bytes(pool, known, fingerprint, data):
        count_u64(&pool.counters.dedup_mismatches, 1)
        dedup_forget(pool.dedup, fingerprint, known)
        return 0
    failure = map_lookup(pool.nodes, &disk.map, block, 1, &current)
    if failure:
        return failure
    if current == known:
        done[0] = True
        count_u64(&pool.counters.blocks_unchanged, 1)
        tally_blocks(BLOCKS_UNCHANGED, 1)
        return 0
    if not take_reference(pool, known):
        return 0
    done[0] = True
    count_u64(&pool.counters.blocks_deduplicated, 1)
    failure = map_place(pool.nodes, &disk.map, block, &place)
    if not failure:
        failure = log_append(pool.log, ENTRY_REFERENCE, disk.id, block, known, 1, NULL, 0, &ignored, &lsn)
    if not failure:
        store_u64(place, known)
        tally_blocks(BLOCKS_DEDUPLICATED, 1)
    return failure


cdef int write_block(Disk* disk, uint64_t block, const char* data) noexcept nogil:
    """Write one whole block.  Caller holds its block lock, disk.lock and cut_lock shared."""
    cdef PoolState* pool = disk.pool
    cdef Fingerprint fingerprint
    cdef uint64_t address = 0, lsn = 0
    cdef uint64_t* place = NULL
    cdef bint dedup = deduplicates(disk), done = False
    cdef int failure
    if is_zero_block(data):
        return write_zero_block(disk, block)
    fingerprint = fingerprint_block(data)
    if dedup:
        address = find_known(disk, fingerprint)
    if address:
        failure = write_known_block(disk, block, data, fingerprint, address, &done)
        if done or failure:
            return failure
    # the map first: what is in the log must be able to take effect, now and in every replay
    failure = map_place(pool.nodes, &disk.map, block, &place)
    if not failure:
        failure = log_append(pool.log, ENTRY_DATA, disk.id, block, fingerprint.low, fingerprint.high,
                             data, 1, &address, &lsn)
    if failure:
        return failure
    count_u64(&pool.counters.blocks_written, 1)
    tally_blocks(BLOCKS_APPENDED, 1)
    store_u64(place, address)
    if dedup:
        dedup_insert(pool.dedup, fingerprint, address)
    return 0


cdef int write_blocks(Disk* disk, uint64_t first, uint32_t count, const char* data) noexcept nogil:
    cdef pthread_mutex_t* lock
    cdef uint32_t i
    cdef int failure = 0
    for i in range(count):
        lock = block_lock(disk, first + i)
        timed_lock(lock, CAUSE_LOCK)
        failure = write_block(disk, first + i, data + <uint64_t>i * BLOCK_BYTES)
        pthread_mutex_unlock(lock)
        if failure:
            break
    return failure


cdef int write_part(Disk* disk, uint64_t offset, uint32_t count, const char* data) noexcept nogil:
    """Write bytes inside one block: read, merge, append under the block's lock.  `data` NULL: zeros."""
    cdef char block[BLOCK_BYTES]
    cdef pthread_mutex_t* lock = block_lock(disk, offset // BLOCK_BYTES)
    cdef int failure
    timed_lock(lock, CAUSE_LOCK)
    failure = read_blocks(disk, offset // BLOCK_BYTES, 1, block)
    if not failure:
        if data == NULL:
            memset(block + offset % BLOCK_BYTES, 0, count)
        else:
            memcpy(block + offset % BLOCK_BYTES, data, count)
        failure = write_block(disk, offset // BLOCK_BYTES, block)
    pthread_mutex_unlock(lock)
    return failure


cdef int check_writable(Disk* disk, uint64_t count, uint64_t offset) noexcept nogil:
    if disk.deleted:
        return ESHUTDOWN
    if disk.snapshot:
        return EPERM
    return EINVAL if offset + count > disk.size_bytes else 0


cdef bint wait_for_room(PoolState* pool, uint32_t* waits) noexcept nogil:
    """After ENOSPC: whether to try again, because compaction may have made room meanwhile."""
    cdef uint64_t begun_ns
    if (not load_u32(&pool.reclaims) or waits[0] == ROOM_WAITS_MAX
            or load_u64(&pool.useless_lsn) == load_u64(&pool.log.next_lsn)):
        return False
    waits[0] += 1
    store_u32(&pool.starved, 1)
    begun_ns = begin_wait()
    usleep(ROOM_WAIT_US)
    end_wait(CAUSE_COMPACTION, begun_ns)
    return True


cdef int write_chunk(Disk* disk, const char* data, uint32_t count, uint64_t offset, uint32_t* done) noexcept nogil:
    """Write what one hold of cut_lock may: a part of a block, or some blocks.  Caller holds disk.lock shared."""
    cdef uint32_t blocks = min(count // BLOCK_BYTES, <uint32_t>WRITE_CHUNK_BLOCKS)
    cdef int failure
    done[0] = part_length(offset, count)
    timed_share(&disk.pool.cut_lock)
    if done[0]:
        failure = write_part(disk, offset, done[0], data)
    else:
        done[0] = blocks * BLOCK_BYTES
        failure = write_blocks(disk, offset // BLOCK_BYTES, blocks, data)
    pthread_rwlock_unlock(&disk.pool.cut_lock)
    return failure


cdef int disk_write(Disk* disk, const void* buffer, uint32_t count, uint64_t offset, bint fua) noexcept nogil:
    cdef const char* data = <const char*>buffer
    cdef uint32_t done = 0, waits = 0
    cdef int failure
    timed_share(&disk.lock)
    failure = check_writable(disk, count, offset)
    while count and not failure:
        failure = write_chunk(disk, data, count, offset, &done)
        if not failure:
            data += done
            offset += done
            count -= done
        elif failure == ENOSPC:
            pthread_rwlock_unlock(&disk.lock)       # a snapshot must not wait with us
            if wait_for_room(disk.pool, &waits):
                failure = 0
            timed_share(&disk.lock)
            failure = failure or check_writable(disk, count, offset)
    pthread_rwlock_unlock(&disk.lock)
    if fua and not failure and not planted(BUG_FUA_IGNORED):
        failure = disk_flush(disk)
    return failure


cdef int disk_keep(Disk* disk) noexcept nogil:
    """Have every write that was replied to before, on any connection, in its segment file.

    All of them, not only one's own: a write of what was there already appended nothing, and what is there may be in memory.
    """
    return log_keep(disk.pool.log)


cdef int disk_flush(Disk* disk) noexcept nogil:
    """Make durable every write that was replied to before, on any connection."""
    if load_u32(&disk.deleted):
        return ESHUTDOWN
    return log_flush(disk.pool.log, load_u64(&disk.pool.log.next_lsn))


cdef int stop_at_data(void* opaque, uint64_t block, uint64_t count, bint hole) noexcept nogil:
    return 0 if hole else -1


cdef int punch_blocks(Disk* disk, uint64_t first, uint64_t count) noexcept nogil:
    """Make holes of whole blocks.  Caller holds disk.lock exclusively: no block of the range is being written."""
    cdef uint64_t address = 0, lsn = 0
    cdef int failure
    # a node that does not verify counts as data: a hole of all that it maps lets go of it
    if map_runs(disk.pool.nodes, &disk.map, first, count, stop_at_data, NULL) == 0:
        return 0
    failure = map_probe(disk.pool.nodes, &disk.map, first, count)
    if not failure:
        failure = log_append(disk.pool.log, ENTRY_HOLE, disk.id, first, count, 0, NULL, 0, &address, &lsn)
    if failure:
        return failure
    failure = map_punch(disk.pool.nodes, &disk.map, first, count)
    if failure:
        log_poison(disk.pool.log, failure)      # the log has it: only a restart can bring both together
    return failure


cdef int disk_zero(Disk* disk, uint64_t count, uint64_t offset, bint fua) noexcept nogil:
    """Discard and write-zeroes alike: the range reads as zeros and holds no space."""
    cdef uint64_t part
    cdef int failure
    timed_exclude(&disk.lock)
    failure = check_writable(disk, count, offset)
    timed_share(&disk.pool.cut_lock)
    while count and not failure:
        # the last block of a disk may be a part of one: beyond the end there is nothing to keep
        if offset % BLOCK_BYTES == 0 and offset + count == disk.size_bytes:
            failure = punch_blocks(disk, offset // BLOCK_BYTES, (count + BLOCK_BYTES - 1) // BLOCK_BYTES)
            part = count
        elif part_length(offset, count):
            part = part_length(offset, count)
            failure = write_part(disk, offset, <uint32_t>part, NULL)
        else:
            part = count // BLOCK_BYTES * BLOCK_BYTES
            failure = punch_blocks(disk, offset // BLOCK_BYTES, part // BLOCK_BYTES)
        offset += part
        count -= part
    pthread_rwlock_unlock(&disk.pool.cut_lock)
    pthread_rwlock_unlock(&disk.lock)
    if fua and not failure:
        failure = disk_flush(disk)
    return failure


cdef int disk_clear_tail(Disk* disk) noexcept nogil:
    """Zero what is between the end of a disk and the end of its last block: an earlier shrink may have left bytes there."""
    cdef uint64_t tail
    cdef int failure = 0
    timed_exclude(&disk.lock)
    tail = disk.size_bytes % BLOCK_BYTES
    if tail:
        timed_share(&disk.pool.cut_lock)
        failure = write_part(disk, disk.size_bytes, <uint32_t>(BLOCK_BYTES - tail), NULL)
        pthread_rwlock_unlock(&disk.pool.cut_lock)
    pthread_rwlock_unlock(&disk.lock)
    return failure


# --- asking ----------------------------------------------------------------------------------------------------------

cdef struct ExtentJoin:
    extent_callback callback
    void* opaque
    uint64_t end_bytes              # of the range asked for
    uint64_t offset                 # of the run being joined
    uint64_t length
    bint hole


cdef int join_run(void* opaque, uint64_t block, uint64_t count, bint hole) noexcept nogil:
    """Join neighbours of one state, cut the last block to the range, pass on what is complete."""
    cdef ExtentJoin* join = <ExtentJoin*>opaque
    cdef uint64_t offset = block * BLOCK_BYTES
    cdef uint64_t length = count * BLOCK_BYTES
    cdef int stop = 0
    if offset + length > join.end_bytes:
        length = join.end_bytes - offset
    if join.length and join.hole == hole and join.offset + join.length == offset:
        join.length += length
        return 0
    if join.length:
        stop = join.callback(join.opaque, join.offset, join.length, join.hole)
    join.offset = offset
    join.length = length
    join.hole = hole
    return stop


cdef int disk_extents(
    Disk* disk, uint64_t count, uint64_t offset, extent_callback callback, void* opaque
) noexcept nogil:
    """Call back for the extents of a range, in order, joined; the first begins at `offset`'s block."""
    cdef ExtentJoin join
    cdef uint64_t first = offset // BLOCK_BYTES
    cdef int failure = 0
    memset(&join, 0, sizeof(join))
    join.callback = callback
    join.opaque = opaque
    join.end_bytes = offset + count
    timed_share(&disk.lock)
    if disk.deleted:
        failure = ESHUTDOWN
    elif offset + count > disk.size_bytes:
        failure = EINVAL
    elif count:
        failure = map_runs(disk.pool.nodes, &disk.map, first,
                           (offset + count + BLOCK_BYTES - 1) // BLOCK_BYTES - first, join_run, &join)
    if not failure and join.length:
        failure = callback(opaque, join.offset, join.length, join.hole)
    pthread_rwlock_unlock(&disk.lock)
    return failure


cdef void lock_two(Disk* a, Disk* b) noexcept nogil:
    """Take two disks' locks shared, in id order; `a` may be NULL or `b`."""
    if a != NULL and a.id < b.id:
        pthread_rwlock_rdlock(&a.lock)
    pthread_rwlock_rdlock(&b.lock)
    if a != NULL and a.id > b.id:
        pthread_rwlock_rdlock(&a.lock)


cdef int diff_edge(Disk* older, Disk* newer, uint64_t block, run_callback callback, void* opaque) noexcept nogil:
    """The block in which `older` ends.  What grows to the size of `newer` has zeros behind that end."""
    cdef char data[BLOCK_BYTES]
    cdef uint64_t before = 0, after = 0
    cdef uint32_t place = <uint32_t>(older.size_bytes % BLOCK_BYTES)
    cdef bint differs
    cdef int failure = map_lookup(older.pool.nodes, &older.map, block, 1, &before)
    if not failure:
        failure = map_lookup(newer.pool.nodes, &newer.map, block, 1, &after)
    if failure:
        return failure
    differs = before != after
    if not differs and after:
        if read_blocks(newer, block, 1, data):
            return callback(opaque, block, 1, False)    # whoever reads it is told
        while place < BLOCK_BYTES and not differs:
            differs = data[place] != 0
            place += 1
    return callback(opaque, block, 1, after == 0) if differs else 0


cdef int diff_maps(Disk* older, Disk* newer, uint64_t* next_block, run_callback callback, void* opaque) noexcept nogil:
    """As disk_diff, with both locked."""
    cdef Map* before = NULL if older == NULL else &older.map
    cdef uint64_t end = (newer.size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES, edge = end
    cdef int failure = 0
    if older != NULL and older.size_bytes < newer.size_bytes and older.size_bytes % BLOCK_BYTES:
        edge = older.size_bytes // BLOCK_BYTES
    if next_block[0] < edge:
        failure = map_diff(newer.pool.nodes, before, &newer.map, next_block, edge, callback, opaque)
        if failure or next_block[0] < edge:
            return failure
    if edge < end and next_block[0] == edge:
        failure = diff_edge(older, newer, edge, callback, opaque)
        next_block[0] += failure == 0
    if not failure:
        failure = map_diff(newer.pool.nodes, before, &newer.map, next_block, end, callback, opaque)
    return failure


cdef int disk_diff(
    Disk* older, Disk* newer, uint64_t* next_block, run_callback callback, void* opaque
) noexcept nogil:
    """Call back for each block of `newer` whose address differs from that in `older` (NULL: all holes), in order.

    Where `older` ended within a block, and `newer` is larger and has something there behind that end, it differs, too.
    It begins at next_block, and may stop before the end: then next_block says where to go on, else it is behind all.
    """
    cdef int failure = 0
    lock_two(older, newer)
    if newer.deleted or (older != NULL and older.deleted):
        failure = ESHUTDOWN
    else:
        failure = diff_maps(older, newer, next_block, callback, opaque)
    if older != NULL and older != newer:
        pthread_rwlock_unlock(&older.lock)
    pthread_rwlock_unlock(&newer.lock)
    return failure


cdef int disk_cache(Disk* disk, uint32_t count, uint64_t offset) noexcept nogil:
    """Bring a range into the page cache by reading (and verifying) it."""
    cdef char* buffer = <char*>malloc(READ_CHUNK_BLOCKS * BLOCK_BYTES)
    cdef uint32_t part
    cdef int failure = 0
    if buffer == NULL:
        return ENOMEM
    while count and not failure:
        part = READ_CHUNK_BLOCKS * BLOCK_BYTES if count > READ_CHUNK_BLOCKS * BLOCK_BYTES else count
        failure = disk_read(disk, buffer, part, offset)
        offset += part
        count -= part
    free(buffer)
    return failure


cdef uint64_t disk_size_bytes(Disk* disk) noexcept nogil:
    return load_u64(&disk.size_bytes)


cdef bint disk_is_snapshot(Disk* disk) noexcept nogil:
    return disk.snapshot
