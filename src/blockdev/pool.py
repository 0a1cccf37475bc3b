"""A pool: one directory, opened by one engine, with its vdisks and snapshots.

Invariants
  - What the log says up to its durable LSN is the pool; the checkpoint is a shortcut into it.
  - An operation that returned is durable.  All of an operation's objects change at one LSN, or none does.
  - A failed operation changes nothing; when the log itself fails the pool is poisoned and refuses writes.

Threads: `_lock` serialises pool operations and the instant of a checkpoint's cut; `_checkpoint_lock` (outside of it) whole
checkpoints.  I/O on disks takes neither.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import uuid as uuid_module
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import xxhash

from blockdev import _medium, _pool, dedup_file, diagnostics, records, superblock
from blockdev._actions import RecordType
from blockdev._compact import lend_spare
from blockdev._medium import PlantedBug, is_planted
from blockdev._pool import VDisk, VDiskSnapshot
from blockdev._statistics import DiskStatistics
from blockdev.accounting import Accounting, Group, Usage
from blockdev.compaction import COMPACT, CompactionReport, Compactor
from blockdev.constants import (
    BLOCK_BYTES,
    NAME_BYTES_MAX,
    SECTOR_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES_MAX,
    VDISK_BYTES_MAX,
)
from blockdev.directory import clear_unfinished, table_path, take_lock, write_new_pool
from blockdev.errors import (
    AlreadyExists,
    BlockdevError,
    Gone,
    InvalidArgument,
    MediumError,
    NotFound,
    Poisoned,
    PoolFull,
)
from blockdev.inspection import Inspector
from blockdev.maintenance import Maintenance
from blockdev.policies import DiskPolicy, PoolPolicy, check_disk_policy, check_pool_policy, encode_disk_policy
from blockdev.records import KIND_SNAPSHOT, KIND_VDISK, OBJECT_IDS_END, Item, ObjectState, Table
from blockdev.recovery import Recovered, dirty_nodes_max, recover
from blockdev.superblock import Superblock
from blockdev.types import Extent

CAPACITY_BYTES_MIN = 16 << 20
WARNING_SHARE, CRITICAL_SHARE = 0.2, 0.05  # of the room for guests' data: with less left than that
ROOM_BYTES_MIN = 1 << 20  # with less the pool counts as full
RESERVE_BYTES = 64 << 20  # kept from guests, for deletes and discards on a full pool
SEGMENT_BYTES_MIN = 1 << 20
SEGMENT_BYTES_MAX = 256 << 20
TABLE_NAME = re.compile(r"checkpoint-([0-9]+)")

Thing: TypeAlias = VDisk | VDiskSnapshot


class Cut(NamedTuple):
    """What Core.checkpoint_cut returns, with the labels of that instant."""

    table: Table
    generation: int


class MarkBase(NamedTuple):
    """What a durable checkpoint says of liveness."""

    segment_end: int  # neither of the two newest checkpoints needs what is before, but for blocks
    table: Table


class Pool:
    """One open pool.  Make it with Pool.create or Pool.open; close() it when done.  A fork of the process is refused (Busy)."""

    def __init__(self, path: str, lock_file: int, recovered: Recovered) -> None:
        self.path = path
        self._lock_file = lock_file
        self._lock = threading.RLock()
        self._checkpoint_lock = threading.Lock()
        self._core = recovered.core
        self._core.pool = weakref.ref(self)
        self._superblock = recovered.superblock
        self._checkpoint_generation = recovered.table.generation
        self._next_object_id = recovered.next_object_id
        self._objects: dict[int, Thing] = recovered.objects
        self._names: dict[str, int] = {o.name: o.id for o in recovered.objects.values() if o.name is not None}
        self._resident_nodes_max = recovered.resident_nodes_max
        self._replay_starts = (0, 0)  # segment ids of the two newest checkpoints; 0: not known
        self._tells_of_policies = False  # whether both superblocks have the feature bit, as far as is known
        self._held: list[int] = []  # generations: node slots that left their head later stay as they are
        self._accounting = threading.Lock()
        self._log_bytes_at_checkpoint = self._core.stats()["segment_bytes_added"]
        self._checkpoint_count = 0
        self._maintenance: Maintenance | None = None
        self._replayed = recovered.batch_count > 0
        self.inspector = Inspector(self._core, path)
        self.compactor = Compactor(self._core)
        self._follow_superblock()

    def _start(self, background: bool) -> None:
        """Make the next start short, and begin maintenance."""
        if self._replayed:
            self.checkpoint_if_room()
        if background:
            self._maintenance = Maintenance(self)

    @classmethod
    def create(cls, path: str | os.PathLike[str], capacity_bytes: int, *, segment_bytes: int = SEGMENT_BYTES) -> Pool:
        """Make a pool directory and open it.

        AlreadyExists when `path` is there, InvalidArgument for sizes that cannot be.  Interrupted, it leaves nothing at
        `path`: the directory is made beside it and renamed.
        """
        path = os.path.abspath(os.fspath(path))
        _check_capacity(capacity_bytes)
        if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX or segment_bytes % BLOCK_BYTES:
            raise InvalidArgument("a segment must have 1 MiB to 256 MiB, a multiple of 4096 bytes")
        if os.path.lexists(path):
            raise AlreadyExists(f"{path} is there already: choose another place, or remove it")
        write_new_pool(path, capacity_bytes, segment_bytes // BLOCK_BYTES)
        return cls.open(path)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        map_cache_bytes: int | None = None,
        dedup_bytes: int | None = None,
        background: bool = True,
    ) -> Pool:
        """Open a pool and replay its log.

        map_cache_bytes: memory for map nodes (default: 1/8 of the machine's); dedup_bytes: for the fingerprint index (the
        same, at least 64 MiB).  background: run maintenance (flush of idle writes, checkpoints) in a thread.
        Busy when another engine has it, NotFound, UnknownFormat, Corrupt.
        """
        path = os.path.abspath(os.fspath(path))
        if not superblock.is_there(path):
            raise NotFound(f"{path} is not a pool: it has no superblock; take both back from a copy if it was one, else make another home with blockdevctl init")
        lock_file = take_lock(path)
        try:
            _medium.sync_directory(os.path.dirname(path))  # whoever made the pool may not have come so far
            clear_unfinished(path)
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            recovered = recover(
                path,
                memory // 8 if map_cache_bytes is None else map_cache_bytes,
                max(memory // 8, 64 << 20) if dedup_bytes is None else dedup_bytes,
            )
        except BaseException:
            os.close(lock_file)
            raise
        pool = cls(path, lock_file, recovered)  # which owns the lock from here on
        try:
            pool._start(background)
        except BaseException:
            pool._abandon()
            raise
        return pool

    def start_background(self) -> None:
        """Begin maintenance in a pool opened without it: a process that forks may start threads only afterwards."""
        if self._maintenance is None:
            self._maintenance = Maintenance(self)

    def move_here(self) -> None:
        """This process, a fork of the one that opened the pool, is the one that uses it from now on."""
        self._core.process_id = os.getpid()

    @property
    def uuid(self) -> str:
        return str(uuid_module.UUID(bytes=self._superblock.uuid))

    @property
    def capacity_bytes(self) -> int:
        return self._superblock.capacity_bytes

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_lock_file", -1) >= 0:
            with contextlib.suppress(BlockdevError, OSError):  # its directory may be gone
                self.close()

    @property
    def core(self) -> _pool.Core:
        """What the engine's own parts work with."""
        return self._core

    # --- objects ---

    def things(self) -> list[Thing]:
        """All vdisks and snapshots."""
        with self._lock:
            self._check_open()
            return list(self._objects.values())

    def vdisks(self) -> list[VDisk]:
        with self._lock:
            return [o for o in self._objects.values() if isinstance(o, VDisk)]

    def snapshots(self) -> list[VDiskSnapshot]:
        with self._lock:
            return [o for o in self._objects.values() if isinstance(o, VDiskSnapshot)]

    def get(self, id: int) -> Thing:
        with self._lock:
            found = self._objects.get(id)
        if found is None:
            raise NotFound(f"there is no object {id} in this pool")
        return found

    def find(self, name: str) -> Thing:
        with self._lock:
            id = self._names.get(name)
            if id is None:
                raise NotFound(f"there is no disk or snapshot named {name!r} in this pool")
            return self._objects[id]

    # --- operations ---

    def create_vdisk(self, size_bytes: int, name: str | None = None, tag: bytes = b"") -> VDisk:
        """A new vdisk, all holes.  InvalidArgument for a bad size or name, AlreadyExists for a taken one."""
        return self.create_vdisks([(size_bytes, name, tag)])[0]

    def create_vdisks(self, specs: Sequence[tuple[int, str | None, bytes]]) -> list[VDisk]:
        """Several new vdisks in one record: (size in bytes, name, tag) each."""
        for size_bytes, _name, _tag in specs:
            _check_size(size_bytes)

        def build() -> tuple[list[VDisk], list[Item]]:
            ids = self._take_ids(len(specs))
            items = [Item(i, 0, size, name, tag) for i, (size, name, tag) in zip(ids, specs, strict=True)]
            return [self._make_vdisk(item.id, item.size_bytes, 0, item) for item in items], items

        return self._add(RecordType.CREATE, [(name, tag) for _size, name, tag in specs], build, None)

    def snapshot(
        self, vdisks: Sequence[VDisk], names: Sequence[str | None] | None = None, tags: Sequence[bytes] | None = None
    ) -> list[VDiskSnapshot]:
        """Snapshots of several vdisks at one LSN.  Cost: O(1) a vdisk, whatever its size; no data is touched.

        names, tags: one for each vdisk, or none.
        """
        vdisks = list(vdisks)
        if any(given is not None and len(given) != len(vdisks) for given in (names, tags)):
            raise InvalidArgument(f"a name and a tag for each of {len(vdisks)} vdisks, or none at all")
        _check_once(vdisks, "snapshot")
        labels = list(
            zip(names or [None] * len(vdisks), tags if tags is not None else [b""] * len(vdisks), strict=True)
        )

        def build() -> tuple[list[VDiskSnapshot], list[Item]]:
            self._check_present(vdisks, VDisk)
            ids = self._take_ids(len(vdisks))
            items = [Item(i, v.id, 0, *label) for i, v, label in zip(ids, vdisks, labels, strict=True)]
            return [self._make_snapshot(item) for item in items], items

        return self._add(RecordType.SNAPSHOT, labels, build, vdisks)

    def clone(self, snapshot: VDiskSnapshot, name: str | None = None, tag: bytes = b"") -> VDisk:
        """A new vdisk that starts from a snapshot's map.  O(1)."""
        return self.clone_many([(snapshot, name, tag)])[0]

    def clone_many(self, specs: Sequence[tuple[VDiskSnapshot, str | None, bytes]]) -> list[VDisk]:
        """Several clones in one record: (snapshot, name, tag) each."""
        sources = [snapshot for snapshot, _name, _tag in specs]

        def build() -> tuple[list[VDisk], list[Item]]:
            self._check_present(sources, VDiskSnapshot)
            ids = self._take_ids(len(specs))
            items = [Item(i, s.id, 0, name, tag) for i, (s, name, tag) in zip(ids, specs, strict=True)]
            return [
                self._make_vdisk(item.id, s.size_bytes, s.id, item) for item, s in zip(items, sources, strict=True)
            ], items

        return self._add(RecordType.CLONE, [(name, tag) for _s, name, tag in specs], build, sources)

    def restore(self, pairs: Sequence[tuple[VDisk, VDiskSnapshot]]) -> None:
        """Each vdisk's head becomes a snapshot's map (and size), all at one LSN.  What the head held is let go."""
        with self._lock:
            self._check_present([vdisk for vdisk, _s in pairs], VDisk)
            self._check_present([snapshot for _v, snapshot in pairs], VDiskSnapshot)
            _check_once([vdisk for vdisk, _s in pairs], "restore")
            items = [Item(vdisk.id, snapshot.id) for vdisk, snapshot in pairs]
            lsn = self._commit(RecordType.RESTORE, items, [(vdisk, snapshot, 0) for vdisk, snapshot in pairs])
        self._core.flush(lsn)

    def relabel(self, changes: Sequence[tuple[Thing, str | None, bytes]]) -> None:
        """New names and tags, all at one LSN; names may be swapped."""
        with self._lock:
            things = [thing for thing, _name, _tag in changes]
            self._check_present(things, (VDisk, VDiskSnapshot))
            _check_once(things, "relabel")
            self._check_labels([(name, tag) for _t, name, tag in changes], freed={t.name for t in things})
            items = [Item(thing.id, 0, 0, name, tag) for thing, name, tag in changes]
            lsn = self._commit(RecordType.RELABEL, items, [(thing, None, 0) for thing in things])
            for thing in things:
                self._names.pop(thing.name or "", None)
            for thing, name, tag in changes:
                thing.set_label(name, tag)
                if name is not None:
                    self._names[name] = thing.id
        self._core.flush(lsn)

    def delete(self, things: Thing | Sequence[Thing]) -> None:
        """Delete vdisks and snapshots, all at one LSN.  Open handles to them answer Gone from then on."""
        things = [things] if isinstance(things, VDisk | VDiskSnapshot) else list(things)
        with self._lock:
            self._check_present(things, (VDisk, VDiskSnapshot))
            _check_once(things, "delete")  # replay finds nothing to delete the second time
            lsn = self._commit(RecordType.DELETE, [Item(t.id) for t in things], [(t, None, 0) for t in things])
            for thing in things:
                del self._objects[thing.id]
                self._names.pop(thing.name or "", None)
        self._core.flush(lsn)

    def resize(self, vdisk: VDisk, size_bytes: int) -> None:
        """Change a vdisk's size.  What is beyond a smaller size is gone; what a larger one adds reads as zeros."""
        _check_size(size_bytes)
        with self._lock:
            self._check_present([vdisk], VDisk)
            if size_bytes > vdisk.size_bytes:
                vdisk.clear_tail()
            lsn = self._commit(RecordType.RESIZE, [Item(vdisk.id, 0, size_bytes)], [(vdisk, None, size_bytes)])
        self._core.flush(lsn)

    def diff(self, older: Thing | None, newer: Thing) -> list[Extent]:
        """Extents of `newer` that differ from `older` (None: from nothing).  Cost in proportion to what changed."""
        return newer.changed_since(older)[0]

    def changes(self, older: Thing | None, newer: Thing, offset: int, count: int) -> tuple[list[Extent], int | None]:
        """The first `count` extents of diff from `offset` on, and the offset of the rest; None: there is none.

        offset: bytes, a multiple of 4096; an extent that begins before it is told of from there.
        """
        return newer.changed_since(older, offset, count)

    def count_changes(self, older: Thing | None, newer: Thing) -> tuple[int, int]:
        """How many bytes and extents diff finds.  It takes 2 us for a map node that differs, and no memory."""
        return newer.count_changed(older)

    def _add(
        self,
        record_type: int,
        labels: Sequence[tuple[str | None, bytes]],
        build: Callable[[], tuple[list, list[Item]]],
        sources: Sequence[Thing] | None,
    ) -> list:
        """Commit a record that makes new objects; `build` makes them and the record's items, under the lock."""
        with self._lock:
            self._check_open()
            self._check_labels(labels, freed=set())
            made, items = build()
            self._commit(
                record_type, items, [(new, sources[i] if sources else None, 0) for i, new in enumerate(made)]
            )
            for new in made:
                self._objects[new.id] = new
                if new.name is not None:
                    self._names[new.name] = new.id
        if not is_planted(PlantedBug.BUG_RECORD_NOT_FLUSHED):
            self._core.flush()
        return made

    def _commit(self, record_type: int, items: list[Item], actions: list[tuple]) -> int:
        record = records.encode_record(record_type, items)
        lsn: int = self._core.commit(record, [(record_type, *action) for action in actions])
        return lsn

    def _take_ids(self, count: int) -> range:
        first = self._next_object_id
        if first + count > OBJECT_IDS_END:
            raise PoolFull("no more disks and snapshots can be made in this pool: every id was used")
        self._next_object_id += count
        return range(first, first + count)

    def _make_vdisk(self, id: int, size_bytes: int, origin_id: int, item: Item) -> VDisk:
        return _pool.make_disk(self._core, False, id, size_bytes, 0, 0, 1, 0, origin_id, item.name, item.tag)

    def _make_snapshot(self, item: Item) -> VDiskSnapshot:
        return _pool.make_disk(self._core, True, item.id, 0, 0, 0, 0, 0, item.source, item.name, item.tag)

    def _check_open(self) -> None:
        if self._core.closed:
            raise Gone("the pool is closed")
        self._core.check_here()

    def _check_present(self, things: Sequence[Thing], kind: type | tuple[type, ...]) -> None:
        self._check_open()
        for thing in things:
            if not isinstance(thing, kind):
                raise InvalidArgument(f"{thing!r} is of the wrong kind for this operation")
            if self._objects.get(thing.id) is not thing:
                raise NotFound(f"{thing.name or thing.id} is not in this pool, or not any more")

    def _check_labels(self, labels: Sequence[tuple[str | None, bytes]], freed: set[str | None]) -> None:
        seen = set()
        for name, tag in labels:
            if len(tag) > TAG_BYTES_MAX:
                raise InvalidArgument(f"a tag may have {TAG_BYTES_MAX} bytes")
            if name is None:
                continue
            if not _is_name(name):
                raise InvalidArgument(f"{name!r} cannot be a name: 1 to {NAME_BYTES_MAX} bytes without control characters")
            if name in seen or (name in self._names and name not in freed):
                raise AlreadyExists(f"the name {name!r} is taken")
            seen.add(name)

    # --- durability ---

    def flush(self) -> None:
        """Make every write that returned durable, on all vdisks."""
        self._check_open()
        self._core.flush()

    def checkpoint(self) -> None:
        """Write all maps as of now, so that the next start replays only what follows.  Writers are not held up."""
        with self._checkpoint_lock:
            self._check_open()  # by now another engine may have it
            self._take_checkpoint()

    def checkpoint_if_room(self) -> None:
        """Take a checkpoint that only makes a start short: a full file system may refuse it."""
        try:
            with self._checkpoint_lock:
                self._take_checkpoint()
        except (PoolFull, MediumError) as failure:
            if failure.errno != errno.ENOSPC:
                raise
            diagnostics.report(f"no checkpoint: {failure}")

    def _take_checkpoint(self) -> Cut:
        """Caller holds _checkpoint_lock."""
        done = False
        try:
            with self._lock:
                cut = self._cut()
            self._core.checkpoint_write(cut.table.lsn)
            written = self._write_table(cut.table)
            superblock.write(self.path, written)
            done = True
        finally:
            # the fallback superblock now names the checkpoint before this one: slots only older ones hold are free
            self._core.checkpoint_end(done, min([*self._held, self._checkpoint_generation]))
        self._superblock = written
        self._replay_starts = (self._replay_starts[1], cut.table.segment_id)
        self._checkpoint_generation = cut.generation
        self._checkpoint_count += 1
        self._remove_old_tables(cut.table.number)
        return cut

    def _cut(self) -> Cut:
        things = list(self._objects.values())
        self._log_bytes_at_checkpoint = self._core.stats()["segment_bytes_added"]
        lsn, segment_id, index, generation, next_node_id, free_ids, retired, states = self._core.checkpoint_cut(things)
        objects = [
            ObjectState(
                id=state[0],
                kind=KIND_SNAPSHOT if isinstance(thing, VDiskSnapshot) else KIND_VDISK,
                size_bytes=state[1],
                root=state[2],
                height=state[3],
                epoch=state[4],
                lsn=state[5],
                origin_id=thing.origin_id,
                name=thing.name,
                tag=thing.tag,
                policy=state[6],
            )
            for thing, state in zip(things, states, strict=True)
        ]
        number = self._superblock.checkpoint_number + 1
        table = Table(
            number, lsn, segment_id, index, generation, next_node_id, self._next_object_id, objects, free_ids, retired
        )
        return Cut(table, generation)

    def _write_table(self, table: Table) -> Superblock:
        lsn = table.lsn + is_planted(PlantedBug.BUG_ENTRY_BEFORE_CUT_LOST)
        content = records.encode_table(table._replace(lsn=lsn))
        path = table_path(self.path, table.number)
        if os.path.exists(path):  # left by a checkpoint that did not come to its superblock
            _medium.unlink_file(path)
        durable = not is_planted(PlantedBug.BUG_TABLE_NOT_SYNCED)
        _medium.write_file(path, [content], create=True, durable=durable)
        _medium.sync_directory(f"{self.path}/map")
        return self._superblock._replace(
            sequence=self._superblock.sequence + 1,
            checkpoint_number=table.number,
            checkpoint_bytes=len(content),
            checkpoint_checksum=xxhash.xxh3_64_intdigest(content),
        )

    def _remove_old_tables(self, current: int) -> None:
        for name in os.listdir(f"{self.path}/map"):
            match = TABLE_NAME.fullmatch(name)  # other files are not ours
            if match and int(match[1]) < current - 1:
                _medium.unlink_file(f"{self.path}/map/{name}")

    # --- looking after it ---

    def check(self) -> list[str]:
        """Verify what describes data.  One line a finding; empty: sound.  A bad copy is written anew from a good one."""
        return [finding.line() for finding in self.inspector.run("check").findings]

    def scrub(self) -> list[str]:
        """Like check, and read and verify every block."""
        return [finding.line() for finding in self.inspector.run("scrub").findings]

    def compact(self) -> CompactionReport:
        """Give back the space of what no disk or snapshot reaches, and compress the rest."""
        return self.compactor.run(COMPACT)

    def segment_end(self) -> int:
        """Segment ids in use are below."""
        end: int = self._core.stats()["segment_end"]
        return end

    def take_mark_base(self) -> MarkBase:
        """Take two checkpoints.  The nodes that the second one holds stay in their slots until release_mark_base."""
        with self._checkpoint_lock:
            self._check_open()
            if is_planted(PlantedBug.BUG_MARKED_TOO_NEW):
                with self._lock:
                    cut = self._cut()
                self._core.checkpoint_end(False, 0)
                starts = (cut.table.segment_id, cut.table.segment_id)
            else:
                features = self._superblock.incompatible | superblock.COMPACTED  # written by both checkpoints
                self._superblock = self._superblock._replace(incompatible=features)
                self._take_checkpoint()
                cut = self._take_checkpoint()
                starts = self._replay_starts
            self._held.append(cut.generation)
        return MarkBase(min(starts), cut.table)

    def release_mark_base(self, base: MarkBase) -> None:
        with self._checkpoint_lock:
            self._held.remove(base.table.generation)

    @contextlib.contextmanager
    def _held_checkpoint(self) -> Iterator[Table]:
        """Take a checkpoint; the nodes that it holds stay in their slots meanwhile."""
        with self._checkpoint_lock:
            self._check_open()
            table = self._checkpoint_with_spare().table
            self._held.append(table.generation)
        try:
            yield table
        finally:
            with self._checkpoint_lock:
                self._held.remove(table.generation)

    def _checkpoint_with_spare(self) -> Cut:
        """Take a checkpoint; on a full file system with the room that is kept for that."""
        try:
            return self._take_checkpoint()
        except (MediumError, PoolFull) as failure:
            if failure.errno != errno.ENOSPC:
                raise
        lend_spare(self._core, True)
        try:
            return self._take_checkpoint()
        finally:
            lend_spare(self._core, False)

    def account(self, groups: Sequence[Group]) -> Usage:
        """What takes the pool's space, as of a checkpoint that this takes.  Cost: reads all maps; writes go on.

        InvalidArgument: an object is in two groups; Corrupt: a map node cannot be read.
        """
        with self._accounting, self._held_checkpoint() as table:
            return Accounting(self, table, groups).run()

    def no_checkpoint(self) -> contextlib.AbstractContextManager[object]:
        """No checkpoint is taken meanwhile."""
        return self._checkpoint_lock

    def has_room(self, size_bytes: int) -> bool:
        """Whether compaction may add so much before it gives something back."""
        used: int = self._core.stats()["segment_bytes"]
        return used + size_bytes <= self.capacity_bytes

    def has_room_for_guests(self) -> bool:
        """Whether guests' data is still taken."""
        available: int = self.stats()["available_bytes"]
        return available >= ROOM_BYTES_MIN and self._core.keep_spare()

    def stats(self) -> dict:
        """Sizes in bytes and counters since open; names end in their unit.  level: ok, warning, critical: how full it is."""
        stats: dict = self._core.stats()
        data_limit, _all = self._limits()
        below = os.statvfs(self.path)
        room_bytes = below.f_bavail * below.f_frsize
        stats.update(
            capacity_bytes=self.capacity_bytes,
            used_bytes=stats["segment_bytes"] + stats["map_bytes"],
            available_bytes=(available := max(0, min(data_limit - stats["segment_bytes"], room_bytes))),
            level=_level(available, data_limit),
            file_system_available_bytes=room_bytes,
            vdisk_count=sum(isinstance(o, VDisk) for o in list(self._objects.values())),
            snapshot_count=sum(isinstance(o, VDiskSnapshot) for o in list(self._objects.values())),
            checksum_errors_since_scrub=stats["checksum_errors"] - self.inspector.checksum_errors_scrubbed,
            checkpoints=self._checkpoint_count,
            log_bytes_since_checkpoint=stats["segment_bytes_added"] - self._log_bytes_at_checkpoint,
        )
        return stats

    def statistics(self, ids: Iterable[int] | None = None, first: int = 0) -> list[DiskStatistics]:
        """What was counted for vdisks (None: all), by id, from `first` on; what is not there is left out.

        A vdisk that was deleted is there as long as it has snapshots, or a client.
        """
        with self._lock:  # while others are made
            known = dict(self._core.statistics)
        chosen = known if ids is None else set(ids) & set(known)
        return [known[id] for id in sorted(chosen) if id >= first]

    def tend_memory(self) -> None:
        """Free map nodes beyond the budget."""
        self._core.tend_memory(self._resident_nodes_max)

    def keep_spare(self) -> None:
        """Reserve room on the disk again for deletes and discards, once there is some."""
        self._core.keep_spare()

    def nodes_dirty_max(self) -> int:
        """Dirty map nodes cannot be evicted: at this many a checkpoint is due."""
        return dirty_nodes_max(self._resident_nodes_max)

    def _limits(self) -> tuple[int, int]:
        reserve = min(self.capacity_bytes // 8, max(self.capacity_bytes // 64, RESERVE_BYTES))
        return self.capacity_bytes - reserve, self.capacity_bytes

    def _follow_superblock(self) -> None:
        """Let the data path go by its capacity and policy."""
        self._core.set_limits(*self._limits())
        self._core.set_dedup(self.policy.dedup == "on")

    def set_capacity(self, capacity_bytes: int) -> None:
        """Change how much the pool may hold; durable on return.  InvalidArgument when it holds more already."""
        _check_capacity(capacity_bytes)
        with self._checkpoint_lock:
            self._check_open()
            used_bytes = self.stats()["used_bytes"]
            if capacity_bytes < used_bytes:
                raise InvalidArgument(
                    f"the pool holds {used_bytes} bytes already: its capacity cannot be {capacity_bytes}"
                )
            self._change_superblock(self._superblock._replace(capacity_bytes=capacity_bytes))

    def _change_superblock(self, block: Superblock) -> None:
        """Durable on return, in both superblocks: either may be lost.  Caller holds _checkpoint_lock.

        The second one is written with a checkpoint, so that they name different ones again, unless there is no room for it.
        """
        self._write_superblock(block)
        took_checkpoint = False
        with contextlib.suppress(PoolFull, MediumError):
            self._take_checkpoint()
            took_checkpoint = True
        if not took_checkpoint:
            self._write_superblock(self._superblock)

    def _write_superblock(self, block: Superblock) -> None:
        """Write over the older one, and go by what it says."""
        changed = block._replace(sequence=self._superblock.sequence + 1)
        superblock.write(self.path, changed)
        self._superblock = changed
        self._follow_superblock()

    @property
    def policy(self) -> PoolPolicy:
        return self._superblock.policy

    def set_policy(self, policy: PoolPolicy) -> None:
        """How data is kept from now on; durable on return.  InvalidArgument.

        What is there already changes with the next compaction: it is compressed, or no more.
        """
        check_pool_policy(policy)
        with self._checkpoint_lock:
            self._check_open()
            self._change_superblock(self._superblock._replace(policy=policy))

    def set_disk_policies(self, policies: Sequence[tuple[VDisk, DiskPolicy]]) -> None:
        """What holds for single vdisks, all at one LSN.  InvalidArgument; NotFound."""
        vdisks = [vdisk for vdisk, _policy in policies]
        _check_once(vdisks, "change of policies")
        for _vdisk, policy in policies:
            check_disk_policy(policy)
        with self._checkpoint_lock:
            self._check_open()
            if not self._tells_of_policies:  # before the log has such a record
                features = self._superblock.incompatible | superblock.POLICIES
                self._change_superblock(self._superblock._replace(incompatible=features))
                self._tells_of_policies = True
        with self._lock:
            self._check_present(vdisks, VDisk)
            codes = [(vdisk, encode_disk_policy(policy)) for vdisk, policy in policies]
            items = [Item(vdisk.id, code) for vdisk, code in codes]
            lsn = self._commit(RecordType.POLICY, items, [(vdisk, None, code) for vdisk, code in codes])
        self._core.flush(lsn)

    def close(self) -> None:
        """End all I/O, make everything durable, leave a checkpoint and the dedup index.  Then another may open it."""
        if self._core.closed:
            return
        if not self._core.is_here():
            self._abandon()
            return
        if self._maintenance is not None:
            self._maintenance.stop()
        self.inspector.close()
        self.compactor.close()
        poisoned = self._core.stats()["poisoned"]
        try:
            with self._lock:
                self._core.close(list(self._objects.values()))
            with self._accounting:  # which ends when it sees that the pool is closed
                self.checkpoint_if_room()
            dedup_file.save(self.path, self._core)
        except Poisoned:
            if not poisoned:  # else it said so when it happened; the log on disk is what counts
                raise
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Let another engine have the pool."""
        if self._lock_file >= 0:
            os.close(self._lock_file)
        self._lock_file = -1

    def load_dedup(self) -> None:
        """Take in the saved fingerprint index; it is a hint, a missing or damaged one only costs savings."""
        dedup_file.load(self.path, self._core)

    def segments_to_index(self) -> range:
        """Ids of segments whose blocks the saved index may not know, as the pool was not closed: newest last."""
        return range(1, self.segment_end()) if self._replayed else range(0)


def _level(available_bytes: int, data_limit_bytes: int) -> str:
    share = available_bytes / data_limit_bytes
    return "critical" if share < CRITICAL_SHARE else "warning" if share < WARNING_SHARE else "ok"


def _is_name(name: str) -> bool:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can hold it
        return False
    return 0 < len(encoded) <= NAME_BYTES_MAX and all(ord(c) >= 32 for c in name)


def _check_once(things: Sequence[Thing], operation: str) -> None:
    if len({thing.id for thing in things}) != len(things):
        raise InvalidArgument(f"a disk or snapshot is named twice in one {operation}")


def _check_capacity(capacity_bytes: int) -> None:
    if capacity_bytes < CAPACITY_BYTES_MIN or capacity_bytes % SECTOR_BYTES or capacity_bytes >> 62:
        raise InvalidArgument(
            f"a pool cannot have {capacity_bytes} bytes: it needs at least {CAPACITY_BYTES_MIN >> 20} MiB, and a multiple of 512 bytes"
        )


def _check_size(size_bytes: int) -> None:
    if not records.is_size(size_bytes):
        raise InvalidArgument(
            f"{size_bytes} bytes is not a size for a vdisk: it must be a multiple of 512, at most {VDISK_BYTES_MAX}"
        )
