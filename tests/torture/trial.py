"""A pool in use beside what it must hold: what was acknowledged as durable, and the steps that may or may not have been.

Unlike World, which asks for what succeeds, a trial notes a step before it asks: what failed may still have taken effect.
Objects are known by their names here, because nobody learns the id of one whose creation failed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from blockdev import Pool, errors
from blockdev.policies import DiskPolicy
from tests.engine.model import BLOCK, ZERO_BLOCK, Content, blocks_of
from tests.torture.oracle import NO_STAMP, Atomic, Change, State, Step, Thing, differences, settle
from tests.torture.world import MEMORY

ReadBlocks = Callable[[Any], dict[int, bytes]]


class Findings(errors.Corrupt):
    """What check or scrub had to say."""


def observe_by_name(pool: Pool, read: ReadBlocks = blocks_of) -> State:
    state = State(policy=pool.policy)
    for disk in (*pool.vdisks(), *pool.snapshots()):
        blocks = read(disk)
        content = Content(disk.size_bytes, blocks, dict.fromkeys(blocks, NO_STAMP))
        thing = state.things[disk.name] = Thing(disk in pool.snapshots(), content, disk.name, disk.tag)
        if not thing.snapshot:
            thing.policy = disk.policy
    return state


def blocks_that_verify(otherwise: State) -> ReadBlocks:
    """Reads like blocks_of; what does not verify is taken to be as in `otherwise`."""

    def read(disk: Any) -> dict[int, bytes]:
        blocks = {}
        for extent in disk.extents():
            end = extent.offset + extent.length if extent.state == "data" else 0
            for offset in range(extent.offset, end, BLOCK):
                try:
                    block = disk.read(offset, min(BLOCK, disk.size_bytes - offset)).ljust(BLOCK, b"\0")
                except (errors.Corrupt, errors.Poisoned):
                    block = otherwise.things[disk.name].content.read(offset, BLOCK)
                if block != ZERO_BLOCK:
                    blocks[offset // BLOCK] = block
        return blocks

    return read


class Trial:
    """One pool and its model.  What the pool raises comes through."""

    def __init__(self, path: str, durable: State, steps: Sequence[Step] = ()) -> None:
        self.path = path
        self.durable = durable
        self.steps = list(steps)  # asked since the last durable point
        self.pool: Pool | None = None

    @property
    def opened(self) -> Pool:
        assert self.pool is not None
        return self.pool

    def create_pool(self, capacity_bytes: int, segment_bytes: int) -> None:
        """Or open it, when an earlier try came so far."""
        if not os.path.exists(self.path):
            Pool.create(self.path, capacity_bytes, segment_bytes=segment_bytes).close()
        self.open()

    def open(self) -> None:
        self.pool = Pool.open(self.path, **MEMORY)

    def drop(self) -> None:
        """Let go of the pool without a word."""
        self.pool = None

    def settled(self) -> None:
        """Everything asked so far was acknowledged as durable."""
        for step in self.steps:
            step.apply(self.durable)
        self.steps = []

    def take_over(self, read: ReadBlocks = blocks_of) -> None:
        """The pool was opened: what it shows must be legal, and is durable."""
        self.durable = settle(self.durable, self.steps, observe_by_name(self.opened, read))
        self.steps = []

    def expected(self) -> State:
        state = self.durable.copy()
        for step in self.steps:
            step.apply(state)
        return state

    def last_took_effect(self, read: ReadBlocks = blocks_of) -> bool:
        """Whether the last step, which failed, changed anything; all before it must have taken effect."""
        *replied, failed = self.steps
        before = Trial(self.path, self.durable, replied).expected()
        seen = observe_by_name(self.opened, read)
        settle(before, [failed], seen)
        return differences(before, seen) != {}

    def _ask(self, step: Step, call: Callable[[], Any], durable: bool) -> None:
        self.steps.append(step)
        call()
        if durable:
            self.settled()

    # --- data

    def write(self, name: str, offset: int, data: bytes, fua: bool = False) -> None:
        disk = self.opened.find(name)
        self._ask(Change(name, offset, len(data), data), lambda: disk.write(offset, data, fua), fua)

    def discard(self, name: str, offset: int, length: int) -> None:
        disk = self.opened.find(name)
        self._ask(Change(name, offset, length, None), lambda: disk.discard(offset, length), False)

    def flush(self, name: str) -> None:
        self.opened.find(name).flush()
        self.settled()

    def checkpoint(self) -> None:
        self.opened.checkpoint()
        self.settled()

    def compact(self) -> None:
        self.opened.compact()
        self.settled()

    def close(self) -> None:
        pool, self.pool = self.opened, None
        pool.close()
        self.settled()

    def look(self, walk: Callable[[], list[str]]) -> None:
        """check or scrub; Findings when there are some."""
        findings = walk()
        if findings:
            raise Findings("; ".join(findings))

    # --- objects: each takes effect as a whole or not at all, and is durable when it returns

    def create_vdisk(self, name: str, size_bytes: int) -> None:
        def change(state: State) -> None:
            state.things[name] = Thing(False, Content(size_bytes), name)

        self._ask(Atomic("create", change), lambda: self.opened.create_vdisk(size_bytes, name), True)

    def snapshot(self, pairs: Sequence[tuple[str, str]]) -> None:
        """(vdisk, name of the snapshot) each."""

        def change(state: State) -> None:
            for vdisk, name in pairs:
                state.things[name] = Thing(True, state.things[vdisk].content.copy(), name, b"s")

        vdisks = [self.opened.find(vdisk) for vdisk, _name in pairs]
        names = [name for _vdisk, name in pairs]
        tags = [b"s"] * len(pairs)
        self._ask(Atomic("snapshot", change), lambda: self.opened.snapshot(vdisks, names, tags), True)

    def clone(self, snapshot: str, names: Sequence[str]) -> None:
        def change(state: State) -> None:
            for name in names:
                state.things[name] = Thing(False, state.things[snapshot].content.copy(), name, b"c")

        source = self.opened.find(snapshot)
        specs = [(source, name, b"c") for name in names]
        self._ask(Atomic("clone", change), lambda: self.opened.clone_many(specs), True)

    def restore(self, vdisk: str, snapshot: str) -> None:
        def change(state: State) -> None:
            state.things[vdisk].content = state.things[snapshot].content.copy()

        pair = (self.opened.find(vdisk), self.opened.find(snapshot))
        self._ask(Atomic("restore", change), lambda: self.opened.restore([pair]), True)

    def relabel(self, old: str, new: str) -> None:
        def change(state: State) -> None:
            state.things[new] = replace(state.things.pop(old), name=new, tag=b"r")

        thing = self.opened.find(old)
        self._ask(Atomic("relabel", change), lambda: self.opened.relabel([(thing, new, b"r")]), True)

    def set_disk_policy(self, name: str, policy: DiskPolicy) -> None:
        def change(state: State) -> None:
            state.things[name].policy = policy

        pair = (self.opened.find(name), policy)
        self._ask(Atomic("set a disk's policy", change), lambda: self.opened.set_disk_policies([pair]), True)

    def delete(self, names: Sequence[str]) -> None:
        def change(state: State) -> None:
            for name in names:
                del state.things[name]

        things = [self.opened.find(name) for name in names]
        self._ask(Atomic("delete", change), lambda: self.opened.delete(things), True)

    def resize(self, name: str, size_bytes: int) -> None:
        def change(state: State) -> None:
            state.things[name].content.resize(size_bytes, NO_STAMP)

        disk = self.opened.find(name)
        self._ask(Atomic("resize", change), lambda: self.opened.resize(disk, size_bytes), True)
