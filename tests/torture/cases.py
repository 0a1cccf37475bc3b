"""A case: a recording of a scenario, a power cut or a kill somewhere in it, and what the pool then makes of what is left.

A case is numbered by (scenario, seed, state): scenario and seed give the recording, `state` all that is chosen after it.
The next start, and the work that follows it, is recorded like the scenario, and often cut as well, up to three deep.
Runs in a torture build only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

from blockdev import Pool, _medium, superblock
from blockdev.errors import Corrupt
from blockdev.superblock import Superblock
from tests.torture.actions import ALL, Action, mix
from tests.torture.file_system import (
    FileSystem,
    Ground,
    Operation,
    Sync,
    SyncDirectory,
    Tree,
    Write,
    all_durable,
    planted,
    read_tree,
)
from tests.torture.oracle import State, Wrong
from tests.torture.power_cut import CHOICES, POLICIES, surviving_tree
from tests.torture.scenarios import FROM_NOTHING, SCENARIOS
from tests.torture.world import CAPACITY_BYTES, SEGMENT_BYTES, History, Legal, World

DEPTHS = (1, 1, 2, 2, 3)  # starts of a case, each but the last cut short
KILL_CHANCE = 0.15  # that the process dies and the power stays: what was not synced is there, and may still be lost
LOST_COPY_CHANCE = 0.2  # that the medium also loses what the pool has twice
LOST_COPY_CHANCE_LATER = 0.5  # the same after a start: then the other copy leads back to what that start had cut off
TORN_KILL_CHANCE = 0.5  # that a kill ends the next write between two pages
PAGE_BYTES = 4096
SUPERBLOCKS = ("pool/superblock-0", "pool/superblock-1")


class Cut(NamedTuple):
    """What the next process finds, and what a pool there may hold."""

    ground: Ground
    legal: Legal
    whole: bool
    told: str


class Recording:
    """The operations of some work, and what was asked and acknowledged while they were made."""

    def __init__(
        self, ground: Ground, operations: list[Operation], history: History, whole: bool, restarted: bool
    ) -> None:
        self.ground = ground
        self.operations = operations  # with those of the ground
        self.history = history
        self.whole = whole  # the ground has both copies of what the pool has twice
        self.restarted = restarted  # it begins with a start after a cut

    def cut(self, chosen: Random) -> Cut:
        place = self._place(chosen)
        legal = self.history.legal_at(place)
        system = FileSystem(self.ground.durable)
        system.apply(self.operations[:place])
        whole = self.whole and _has_settled(system)
        if chosen.random() < KILL_CHANCE:
            return self.kill(place, self._part_of_next(place, chosen), whole)
        legal = legal._replace(kept=0)
        name = chosen.choice(CHOICES)
        tree = surviving_tree(system, POLICIES[name], chosen)
        told = f"cut after {self.told(place)}, of the rest survives: {name}"
        if whole and chosen.random() < (LOST_COPY_CHANCE_LATER if self.restarted else LOST_COPY_CHANCE):
            told += f", and {_lose_a_copy(tree, chosen)} is lost"
            whole = False
        return Cut(all_durable(tree), legal, whole, told)

    def kill(self, place: int, part: list[Operation], whole: bool) -> Cut:
        """The process dies after so many operations and a part of the next one: all that is there, and may still be lost."""
        system = FileSystem(self.ground.durable)
        system.apply([*self.operations[:place], *part])
        visible = surviving_tree(system, POLICIES["everything"], Random(0))
        ground = Ground(visible, self.ground.durable, [*self.operations[:place], *part])
        told = f"killed after {self.told(place)}" + ("" if not part else f", in a {_told(self.operations[place])}")
        return Cut(ground, self._asked_by(self.history.legal_at(place), part, place), whole, told)

    def _part_of_next(self, place: int, chosen: Random) -> list[Operation]:
        """A kill may end a write between two pages: those before are there."""
        return self.some_pages_at(place, chosen) if chosen.random() < TORN_KILL_CHANCE else []

    def some_pages_at(self, place: int, chosen: Random) -> list[Operation]:
        """The first pages of the write at a place, if there is one of several."""
        following = self.operations[place : place + 1]
        if following and isinstance(following[0], Write):
            pages = -(-len(following[0].data) // PAGE_BYTES)
            if pages > 1:
                return [following[0]._replace(data=following[0].data[: chosen.randrange(1, pages) * PAGE_BYTES])]
        return []

    def _asked_by(self, legal: Legal, part: list[Operation], place: int) -> Legal:
        """A write that was begun was asked for; of what was acknowledged it changes nothing."""
        if not part:
            return legal
        later = self.history.legal_at(place + 1)
        return legal._replace(steps=later.steps) if later.durable is legal.durable else legal

    def _place(self, chosen: Random) -> int:
        """Anywhere; or before or after something other than a write, which most are; or where something was acknowledged."""
        places = range(len(self.ground.operations), len(self.operations) + 1)
        rare = self.rare_places()
        way = chosen.random()
        if rare and way < 0.35:
            return chosen.choice(rare) + chosen.randrange(2)
        if self.history.acknowledged and way < 0.65:
            return min(chosen.choice(self.history.acknowledged) + chosen.randrange(2), len(self.operations))
        return chosen.choice(places)

    def rare_places(self) -> list[int]:
        """Of what is no write, and is not the ground's."""
        places = range(len(self.ground.operations), len(self.operations))
        return [place for place in places if not isinstance(self.operations[place], Write)]

    def places_of_writes(self) -> list[int]:
        """Of all that are not the ground's."""
        places = range(len(self.ground.operations), len(self.operations))
        return [place for place in places if isinstance(self.operations[place], Write)]

    def settled_places(self) -> list[int]:
        """After which a power cut touches neither superblocks nor their tables."""
        system = FileSystem(self.ground.durable)
        places = []
        for place, operation in enumerate(self.operations, 1):
            system.apply([operation])
            if _has_settled(system):
                places.append(place)
        return places

    def told(self, place: int) -> str:
        last = "" if place == 0 else f" ({_told(self.operations[place - 1])})"
        return f"{place} of {len(self.operations)} operations{last}"


def _told(operation: Operation) -> str:
    if isinstance(operation, Write):
        return f"write of {len(operation.data)} bytes at {operation.offset} of file {operation.file}"
    if isinstance(operation, Sync | SyncDirectory):
        return f"{type(operation).__name__} {operation[0]}"
    return repr(operation)


def _decoded(block: bytes | None) -> Superblock | None:
    try:
        return superblock.decode(block or b"")
    except Corrupt:
        return None


def _table_of(block: Superblock) -> str:
    return f"pool/map/checkpoint-{block.checkpoint_number}"


def _has_settled(system: FileSystem) -> bool:
    """Whether a power cut touches neither superblocks nor their tables: there is a pool, and none of them is being written."""
    blocks = [_decoded(system.settled(path)) for path in SUPERBLOCKS]
    return all(block is not None and system.settled(_table_of(block)) is not None for block in blocks)


def _lose_a_copy(tree: Tree, chosen: Random) -> str:
    """A medium loses a superblock, mostly the newer one, or the table that it names: the other one makes up for it."""
    older, newer = _by_age(tree)
    lost = chosen.choice([newer[0], newer[0], *newer, *older])
    tree[lost] = bytes(len(tree.get(lost) or b""))
    return lost


def newer_copies(tree: Tree) -> list[str]:
    """The newer superblock, and its table if the other one has another."""
    return _by_age(tree)[1]


def _by_age(tree: Tree) -> tuple[list[str], list[str]]:
    """Of either superblock its path, and that of its table if the other one has another; the newer one last."""
    blocks = {path: block for path in SUPERBLOCKS if (block := _decoded(tree[path])) is not None}
    older, newer = sorted(blocks, key=lambda path: blocks[path].sequence)
    if blocks[older].checkpoint_number == blocks[newer].checkpoint_number:
        return [older], [newer]
    return [older, _table_of(blocks[older])], [newer, _table_of(blocks[newer])]


class Bench:
    """A directory to run cases in, and the recording that they are about."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._new_pool = self._make_pool()

    def _make_pool(self) -> Tree:
        with planted({}, self.directory) as root:
            Pool.create(f"{root}/pool", CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES).close()
            return read_tree(root)

    @contextmanager
    def _world(self, ground: Ground, before: Legal) -> Iterator[World]:
        """A world whose operations are recorded; what it leaves open is closed unheard."""
        with planted(ground.visible, self.directory) as root:
            world = World(root, ground, before)
            _medium.intercept(world.recorder)
            try:
                yield world
            finally:
                _medium.intercept(None)
                world.abandon()
            if world.recorder.unknown:
                raise Wrong(f"the medium did what the recorder does not know: {world.recorder.unknown}")

    def record(self, scenario: str, seed: int) -> Recording:
        return self.record_work(SCENARIOS[scenario], scenario, seed)

    def record_work(self, work: Action, scenario: str, seed: int) -> Recording:
        empty = scenario in FROM_NOTHING
        ground = all_durable({} if empty else self._new_pool)
        with self._world(ground, Legal(State(exists=not empty), [])) as world:
            world.start()
            work(world, Random(f"{scenario} {seed}"))
            operations = list(world.operations)
            if world.pool is not None:
                world.check()
        return Recording(ground, operations, world.history, whole=not empty, restarted=False)

    def run(self, recording: Recording, chosen: Random, told: list[str]) -> Iterator[None]:
        """One case; yields after each state that was found sound.  `told`: how it went, for the message."""
        for _ in range(chosen.choice(DEPTHS)):
            cut = recording.cut(chosen)
            told.append(cut.told)
            with self._world(cut.ground, cut.legal) as world:
                world.start()
                _go_on(world, chosen)
            recording = Recording(cut.ground, world.operations, world.history, cut.whole, restarted=True)
            yield


def _go_on(world: World, chosen: Random) -> None:
    """The pool is in use again, and what it is asked now is not lost either."""
    if world.pool is None:
        world.create_pool()
    if chosen.random() < 0.3:
        world.inspect()
    mix(world, chosen, 4, ALL)
    world.flush()
    disk = chosen.choice(world.state.vdisks())
    world.snapshot((disk, None, b"after"))
    mix(world, chosen, 2, ALL)
    world.checkpoint()
    world.reopen()
    world.check()
