"""Restarts: the process dies in a write, where a name changes or a sync is due; the power goes while the next one starts.

That one finds what the first one did, and may lose it all the same: whatever it builds on it has to make durable first.
Cases of other scenarios come there too, but rarely.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tests.torture.cases import Bench, Cut, Recording
from tests.torture.file_system import Create, FileSystem, Remove, Rename, all_durable
from tests.torture.power_cut import CHOICES, NAMES_ONLY, POLICIES, surviving_tree

MOSTLY = 0.7
IN_A_WRITE = 0.4
CHANGES = (Create, Rename, Remove)
PREFIX = "restart_in_"
RESTARTS = [
    PREFIX + name
    for name in (
        "compaction_twice_over",
        "compaction_after_deletes",
        "checkpoints_reuse_slots",
        "full_file_system",
        "segments_roll",
        "policies",
        "kept_and_flushed",
    )
]


class RestartBench(Bench):
    """Each case is a kill and a power cut."""

    def record(self, scenario: str, seed: int) -> Recording:
        return super().record(scenario.removeprefix(PREFIX), seed)

    def run(self, recording: Recording, chosen: Random, told: list[str]) -> Iterator[None]:
        killed = _kill(recording, chosen)
        told.append(killed.told)
        with self._world(killed.ground, killed.legal) as world:
            world.start()
        started = Recording(killed.ground, world.operations, world.history, whole=False, restarted=True)
        cut = _cut(started, chosen)
        told.append(cut.told)
        with self._world(cut.ground, cut.legal) as world:
            world.start()
            world.inspect()
        yield


def _kill(recording: Recording, chosen: Random) -> Cut:
    """Within a write, or mostly after a name changed, else before or after something that is no write."""
    if chosen.random() < IN_A_WRITE:
        place = chosen.choice(recording.places_of_writes())
        return recording.kill(place, recording.some_pages_at(place, chosen), False)
    place = _after_a_name(recording, chosen)
    if place is None:
        place = chosen.choice(recording.rare_places()) + chosen.randrange(2)
    return recording.kill(place, [], False)


def _cut(started: Recording, chosen: Random) -> Cut:
    """Mostly after the start changed a name, else anywhere in it; mostly names alone are lost."""
    place = _after_a_name(started, chosen)
    if place is None:
        place = chosen.randrange(len(started.ground.operations), len(started.operations) + 1)
    system = FileSystem(started.ground.durable)
    system.apply(started.operations[:place])
    name = NAMES_ONLY if chosen.random() < MOSTLY else chosen.choice(CHOICES)
    tree = surviving_tree(system, POLICIES[name], chosen)
    legal = started.history.legal_at(place)._replace(kept=0)
    return Cut(all_durable(tree), legal, False, f"cut after {started.told(place)}, of the rest survives: {name}")


def _after_a_name(recording: Recording, chosen: Random) -> int | None:
    """A place after one of the changes of names; None: not this time, or there is none."""
    changes = [place for place in recording.rare_places() if isinstance(recording.operations[place], CHANGES)]
    return chosen.choice(changes) + 1 if changes and chosen.random() < MOSTLY else None
