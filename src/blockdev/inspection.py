"""Check and scrub of a pool in use: one inspection at a time, paced, cancellable, its findings kept until they are gone.

A check verifies what describes data: superblocks, checkpoint tables, maps and their nodes, batch headers, indexes.  A
scrub takes a checkpoint first, so that all of that is on disk, and also reads every block.  Both write a copy that does
not verify anew from one that does; else they change nothing.

Threads: Inspector's methods may be called from any.  An inspection runs in the thread that calls `run`, or in one of its
own after `start`; it holds no lock of the pool for longer than a step.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from blockdev import _check, _medium, diagnostics, findings, records, superblock
from blockdev._check import READ_SLOTS, Checker, Reason
from blockdev.clock import now_seconds
from blockdev.constants import BLOCK_BYTES
from blockdev.errors import BlockdevError
from blockdev.findings import DISK_FINDINGS_MAX, FINDINGS_MAX, Finding, InspectionKind, Known, Ran
from blockdev.runner import Pace, Runner

if TYPE_CHECKING:
    from blockdev._pool import Core, VDisk, VDiskSnapshot
    from blockdev.pool import Pool

WALK_STEPS = 64  # leaves of a map between two looks at the clock
NODE_BYTES = 2 * 4608  # both copies
CHECK_SHARE = 32  # a check reads about this part of a segment
ALL_SETTLED = 0xFFFFFFFF
LOOKS = 3  # at a superblock that a checkpoint may be writing


@dataclass(frozen=True)
class Subject:
    """The pool that is inspected."""

    path: str
    core: Core
    things: Callable[[], list[VDisk | VDiskSnapshot]]
    tend_memory: Callable[[], None]
    checkpoint: Callable[[], None] | None  # None: nothing may be written
    unsettled: int = ALL_SETTLED  # segments from this one on may be without an index


class Report(NamedTuple):
    """What an inspection that came to its end found."""

    kind: InspectionKind
    findings: tuple[Finding, ...]
    dropped: int  # findings that are not named
    healed: tuple[str, ...]
    done_bytes: int


class Inspection:
    """One check or scrub, from `run` to its report."""

    def __init__(self, subject: Subject, kind: InspectionKind, pace: Pace) -> None:
        self.subject = subject
        self.kind = kind
        self.total_bytes = 0
        self._pace = pace
        self._checker: Checker | None = None
        self._findings: list[Finding] = []
        self._healed: list[str] = []
        self._dropped = 0

    @property
    def done_bytes(self) -> int:
        return min(self._pace.done_bytes, self.total_bytes)

    def damage_count(self) -> int:
        """Found so far, before it is known whom it hits."""
        return self._checker.damage_count if self._checker else 0

    def run(self) -> Report:
        """Cancelled; Gone when the pool is closed meanwhile."""
        if self.kind == "scrub":
            self._take_checkpoint()
        heal = self.subject.checkpoint is not None
        checker = self._checker = Checker(self.subject.core, heal, self.subject.unsettled)
        self.total_bytes = checker.nodes_expected * NODE_BYTES + self._share(self.subject.core.stats()["segment_bytes"])
        self._inspect_superblocks()
        for thing in self.subject.things():
            self._walk(checker, thing)
        for id in checker.segment_ids():
            self._inspect_segment(checker, id)
        if checker.damage_count:
            self._attribute(checker)
        self._take_faults(checker)
        self.total_bytes = self._pace.done_bytes
        named, dropped = findings.bounded(self._findings, self._dropped)
        return Report(self.kind, named, dropped, tuple(self._healed), self.total_bytes)

    def _share(self, segment_bytes: int) -> int:
        return segment_bytes if self.kind == "scrub" else segment_bytes // CHECK_SHARE

    def _take_checkpoint(self) -> None:
        """What the maps hold is on disk then, and what the log before it holds is of no consequence."""
        if self.subject.checkpoint is not None:
            with contextlib.suppress(BlockdevError):  # poisoned, or full: it is verified as it is
                self.subject.checkpoint()

    # superblocks and tables

    def _inspect_superblocks(self) -> None:
        damage = superblock_damage(self.subject.path)
        if damage and self.subject.checkpoint is not None:
            self._take_checkpoint()  # each writes one superblock and its table
            self._take_checkpoint()
            left = superblock_damage(self.subject.path)
            self._healed += [f"{what}: written anew" for what in damage if what not in left]
            damage = left
        self._findings += [Finding("pool", "", what) for what in damage]

    # maps

    def _walk(self, checker: Checker, thing: VDisk | VDiskSnapshot) -> None:
        block: int | None = 0
        while block is not None:
            before = checker.nodes
            block = checker.walk(thing, block, WALK_STEPS)
            self._pace.spend((checker.nodes - before) * NODE_BYTES)
            self.subject.tend_memory()
        if not _check.has_fitting_map(thing):
            what = "its map does not fit its size"
            self._findings.append(Finding("map", "", what, False, thing.id, thing.name or ""))

    # segments

    def _inspect_segment(self, checker: Checker, id: int) -> None:
        with self.subject.core.segment_work:
            slot_count = checker.check_segment(id)
        if self.kind == "check":
            self._pace.spend(self._share(slot_count * BLOCK_BYTES))
            return
        for first in range(0, slot_count, READ_SLOTS):
            count = min(READ_SLOTS, slot_count - first)
            with self.subject.core.segment_work:
                checker.check_slots(id, first, count)
            self._pace.spend(count * BLOCK_BYTES)

    def _take_faults(self, checker: Checker) -> None:
        faults, dropped = checker.faults()
        if any(healed for _reason, healed, *_place in faults):
            checker.sync()
        self._dropped += dropped
        for reason, healed, where, place, count in faults:
            found = findings.of_fault(reason.name, healed, where, place, count)
            if healed:
                self._healed.append(found.what)
            else:
                self._findings.append(found)

    # whom it hits

    def _attribute(self, checker: Checker) -> None:
        checker.begin_attribution()
        things = self.subject.things()
        for number, thing in enumerate(things):
            room = FINDINGS_MAX - len(self._findings) - (len(things) - number)  # each of them may need one
            runs, blocks = self._reached_by(checker, thing, max(0, min(room, DISK_FINDINGS_MAX)))
            self._findings += [_finding(thing, run) for run in runs]
            left = blocks - sum(run.block_count for run in runs)
            if left > 0:
                what = f"{left * BLOCK_BYTES}{' more' if runs else ''} bytes cannot be read"
                self._findings.append(Finding("rest", "", what, self.kind == "scrub", thing.id, thing.name or ""))

    def _reached_by(
        self, checker: Checker, thing: VDisk | VDiskSnapshot, runs_max: int
    ) -> tuple[list[Run], int]:
        """The first runs of damaged blocks of one disk, and how many such blocks it has in all."""
        runs: list[Run] = []
        block: int | None = 0
        total = 0
        while block is not None:
            block, count, hits = checker.attribute(thing, block, len(runs) < runs_max, WALK_STEPS)
            total += count
            for hit in hits:
                _join(runs, Run(*hit))
            self._pace.spend(0)
            self.subject.tend_memory()
        return runs[:runs_max], total


class Run(NamedTuple):
    """Blocks of one disk that are damaged in the same way: neighbours there and in their segment."""

    block: int
    block_count: int
    address: int  # of the first; of a node: its id
    reason: Reason
    level: int  # of a node


def _join(runs: list[Run], new: Run) -> None:
    last = runs[-1] if runs else None
    if (
        last is not None
        and new.reason is last.reason is not Reason.BAD_NODE
        and new.block == last.block + last.block_count
        and new.address == last.address + last.block_count
    ):
        runs[-1] = last._replace(block_count=last.block_count + new.block_count)
    else:
        runs.append(new)


def _finding(thing: VDisk | VDiskSnapshot, run: Run) -> Finding:
    offset = run.block * BLOCK_BYTES
    length = min(run.block_count * BLOCK_BYTES, thing.size_bytes - offset)
    place = (thing.id, thing.name or "", offset, length, run.address, run.level)
    if run.reason is Reason.BAD_NODE:
        return Finding("node", run.reason.name, f"map node {run.address} does not verify in either copy", False, *place)
    content = run.reason in (Reason.BAD_BLOCK, Reason.UNREADABLE_BLOCK)
    what = findings.of_block(run.reason.name, run.address, run.block_count)
    return Finding("block", run.reason.name, what, content, *place)


def superblock_damage(path: str) -> list[str]:
    """What is wrong with superblocks and checkpoint tables.  A checkpoint may be writing them: only what stays counts."""
    found = _look_at_superblocks(path)
    for _again in range(LOOKS - 1):
        if found:
            later = _look_at_superblocks(path)
            found = [what for what in found if what in later]
    return found


def _look_at_superblocks(path: str) -> list[str]:
    found = []
    for which in (0, 1):
        name = os.path.basename(superblock.path_of(path, which))
        try:
            block = superblock.decode(
                _medium.read_file(superblock.path_of(path, which), superblock.SUPERBLOCK_BYTES)
            )
        except (BlockdevError, OSError):
            found.append(f"{name} does not verify")
            continue
        if block.sequence % 2 != which:
            found.append(f"{name} has sequence {block.sequence}, which belongs into the other")
        if not _table_verifies(path, block):
            found.append(f"checkpoint-{block.checkpoint_number}, which {name} names, does not verify")
    return found


def _table_verifies(path: str, block: superblock.Superblock) -> bool:
    try:
        content = _medium.read_file(f"{path}/map/checkpoint-{block.checkpoint_number}", block.checkpoint_bytes)
        records.decode_table(content)
    except (BlockdevError, OSError):
        return False
    return (
        len(content) == block.checkpoint_bytes
        and xxhash.xxh3_64_intdigest(content) == block.checkpoint_checksum
    )


class Inspector(Runner[Report]):
    """The inspections of one pool, and what they found."""

    def __init__(self, core: Core, path: str) -> None:
        """path: of the pool."""
        super().__init__(core)
        self._path = path
        self._known_lock = threading.Lock()  # guards what follows; taken without `_lock`
        self._known: Known | None = None
        self.checksum_errors_scrubbed = 0  # that guests had met when the latest scrub that came to its end began
        self._checksum_errors_begun = 0  # when the latest inspection began

    def _make(self, pool: Pool, kind: str, pace: Pace) -> Inspection:
        self._checksum_errors_begun = self._core.stats()["checksum_errors"]
        return Inspection(subject_of(pool), "scrub" if kind == "scrub" else "check", pace)

    # what is known

    def known(self) -> Known:
        """What the last check and the last scrub found and is still there."""
        pool = self._core.pool()
        with self._known_lock:
            known = self._load()
            if pool is None or self._core.closed or not known.findings:
                return known
            left = findings.still_there(known.findings, _by_id(pool))
            if left != known.findings:
                self._store(known._replace(findings=left))
            return self._load()

    def _keep(self, report: Report) -> Report:
        """Put what an inspection found in the place of what was known.

        A check does not read all blocks, but it looks again at those that a scrub found damaged.
        """
        pool = self._core.pool()
        if pool is None or self._core.closed:
            return report
        with self._known_lock:
            known = self._load()
            if report.kind == "check":
                by_scrub = tuple(finding for finding in known.findings if finding.by_scrub)
                left = findings.still_damaged(findings.still_there(by_scrub, _by_id(pool)), _by_id(pool))
                named, dropped = findings.bounded((*report.findings, *left), report.dropped)
                report = report._replace(findings=named, dropped=dropped)
            ran = Ran(now_seconds(), report.done_bytes, len(report.findings) + report.dropped, len(report.healed))
            if report.kind == "scrub":
                self.checksum_errors_scrubbed = self._checksum_errors_begun
            known = known._replace(findings=report.findings, dropped=report.dropped)
            self._store(known._replace(check=ran) if report.kind == "check" else known._replace(scrub=ran))
        return report

    def _load(self) -> Known:
        if self._known is None:
            self._known = findings.load(self._path)
        return self._known

    def _store(self, known: Known) -> None:
        self._known = known
        try:
            findings.save(self._path, known)
        except (BlockdevError, OSError) as failure:  # a full disk must not hide what was found
            diagnostics.report(f"what was found cannot be kept: {failure}")


def subject_of(pool: Pool) -> Subject:
    """A pool that is open and may be written."""
    return Subject(pool.path, pool.core, pool.things, pool.tend_memory, pool.checkpoint)


def _by_id(pool: Pool) -> dict[int, VDisk | VDiskSnapshot]:
    return {thing.id: thing for thing in pool.things()}
