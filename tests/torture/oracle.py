"""What a pool must hold, step by step, and which step a power cut left it at.

A step is one thing asked of the pool.  What survives is a prefix of the steps, in the order they were asked; of the first
one that did not survive as a whole, when it is a write or a discard, a prefix of its blocks.  Steps on objects are atomic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from blockdev import Pool
from blockdev.policies import AS_POOL, DiskPolicy, PoolPolicy
from tests.engine.model import BLOCK, ZERO_BLOCK, Content, blocks_of, inside

NO_STAMP = 0  # who wrote a block last does not matter here


@dataclass
class Thing:
    """A vdisk, or a snapshot of one."""

    snapshot: bool
    content: Content
    name: str | None = None
    tag: bytes = b""
    origin: int = 0
    version: int = 1  # a vdisk's epoch, a snapshot's LSN
    policy: DiskPolicy = AS_POOL

    def copy(self) -> Thing:
        return self if self.snapshot else replace(self, content=self.content.copy())

    def label(self) -> tuple[bool, int, str | None, bytes, int, int, DiskPolicy]:
        what = (self.name, self.tag, self.origin, self.version, self.policy)
        return self.snapshot, self.content.size_bytes, *what


@dataclass
class State:
    """All that a pool holds; `exists` is False before it is created."""

    things: dict[int, Thing] = field(default_factory=dict)
    exists: bool = True
    policy: PoolPolicy = PoolPolicy()

    def copy(self) -> State:
        return State({identity: thing.copy() for identity, thing in self.things.items()}, self.exists, self.policy)

    def labels(self) -> dict[int, tuple]:
        return {identity: thing.label() for identity, thing in self.things.items()}

    def vdisks(self) -> list[int]:
        return [identity for identity, thing in self.things.items() if not thing.snapshot]

    def snapshots(self) -> list[int]:
        return [identity for identity, thing in self.things.items() if thing.snapshot]


@dataclass(frozen=True)
class Change:
    """A step on the data of one vdisk."""

    disk: int
    offset: int
    length: int
    data: bytes | None  # None: zeros

    def apply(self, state: State) -> None:
        content = state.things[self.disk].content
        if self.data is None:
            content.zero(self.offset, self.length, NO_STAMP)
        else:
            content.write(self.offset, self.data, NO_STAMP)

    def blocks(self) -> range:
        return range(self.offset // BLOCK, (self.offset + self.length - 1) // BLOCK + 1)


@dataclass(frozen=True)
class Atomic:
    """A step on objects."""

    what: str
    change: Callable[[State], None]

    def apply(self, state: State) -> None:
        self.change(state)


Step: TypeAlias = Change | Atomic


class Wrong(AssertionError):
    """A pool holds, or does, what no power cut explains."""


def observe(pool: Pool) -> State:
    """All that a pool holds, every block of it read."""
    state = State(policy=pool.policy)
    for vdisk in pool.vdisks():
        state.things[vdisk.id] = replace(_observed(vdisk, False, vdisk.epoch), policy=vdisk.policy)
    for snapshot in pool.snapshots():
        state.things[snapshot.id] = _observed(snapshot, True, snapshot.lsn)
    return state


def _observed(disk: Any, snapshot: bool, version: int) -> Thing:
    content = Content(disk.size_bytes, blocks_of(disk))
    return Thing(snapshot, content, disk.name, disk.tag, disk.origin_id, version)


def check_extents(disk: Any, content: Content) -> None:
    """Extents say data exactly where a block is not zero."""
    certain = content.certain_bytes()
    if inside(disk.extents(), 0, certain) != (content.extents(0, certain) if certain else []):
        raise Wrong(f"the extents of {disk!r} are not where its data is")


def settle(before: State, steps: Sequence[Step], observed: State) -> State:
    """The legal state that `observed` is: `before` and a prefix of the steps.  Wrong when there is none."""
    state = before.copy()
    different = differences(state, observed)
    for step in steps:
        if different == {}:
            return state
        if isinstance(step, Change) and different is not None:
            partly = _partly(step, state, different, observed)
            if partly is not None:
                return partly
        step.apply(state)
        different = _differences_after(step, state, different, observed)
    if different == {}:
        return state
    raise Wrong(f"it holds the result of no prefix of {len(steps)} steps: {_complaint(state, observed)}")


Differences: TypeAlias = dict[int, set[int]]  # the blocks that differ, by disk


def differences(state: State, observed: State) -> Differences | None:
    """None when the objects themselves differ."""
    if (state.exists, state.policy) != (observed.exists, observed.policy) or state.labels() != observed.labels():
        return None
    found = {
        identity: different_blocks(thing.content.blocks, observed.things[identity].content.blocks)
        for identity, thing in state.things.items()
    }
    return {identity: blocks for identity, blocks in found.items() if blocks}


def different_blocks(one: dict[int, bytes], other: dict[int, bytes]) -> set[int]:
    if one == other:
        return set()
    return {number for number in one.keys() | other.keys() if one.get(number) != other.get(number)}


def _differences_after(
    step: Step, state: State, different: Differences | None, observed: State
) -> Differences | None:
    """The same for the state after a step, looking only at what the step touched."""
    if isinstance(step, Atomic):
        return differences(state, observed)
    if different is None:
        return None
    blocks, mine = observed.things[step.disk].content.blocks, state.things[step.disk].content.blocks
    if len(step.blocks()) > len(blocks) + len(mine):
        wrong = different_blocks(mine, blocks)
    else:
        touched = step.blocks()
        wrong = {number for number in different.get(step.disk, ()) if number not in touched}
        wrong |= {number for number in touched if mine.get(number) != blocks.get(number)}
    rest = {identity: numbers for identity, numbers in different.items() if identity != step.disk}
    return {**rest, step.disk: wrong} if wrong else rest


def _partly(step: Change, state: State, different: Differences, observed: State) -> State | None:
    """The state in which a prefix of the step's blocks has survived, if that is what is observed."""
    if different.keys() != {step.disk} or not all(number in step.blocks() for number in different[step.disk]):
        return None
    partial = state.copy()
    end = (max(different[step.disk]) + 1) * BLOCK
    length = min(step.offset + step.length, end) - step.offset
    data = None if step.data is None else step.data[:length]
    Change(step.disk, step.offset, length, data).apply(partial)
    return partial if differences(partial, observed) == {} else None


def _complaint(state: State, observed: State) -> str:
    if state.exists != observed.exists:
        return "there is no pool" if state.exists else "there is a pool"
    if state.policy != observed.policy:
        return f"{observed.policy} instead of {state.policy}"
    ours, theirs = state.labels(), observed.labels()
    parts = [
        f"object {identity} is {theirs.get(identity)} instead of {ours.get(identity)}"
        for identity in ours.keys() | theirs.keys()
        if ours.get(identity) != theirs.get(identity)
    ]
    for identity in ours.keys() & theirs.keys():
        blocks = observed.things[identity].content.blocks
        wrong = different_blocks(state.things[identity].content.blocks, blocks)
        if wrong:
            first = min(wrong)
            found = "zeros" if blocks.get(first, ZERO_BLOCK) == ZERO_BLOCK else "other data"
            parts.append(f"{len(wrong)} blocks of object {identity}, the first {first}, which holds {found}")
    return "; ".join(sorted(parts))
