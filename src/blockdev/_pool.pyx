"""The Python objects around the data path: an open pool's state, its disks and snapshots.  See _pool.pxd.

Threads: Core's methods are called one at a time (pool.py holds its lock); a disk's methods from any thread at once.
"""

import threading
import weakref

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EIO, ENOENT, ENOMEM, ENOSPC, EPERM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strncpy
from posix.unistd cimport getpid

from blockdev import errors
from blockdev.policies import decode_disk_policy
from blockdev.types import Extent

from blockdev._actions cimport Action, apply_action, commit_actions
from blockdev._cow cimport map_destroy, map_height_for, map_init
from blockdev._dedup cimport (
    DEDUP_BUCKET_ENTRIES, DedupBucket, DedupEntry, Fingerprint, dedup_create, dedup_destroy, dedup_export, dedup_insert,
)
from blockdev._disk cimport (
    BLOCK_BYTES, BLOCK_LOCKS, LABEL_BYTES, Disk, PoolState, disk_clear_tail, disk_diff, disk_extents, disk_keep,
)
from blockdev._guest cimport guest_flush, guest_read, guest_write, guest_zero
from blockdev._log cimport log_close, log_create, log_destroy, log_flush, log_keep_spare, log_position
from blockdev._medium cimport (
    BUG_LOG_BEHIND_CHECKPOINT, BUG_NODES_FORGOTTEN, MEDIUM_CREATE, MEDIUM_READ, MEDIUM_WRITE, medium_close, medium_open,
    planted,
)
from blockdev._nodes cimport (
    NODE_RECORD_BYTES, NodeCounts, RetiredSlot, SlotVector, nodes_counts, nodes_create, nodes_destroy, nodes_evict,
    nodes_finish, nodes_freeze, nodes_reclaim, nodes_release_slots, nodes_thaw, nodes_write, slots_push,
)
from blockdev._segments cimport (
    BATCH_ENTRIES_MAX, SLOT_BYTES, segments_add, segments_bytes, segments_create, segments_destroy,
)
from blockdev._statistics cimport DiskStatistics
from blockdev._sync cimport (
    load_u32, load_u64, pthread_atfork, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
    pthread_rwlock_destroy, pthread_rwlock_unlock, pthread_rwlock_wrlock, rwlock_init_writer_first,
    store_u32, store_u64,
)

cdef extern from "<errno.h>" nogil:
    enum:
        ESHUTDOWN

API_VERSION = 1                     # checked by blockdev/__init__.py: a stale build says so


cdef int this_process               # getpid, which is a system call: too dear to ask at each read and write


cdef void note_process() noexcept nogil:
    global this_process
    this_process = getpid()


note_process()
if pthread_atfork(NULL, NULL, note_process):
    raise MemoryError()


cdef struct Cut:                    # what take_cut copies; all owned by the caller
    uint64_t lsn
    uint32_t segment_id
    uint32_t index
    uint64_t generation
    uint64_t next_node_id
    Disk* disks
    RetiredSlot* free_slots
    uint64_t free_count
    RetiredSlot* retired_slots
    uint64_t retired_count


cdef RetiredSlot* copy_slots(const SlotVector* slots, uint64_t* count) noexcept nogil:
    cdef RetiredSlot* copy = <RetiredSlot*>malloc((slots.count + 1) * sizeof(RetiredSlot))
    if copy != NULL:
        count[0] = slots.count
        if slots.count:
            memcpy(copy, slots.items, slots.count * sizeof(RetiredSlot))
    return copy


cdef int take_cut(PoolState* pool, Disk** disks, uint32_t count, Cut* cut) noexcept nogil:
    """Freeze the maps and copy all that a checkpoint says of this instant.  Writers wait for this only."""
    cdef uint32_t i
    pthread_rwlock_wrlock(&pool.cut_lock)
    pthread_mutex_lock(&pool.nodes.lock)        # compaction retires slots meanwhile
    cut.free_slots = copy_slots(&pool.nodes.free_slots, &cut.free_count)
    cut.retired_slots = copy_slots(&pool.nodes.retired_slots, &cut.retired_count)
    cut.next_node_id = pool.nodes.next_id
    pthread_mutex_unlock(&pool.nodes.lock)
    if cut.free_slots == NULL or cut.retired_slots == NULL:
        pthread_rwlock_unlock(&pool.cut_lock)
        return ENOMEM
    cut.generation = pool.nodes.generation
    pool.frozen = nodes_freeze(pool.nodes)
    log_position(pool.log, &cut.segment_id, &cut.index, &cut.lsn)
    for i in range(count):
        memcpy(&cut.disks[i], disks[i], sizeof(Disk))
    pthread_rwlock_unlock(&pool.cut_lock)
    return 0


FULL = ("the pool, or the file system it is on, is full: see blockdevctl pool status; delete something, raise the capacity "
        "or make room on the file system")
NODE_FILES = ("nodes", "nodes-mirror")       # in map/


cdef int open_nodes(str path, bint read_only) except -2:
    """Open one of the two node files.  One that was lost is begun anew, or -1: the other has what was in it."""
    cdef int file = -1
    cdef int failure = medium_open(path.encode(), MEDIUM_READ if read_only else MEDIUM_WRITE, &file)
    if failure == ENOENT and read_only:
        return -1
    if failure == ENOENT:
        failure = medium_open(path.encode(), MEDIUM_CREATE, &file)
    if failure:
        raise errors.medium_failure(f"{path} cannot be opened", failure)
    return file


cdef class Core:
    """The C state of one open pool.  Used by pool.py, which serialises all calls of its methods."""

    def __cinit__(self, str path, bytes uuid, uint32_t segment_slots, uint64_t generation, uint64_t next_node_id,
                  uint64_t dedup_bytes, uint64_t segments_open_max, bint read_only=False):
        """read_only: for a look at a pool that nothing is to be changed in, not even healed."""
        cdef bytes segments_path = (path + "/segments").encode()
        cdef const uint8_t* uuid_bytes = <const uint8_t*>PyBytes_AS_STRING(uuid)
        cdef int i
        self.path = path
        self.process_id = this_process
        self.segment_work = threading.Lock()
        self.statistics = weakref.WeakValueDictionary()
        self.state = <PoolState*>calloc(1, sizeof(PoolState))
        if self.state == NULL:
            raise MemoryError()
        self.state.node_files[0] = self.state.node_files[1] = -1
        rwlock_init_writer_first(&self.state.cut_lock)
        for i in range(BLOCK_LOCKS):
            pthread_mutex_init(&self.state.block_locks[i], NULL)
        for i in range(2):
            self.state.node_files[i] = open_nodes(f"{path}/map/{NODE_FILES[i]}", read_only)
        self.state.segments = segments_create(segments_path, uuid_bytes, segment_slots, segments_open_max)
        self.state.nodes = nodes_create(
            self.state.node_files[0], self.state.node_files[1], uuid_bytes, generation, next_node_id)
        if self.state.segments == NULL or self.state.nodes == NULL:
            raise MemoryError()
        self.state.nodes.read_only = read_only
        if dedup_create(&self.state.dedup, dedup_bytes):
            raise MemoryError()

    def __dealloc__(self):
        cdef int i
        if self.state == NULL:
            return
        log_destroy(self.state.log)
        nodes_destroy(self.state.nodes)
        segments_destroy(self.state.segments)
        dedup_destroy(self.state.dedup)
        for i in range(2):
            if self.state.node_files[i] >= 0:
                medium_close(self.state.node_files[i])
        pthread_rwlock_destroy(&self.state.cut_lock)
        for i in range(BLOCK_LOCKS):
            pthread_mutex_destroy(&self.state.block_locks[i])
        free(self.state)

    cpdef bint is_here(self):
        """Whether this process may use it: a fork would write what the other process writes, too."""
        return self.process_id == this_process

    cpdef check_here(self):
        """Busy: this process is a fork of the one that uses it."""
        if not self.is_here():
            raise errors.Busy(f"{self.path} is open in process {self.process_id}, of which this one is a fork: use it there")

    def add_segment(self, uint32_t id, uint32_t generation, uint64_t size_bytes):
        """Make a segment file known, at open."""
        if segments_add(self.state.segments, id, generation, size_bytes):
            raise errors.Corrupt(f"segment {id:08x} is there twice; move one of its files away")

    def add_free_slots(self, bytes free_ids, bytes retired):
        """Take over the slot lists of a checkpoint: u64 each; (u64 id, u64 generation) each."""
        cdef const uint64_t* ids = <const uint64_t*>PyBytes_AS_STRING(free_ids)
        cdef const RetiredSlot* slots = <const RetiredSlot*>PyBytes_AS_STRING(retired)
        cdef uint64_t i
        for i in range(len(free_ids) // sizeof(uint64_t)):
            self.check_slot(ids[i])
            slots_push(&self.state.nodes.free_slots, ids[i], 0)
        for i in range(len(retired) // sizeof(RetiredSlot)):
            self.check_slot(slots[i].id)
            slots_push(&self.state.nodes.retired_slots, slots[i].id, slots[i].generation)

    cdef check_slot(self, uint64_t id):
        if id == 0 or id >= self.state.nodes.next_id:
            raise errors.Corrupt(f"a checkpoint table lists slot {id} of map/nodes, which was never used")

    def set_segment_bytes(self, uint64_t size_bytes):
        """What the segment files take in all, after recovery changed some."""
        self.state.segments.bytes_added = size_bytes
        self.state.segments.bytes_removed = 0

    def start_log(self, uint32_t next_segment_id, uint64_t next_lsn):
        """Begin to take writes, at `next_lsn`, in a new segment."""
        self.state.log = log_create(self.state.segments, next_segment_id, next_lsn)
        if self.state.log == NULL:
            raise MemoryError()

    def keep_spare(self):
        """Have room reserved on the disk for what must go on when it is full; False while there is none."""
        cdef int failure
        with nogil:
            failure = log_keep_spare(self.state.log)
        return failure == 0

    def set_limits(self, uint64_t data_bytes, uint64_t all_bytes):
        """How far the segments may grow: by new data, and by anything at all."""
        self.state.log.data_limit_bytes = data_bytes
        self.state.log.hard_limit_bytes = all_bytes

    def set_dedup(self, bint on):
        """Whether disks that have no policy of their own look for blocks that are there already."""
        store_u32(&self.state.dedup_off, not on)

    def reclaims(self, bint somebody):
        """Whether somebody compacts when a write finds no room; then such writes wait for it."""
        store_u32(&self.state.reclaims, somebody)

    def starved(self):
        """Whether a write has waited for room since this was asked last."""
        cdef bint waited = load_u32(&self.state.starved)
        store_u32(&self.state.starved, 0)
        return bool(waited)

    def found_no_room(self, uint64_t lsn):
        """A round that began at `lsn` did not make room: until something changes writes need not wait for another."""
        store_u64(&self.state.useless_lsn, lsn)

    def commit(self, bytes record, list actions):
        """Append a record and let its actions take effect at its LSN.  Returns the LSN to flush to.

        actions: (RecordType, target, source or None, value) each, with DiskObjects; value: see Action.
        """
        cdef uint32_t copy_slots = (len(record) + SLOT_BYTES - 1) // SLOT_BYTES
        # twice, where a batch has room: a lost sector in a record would cost more than a block
        cdef uint32_t slots = copy_slots if 2 * copy_slots > BATCH_ENTRIES_MAX else 2 * copy_slots
        cdef bytes payload = record.ljust(copy_slots * SLOT_BYTES, b"\0") * (slots // max(copy_slots, <uint32_t>1))
        cdef const char* place = payload
        cdef uint64_t end_lsn = 0, record_bytes = len(record)
        cdef uint32_t count = len(actions)
        cdef Action* array
        cdef Disk** locked
        cdef int failure
        if slots > BATCH_ENTRIES_MAX:
            raise errors.InvalidArgument("too many objects in one operation; do it in parts")
        array = <Action*>calloc(count + 1, sizeof(Action))
        locked = <Disk**>calloc(count + 1, sizeof(Disk*))
        try:
            if array == NULL or locked == NULL:
                raise MemoryError()
            fill_actions(array, actions)
            with nogil:
                failure = commit_actions(self.state, array, locked, count, place, record_bytes, slots, &end_lsn)
        finally:
            free(array)
            free(locked)
        self.raise_for(failure, "the operation")
        return end_lsn

    def apply(self, list actions, uint64_t lsn):
        """Replay: let the actions of a record take effect, without logging."""
        cdef Action action
        cdef int failure
        for one in actions:
            fill_actions(&action, [one])
            failure = apply_action(self.state, &action, lsn)
            self.raise_for(failure, "replay")

    def flush(self, lsn=None):
        """Make durable everything below `lsn` (default: all that is appended)."""
        cdef uint64_t target = load_u64(&self.state.log.next_lsn) if lsn is None else lsn
        cdef int failure
        with nogil:
            failure = log_flush(self.state.log, target)
        self.raise_for(failure, "flush")

    cdef raise_for(self, int failure, str what):
        if failure == 0:
            return
        if self.state.log != NULL and load_u32(&self.state.log.poisoned):
            raise errors.Poisoned("an earlier write to the pool failed; see the engine's log, and restart the engine")
        if failure == ENOSPC:
            raise errors.PoolFull(FULL)
        raise errors.medium_failure(f"{what} failed", failure)

    def checkpoint_cut(self, list disks):
        """The instant of a checkpoint: freezes all maps at one LSN.

        Returns (lsn, segment id, slot index, generation, next node id, free ids, retired slots,
        [(id, size, root, height, epoch, lsn, policy)] in the order of `disks`).
        """
        cdef Cut cut
        cdef uint32_t count = len(disks), i
        cdef Disk** array = <Disk**>calloc(count + 1, sizeof(Disk*))
        cdef int failure
        memset(&cut, 0, sizeof(cut))
        cut.disks = <Disk*>calloc(count + 1, sizeof(Disk))
        try:
            if array == NULL or cut.disks == NULL:
                raise MemoryError()
            for i in range(count):
                array[i] = (<DiskObject>disks[i]).disk
            with nogil:
                failure = take_cut(self.state, array, count, &cut)
            if failure:
                raise MemoryError()
            states = [(cut.disks[i].id, cut.disks[i].size_bytes, cut.disks[i].map.root, cut.disks[i].map.height,
                       cut.disks[i].epoch, cut.disks[i].lsn, cut.disks[i].policy) for i in range(count)]
            return (cut.lsn, cut.segment_id, cut.index, cut.generation, cut.next_node_id,
                    slot_ids(cut.free_slots, cut.free_count),
                    PyBytes_FromStringAndSize(<char*>cut.retired_slots, cut.retired_count * sizeof(RetiredSlot)),
                    states)
        finally:
            free(array)
            free(cut.disks)
            free(cut.free_slots)
            free(cut.retired_slots)

    def checkpoint_write(self, uint64_t lsn):
        """Write and sync the frozen nodes, and the log up to the cut."""
        cdef int failure
        with nogil:
            failure = nodes_write(self.state.nodes, self.state.frozen)
            if not failure and not planted(BUG_LOG_BEHIND_CHECKPOINT):
                failure = log_flush(self.state.log, lsn)
            if not failure and load_u32(&self.state.log.poisoned):
                failure = EIO           # maps and log may disagree
        self.raise_for(failure, "checkpoint")

    def checkpoint_end(self, bint done, uint64_t release_generation):
        """After the superblock names the checkpoint (done), or after a failure: its nodes are dirty again."""
        with nogil:
            if done:
                nodes_finish(self.state.nodes, self.state.frozen)
                nodes_release_slots(self.state.nodes, release_generation)
            elif planted(BUG_NODES_FORGOTTEN):
                nodes_finish(self.state.nodes, self.state.frozen)
            else:
                nodes_thaw(self.state.nodes, self.state.frozen)
            self.state.frozen = NULL

    def tend_memory(self, uint64_t resident_nodes_max):
        """Free map nodes that nobody uses, beyond the budget."""
        with nogil:
            nodes_reclaim(self.state.nodes)
            if nodes_counts(self.state.nodes).resident > resident_nodes_max:
                nodes_evict(self.state.nodes, resident_nodes_max - resident_nodes_max // 8)

    def export_dedup(self, uint64_t first_bucket, uint64_t bucket_count):
        """Entries of a range of buckets as bytes (u64 key, u64 address each); None past the last bucket."""
        cdef DedupEntry* entries
        cdef uint64_t count
        if first_bucket >= self.state.dedup.bucket_count:
            return None
        entries = <DedupEntry*>malloc(bucket_count * DEDUP_BUCKET_ENTRIES * sizeof(DedupEntry))
        if entries == NULL:
            raise MemoryError()
        with nogil:
            count = dedup_export(self.state.dedup, first_bucket, entries, bucket_count)
        exported = PyBytes_FromStringAndSize(<char*>entries, count * sizeof(DedupEntry))
        free(entries)
        return exported

    def import_dedup(self, bytes entries):
        """Insert exported entries; they are hints, so nothing about them is trusted."""
        cdef const DedupEntry* place = <const DedupEntry*>PyBytes_AS_STRING(entries)
        cdef uint64_t i, count = len(entries) // sizeof(DedupEntry)
        cdef Fingerprint fingerprint
        with nogil:
            for i in range(count):
                fingerprint.low = place[i].key
                fingerprint.high = 0
                dedup_insert(self.state.dedup, fingerprint, place[i].address)

    def stats(self):
        """Counters and sizes; see Pool.stats."""
        cdef PoolState* pool = self.state
        cdef NodeCounts nodes = nodes_counts(pool.nodes)
        return {
            "segment_bytes": segments_bytes(pool.segments),
            "segment_bytes_added": load_u64(&pool.segments.bytes_added),
            "segment_slots": pool.segments.segment_slots,
            "segment_end": load_u32(&pool.segments.id_end),
            "map_bytes": 2 * nodes.used * NODE_RECORD_BYTES,
            "next_lsn": load_u64(&pool.log.next_lsn),
            "durable_lsn": load_u64(&pool.log.durable_lsn),
            "syncs": load_u64(&pool.log.syncs),
            "batches": load_u64(&pool.log.batches),
            "poisoned": load_u32(&pool.log.poisoned),
            "nodes_resident": nodes.resident,
            "nodes_dirty": nodes.dirty,
            "nodes_copied": load_u64(&pool.nodes.nodes_copied),
            "nodes_visited": load_u64(&pool.nodes.nodes_visited),
            "nodes_faulted": load_u64(&pool.nodes.nodes_faulted),
            "nodes_healed": load_u64(&pool.nodes.nodes_healed),
            "nodes_evicted": load_u64(&pool.nodes.nodes_evicted),
            "dedup_entries": load_u64(&pool.dedup.entry_count),
            "blocks_read": load_u64(&pool.counters.blocks_read),
            "blocks_written": load_u64(&pool.counters.blocks_written),
            "blocks_deduplicated": load_u64(&pool.counters.blocks_deduplicated),
            "blocks_unchanged": load_u64(&pool.counters.blocks_unchanged),
            "blocks_zero": load_u64(&pool.counters.blocks_zero),
            "dedup_bytes": load_u64(&pool.dedup.bucket_count) * sizeof(DedupBucket),
            "dedup_evictions": load_u64(&pool.dedup.evictions),
            "blocks_found_behind": load_u64(&pool.counters.found_behind),
            "dedup_mismatches": load_u64(&pool.counters.dedup_mismatches),
            "checksum_errors": load_u64(&pool.counters.checksum_errors),
        }

    def close(self, list disks):
        """End all requests, then flush and seal the log.  The disks answer Gone from here on."""
        cdef Disk* disk
        cdef int failure
        self.closed = True
        for one in disks:
            disk = (<DiskObject>one).disk
            with nogil:
                pthread_rwlock_wrlock(&disk.lock)
                store_u32(&disk.deleted, 1)
                pthread_rwlock_unlock(&disk.lock)
        with nogil:
            failure = log_close(self.state.log)
        self.raise_for(failure, "closing the log")


cdef bytes slot_ids(RetiredSlot* slots, uint64_t count):
    cdef uint64_t i
    cdef bytes ids = PyBytes_FromStringAndSize(NULL, count * sizeof(uint64_t))
    cdef uint64_t* place = <uint64_t*>PyBytes_AS_STRING(ids)
    for i in range(count):
        place[i] = slots[i].id
    return ids


cdef void fill_actions(Action* array, list actions):
    cdef DiskObject target, source
    for i, (kind, target, source, value) in enumerate(actions):
        array[i].kind = kind
        array[i].target = target.disk
        array[i].source = NULL if source is None else source.disk
        array[i].value = value


# --- disks -----------------------------------------------------------------------------------------------------------

cdef class DiskObject:
    """What a vdisk and a vdisk snapshot have in common: they can be read.  transfers: for no guest (_guest.pxd).

    Offsets and lengths are bytes: multiples of 512 within the disk, else InvalidArgument.  Gone: it was deleted or its pool
    is closed; Busy: in a fork of the process that has the pool open; Corrupt: what is at rest is not sound; MediumError.
    """

    def __dealloc__(self):
        if self.disk != NULL:
            map_destroy(&self.disk.map)
            pthread_rwlock_destroy(&self.disk.lock)
            free(self.disk)

    @property
    def id(self):
        """Its number in the pool, which no other object ever had or gets."""
        return self.disk.id

    @property
    def size_bytes(self):
        """Bytes, a multiple of 512; of a vdisk as it is now."""
        return load_u64(&self.disk.size_bytes)

    @property
    def deleted(self):
        """Whether it was deleted, or its pool closed."""
        return bool(load_u32(&self.disk.deleted))

    def set_label(self, name, bytes tag):
        """Take a new name and tag; the pool calls this at the place of the record in the log."""
        self.name = name
        self.tag = tag
        label = (name or f"object {self.disk.id}").encode()[:LABEL_BYTES - 1]
        strncpy(self.disk.label, PyBytes_AS_STRING(label), LABEL_BYTES - 1)

    def __repr__(self):
        return f"<{type(self).__name__} {self.disk.id} {self.name!r} {self.size_bytes} bytes>"

    cdef fail(self, int failure, str verb, uint64_t offset, uint64_t length):
        cdef str place
        if failure == 0:
            return
        place = f"{verb} {self.name or self.disk.id} at {offset}+{length}"
        if failure == ENOSPC:
            raise errors.PoolFull(f"{place}: {FULL}")
        if failure == EPERM:
            raise errors.ReadOnly(f"{place}: a snapshot cannot be written; clone it")
        if failure == ESHUTDOWN:
            raise errors.Gone(f"{place}: it was deleted or its pool is closed")
        if failure == EIO and load_u32(&self.disk.pool.log.poisoned):
            raise errors.Poisoned(f"{place}: an earlier write to the pool failed; restart the engine")
        if failure == EIO:
            raise errors.Corrupt(f"{place}: bytes at rest do not verify; run blockdevctl pool check")
        raise errors.medium_failure(place, failure)

    def _check_range(self, offset, length):
        self.core.check_here()
        if offset < 0 or length < 0 or offset % 512 or length % 512:
            raise errors.InvalidArgument(f"offset {offset} and length {length} must be multiples of 512 bytes")
        if offset + length > self.size_bytes:
            raise errors.InvalidArgument(
                f"bytes {offset}+{length} are beyond the end of {self.name or self.id} ({self.size_bytes} bytes)")

    def read(self, offset, length):
        """`length` bytes from `offset` on.  Corrupt: a block does not verify."""
        self._check_range(offset, length)
        content = PyBytes_FromStringAndSize(NULL, length)
        self._read(PyBytes_AS_STRING(content), offset, length, False)
        return content

    def read_into(self, offset, buffer, transfers=False):
        """Fill a writable, contiguous buffer from `offset` on.  After an error it holds anything."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            self._check_range(offset, view.len)
            self._read(<char*>view.buf, offset, view.len, transfers)
        finally:
            PyBuffer_Release(&view)

    cdef _read(self, char* out, uint64_t offset, uint64_t length, bint transfers):
        cdef uint64_t done = 0
        cdef uint32_t part
        cdef int failure = 0
        with nogil:
            while done < length and not failure:
                part = <uint32_t>(length - done if length - done < 0x40000000 else 0x40000000)
                failure = guest_read(self.disk, out + done, part, offset + done, transfers)
                done += part
        self.fail(failure, "reading", offset, length)

    def extents(self, offset=0, length=None):
        """Extents of data and holes, in bytes, of a range (default: to the end), in order, joined."""
        cdef uint64_t start = offset, count
        cdef void* opaque
        cdef int failure
        length = self.size_bytes - offset if length is None else length
        self._check_range(offset, length)
        count = length
        found = []
        opaque = <void*>found
        with nogil:
            failure = disk_extents(self.disk, count, start, collect_extent, opaque)
        self.fail(failure, "extents of", offset, length)
        return found

    def flush(self, transfers=False):
        """Make durable every write that returned before, on any disk.  Poisoned: it failed, or earlier."""
        cdef bint for_no_guest = transfers
        cdef int failure
        self.core.check_here()
        with nogil:
            failure = guest_flush(self.disk, for_no_guest)
        self.fail(failure, "flushing", 0, 0)

    def changed_since(self, DiskObject older, offset=0, extents_max=None):
        """Extents of this disk whose blocks differ from `older`'s (None: from nothing), and where the rest begins.

        offset: bytes, a multiple of 4096, what is before it is left out.  extents_max: at least 1; the rest begins (bytes)
        behind so many of them, else it is None.  InvalidArgument: `older` is of another pool.  Cost: by what differs.
        """
        cdef DiffCollect collect
        cdef uint64_t first_byte = offset
        found = []
        memset(&collect, 0, sizeof(collect))
        collect.found = <void*>found
        collect.extents_left = <uint64_t>-1 if extents_max is None else extents_max
        self.compare(older, first_byte // BLOCK_BYTES, &collect)
        pass_difference(&collect)
        return found, (collect.rest_begins if collect.full else None)

    def count_changed(self, DiskObject older):
        """(bytes, extents) of what changed_since finds, without making a list of it; it raises as that does."""
        cdef DiffCollect collect
        memset(&collect, 0, sizeof(collect))
        collect.extents_left = <uint64_t>-1
        self.compare(older, 0, &collect)
        pass_difference(&collect)
        return collect.all_bytes, collect.all_extents

    cdef int compare(self, DiskObject older, uint64_t first_block, DiffCollect* collect) except -1:
        """Pass what differs to `collect`, in walks between which nothing is held."""
        cdef Disk* base = NULL if older is None else older.disk
        cdef uint64_t next_block = first_block
        cdef uint64_t walked_from
        cdef uint64_t end_bytes = self.size_bytes
        cdef uint64_t end_block = (end_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES
        cdef int failure
        self.core.check_here()
        if older is not None and older.core is not self.core:
            raise errors.InvalidArgument(f"{older.name or older.id} and {self.name or self.id} are in different pools")
        collect.end_bytes = end_bytes
        while True:
            walked_from = next_block
            with nogil:
                failure = disk_diff(base, self.disk, &next_block, collect_difference, collect)
            if collect.full:
                break
            self.fail(failure, "comparing", 0, end_bytes)
            if next_block >= end_block or next_block <= walked_from:  # a vdisk may have been made smaller meanwhile
                break
        return 0


cdef int collect_extent(void* opaque, uint64_t offset, uint64_t length, bint hole) noexcept nogil:
    with gil:
        (<list>opaque).append(Extent(offset, length, "hole" if hole else "data"))
    return 0


cdef void pass_difference(DiffCollect* collect) noexcept nogil:
    """The run that was being joined is complete."""
    cdef uint64_t end = min(collect.offset + collect.length, collect.end_bytes)
    if collect.offset >= end:
        return
    collect.all_bytes += end - collect.offset
    collect.all_extents += 1
    collect.extents_left -= 1
    if collect.found != NULL:
        with gil:
            (<list>collect.found).append(
                Extent(collect.offset, end - collect.offset, "hole" if collect.hole else "data"))


cdef int collect_difference(void* opaque, uint64_t block, uint64_t count, bint hole) noexcept nogil:
    cdef DiffCollect* collect = <DiffCollect*>opaque
    if collect.length and collect.hole == hole and collect.offset + collect.length == block * BLOCK_BYTES:
        collect.length += count * BLOCK_BYTES
        return 0
    pass_difference(collect)
    collect.offset = block * BLOCK_BYTES
    collect.length = 0
    if collect.extents_left == 0:
        collect.full = True
        collect.rest_begins = collect.offset
        return EAGAIN  # any errno ends the walk
    collect.length = count * BLOCK_BYTES
    collect.hole = hole
    return 0


cdef class VDisk(DiskObject):
    """One guest-visible disk that can be written.

    As DiskObject; what writes raises PoolFull, and Poisoned: an earlier write or sync of the pool failed, the engine must be
    restarted.  A write that failed may have been done in part, in whole blocks of 4096 bytes.
    """

    @property
    def policy(self):
        """DiskPolicy; see Pool.set_disk_policies."""
        return decode_disk_policy(load_u32(&self.disk.policy))

    @property
    def epoch(self):
        """It grows with each snapshot and restore: nodes of an older one are shared."""
        return self.disk.epoch

    @property
    def height(self):
        """Levels of the map: how many nodes a first write after a snapshot copies at the most."""
        return self.disk.map.height

    def write(self, offset, buffer, fua=False, keep=False, transfers=False):
        """Write a contiguous buffer at `offset`; durable after flush(), or on return with `fua`; `keep`: as keep()."""
        cdef Py_buffer view
        cdef uint64_t start, done = 0
        cdef uint32_t part
        cdef bint durable = fua, kept = keep, for_no_guest = transfers
        cdef int failure = 0
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            self._check_range(offset, view.len)
            start = offset
            with nogil:
                while done < <uint64_t>view.len and not failure:
                    part = <uint32_t>(view.len - done if view.len - done < 0x40000000 else 0x40000000)
                    failure = guest_write(
                        self.disk, <char*>view.buf + done, part, start + done, durable, kept, for_no_guest)
                    done += part
            self.fail(failure, "writing", offset, view.len)
        finally:
            PyBuffer_Release(&view)

    def keep(self):
        """On return every write that returned before, on any disk, is in a file: it survives this process, no power cut."""
        cdef int failure
        self.core.check_here()
        with nogil:
            failure = disk_keep(self.disk)
        self.fail(failure, "writing", 0, 0)

    def discard(self, offset, length, fua=False, keep=False, transfers=False):
        """Let go of a range: it reads as zeros, and holds no space.  fua, keep: as write().  It works on a full pool."""
        self._zero(offset, length, "discarding", True, fua, keep, transfers)

    def write_zeroes(self, offset, length, fua=False, keep=False, transfers=False):
        """As discard; counted as a write."""
        self._zero(offset, length, "zeroing", False, fua, keep, transfers)

    def clear(self, offset, length):
        """As discard, for no guest: what came from elsewhere has a hole there."""
        self._zero(offset, length, "clearing", True, False, False, True)

    def resize(self, size_bytes):
        """Change the size, in bytes: a multiple of 512; durable.  See Pool.resize."""
        self.core.pool().resize(self, size_bytes)

    def clear_tail(self):
        """Zero the bytes between the end of the disk and the end of its last block, before it grows."""
        cdef int failure
        self.core.check_here()
        with nogil:
            failure = disk_clear_tail(self.disk)
        self.fail(failure, "resizing", self.size_bytes, 0)

    cdef _zero(self, offset, length, str verb, bint trim, bint fua, bint keep, bint transfers):
        cdef uint64_t start, count
        cdef int failure
        self._check_range(offset, length)
        start = offset
        count = length
        with nogil:
            failure = guest_zero(self.disk, count, start, trim, fua, keep, transfers)
        self.fail(failure, verb, offset, length)


cdef class VDiskSnapshot(DiskObject):
    """An immutable point in time of one vdisk.  As DiskObject."""

    @property
    def vdisk_id(self):
        """The id of the vdisk that it was taken of, which may be gone."""
        return self.origin_id

    @property
    def lsn(self):
        """Where in the pool's log it was taken: the same for all disks of one snapshot."""
        return self.disk.lsn


cdef DiskStatistics statistics_of(Core core, uint32_t vdisk_id):
    found = core.statistics.get(vdisk_id)
    if found is None:
        found = DiskStatistics(vdisk_id)
        core.statistics[vdisk_id] = found
    return found


def make_disk(Core core, bint snapshot, uint32_t id, uint64_t size_bytes, uint64_t root, uint32_t height,
              uint32_t epoch, uint64_t lsn, uint32_t origin_id, name, bytes tag, uint32_t policy=0):
    """A VDisk, or with `snapshot` a VDiskSnapshot; height 0: the fewest levels for the size."""
    cdef DiskObject made = VDiskSnapshot.__new__(VDiskSnapshot) if snapshot else VDisk.__new__(VDisk)
    made.disk = <Disk*>calloc(1, sizeof(Disk))
    if made.disk == NULL:
        raise MemoryError()
    made.core = core
    made.origin_id = origin_id
    made.disk.pool = core.state
    made.disk.id = id
    made.disk.epoch = epoch
    made.disk.snapshot = snapshot
    made.disk.size_bytes = size_bytes
    made.disk.lsn = lsn
    made.disk.policy = policy
    made.statistics = statistics_of(core, origin_id if snapshot else id)
    made.disk.statistics = made.statistics.counters
    map_init(&made.disk.map, root, height or map_height_for(size_bytes), 0 if snapshot else (<uint64_t>id << 32) | epoch)
    rwlock_init_writer_first(&made.disk.lock)
    made.set_label(name, tag)
    return made
