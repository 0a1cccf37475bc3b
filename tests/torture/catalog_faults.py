"""One of SQLite's calls to the medium fails in the middle of an operation: a user hears of it, and nothing is half done.

A case is an operation on the world of tests.vmmap.world, the number of the call that fails, how it fails, and whether
all that follow fail, too, until there is room again.  Then the next change must be done, on agreed ground; or both
planes start anew.  Runs in a torture build only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

from blockdev.errors import BlockdevError, MediumError, PoolFull
from blockdev.vmmap.service import VMs
from tests.torture import catalog_medium
from tests.torture.catalog_cases import Homes, check_sound
from tests.torture.catalog_scenarios import Machine, running
from tests.torture.oracle import Wrong
from tests.vmmap.receiving import ALL_OPERATIONS
from tests.vmmap.world import MEBIBYTE, Observation

CATALOG_FAULTS = {f"catalog_fault_{name.replace(' ', '_')}": operation for name, operation in ALL_OPERATIONS.items()}
NEVER = 1 << 30
COUNTED = ("write", "sync", "truncate")
MANNERS = {
    "no room": (errno.ENOSPC, 0),
    "room for some bytes": (errno.ENOSPC, 100),
    "an I/O error": (errno.EIO, 0),
    "an I/O error after some bytes": (errno.EIO, 1000),
}


class Counted(NamedTuple):
    """An operation that met no fault."""

    change: Callable[[VMs], object]
    call_count: int
    legal: list[Observation]  # what may be seen when it fails; the last: when it does not


class _Faults:
    """The hook: counts SQLite's calls and lets some fail."""

    def __init__(self) -> None:
        self.begin(0, 0, "no room")

    def begin(self, first: int, end: int, manner: str) -> None:
        """Count from 0; the calls `first` to `end` - 1 fail."""
        self.count = 0
        self._failing = range(first, end)
        error, limit_bytes = MANNERS[manner]
        self._verdict = (error, False, limit_bytes)

    def __call__(self, operation: str, *_call: object) -> catalog_medium.Verdict | None:
        if operation not in COUNTED:
            return None
        self.count += 1
        return self._verdict if self.count - 1 in self._failing else None


class CatalogFaultBench:
    """The interface of tests.torture.cases.Bench."""

    def __init__(self, directory: str) -> None:
        self._homes = Homes(directory)

    @contextmanager
    def _machine(self, faults: _Faults, note: Callable[[str], None] | None = None) -> Iterator[Machine]:
        with (
            self._homes.home(self._homes.world) as root,
            catalog_medium.listening(faults),
            running(root, note) as machine,
        ):
            machine.agree()
            yield machine
            faults.begin(0, 0, "no room")

    def record(self, scenario: str, _seed: int) -> Counted:
        change = CATALOG_FAULTS[scenario]
        faults, seen = _Faults(), []

        def note(step: str) -> None:
            if step.endswith(":finished"):
                seen.append(machine.observe())

        with self._machine(faults, note) as machine:
            seen.append(machine.observe())
            faults.begin(0, 0, "no room")
            change(machine.vms)
            call_count = faults.count
            seen.append(machine.observe())
        return Counted(change, call_count, seen)

    def run(self, counted: Counted, chosen: Random, told: list[str]) -> Iterator[None]:
        """One case; yields when it was found sound.  `told`: how it went, for the message."""
        first, manner = chosen.randrange(counted.call_count), chosen.choice(list(MANNERS))
        end = first + 1 if chosen.random() < 0.5 else NEVER
        told.append(f"calls {first} to {end - 1} of {counted.call_count}: {manner}")
        faults = _Faults()
        with self._machine(faults) as machine:
            faults.begin(first, end, manner)
            failure = _failure_of(lambda: counted.change(machine.vms))
            told.append(f"the user was told: {failure}")
            faults.begin(0, 0, manner)
            if chosen.random() < 0.3:
                machine.restart_control()
            machine.vms.create_vm("next", [("root", MEBIBYTE)])
            machine.vms.delete_vm("next")
            seen = machine.observe()
            if seen not in (counted.legal if failure else counted.legal[-1:]):
                raise Wrong(f"a user sees {seen}\nwhere he may see {counted.legal}")
            check_sound(machine, [])
        yield


def _failure_of(change: Callable[[], object]) -> BlockdevError | None:
    try:
        change()
    except (PoolFull, MediumError) as error:
        return error
    return None
