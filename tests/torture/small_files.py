"""What lies beside the pool and is written as a whole: what was found, and secrets.  A power cut leaves it old or new."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from blockdev.targets.chap import ChapFiles, Credential, Credentials

from blockdev import _medium, findings
from blockdev.findings import Known
from tests.torture.file_system import FileSystem, Operation, Tree, planted
from tests.torture.oracle import Wrong
from tests.torture.power_cut import CHOICES, POLICIES, surviving_tree
from tests.torture.recorder import Recorder

VERSIONS = 4
Places = list[int]  # operations by the time that each version was acknowledged
Check = Callable[[str, int], None]  # of a tree, after so many versions were acknowledged


class SmallRecording(NamedTuple):
    tree: Tree
    operations: list[Operation]
    acknowledged: Places
    check: Check


def _findings(root: str, told: Callable[[], None]) -> Check:
    for number in range(VERSIONS):
        findings.save(f"{root}/pool", Known(dropped=number + 1))
        told()

    def check(tree: str, count: int) -> None:
        found = findings.load(f"{tree}/pool")
        if found.findings or found.dropped not in (count, count + 1):
            raise Wrong(f"of {count} versions that were saved the file has {found.dropped}: {found.findings}")

    return check


def _secrets(root: str, told: Callable[[], None]) -> Check:
    files = ChapFiles(Path(root, "keys/targets"))
    wanted = [Credentials(Credential(f"user{number}", f"secret of user {number}".replace(" ", "-"))) for number in range(VERSIONS)]
    names = []
    for one in wanted:
        names.append(files.write(one))
        told()

    def check(tree: str, count: int) -> None:
        kept = ChapFiles(Path(tree, "keys/targets"))
        for name, one in list(zip(names, wanted, strict=True))[:count]:
            if kept.read(name) != one:
                raise Wrong(f"{name} holds another secret")

    return check


SMALL_FILES: dict[str, Callable[[str, Callable[[], None]], Check]] = {"small_findings": _findings, "small_secrets": _secrets}
BEFORE: Tree = {"pool": None, "keys": None}


class SmallFileBench:
    """A directory to run cases in."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def record(self, scenario: str, seed: int) -> SmallRecording:
        with planted(BEFORE, self.directory) as root:
            recorder = Recorder(root, BEFORE)
            acknowledged: Places = []
            _medium.intercept(recorder)
            try:
                check = SMALL_FILES[scenario](root, lambda: acknowledged.append(len(recorder.operations)))
            finally:
                _medium.intercept(None)
        if recorder.unknown:
            raise Wrong(f"the medium did what the recorder does not know: {recorder.unknown}")
        return SmallRecording(BEFORE, recorder.operations, acknowledged, check)

    def run(self, recording: SmallRecording, chosen: Random, told: list[str]) -> Iterator[None]:
        place = chosen.choice([*recording.acknowledged, chosen.randrange(len(recording.operations) + 1)])
        system = FileSystem(recording.tree)
        system.apply(recording.operations[:place])
        name = chosen.choice(CHOICES)
        told.append(f"cut after {place} of {len(recording.operations)} operations, of the rest survives: {name}")
        with planted(surviving_tree(system, POLICIES[name], chosen), self.directory) as root:
            recording.check(root, sum(when <= place for when in recording.acknowledged))
        yield
