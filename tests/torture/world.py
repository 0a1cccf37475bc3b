"""One pool in use: each call asks the pool for something and writes down when it was asked and when it was acknowledged.

Time is counted in operations of the medium.  `History` is what remains: from it follows what a pool may hold after a
power cut at any such time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from blockdev import Pool
from blockdev.compaction import Compaction
from blockdev.errors import PoolFull
from blockdev.policies import DiskPolicy, PoolPolicy
from blockdev.runner import Pace
from tests.engine.model import Content
from tests.torture.file_system import Ground, Operation
from tests.torture.oracle import (
    NO_STAMP,
    Atomic,
    Change,
    State,
    Step,
    Thing,
    Wrong,
    check_extents,
    differences,
    observe,
    settle,
)
from tests.torture.recorder import Recorder

CAPACITY_BYTES = 2 << 30
SEGMENT_BYTES = 1 << 20
MEMORY: dict[str, Any] = {"map_cache_bytes": 1 << 16, "dedup_bytes": 1 << 20, "background": False}


class Legal(NamedTuple):
    """What a pool may hold: `durable`, and as many of the steps as survived; at least the first `kept` of them, when only the
    process died."""

    durable: State
    steps: Sequence[Step]
    kept: int = 0

    def settled(self, observed: State) -> State:
        """The legal state that `observed` is.  Wrong when it is none."""
        least = self.durable.copy()
        for step in self.steps[: self.kept]:
            step.apply(least)
        return settle(least, self.steps[self.kept :], observed)


class History:
    """Steps on a pool, from the state it began with, and what of them was durable when."""

    def __init__(self, before: Legal) -> None:
        self.before = before  # until `begun_at`
        self.begun_at: int | None = None
        self.steps: list[Step] = []
        self._asked: list[int] = []  # of each step: operations when it was asked
        self.acknowledged: list[int] = []  # operations when something was, and the steps that were durable then
        self._durable: list[int] = []
        self._kept: list[tuple[int, int]] = []  # the same of what was kept
        self._states: dict[int, State] = {}  # by number of steps done

    def begin(self, state: State, operations: int) -> None:
        """The pool was opened and shows `state`: from now on that is durable."""
        self.begun_at = operations
        self._states[0] = state

    def add(self, step: Step, asked: int) -> None:
        self.steps.append(step)
        self._asked.append(asked)

    def all_durable(self, operations: int) -> None:
        self.acknowledged.append(operations)
        self._durable.append(len(self.steps))

    def all_kept(self, operations: int) -> None:
        self._kept.append((operations, len(self.steps)))

    def legal_at(self, operations: int) -> Legal:
        """What a kill after so many operations may leave; a power cut may leave less (`kept`)."""
        if self.begun_at is None or operations < self.begun_at:
            return self.before
        covered = bisect_right(self.acknowledged, operations)
        durable = self._durable[covered - 1] if covered else 0
        kept = max((count for when, count in self._kept if when <= operations), default=0)
        steps = self.steps[durable : bisect_left(self._asked, operations)]
        return Legal(self._state(durable), steps, max(0, kept - durable))

    def _state(self, count: int) -> State:
        if count not in self._states:
            nearest = max(known for known in self._states if known < count)
            state = self._states[nearest].copy()
            for step in self.steps[nearest:count]:
                step.apply(state)
            self._states[count] = state
        return self._states[count]


class World:
    """A pool at `root`/pool, which need not be there yet, the model beside it, and the recorder that listens."""

    def __init__(self, root: str, ground: Ground, before: Legal) -> None:
        self.path = f"{root}/pool"
        self.ground = ground
        self.recorder = Recorder(root, ground.durable, ground.operations)
        self.history = History(before)
        self.state = State(exists=False)  # by the end of the steps so far
        self.pool: Pool | None = None

    @property
    def operations(self) -> list[Operation]:
        return self.recorder.operations

    @property
    def opened(self) -> Pool:
        assert self.pool is not None
        return self.pool

    def thing(self, identity: int) -> Any:
        """The vdisk or snapshot of the open pool."""
        return self.opened.get(identity)

    def start(self) -> None:
        """Open what is there and see that it is legal; nothing at all is legal before the pool was created."""
        observed = State(exists=False)
        if "pool" in self.ground.visible:
            self.open()
            observed = observe(self.opened)
        self.state = self.history.before.settled(observed)
        self.history.begin(self.state.copy(), len(self.operations))
        for identity, thing in self.state.things.items():
            self._check_thing(identity, thing)

    def open(self) -> None:
        self.pool = Pool.open(self.path, **MEMORY)
        self.pool.load_dedup()

    def abandon(self) -> None:
        """Let go of the pool, if it is open, without a word in the history."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.close()

    def check(self) -> None:
        """The pool holds what the model says."""
        observed = observe(self.opened)
        if differences(self.state, observed) != {}:
            settle(self.state, [], observed)  # which says what is wrong
        for identity, thing in self.state.things.items():
            self._check_thing(identity, thing)
        self.inspect()

    def inspect(self) -> None:
        """Check and scrub find nothing.  Both may write: a checkpoint, and copies that did not survive."""
        findings = [*self.opened.check(), *self.opened.scrub()]
        if findings:
            raise Wrong(f"check or scrub found {findings}")

    def _check_thing(self, identity: int, thing: Thing) -> None:
        check_extents(self.thing(identity), thing.content)
        if thing.name is not None and self.opened.find(thing.name).id != identity:
            raise Wrong(f"{thing.name!r} is not found by its name")

    # --- asking

    def _done(self, step: Step, asked: int, durable: bool = True) -> None:
        self.history.add(step, asked)
        step.apply(self.state)
        if durable:
            self._durable()

    def _durable(self) -> None:
        self.history.all_durable(len(self.operations))

    def size(self, identity: int) -> int:
        return self.state.things[identity].content.size_bytes

    def create_pool(self) -> None:
        def change(state: State) -> None:
            state.exists = True

        asked = len(self.operations)
        Pool.create(self.path, CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES).close()
        self._done(Atomic("create the pool", change), asked)
        self.open()

    def write(self, disk: int, offset: int, data: bytes, fua: bool = False) -> None:
        asked = len(self.operations)
        try:
            self.thing(disk).write(offset, data, fua=fua)
        except PoolFull:
            self._done_in_part(disk, offset, len(data), asked)
        else:
            self._done(Change(disk, offset, len(data), data), asked, fua)

    def zero(self, disk: int, offset: int, length: int, discard: bool) -> None:
        """Whole blocks need no room, parts of blocks do."""
        asked = len(self.operations)
        vdisk = self.thing(disk)
        try:
            (vdisk.discard if discard else vdisk.write_zeroes)(offset, length)
        except PoolFull:
            self._done_in_part(disk, offset, length, asked)
        else:
            self._done(Change(disk, offset, length, None), asked, False)

    def _done_in_part(self, disk: int, offset: int, length: int, asked: int) -> None:
        """There was no room for all of it: what is there now is what was done."""
        self._done(Change(disk, offset, length, self.thing(disk).read(offset, length)), asked, False)

    def flush(self, disk: int | None = None) -> None:
        """Of one vdisk or of all: both cover every write that was replied to."""
        (self.opened if disk is None else self.thing(disk)).flush()
        self._durable()

    def keep(self, disk: int) -> None:
        """It covers every write that was replied to, of all disks."""
        self.thing(disk).keep()
        self.history.all_kept(len(self.operations))

    def checkpoint(self) -> None:
        self.opened.checkpoint()
        self._durable()

    def forget(self) -> None:
        """Let clean map nodes leave the memory; the first round only notes that nobody used them."""
        for _ in range(2):
            self.opened.tend_memory()

    def compact(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """One round; meanwhile(): what guests do between its steps."""
        compaction = Compaction(self.opened, Pace(None, lambda _seconds: False))
        compaction.begin()  # which takes checkpoints
        self._durable()
        steps: tuple[Callable[[], object], ...] = (
            compaction.mark,
            compaction.free_nodes,
            compaction.rewrite,
            compaction.end,
            compaction.trim,
        )
        for step in steps:
            meanwhile()
            step()

    def close(self) -> None:
        self.opened.close()
        self.pool = None
        self._durable()

    def reopen(self) -> None:
        self.close()
        self.open()

    # --- objects

    def create(self, *specs: tuple[int, str | None, bytes]) -> list[int]:
        """(size in bytes, name, tag) each."""
        asked = len(self.operations)
        made = [vdisk.id for vdisk in self.opened.create_vdisks(specs)]

        def change(state: State) -> None:
            for identity, (size, name, tag) in zip(made, specs, strict=True):
                state.things[identity] = Thing(False, Content(size), name, tag)

        self._done(Atomic("create", change), asked)
        return made

    def snapshot(self, *specs: tuple[int, str | None, bytes]) -> list[int]:
        """(vdisk, name, tag) each."""
        asked = len(self.operations)
        vdisks = [self.thing(disk) for disk, _name, _tag in specs]
        taken = self.opened.snapshot(vdisks, [name for _d, name, _t in specs], [tag for _d, _n, tag in specs])
        versions = [(snapshot.id, snapshot.lsn) for snapshot in taken]

        def change(state: State) -> None:
            for (disk, name, tag), (identity, lsn) in zip(specs, versions, strict=True):
                origin = state.things[disk]
                state.things[identity] = Thing(True, origin.content.copy(), name, tag, disk, lsn)
                origin.version += 1

        self._done(Atomic("snapshot", change), asked)
        return [identity for identity, _lsn in versions]

    def clone(self, *specs: tuple[int, str | None, bytes]) -> list[int]:
        """(snapshot, name, tag) each."""
        asked = len(self.operations)
        asks = [(self.thing(snapshot), name, tag) for snapshot, name, tag in specs]
        made = [vdisk.id for vdisk in self.opened.clone_many(asks)]

        def change(state: State) -> None:
            for identity, (snapshot, name, tag) in zip(made, specs, strict=True):
                content = state.things[snapshot].content.copy()
                state.things[identity] = Thing(False, content, name, tag, snapshot)

        self._done(Atomic("clone", change), asked)
        return made

    def restore(self, *pairs: tuple[int, int]) -> None:
        """(vdisk, snapshot) each."""

        def change(state: State) -> None:
            for disk, snapshot in pairs:
                state.things[disk].content = state.things[snapshot].content.copy()
                state.things[disk].version += 1

        asked = len(self.operations)
        self.opened.restore([(self.thing(disk), self.thing(snapshot)) for disk, snapshot in pairs])
        self._done(Atomic("restore", change), asked)

    def relabel(self, *changes: tuple[int, str | None, bytes]) -> None:
        """(vdisk or snapshot, name, tag) each."""

        def change(state: State) -> None:
            for identity, name, tag in changes:
                state.things[identity] = replace(state.things[identity], name=name, tag=tag)

        asked = len(self.operations)
        self.opened.relabel([(self.thing(identity), name, tag) for identity, name, tag in changes])
        self._done(Atomic("relabel", change), asked)

    def set_disk_policies(self, *policies: tuple[int, DiskPolicy]) -> None:
        """(vdisk, policy) each."""

        def change(state: State) -> None:
            for identity, policy in policies:
                state.things[identity].policy = policy

        asked = len(self.operations)
        self.opened.set_disk_policies([(self.thing(identity), policy) for identity, policy in policies])
        self._done(Atomic("set policies of disks", change), asked)

    def set_policy(self, policy: PoolPolicy) -> None:
        """Of the pool: it is not in the log, so it may outlive what was written before, unless that is durable."""

        def change(state: State) -> None:
            state.policy = policy

        self.flush()
        asked = len(self.operations)
        self.opened.set_policy(policy)
        self._done(Atomic("set the pool's policy", change), asked)

    def delete(self, *identities: int) -> None:
        def change(state: State) -> None:
            for identity in identities:
                del state.things[identity]

        asked = len(self.operations)
        self.opened.delete([self.thing(identity) for identity in identities])
        self._done(Atomic("delete", change), asked)

    def resize(self, disk: int, size_bytes: int) -> None:
        def change(state: State) -> None:
            state.things[disk].content.resize(size_bytes, NO_STAMP)

        asked = len(self.operations)
        self.thing(disk).resize(size_bytes)
        self._done(Atomic("resize", change), asked)
