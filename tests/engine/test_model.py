"""A hypothesis state machine drives a pool and the oracle side by side, crashes included.

A crash is a copy of the pool's directory taken while it is open (no background thread runs), which is what a kill -9
leaves: the page cache survives, what the process still held in memory does not.  A power cut is the same with appends
that were not synced cut short, full of holes, or lost with their file.
BLOCKDEV_PROFILE=long or BLOCKDEV_EXAMPLES=n BLOCKDEV_STEPS=n run more.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from typing import Any

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from blockdev import Pool, errors
from blockdev.policies import AS_POOL, COMPRESSIONS, DEDUPS, DiskPolicy, PoolPolicy
from tests.engine.content import KINDS, block_data
from tests.engine.model import BLOCK, SECTOR, Content, Step, blocks_of, inside, settle
from tests.engine.recount import Counted, recount

CAPACITY_BYTES = 2 << 30
SEGMENT_BYTES = 1 << 20
MAP_CACHE_BYTES = 64 << 10
DEDUP_BYTES = 1 << 20
VDISKS_MAX, SNAPSHOTS_MAX = 6, 10
LEAF_BYTES = 512 * BLOCK

small_sizes = st.integers(1, (3 << 20) // SECTOR).map(lambda sectors: sectors * SECTOR)
large_sizes = st.sampled_from([3 << 30, (3 << 30) + 512, 600 << 30, (1 << 40) - 512])
sizes = st.one_of(small_sizes, small_sizes, large_sizes)
lengths = st.one_of(st.integers(1, 16), st.integers(1, 600), st.integers(1, 8).map(lambda blocks: blocks * 8))
picks = st.integers(0, 1 << 16)
places = st.integers(0, 1 << 30)
names = st.one_of(st.none(), st.sampled_from(["vm/root", "vm/data", "vm/root@a", "b", "c", "ü", "x" * 255]))
tags = st.binary(max_size=12)
# on tmpfs a sync is free, and this test is about states, not about time
SHARED_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


class Thing:
    """The model's side of a vdisk or a snapshot."""

    def __init__(self, content: Content, name: str | None, tag: bytes, origin: int | None = None) -> None:
        self.content, self.name, self.tag, self.origin = content, name, tag, origin
        self.policy = AS_POOL


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.mkdtemp(prefix="blockdev-model-", dir=SHARED_MEMORY)
        self.path = os.path.join(self.home, "pool-0")
        self.crashes = 0
        self.stamp = 0
        self.heads: dict[int, Thing] = {}
        self.snapshots: dict[int, Thing] = {}
        self.durable: dict[int, Content] = {}  # the heads at the last durable point
        self.pending: list[Step] = []
        self.policy = PoolPolicy()
        self.synced: dict[str, int] = {}  # segment file -> bytes that survive a power cut

    @initialize()
    def begin(self) -> None:
        Pool.create(self.path, CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES).close()
        self.pool = self.open(self.path)
        self.create(3 << 20, None, b"")
        self.create((2 << 20) + 512, "b", b"")
        self.create(600 << 30, "c", b"")

    def open(self, path: str) -> Any:
        return Pool.open(path, map_cache_bytes=MAP_CACHE_BYTES, dedup_bytes=DEDUP_BYTES, background=False)

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self.check_everything()
                self.close_and_reopen()
                self.check_everything()
                self.check_space()
        finally:
            shutil.rmtree(self.home)

    # --- picking things

    def head(self, pick: int) -> tuple[Any, Thing]:
        identity = sorted(self.heads)[pick % len(self.heads)]
        return self.pool.get(identity), self.heads[identity]

    def snapshot_of(self, pick: int) -> tuple[Any, Thing]:
        identity = sorted(self.snapshots)[pick % len(self.snapshots)]
        return self.pool.get(identity), self.snapshots[identity]

    def anything(self, pick: int) -> tuple[Any, Thing]:
        both = {**self.heads, **self.snapshots}
        identity = sorted(both)[pick % len(both)]
        return self.pool.get(identity), both[identity]

    def next_stamp(self) -> int:
        self.stamp += 1
        return self.stamp

    def taken(self, *names: str | None) -> bool:
        used = [thing.name for thing in (*self.heads.values(), *self.snapshots.values())]
        wanted = [name for name in names if name is not None]
        return any(name in used for name in wanted) or len(set(wanted)) < len(wanted)

    @staticmethod
    def span(content: Content, place: int, sectors: int) -> tuple[int, int]:
        """A range inside the vdisk; on a large one around a few far places, so that many nodes come to be."""
        total = content.size_bytes // SECTOR
        if content.size_bytes <= 4 << 20:
            first = place % total
        else:
            far = (place % 97) * (total // 97)
            first = min(far + place % 1000, total - 1)
        return first * SECTOR, min(sectors, total - first) * SECTOR

    def all_durable(self) -> None:
        self.durable = {identity: thing.content.copy() for identity, thing in self.heads.items()}
        self.pending = []
        self.note_synced()

    def note_synced(self) -> None:
        """Between two calls of the engine only appends to segments can be unsynced."""
        segments = os.path.join(self.path, "segments")
        self.synced = {entry.name: entry.stat().st_size for entry in os.scandir(segments)}

    def durable_up_to(self, disk: int) -> None:
        """A flush of one vdisk covers its own writes; the log has one order, so all before them too."""
        last = max((index for index, step in enumerate(self.pending) if step.disk == disk), default=-1)
        for step in self.pending[: last + 1]:
            step.apply(self.durable[step.disk])
        self.pending = self.pending[last + 1 :]
        self.note_synced()

    # --- I/O

    @rule(
        pick=picks, place=places, sectors=lengths, kind=st.sampled_from(KINDS), seed=picks, fua=st.booleans()
    )
    def write(self, pick: int, place: int, sectors: int, kind: str, seed: int, fua: bool) -> None:
        vdisk, thing = self.head(pick)
        offset, length = self.span(thing.content, place, sectors)
        self.do(
            vdisk,
            thing,
            Step(vdisk.id, offset, length, block_data(kind, seed, length), self.next_stamp()),
            fua,
        )

    @rule(seed=picks, count=st.integers(2, 24))
    def small_writes(self, seed: int, count: int) -> None:
        self.burst(seed, count)

    def burst(self, seed: int, count: int) -> None:
        """Many small writes to all vdisks; a crash finds them half on their way."""
        chosen = random.Random(seed)
        for _ in range(count):
            vdisk, thing = self.head(chosen.randrange(1 << 16))
            place, sectors = chosen.randrange(1 << 30), chosen.choice((1, 2, 7, 8, 8, 8, 17, 64))
            offset, length = self.span(thing.content, place, sectors)
            data = block_data(chosen.choice(KINDS), chosen.randrange(1 << 16), length)
            self.do(vdisk, thing, Step(vdisk.id, offset, length, data, self.next_stamp()))

    @rule(pick=picks, seed=picks)
    def scatter(self, pick: int, seed: int) -> None:
        """One block in each of many leaves, more than the map cache holds; then the cache lets go."""
        vdisk, thing = self.head(pick)
        chosen = random.Random(seed)
        leaves = max(thing.content.size_bytes // LEAF_BYTES, 1)
        for _ in range(min(leaves, 90)):
            offset = chosen.randrange(leaves) * LEAF_BYTES // BLOCK * BLOCK
            length = min(BLOCK, thing.content.size_bytes - offset)
            data = block_data("noise", chosen.randrange(1 << 16), length)
            self.do(vdisk, thing, Step(vdisk.id, offset, length, data, self.next_stamp()))
        self.pool.tend_memory()

    @rule()
    def forget(self) -> None:
        """Clean map nodes leave the memory and are read again."""
        self.pool.checkpoint()
        self.all_durable()
        for _ in range(2):  # the first round only notes that nobody used them
            self.pool.tend_memory()

    @rule(pick=picks, place=places, sectors=st.integers(1, 4096), discard=st.booleans())
    def zero(self, pick: int, place: int, sectors: int, discard: bool) -> None:
        vdisk, thing = self.head(pick)
        offset, length = self.span(thing.content, place, sectors)
        step = Step(vdisk.id, offset, length, None, self.next_stamp())
        (vdisk.discard if discard else vdisk.write_zeroes)(offset, length)
        self.replied(thing, step)

    @rule(pick=picks, quarters=st.integers(1, 4))
    def zero_much(self, pick: int, quarters: int) -> None:
        vdisk, thing = self.head(pick)
        length = max(thing.content.size_bytes // 4 // SECTOR * SECTOR * quarters, SECTOR)
        vdisk.discard(0, length)
        self.replied(thing, Step(vdisk.id, 0, length, None, self.next_stamp()))

    def do(self, vdisk: Any, thing: Thing, step: Step, fua: bool = False) -> None:
        vdisk.write(step.offset, step.data, fua=fua)
        self.replied(thing, step)
        if fua:
            self.durable_up_to(step.disk)

    def replied(self, thing: Thing, step: Step) -> None:
        step.apply(thing.content)
        self.pending.append(step)

    @rule(pick=picks, place=places, sectors=st.integers(1, 700))
    def read(self, pick: int, place: int, sectors: int) -> None:
        disk, thing = self.anything(pick)
        offset, length = self.span(thing.content, place, sectors)
        expected = thing.content.read(offset, length)
        assert disk.read(offset, length) == expected
        buffer = bytearray(b"\xa5" * length)
        disk.read_into(offset, buffer)
        assert buffer == expected

    @rule(pick=picks, place=places, sectors=st.integers(1, 8000))
    def extents(self, pick: int, place: int, sectors: int) -> None:
        disk, thing = self.anything(pick)
        offset, length = self.span(thing.content, place, sectors)
        found = disk.extents(offset, length)
        length = min(length, thing.content.certain_bytes() - offset)
        if length > 0:
            assert inside(found, offset, length) == thing.content.extents(offset, length)

    @rule(pick=picks)
    def flush_vdisk(self, pick: int) -> None:
        vdisk, _ = self.head(pick)
        vdisk.flush()
        self.durable_up_to(vdisk.id)

    @rule()
    def flush_pool(self) -> None:
        self.pool.flush()
        self.all_durable()

    @rule()
    def checkpoint(self) -> None:
        self.pool.checkpoint()
        self.all_durable()

    @rule()
    def compact(self) -> None:
        """Takes checkpoints."""
        assert self.pool.compact().kept == ()
        self.all_durable()

    @rule(pick=picks, size=sizes)
    def resize(self, pick: int, size: int) -> None:
        vdisk, thing = self.head(pick)
        vdisk.resize(size)
        assert vdisk.size_bytes == size
        thing.content.resize(size, self.next_stamp())
        self.all_durable()

    @rule(pick=picks, shrink=st.integers(1, 7))
    def resize_a_little(self, pick: int, shrink: int) -> None:
        """Inside one block, down and up again: what was cut off must be zeros."""
        vdisk, thing = self.head(pick)
        size = thing.content.size_bytes
        less = max(size - shrink * SECTOR, SECTOR)
        vdisk.resize(less)
        vdisk.resize(size)
        thing.content.resize(less, self.next_stamp())
        thing.content.resize(size, self.next_stamp())
        self.all_durable()

    # --- objects

    @rule(size=sizes, name=names, tag=tags)
    @precondition(lambda self: len(self.heads) < VDISKS_MAX)
    def create(self, size: int, name: str | None, tag: bytes) -> None:
        if self.taken(name):
            with pytest.raises(errors.AlreadyExists):
                self.pool.create_vdisk(size, name, tag)
            return
        self.added(self.pool.create_vdisk(size, name, tag), Content(size), name, tag)

    @rule(first=sizes, second=sizes, names=st.tuples(names, names), tag=tags)
    @precondition(lambda self: len(self.heads) < VDISKS_MAX - 1)
    def create_two(self, first: int, second: int, names: tuple[str | None, str | None], tag: bytes) -> None:
        specs = [(first, names[0], tag), (second, names[1], tag)]
        if self.taken(*names):
            with pytest.raises(errors.AlreadyExists):
                self.pool.create_vdisks(specs)
            return
        for vdisk, (size, name, _) in zip(self.pool.create_vdisks(specs), specs, strict=True):
            self.added(vdisk, Content(size), name, tag)

    def added(self, vdisk: Any, content: Content, name: str | None, tag: bytes) -> None:
        assert vdisk.id not in self.heads and vdisk.id not in self.snapshots
        self.heads[vdisk.id] = Thing(content, name, tag)
        self.all_durable()

    @rule(chosen=st.lists(picks, min_size=1, max_size=3), name=names, tag=tags)
    @precondition(lambda self: len(self.snapshots) < SNAPSHOTS_MAX - 2)
    def snapshot(self, chosen: list[int], name: str | None, tag: bytes) -> None:
        vdisks = list({self.head(pick)[0].id: self.head(pick)[0] for pick in chosen}.values())
        labels = [name] + [None] * (len(vdisks) - 1)
        if self.taken(name):
            with pytest.raises(errors.AlreadyExists):
                self.pool.snapshot(vdisks, labels, [tag] * len(vdisks))
            return
        before = [vdisk.epoch for vdisk in vdisks]
        taken = self.pool.snapshot(vdisks, labels, [tag] * len(vdisks))
        assert len({snapshot.lsn for snapshot in taken}) == 1
        assert [vdisk.epoch for vdisk in vdisks] == [epoch + 1 for epoch in before]
        for vdisk, snapshot, label in zip(vdisks, taken, labels, strict=True):
            assert snapshot.vdisk_id == vdisk.id
            self.snapshots[snapshot.id] = Thing(self.heads[vdisk.id].content.copy(), label, tag, vdisk.id)
        self.all_durable()

    @rule(pick=picks, name=names, tag=tags)
    @precondition(lambda self: self.snapshots and len(self.heads) < VDISKS_MAX)
    def clone(self, pick: int, name: str | None, tag: bytes) -> None:
        snapshot, thing = self.snapshot_of(pick)
        if self.taken(name):
            with pytest.raises(errors.AlreadyExists):
                self.pool.clone(snapshot, name, tag)
            return
        self.added(self.pool.clone(snapshot, name, tag), thing.content.copy(), name, tag)

    @rule(first=picks, second=picks)
    @precondition(lambda self: self.snapshots and len(self.heads) < VDISKS_MAX - 1)
    def clone_two(self, first: int, second: int) -> None:
        chosen = [self.snapshot_of(first), self.snapshot_of(second)]
        clones = self.pool.clone_many([(snapshot, None, b"c") for snapshot, _ in chosen])
        for vdisk, (_, thing) in zip(clones, chosen, strict=True):
            self.added(vdisk, thing.content.copy(), None, b"c")

    @rule(pick=picks, which=picks)
    @precondition(lambda self: self.snapshots)
    def restore(self, pick: int, which: int) -> None:
        snapshot, thing = self.snapshot_of(pick)
        origin = thing.origin if thing.origin in self.heads else sorted(self.heads)[which % len(self.heads)]
        self.pool.restore([(self.pool.get(origin), snapshot)])
        self.heads[origin].content = thing.content.copy()
        assert self.pool.get(origin).size_bytes == thing.content.size_bytes
        self.all_durable()

    @rule(pick=picks, name=names, tag=tags)
    def relabel(self, pick: int, name: str | None, tag: bytes) -> None:
        disk, thing = self.anything(pick)
        if name != thing.name and self.taken(name):
            with pytest.raises(errors.AlreadyExists):
                self.pool.relabel([(disk, name, tag)])
            return
        self.pool.relabel([(disk, name, tag)])
        thing.name, thing.tag = name, tag
        assert (disk.name, disk.tag) == (name, tag)
        self.all_durable()

    @rule(pick=picks, compression=st.sampled_from((None, *COMPRESSIONS)), dedup=st.sampled_from((None, *DEDUPS)))
    def set_disk_policy(self, pick: int, compression: Any, dedup: Any) -> None:
        vdisk, thing = self.head(pick)
        thing.policy = DiskPolicy(compression, dedup)
        self.pool.set_disk_policies([(vdisk, thing.policy)])
        self.all_durable()

    @rule(compression=st.sampled_from(COMPRESSIONS), level=st.integers(1, 6), dedup=st.sampled_from(DEDUPS))
    def set_policy(self, compression: Any, level: int, dedup: Any) -> None:
        self.policy = PoolPolicy(compression, level, dedup)
        self.pool.set_policy(self.policy)
        self.all_durable()  # it takes a checkpoint

    @rule(first=picks, second=picks)
    def swap_names(self, first: int, second: int) -> None:
        """Names are unique before and after, not in between."""
        (one, one_thing), (other, other_thing) = self.anything(first), self.anything(second)
        if one.id == other.id:
            return
        self.pool.relabel([(one, other_thing.name, one_thing.tag), (other, one_thing.name, other_thing.tag)])
        one_thing.name, other_thing.name = other_thing.name, one_thing.name
        self.all_durable()

    @rule(picked=st.lists(picks, min_size=1, max_size=2), one=st.booleans())
    @precondition(lambda self: len(self.heads) > 2)
    def delete(self, picked: list[int], one: bool) -> None:
        chosen = list({self.anything(pick)[0].id: self.anything(pick)[0] for pick in picked}.values())
        if one:
            chosen = chosen[:1]
        self.pool.delete(chosen[0] if one else chosen)
        for disk in chosen:
            self.heads.pop(disk.id, None)
            self.snapshots.pop(disk.id, None)
            with pytest.raises(errors.NotFound):
                self.pool.get(disk.id)
            with pytest.raises(errors.Gone):
                disk.read(0, SECTOR)
        self.all_durable()

    @rule(first=picks, second=picks, from_nothing=st.booleans())
    @precondition(lambda self: self.snapshots)
    def diff(self, first: int, second: int, from_nothing: bool) -> None:
        newer, new = self.snapshot_of(second)
        older, old = (None, Thing(Content(0), None, b"")) if from_nothing else self.snapshot_of(first)
        extents = self.pool.diff(older, newer)
        self.check_diff(extents, old.content, new.content)

    @staticmethod
    def check_diff(extents: list[Any], old: Content, new: Content) -> None:
        reported: dict[int, str] = {}
        end = 0
        for extent in extents:
            assert extent.length > 0 and extent.offset >= end and extent.offset % BLOCK == 0
            end = extent.offset + extent.length
            assert end <= new.size_bytes and (end % BLOCK == 0 or end == new.size_bytes)
            touched = {n for n in (*old.stamps, *new.stamps) if extent.offset <= n * BLOCK < end}
            assert len(touched) == -(-extent.length // BLOCK), "the diff has blocks that nobody ever wrote"
            reported.update(dict.fromkeys(touched, extent.state))
            if extent.state == "data":
                certain = min(end, new.certain_bytes())
                assert all(n in new.blocks for n in range(extent.offset // BLOCK, -(-certain // BLOCK)))
        blocks = (new.size_bytes + BLOCK - 1) // BLOCK
        for number in old.stamps.keys() | new.stamps.keys():
            if number >= blocks:
                continue
            if old.visible(number, new.size_bytes) != new.visible(number, new.size_bytes):
                assert number in reported, f"block {number} changed and is not in the diff"
                if (number + 1) * BLOCK <= new.certain_bytes():
                    assert reported[number] == ("data" if number in new.blocks else "hole")
            if old.stamps.get(number) == new.stamps.get(number):
                assert number not in reported, f"block {number} did not change and is in the diff"

    # --- refused operations change nothing

    @rule(pick=picks, which=st.integers(0, 6))
    def refused(self, pick: int, which: int) -> None:
        vdisk, thing = self.head(pick)
        size = thing.content.size_bytes
        bad = [
            lambda: vdisk.write(size, bytes(SECTOR)),
            lambda: vdisk.write(0, bytes(100)),
            lambda: vdisk.write(7, bytes(SECTOR)),
            lambda: vdisk.read(size - SECTOR, 2 * SECTOR),
            lambda: vdisk.discard(size, SECTOR),
            lambda: vdisk.resize(size + 1),
            lambda: self.pool.create_vdisk(1000),
        ]
        with pytest.raises(errors.InvalidArgument):
            bad[which]()

    @rule(pick=picks)
    @precondition(lambda self: self.snapshots)
    def write_to_snapshot_refused(self, pick: int) -> None:
        snapshot, _ = self.snapshot_of(pick)
        with pytest.raises((errors.ReadOnly, AttributeError)):
            snapshot.write(0, bytes(SECTOR))

    # --- the end of a process

    @rule()
    def close_and_reopen(self) -> None:
        self.pool.close()
        self.all_durable()
        self.pool = self.open(self.path)
        self.check_objects()

    @rule(twice=st.booleans(), seed=picks, unflushed=st.integers(0, 150), power_cut=st.booleans())
    def crash(self, twice: bool, seed: int, unflushed: int, power_cut: bool) -> None:
        """`unflushed` writes before it: the log writes a batch of its own accord when one is full."""
        self.burst(seed, unflushed)
        for _ in range(1 + twice):
            self.crash_once(random.Random(seed) if power_cut else None)

    def lose_unsynced(self, path: str, chosen: random.Random) -> None:
        for entry in sorted(os.scandir(os.path.join(path, "segments")), key=lambda entry: entry.name):
            kept, size = self.synced.get(entry.name, 0), entry.stat().st_size
            if size == kept:
                continue
            fate = chosen.choice(("kept", "cut", "holes", "cut", "holes", "lost"))
            note(f"{entry.name}: {size - kept} unsynced bytes {fate}")
            if fate == "cut":
                os.truncate(entry.path, chosen.randrange(kept, size))
            elif fate == "holes":
                self.punch(entry.path, kept, size, chosen)
            elif fate == "lost" and kept == 0:
                os.unlink(entry.path)

    @staticmethod
    def punch(path: str, first: int, end: int, chosen: random.Random) -> None:
        with open(path, "r+b") as file:
            for _ in range(chosen.randrange(1, 6)):
                at = chosen.randrange(first // SECTOR, end // SECTOR) * SECTOR
                file.seek(at)
                file.write(bytes(min(SECTOR * chosen.choice((1, 1, 8, 40)), end - at)))

    def crash_once(self, power_cut: random.Random | None) -> None:
        self.crashes += 1
        left = os.path.join(self.home, f"pool-{self.crashes}")
        shutil.copytree(self.path, left)
        if power_cut:
            self.lose_unsynced(left, power_cut)
        self.pool.close()
        shutil.rmtree(self.path)
        self.path = left
        self.pool = self.open(left)
        self.check_objects()
        observed = {identity: blocks_of(self.pool.get(identity)) for identity in self.heads}
        survived = settle(self.durable, self.pending, observed)
        note(f"crash {self.crashes}: {survived} of {len(self.pending)} unflushed steps survived")
        self.pending = []
        for identity, thing in self.heads.items():
            thing.content = self.durable[identity].copy()
        self.note_synced()

    # --- checks

    def check_objects(self) -> None:
        assert {vdisk.id for vdisk in self.pool.vdisks()} == set(self.heads)
        assert {snapshot.id for snapshot in self.pool.snapshots()} == set(self.snapshots)
        for identity, thing in {**self.heads, **self.snapshots}.items():
            disk = self.pool.get(identity)
            assert (disk.name, disk.tag, disk.size_bytes) == (thing.name, thing.tag, thing.content.size_bytes)
            if thing.name is not None:
                assert self.pool.find(thing.name).id == identity
            assert identity in self.snapshots or disk.policy == thing.policy
        assert self.pool.policy == self.policy

    def check_everything(self) -> None:
        self.check_objects()
        for identity, thing in {**self.heads, **self.snapshots}.items():
            disk = self.pool.get(identity)
            size = thing.content.size_bytes
            certain = thing.content.certain_bytes()
            assert inside(disk.extents(), 0, certain) == thing.content.extents(0, certain)
            assert blocks_of(disk) == thing.content.blocks
            if size <= 4 << 20:
                assert disk.read(0, size) == thing.content.read(0, size)
        assert self.pool.check() == []


    def check_space(self) -> None:
        """Every block that is reached is there, once; what is not reached goes, and so does all when all is deleted."""
        self.pool.compact()
        counted = [Counted([vdisk.name], []) for vdisk in self.named_vdisks()]
        self.pool.close()
        with self.open(self.path) as pool:
            assert pool.account([one.group(pool) for one in counted]) == recount(self.path, counted, pool.capacity_bytes)
            pool.delete(pool.things())
            pool.compact()
            pool.compact()
            usage = pool.account([]).pool
            assert usage.stored_bytes == usage.logical_bytes == 0
            assert usage.used_bytes < 4 << 20, usage  # what the newest segments say of what was done

    def named_vdisks(self) -> list[Any]:
        """All of them, which have names now."""
        self.pool.relabel([(self.pool.get(identity), f"disk {identity}", b"") for identity in self.heads])
        return [self.pool.get(identity) for identity in self.heads]


TestPoolAgainstModel = PoolMachine.TestCase
TestPoolAgainstModel.pytestmark = [pytest.mark.timeout(3600)]
