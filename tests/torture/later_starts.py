"""A start comes upon what an earlier one passed over: a superblock that could not be read then, a spare that was a segment.

Chance hardly meets either, so each case goes straight there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from tests.engine.model import BLOCK
from tests.torture.actions import ALL, MIB, fill, mix
from tests.torture.cases import Bench, Cut, Recording, newer_copies
from tests.torture.file_system import FileSystem, Rename, SyncDirectory, all_durable
from tests.torture.power_cut import CHOICES, POLICIES, surviving_tree
from tests.torture.scenarios import SCENARIOS
from tests.torture.world import World

UNREADABLE = "unreadable_in_"
SPARE = "spare_again"
BATCH_HOLES = 124  # fill a batch
LATER_STARTS = [
    *(UNREADABLE + name for name in ("checkpoints_reuse_slots", "checkpoints_of_shared_maps", "big_map_with_checkpoints")),
    SPARE,
]


class LaterStartBench(Bench):
    """Each case is a power cut, a start, another power cut, and a start."""

    def record(self, scenario: str, seed: int) -> Recording:
        if scenario == SPARE:
            return self.record_work(_fill_the_spare, scenario, seed)
        return self.record_work(SCENARIOS[scenario.removeprefix(UNREADABLE)], scenario, seed)

    def run(self, recording: Recording, chosen: Random, told: list[str]) -> Iterator[None]:
        names = [change for change in recording.operations if isinstance(change, Rename) and change.name == "spare"]
        later = self._spare_again(recording, chosen, told) if names else self._unreadable(recording, chosen, told)
        # "everything" shows what the spare still holds behind the end, "only names" what it holds instead of it; and the
        # newer superblock is there until another checkpoint has taken its place
        policies = (*CHOICES, *(("everything", "only names") if names else ("everything",)) * (len(CHOICES) // 2))
        places = range(later.history.begun_at or 0, len(later.operations) + 1) if names else later.rare_places()
        cut = _cut(later, chosen.choice(places), chosen.choice(policies), chosen)
        told.append(cut.told)
        with self._world(cut.ground, cut.legal) as world:
            world.start()
            world.inspect()
        yield

    def _unreadable(self, recording: Recording, chosen: Random, told: list[str]) -> Recording:
        """The newer superblock, or its table, cannot be read in one start, and can in the next."""
        places = recording.settled_places()
        cut = _cut(recording, chosen.choice(places), "everything", chosen)
        lost = chosen.choice(newer_copies(cut.ground.visible))
        told += [cut.told, f"a start that cannot read {lost}"]

        def work(world: World) -> None:
            world.recorder.cannot_read(lost)
            world.start()
            mix(world, chosen, 6, ALL)
            world.checkpoint()

        return self._start(cut, work)

    def _spare_again(self, recording: Recording, chosen: Random, told: list[str]) -> Recording:
        """The name of the segment that the spare had become did not outlast the power, what was in it did."""
        operations = recording.operations
        renamed = next(place for place, one in enumerate(operations) if isinstance(one, Rename) and one.name == "spare")
        synced = next(place for place in range(renamed, len(operations)) if isinstance(operations[place], SyncDirectory))
        cut = _cut(recording, synced, "no names", chosen)
        told.append(cut.told)

        def work(world: World) -> None:
            world.start()
            world.recorder.no_room = True  # so that the next segment is the spare
            _punch(world, chosen, chosen.choice((BATCH_HOLES, 2 * BATCH_HOLES, chosen.randrange(1, 300))))

        return self._start(cut, work)

    def _start(self, cut: Cut, work: Callable[[World], None]) -> Recording:
        with self._world(cut.ground, cut.legal) as world:
            work(world)
            operations = list(world.operations)
        return Recording(cut.ground, operations, world.history, whole=False, restarted=True)


def _cut(recording: Recording, place: int, policy: str, chosen: Random) -> Cut:
    system = FileSystem(recording.ground.durable)
    system.apply(recording.operations[:place])
    tree = surviving_tree(system, POLICIES[policy], chosen)
    legal = recording.history.legal_at(place)._replace(kept=0)
    return Cut(all_durable(tree), legal, False, f"cut after {recording.told(place)}, of the rest survives: {policy}")


def _fill_the_spare(world: World, chosen: Random) -> None:
    [disk] = world.create((4 * MIB, None, b""))
    fill(world, disk, chosen, 500)
    world.flush()
    world.recorder.no_room = True
    fill(world, disk, chosen, 300, first=500)  # refused when the segment is full
    world.flush()
    _punch(world, chosen, 3 * BATCH_HOLES)


def _punch(world: World, chosen: Random, count: int) -> None:
    """Holes one by one, in no order: they fill batches without data."""
    [disk] = world.state.vdisks()
    blocks = sorted(world.state.things[disk].content.blocks)
    for block in chosen.sample(blocks, min(count, len(blocks))):
        world.zero(disk, block * BLOCK, BLOCK, discard=True)
    world.flush()
