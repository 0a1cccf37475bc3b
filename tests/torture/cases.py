"""A case: a recording of a scenario, a power cut somewhere in it, and what the pool then makes of what is left.

A case is numbered by (scenario, seed, state): scenario and seed give the recording, `state` all that is chosen after it.
The next start, and the work that follows it, is recorded like the scenario, and often cut as well, up to DEPTH_MAX deep.
Runs in a torture build only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import xxhash

from blockdev import Pool, _medium, superblock
from blockdev.errors import Corrupt
from tests.torture.actions import ALL, mix
from tests.torture.file_system import (
    FileSystem,
    Operation,
    Sync,
    SyncDirectory,
    Tree,
    Write,
    read_tree,
    write_tree,
)
from tests.torture.oracle import State, Wrong
from tests.torture.power_cut import POLICIES, surviving_tree
from tests.torture.scenarios import FROM_NOTHING, SCENARIOS
from tests.torture.world import CAPACITY_BYTES, SEGMENT_BYTES, History, Legal, World

DEPTHS = (1, 1, 1, 2, 2, 3)  # starts of a case, each but the last cut short
LOST_COPY_CHANCE = 0.15  # that a medium also loses what the pool has twice


class Recording:
    """The operations of some work on a tree, and what was asked and acknowledged while they were made."""

    def __init__(self, tree: Tree, operations: list[Operation], history: History) -> None:
        self.tree = tree
        self.operations = operations
        self.history = history

    def cut(self, chosen: Random) -> tuple[Tree, Legal, str]:
        """A tree that a power cut may leave, what may be in it, and how it came about."""
        place = self._place(chosen)
        name = chosen.choice(list(POLICIES))
        system = FileSystem(self.tree)
        system.apply(self.operations[:place])
        tree = surviving_tree(system, POLICIES[name], chosen)
        told = f"cut after {self._told(place)}, of the rest survives: {name}"
        if chosen.random() < LOST_COPY_CHANCE:
            told += _lose_a_copy(tree, chosen)
        return tree, self.history.legal_at(place), told

    def _place(self, chosen: Random) -> int:
        """Half of the cuts fall just before or after something other than a write: most operations are writes."""
        rare = [place for place, operation in enumerate(self.operations) if not isinstance(operation, Write)]
        if rare and chosen.random() < 0.5:
            return chosen.choice(rare) + chosen.randrange(2)
        return chosen.randrange(len(self.operations) + 1)

    def _told(self, place: int) -> str:
        last = "" if place == 0 else f" ({_told(self.operations[place - 1])})"
        return f"{place} of {len(self.operations)} operations{last}"


def _told(operation: Operation) -> str:
    if isinstance(operation, Write):
        return f"write of {len(operation.data)} bytes at {operation.offset} of file {operation.file}"
    if isinstance(operation, Sync | SyncDirectory):
        return f"{type(operation).__name__} {operation[0]}"
    return repr(operation)


def _lose_a_copy(tree: Tree, chosen: Random) -> str:
    """Lose a superblock, or the table that it names, where the other one makes up for it."""
    numbers = [_checkpoint(tree, which) for which in (0, 1)]
    if None in numbers:
        return ""
    lost = f"pool/superblock-{chosen.randrange(2)}"
    if numbers[0] != numbers[1] and chosen.random() < 0.3:
        lost = f"pool/map/checkpoint-{chosen.choice(numbers)}"
    tree[lost] = bytes(len(tree[lost] or b""))
    return f", and {lost} is lost"


def _checkpoint(tree: Tree, which: int) -> int | None:
    """The checkpoint that a superblock names, if both are sound."""
    try:
        block = superblock.decode(tree.get(f"pool/superblock-{which}") or b"")
    except Corrupt:
        return None
    table = tree.get(f"pool/map/checkpoint-{block.checkpoint_number}") or b""
    sound = xxhash.xxh3_64_intdigest(table) == block.checkpoint_checksum
    return block.checkpoint_number if sound else None


class Bench:
    """A directory to run cases in, and the recording that they are about."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._roots = 0
        self._new_pool = self._make_pool()

    def _make_pool(self) -> Tree:
        with self._root({}) as root:
            Pool.create(f"{root}/pool", CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES).close()
            return read_tree(root)

    @contextmanager
    def _root(self, tree: Tree) -> Iterator[str]:
        self._roots += 1
        root = f"{self.directory}/{os.getpid()}-{self._roots}"
        write_tree(tree, root)
        try:
            yield root
        finally:
            shutil.rmtree(root)

    @contextmanager
    def _world(self, tree: Tree, before: Legal) -> Iterator[World]:
        """A world whose operations are recorded; what it leaves open is closed unheard."""
        with self._root(tree) as root:
            world = World(root, tree, before)
            _medium.intercept(world.recorder)
            try:
                yield world
            finally:
                _medium.intercept(None)
                world.abandon()
            if world.recorder.unknown:
                raise Wrong(f"the medium did what the recorder does not know: {world.recorder.unknown}")

    def record(self, scenario: str, seed: int) -> Recording:
        empty = scenario in FROM_NOTHING
        tree = {} if empty else self._new_pool
        with self._world(tree, Legal(State(exists=not empty), [])) as world:
            world.start()
            SCENARIOS[scenario](world, Random(f"{scenario} {seed}"))
            operations = list(world.operations)
            if world.pool is not None:
                world.check()
        return Recording(tree, operations, world.history)

    def run(self, recording: Recording, chosen: Random, told: list[str]) -> Iterator[None]:
        """One case; yields after each state that was found sound.  `told`: how it went, for the message."""
        for _ in range(chosen.choice(DEPTHS)):
            tree, legal, how = recording.cut(chosen)
            told.append(how)
            with self._world(tree, legal) as world:
                world.start()
                _go_on(world, chosen)
            recording = Recording(tree, world.operations, world.history)
            yield


def _go_on(world: World, chosen: Random) -> None:
    """The pool is in use again, and what it is asked now is not lost either."""
    if world.pool is None:
        world.create_pool()
    mix(world, chosen, 4, ALL)
    world.flush()
    disk = chosen.choice(world.state.vdisks())
    world.snapshot((disk, None, b"after"))
    mix(world, chosen, 2, ALL)
    world.checkpoint()
    world.reopen()
    world.check()
