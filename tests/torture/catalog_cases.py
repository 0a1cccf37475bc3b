"""Power cuts between catalog and pool: a story of VM operations, a cut anywhere in it, and what both planes make of it.

The story is played once on real files, while all that the engine and SQLite do to the medium is recorded in one order.
A case then cuts the power at one place of it, lets each file be in any state that is legal then, starts both planes on
that (often cut short again, repeatedly), and looks: what a user was told is so; what was under way is whole or not at
all; nothing is left over; another start finds nothing to do.  In some cases the catalog is an older copy than the pool,
put back by somebody: then nothing that exists may be lost or hidden.  Runs in a torture build only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import NamedTuple

from blockdev import _medium
from blockdev.vmmap.model import Agreement
from tests.torture import catalog_medium
from tests.torture.catalog_scenarios import (
    CATALOG_SCENARIOS,
    FROM_POOL_ONLY,
    FROM_VERSIONS,
    PASSWORD,
    Machine,
    build_pool,
    build_world,
    build_world_of_version,
    running,
)
from tests.torture.file_system import FileSystem, Operation, Tree, Write, planted, read_tree
from tests.torture.oracle import Wrong
from tests.torture.power_cut import POLICIES, surviving_tree
from tests.torture.recorder import Recorder
from tests.vmmap.world import Observation, check_agreed

INTERRUPTIONS = (0, 0, 0, 1, 2, 3)  # starts that are cut short before the one that is looked at
OLDER_CATALOGS = 0.1  # of all cases


class Moment(NamedTuple):
    """What a user saw when so many operations of the medium had been made."""

    place: int
    is_acknowledged: bool  # or in the middle of a step, which may end here
    seen: Observation


class Played(NamedTuple):
    """A story, from the tree that it began with."""

    tree: Tree
    operations: list[Operation]
    moments: list[Moment]

    def legal(self, place: int) -> list[Observation]:
        """What may be seen after a cut: what was acknowledged last, and all up to the next acknowledgement."""
        last = max(
            number
            for number, moment in enumerate(self.moments)
            if moment.is_acknowledged and moment.place <= place
        )
        found = [self.moments[last].seen]
        for moment in self.moments[last + 1 :]:
            found.append(moment.seen)
            if moment.is_acknowledged:
                break
        return found

    def cut(self, place: int, policy: str, chosen: Random) -> Tree:
        system = FileSystem(self.tree)
        system.apply(self.operations[:place])
        return surviving_tree(system, POLICIES[policy], chosen)

    def any_place(self, chosen: Random) -> int:
        """Half of them just before or after a sync or a change of names: there outcomes differ most."""
        rare = [place for place, one in enumerate(self.operations) if not isinstance(one, Write)]
        if rare and chosen.random() < 0.5:
            return chosen.choice(rare) + chosen.randrange(2)
        return chosen.randrange(len(self.operations) + 1)


class _Listener:
    """Passes on what happens below one directory, from whichever thread."""

    def __init__(self, root: str, tree: Tree) -> None:
        self.recorder = Recorder(root, tree)
        self._root = root + "/"
        self._lock = threading.RLock()  # the collector may close what an earlier case left, in the middle of a call

    def __call__(
        self, operation: str, fd: int, path: str | None, other: str | None, data: bytes | None, offset: int
    ) -> None:
        if path is None or f"{path}/".startswith(self._root):
            with self._lock:
                try:
                    self.recorder(operation, fd, path, other, data, offset)
                except Exception as error:  # it would be lost in the engine, and in SQLite
                    self.recorder.unknown.append(f"{operation} {path}: {error!r}")


class Homes:
    """A directory with homes to run cases in."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._first_start = self._made_by(build_pool)
        self.world = self._made_by(build_world)
        self._earlier = {
            version: self._made_by(lambda root, version=version: build_world_of_version(root, version))  # type: ignore[misc]
            for version in set(FROM_VERSIONS.values())
        }

    def before(self, scenario: str) -> Tree:
        """The home that it begins with."""
        if scenario in FROM_POOL_ONLY:
            return self._first_start
        return self._earlier[FROM_VERSIONS[scenario]] if scenario in FROM_VERSIONS else self.world

    def _made_by(self, build: Callable[[str], None]) -> Tree:
        with self.home({}) as root:
            build(root)
            return read_tree(root)

    def home(self, tree: Tree) -> AbstractContextManager[str]:
        """One that is this tree in the beginning."""
        return planted(tree, self._directory)


class CatalogBench:
    """The interface of tests.torture.cases.Bench."""

    def __init__(self, directory: str) -> None:
        self._homes = Homes(directory)

    @contextmanager
    def _listening(self, root: str, tree: Tree) -> Iterator[Recorder]:
        listener = _Listener(root, tree)
        _medium.intercept(listener)
        try:
            with catalog_medium.listening(listener):
                yield listener.recorder
        finally:
            _medium.intercept(None)
        if listener.recorder.unknown:
            raise Wrong(f"the medium did what the recorder does not know: {listener.recorder.unknown}")

    def record(self, scenario: str, seed: int) -> Played:
        tree = self._homes.before(scenario)
        moments: list[Moment] = []

        def note(step: str) -> None:
            if step.endswith(":finished"):
                moments.append(Moment(len(recorder.operations), False, machine.observe()))

        with self._homes.home(tree) as root, self._listening(root, tree) as recorder, running(root, note) as machine:
            machine.agree()
            moments.append(Moment(0, True, machine.observe()))
            for step in CATALOG_SCENARIOS[scenario](Random(f"{scenario} {seed}")):
                step(machine)
                moments.append(Moment(len(recorder.operations), True, machine.observe()))
        return Played(tree, recorder.operations, moments)

    def run(self, played: Played, chosen: Random, told: list[str]) -> Iterator[None]:
        """One case; yields when it was found sound.  `told`: how it went, for the message."""
        place = played.any_place(chosen)
        tree = played.cut(place, _any_policy(chosen, told, f"cut after {place} of {len(played.operations)}"), chosen)
        for _ in range(chosen.choice(INTERRUPTIONS)):
            tree = self._interrupted(tree, chosen, told)
        if chosen.random() < OLDER_CATALOGS:
            before = chosen.randrange(place + 1)
            told.append(f"the catalog is that after {before}")
            self._check_with_older(tree, played.cut(before, "everything", chosen))
        else:
            self._check(tree, played.legal(place))
        yield

    def _interrupted(self, tree: Tree, chosen: Random, told: list[str]) -> Tree:
        """What another power cut leaves of a start, an agreement and an end."""
        with self._homes.home(tree) as root, self._listening(root, tree) as recorder, running(root) as machine:
            machine.agree()
        start = Played(tree, recorder.operations, [])
        place = start.any_place(chosen)
        return start.cut(place, _any_policy(chosen, told, f"the start after it, after {place}"), chosen)

    def _check(self, tree: Tree, legal: list[Observation]) -> None:
        with self._homes.home(tree) as root:
            with running(root) as machine:
                machine.agree()
                seen = machine.observe()
                if seen not in legal:
                    raise Wrong(f"a user sees {seen}\nwhere he may see {legal}")
                check_sound(machine, [])
            with running(root) as machine:
                if machine.vms.reconcile() != Agreement() or machine.observe() != seen:
                    raise Wrong("another start changed something")
            kept = [path for path, content in read_tree(root).items() if content and PASSWORD.encode() in content]
            if kept:
                raise Wrong(f"passwords that a catalog is rid of since version 7 are in {kept}")

    def _check_with_older(self, tree: Tree, older: Tree) -> None:
        """Whatever the catalog believes: nothing that exists is lost, all of it is shown under its name."""
        mixed = {path: content for path, content in tree.items() if not path.startswith("catalog.")}
        mixed.update({path: content for path, content in older.items() if path.startswith("catalog.")})
        with self._homes.home(mixed) as root, running(root) as machine:
            before = {(thing.id, thing.name) for thing in machine.engine.objects() if "~" not in str(thing.name)}
            agreement = machine.vms.reconcile()
            receiving = {row.object_id for row in machine.catalog.receipt_disks()}
            after = {(thing.id, thing.name) for thing in machine.engine.objects() if thing.id not in receiving}
            if before != after:
                raise Wrong(f"the pool had {sorted(before)} and has {sorted(after)}")
            check_sound(machine, agreement.missing)


def _any_policy(chosen: Random, told: list[str], what: str) -> str:
    policy = chosen.choice(list(POLICIES))
    told.append(f"{what}, of the rest survives: {policy}")
    return policy


def check_sound(machine: Machine, missing: list[str]) -> None:
    check_agreed(machine.vms, machine.catalog, machine.engine, missing)
    database = machine.catalog._database
    findings = [*machine.pool.check(), *database.execute("PRAGMA foreign_key_check")]
    if findings or database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
        raise Wrong(f"found: {findings}")
