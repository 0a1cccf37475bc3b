"""What a pool operation does to disks.  See _actions.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memmove

from blockdev._cow cimport map_grow, map_height_for, map_probe, map_punch
from blockdev._dedup cimport checksum64
from blockdev._disk cimport BLOCK_BYTES, Disk, PoolState
from blockdev._log cimport log_append, log_poison
from blockdev._segments cimport ENTRY_RECORD
from blockdev._sync cimport (
    load_u64, pthread_rwlock_rdlock, pthread_rwlock_unlock, pthread_rwlock_wrlock, store_u32, store_u64,
)

cdef Disk* disk_to_lock(Action* action) noexcept nogil:
    """The disk whose requests must stand still while the action takes effect; NULL: nobody can be using it."""
    if action.kind == RecordType.SNAPSHOT:
        return action.source
    if action.kind == RecordType.CREATE or action.kind == RecordType.CLONE or action.kind == RecordType.POLICY:
        return NULL
    return action.target


cdef void copy_map(Disk* target, Disk* source) noexcept nogil:
    store_u64(&target.map.root, load_u64(&source.map.root))
    target.map.height = source.map.height
    store_u64(&target.size_bytes, source.size_bytes)


cdef void raise_epoch(Disk* disk) noexcept nogil:
    """From here on no node that the disk reaches is writable for it."""
    disk.epoch += 1
    disk.map.owner = (<uint64_t>disk.id << 32) | disk.epoch


cdef int probe_resize(PoolState* pool, Disk* disk, uint64_t size_bytes) noexcept nogil:
    cdef uint64_t first = (size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES
    cdef uint64_t end = (disk.size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES
    return map_probe(pool.nodes, &disk.map, first, end - first) if first < end else 0


cdef int apply_resize(PoolState* pool, Disk* disk, uint64_t size_bytes) noexcept nogil:
    cdef uint64_t first = (size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES
    cdef uint64_t end = (disk.size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES
    cdef int failure
    if first < end:
        failure = map_punch(pool.nodes, &disk.map, first, end - first)
    else:
        failure = map_grow(pool.nodes, &disk.map, map_height_for(size_bytes))
    if not failure:
        store_u64(&disk.size_bytes, size_bytes)
    return failure


cdef int apply_action(PoolState* pool, Action* action, uint64_t lsn) noexcept nogil:
    if action.kind == RecordType.SNAPSHOT:
        copy_map(action.target, action.source)
        action.target.lsn = lsn
        raise_epoch(action.source)
    elif action.kind == RecordType.CLONE:
        copy_map(action.target, action.source)
    elif action.kind == RecordType.RESTORE:
        copy_map(action.target, action.source)
        raise_epoch(action.target)
    elif action.kind == RecordType.RESIZE:
        return apply_resize(pool, action.target, action.value)
    elif action.kind == RecordType.DELETE:
        store_u32(&action.target.deleted, 1)
    elif action.kind == RecordType.POLICY:
        store_u32(&action.target.policy, <uint32_t>action.value)
    return 0


cdef uint32_t fill_locked(Disk** locked, Action* actions, uint32_t count) noexcept nogil:
    """The disks to stand still, once each, in id order."""
    cdef uint32_t i, place, used = 0
    cdef Disk* disk
    for i in range(count):
        disk = disk_to_lock(&actions[i])
        if disk == NULL:
            continue
        place = used
        while place > 0 and locked[place - 1].id > disk.id:
            place -= 1
        if place > 0 and locked[place - 1] == disk:
            continue
        memmove(&locked[place + 1], &locked[place], (used - place) * sizeof(Disk*))
        locked[place] = disk
        used += 1
    return used


cdef int commit_actions(
    PoolState* pool, Action* actions, Disk** locked, uint32_t action_count, const char* record, uint64_t record_bytes,
    uint32_t slots, uint64_t* end_lsn
) noexcept nogil:
    """One record, one LSN, all actions: with the disks whose requests would see half of it standing still."""
    cdef uint64_t address = 0
    cdef uint32_t i, locked_count = fill_locked(locked, actions, action_count)
    cdef int failure = 0
    for i in range(locked_count):
        pthread_rwlock_wrlock(&locked[i].lock)
    pthread_rwlock_rdlock(&pool.cut_lock)
    for i in range(action_count):
        if not failure and actions[i].kind == RecordType.RESIZE:
            failure = probe_resize(pool, actions[i].target, actions[i].value)
    if not failure:
        failure = log_append(pool.log, ENTRY_RECORD, slots, record_bytes, checksum64(record, record_bytes), 0,
                             record, slots, &address, end_lsn)
    for i in range(action_count):
        if failure:
            break
        failure = apply_action(pool, &actions[i], end_lsn[0] - 1)
        if failure:
            log_poison(pool.log, failure)       # the log has the record: only a restart can bring both together
    pthread_rwlock_unlock(&pool.cut_lock)
    for i in range(locked_count):
        pthread_rwlock_unlock(&locked[i].lock)
    return failure
