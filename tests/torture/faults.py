"""Each call to the medium fails once, in turn: whatever the operation, nothing wrong is read and nothing durable is lost.

A case is an operation, a fault and a number: a copy of a prepared pool is used until the operation begins, and that call
of the medium after it fails.  Then
  - the error, if there is one, is of the right class and says what to do; a failed log write or log sync has poisoned the
    pool, nothing else has; what failed without poisoning changed nothing, and succeeds when it is asked again;
  - reads go on and are right; a poisoned pool refuses everything that writes;
  - as it is now (a kill), as the disk below has it (a power cut: what a failed sync did not write is lost), and closed or
    dropped: the pool opens, is sound, holds what was acknowledged as durable and a legal state for the rest, and what is
    made durable then survives the next power cut.
In a torture build only:
  PYTHONPATH=build/torture .venv/bin/python -m tests.torture.faults [--operation NAME] [--fault NAME] [--call NUMBER] [--bug NAME]
    [--every N --first K]     one in N calls, from the one with number K on
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from blockdev import _medium, errors
from tests.engine.content import distinct_blocks
from tests.engine.model import blocks_of
from tests.torture.fault_operations import OPERATIONS, Operation, Start, starts
from tests.torture.oracle import Atomic, State, Wrong, settle
from tests.torture.page_cache import PageCache
from tests.torture.trial import Findings, ReadBlocks, Trial, blocks_that_verify, observe_by_name

CASE_SECONDS = 120  # a case takes a tenth of a second; a hang ends the process with a traceback
CHANGES = {
    "create",
    "write",
    "sync",
    "sync_directory",
    "rename",
    "truncate",
    "unlink",
    "make_directory",
    "allocate",
}
WHAT_TO_DO = re.compile(
    r"\b(restart|delete|raise|run|restore|make room|free|try|check|see|choose|write zeros)\b"
)
KILLED = "killed"
Verdict = tuple[int, bool, int]


class Fault(NamedTuple):
    """errno 0: the call succeeds all the same.  moved: bytes that a transfer moves before; negative: all but these."""

    errno: int
    calls: frozenset[str]
    moved: int = 0
    evicted: bool = False  # a failed sync: the page cache forgets what the disk did not take
    lasting: bool = False  # all such calls from there on, until the operation has ended


FAULTS = {
    "eio": Fault(errno.EIO, frozenset(CHANGES | {"open", "read"})),
    "enospc": Fault(errno.ENOSPC, frozenset(CHANGES)),
    "short": Fault(0, frozenset({"read", "write"}), 1000),
    "short-enospc": Fault(errno.ENOSPC, frozenset({"write"}), -700),
    "short-eio": Fault(errno.EIO, frozenset({"write"}), 1000),
    "eio-evicted": Fault(errno.EIO, frozenset({"sync"}), evicted=True),
    "eio-lasting": Fault(errno.EIO, frozenset(CHANGES), lasting=True),
    "edquot-lasting": Fault(errno.EDQUOT, frozenset({"create", "write", "allocate"}), lasting=True),
}


class Hit(NamedTuple):
    """The call that the fault met."""

    operation: str
    path: str
    offset: int


class FaultyMedium:
    """The hook of one case: keeps the page cache's account, and lets one call fail when it is armed."""

    def __init__(self, cache: PageCache) -> None:
        self.cache = cache
        self.fault: Fault | None = None
        self.number = 0  # calls to let pass before
        self.hits: list[Hit] = []
        self.broken: BaseException | None = None  # an exception in a hook would be lost

    def arm(self, fault: Fault, number: int) -> None:
        self.fault, self.number, self.hits = fault, number, []

    def disarm(self) -> None:
        self.fault = None

    def __call__(
        self, operation: str, fd: int, path: str | None, other: str | None, data: bytes | None, offset: int
    ) -> Verdict | None:
        try:
            return self._decide(operation, fd, path or "", other or "", len(data or b""), offset)
        except Exception as broken:
            self.broken = broken
            return None

    def _decide(
        self, operation: str, fd: int, path: str, other: str, length: int, offset: int
    ) -> Verdict | None:
        fault = self.fault
        if fault is None or operation not in fault.calls:
            self.cache.observe(operation, fd, path, other, length, offset)
            return None
        self.number -= 1
        if self.number >= 0:
            self.cache.observe(operation, fd, path, other, length, offset)
            return None
        if not fault.lasting:
            self.disarm()
        self.hits.append(Hit(operation, self.cache.below(path) if path else self.cache.path_of(fd), offset))
        moved = fault.moved if fault.moved >= 0 else max(length + fault.moved, 0)
        if operation == "sync":
            self.cache.lose(fd, fault.evicted)
        elif operation == "write":
            self.cache.observe(
                operation, fd, path, other, length if not fault.errno else min(moved, length), offset
            )
        return fault.errno, False, moved


@dataclass
class Case:
    operation: Operation
    fault_name: str
    number: int

    def __str__(self) -> str:
        return (
            f"PYTHONPATH=build/torture .venv/bin/python -m tests.torture.faults "
            f"--operation {self.operation.name} --fault {self.fault_name} --call {self.number}"
        )


def require(holds: object, what: str) -> None:
    if not holds:
        raise Wrong(what)


class Run:
    """One case under way."""

    def __init__(self, case: Case, start: Start, home: str) -> None:
        self.case = case
        self.fault = FAULTS[case.fault_name]
        self.home = home
        self.copies = 0
        cache = start.cache.copy_to(self.place())
        self.medium = FaultyMedium(cache)
        self.trial = Trial(f"{cache.directory}/pool", start.durable.copy(), start.steps)
        self.failure: errors.BlockdevError | None = None
        self.found = State()  # after a kill where the fault had struck

    def place(self) -> str:
        self.copies += 1
        return f"{self.home}/{self.copies}"

    def run(self) -> bool:
        """Whether the fault met a call."""
        _medium.intercept(self.medium)
        self.case.operation.before(self.trial)
        self.medium.arm(self.fault, self.case.number)
        try:
            self.case.operation.run(self.trial)
        except errors.BlockdevError as failure:
            self.failure = failure.with_traceback(None)
        self.medium.disarm()
        hits = self.medium.hits
        require(hits or self.failure is None, f"failed untouched: {self.failure!r}")
        if hits:
            self.judge_failure(hits)
            if not self.case.operation.reads:
                self.look_at_copies()
        if self.case.operation.opens and self.trial.pool is not None:
            self.trial.take_over(self.read_blocks())
        if hits:
            self.go_on()
        self.end()
        require(self.medium.broken is None, repr(self.medium.broken))
        return bool(hits)

    def read_blocks(self) -> ReadBlocks:
        """How to read the pool while it is open: the fault may have cost blocks until the next start."""
        if self.fault.evicted:
            asked, durable = self.trial.expected(), self.trial.durable
            return blocks_that_verify(State({**durable.things, **asked.things}))
        missed_some = self.case.operation.opens and any(hit.operation == "read" for hit in self.medium.hits)
        return blocks_that_verify(self.found) if missed_some else blocks_of

    # --- while it is open

    def judge_failure(self, hits: list[Hit]) -> None:
        failure = self.failure
        hit_log = any(poisons(hit, self.fault) for hit in hits)
        poisoned = self.trial.pool is not None and bool(self.trial.pool.stats()["poisoned"])
        if self.fault.errno == 0:
            require(failure is None and not poisoned, f"a short transfer did not go on: {hits} {failure!r}")
        if self.trial.pool is not None:
            require(poisoned == hit_log, f"{hits}: poisoned is {poisoned}")
        if failure is None or isinstance(failure, Findings):
            return
        closed = self.trial.pool is None and not self.case.operation.opens
        told_poisoned = isinstance(failure, errors.Poisoned) and (poisoned or (closed and hit_log))
        require(told_poisoned or (not poisoned and right_class(failure, self.fault)), f"{hits}: {failure!r}")
        text = str(failure)
        require(
            "\n" not in text and WHAT_TO_DO.search(text), f"{hits}: this does not say what to do: {text!r}"
        )

    def look_at_copies(self) -> None:
        """What a kill and a power cut leave at this moment."""
        cache = self.medium.cache
        self.found = self.examine(cache.copy_to(self.place()), KILLED)
        if not cache.all_durable():
            self.examine(cache.cut_to(self.place()), "power cut")
        _medium.intercept(self.medium)

    def go_on(self) -> None:
        """Ask again what failed, in the same process; of a poisoned pool only reads."""
        trial = self.trial
        if trial.pool is not None and trial.pool.stats()["poisoned"]:
            refuses_writes(trial)
            if self.failure is not None and trial.steps:
                trial.last_took_effect(self.read_blocks())
            return
        if self.failure is not None and trial.pool is not None and trial.steps:
            took_effect = trial.last_took_effect(self.read_blocks())
            if isinstance(trial.steps[-1], Atomic):
                require(not took_effect, f"{trial.steps[-1].what} failed and took effect")
                trial.steps.pop()
        if trial.pool is None and not self.case.operation.opens:
            trial.open()
            trial.take_over()
        elif self.failure is not None:
            self.case.operation.run(trial)
        if self.case.operation.opens and self.failure is not None:
            trial.take_over()
        if self.failure is not None and not self.case.operation.reads:
            self.examine(self.medium.cache.cut_to(self.place()), "power cut after it was asked again")
            _medium.intercept(self.medium)
        make_durable(trial)
        check_content(trial, self.read_blocks(), "when asked again")

    # --- afterwards

    def end(self) -> None:
        """Close or drop it; what is there then, and what the disk has of it, is sound."""
        trial, cache = self.trial, self.medium.cache
        if trial.pool is None or self.case.number % 2:
            trial.drop()
        elif trial.pool.stats()["poisoned"]:  # it was told before: closing only lets go
            trial.pool.close()
            trial.drop()
        else:
            trial.close()
        cut = None if cache.all_durable() else cache.cut_to(self.place())
        self.examine(cache, "closed")
        if cut is not None:
            self.examine(cut, "power cut after close")

    def examine(self, cache: PageCache, what: str) -> State:
        """Open what an end left: it is legal and sound.  Returns what was found."""
        trial = Trial(f"{cache.directory}/pool", self.trial.durable.copy(), self.trial.steps)
        if not os.path.exists(trial.path):
            require(self.case.operation.start == "nothing", "the pool is gone")
            return State()
        medium = FaultyMedium(cache)
        _medium.intercept(medium)
        try:
            trial.open()
            trial.take_over()
            found = trial.durable.copy()
            if what == KILLED:
                self.cut_again(trial, medium)
                _medium.intercept(medium)
            for look in (trial.opened.check, trial.opened.scrub):  # they also heal: not before the cuts
                require(look() == [], f"{look.__name__} finds {look()}")
            trial.close()
            nothing_left_behind(trial.path)
        except Exception as failure:
            failure.add_note(f"in what was left: {what}")
            raise
        require(medium.broken is None, repr(medium.broken))
        return found

    def cut_again(self, trial: Trial, medium: FaultyMedium) -> None:
        """What becomes durable after a kill and a start survives the next power cut, with all that the start took over."""
        make_durable(trial)
        cuts = [medium.cache.cut_to(self.place())]
        if any(hit.operation == "sync" for hit in self.medium.hits):
            cuts.append(self.cut_in_superblock(trial, medium))
        _medium.intercept(None)
        for cut in cuts:
            again = Trial(f"{cut.directory}/pool", trial.durable)
            again.open()
            check_content(again, blocks_of, "after the next power cut")
            again.close()

    def cut_in_superblock(self, trial: Trial, medium: FaultyMedium) -> PageCache:
        """Half of the next superblock is on the disk: the other one must be there, not only in the page cache."""
        cuts: list[PageCache] = []

        def watch(
            operation: str, fd: int, path: str | None, other: str | None, data: bytes | None, offset: int
        ) -> None:
            medium(operation, fd, path, other, data, offset)
            if operation == "write" and data and "superblock" in medium.cache.path_of(fd):
                cuts.append(medium.cache.cut_to(self.place()))
                torn = f"{cuts[0].directory}/{medium.cache.path_of(fd)}"
                with open(torn, "r+b") as file:
                    file.write(data[:512])

        _medium.intercept(watch)
        trial.checkpoint()
        _medium.intercept(medium)
        return cuts[0]


def refuses_writes(trial: Trial) -> None:
    pool = trial.opened
    disk, snapshot = pool.vdisks()[0], pool.snapshots()[0]
    for ask in (
        lambda: disk.write(0, distinct_blocks(9000, 1)),
        lambda: disk.write(0, distinct_blocks(9000, 1), fua=True),
        lambda: disk.discard(0, 1 << 20),
        disk.flush,
        pool.flush,
        pool.checkpoint,
        lambda: pool.create_vdisk(1 << 20, "refused"),
        lambda: pool.snapshot([disk]),
        lambda: pool.clone(snapshot),
        lambda: pool.delete(disk),
        lambda: pool.resize(disk, 1 << 20),
    ):
        try:
            ask()
        except errors.Poisoned:
            continue
        raise Wrong("a poisoned pool took a write")


def check_content(trial: Trial, read: ReadBlocks, when: str) -> None:
    try:
        settle(trial.expected(), [], observe_by_name(trial.opened, read))
    except Wrong as wrong:
        wrong.add_note(when)
        raise


def poisons(hit: Hit, fault: Fault) -> bool:
    """A failed write or sync of the log does; the header of a new segment is none of the log yet, nor is a rewrite."""
    in_log = hit.path.startswith("pool/segments") and not hit.path.endswith(("/spare", "/rewrite"))
    return (
        fault.errno != 0
        and in_log
        and (
            hit.operation in ("sync", "sync_directory", "truncate")
            or (hit.operation == "write" and hit.offset > 0)
        )
    )


def right_class(failure: errors.BlockdevError, fault: Fault) -> bool:
    """Of a pool that is not poisoned."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return failure.errno == errno.ENOSPC and isinstance(failure, errors.PoolFull | errors.MediumError)
    return failure.errno == errno.EIO and isinstance(failure, errors.MediumError | errors.Corrupt)


def make_durable(trial: Trial) -> None:
    """Change a little of everything, durable on return."""
    things = trial.expected().things
    fresh = 6000 + 1000 * len(things)
    for number, (name, thing) in enumerate(sorted(things.items())):
        if not thing.snapshot:
            trial.write(name, 0, distinct_blocks(fresh + number, 1))
    new = f"new-{fresh}"
    trial.create_vdisk(new, 1 << 20)
    trial.write(new, 4096, distinct_blocks(fresh + 500, 2), fua=True)


def nothing_left_behind(path: str) -> None:
    known = {"LOCK", "superblock-0", "superblock-1", "segments", "map", "dedup", "findings"}
    require(set(os.listdir(path)) <= known, f"left behind: {set(os.listdir(path)) - known}")
    tables = [name for name in os.listdir(f"{path}/map") if name.startswith("checkpoint-")]
    require(len(tables) <= 2, f"left behind: {tables}")
    segments = os.listdir(f"{path}/segments")
    ids = [name.partition(".")[0] for name in segments if name != "spare"]
    require("rewrite" not in segments and len(set(ids)) == len(ids), f"left behind: {segments}")


def run_case(case: Case, start: Start) -> bool:
    """Whether the fault met a call; AssertionError when something is wrong."""
    faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
    home = tempfile.mkdtemp(prefix="blockdev-fault-", dir="/dev/shm")
    descriptors = len(os.listdir("/proc/self/fd"))
    try:
        hit = Run(case, start, home).run()
        require(len(os.listdir("/proc/self/fd")) == descriptors, "descriptors leak")
        return hit
    finally:
        _medium.intercept(None)
        shutil.rmtree(home)
        faulthandler.cancel_dump_traceback_later()


def run_cases(
    operations: list[Operation], fault_names: list[str], begin: dict[str, Start], numbers: count[int]
) -> Iterator[Case]:
    """Every case, after it was run: the next number follows until the fault meets nothing."""
    for operation in operations:
        for fault_name in fault_names:
            for number in copy(numbers):
                case = Case(operation, fault_name, number)
                try:
                    hit = run_case(case, begin[operation.start])
                except Exception as failure:
                    failure.add_note(f"again: {case}")
                    raise
                yield case
                if not hit:
                    break


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operation", choices=[operation.name for operation in OPERATIONS])
    parser.add_argument("--fault", choices=sorted(FAULTS))
    parser.add_argument("--call", type=int)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--bug", choices=[bug.name for bug in _medium.PlantedBug], default="BUG_NONE")
    asked = parser.parse_args()
    operations = [o for o in OPERATIONS if asked.operation in (None, o.name)]
    case_count = 0
    with tempfile.TemporaryDirectory(prefix="blockdev-fault-", dir="/dev/shm") as home:
        begin = starts(home, {operation.start for operation in operations})
        _medium.plant(_medium.PlantedBug[asked.bug])
        try:
            if asked.call is not None:
                run_case(Case(operations[0], asked.fault, asked.call), begin[operations[0].start])
            else:
                numbers = count(asked.first, asked.every)
                for _case in run_cases(operations, [asked.fault] if asked.fault else list(FAULTS), begin, numbers):
                    case_count += 1
        except Exception:
            traceback.print_exc()
            print(f"failed at case {case_count + 1}")
            return 1
    print(f"{case_count} cases over {len(operations)} operations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
