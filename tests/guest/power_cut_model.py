"""What the disks of a machine may hold after a power cut, from what was asked of them and what was acknowledged.

A lane is one writer with a range of a disk of its own; it has at most one request under way.  Its steps have numbers that
only grow, over all power cuts, and each sector it writes says lane and step (tests.engine.content.stamped).
Known content is what was read after the last start: from then on it must not go away again.

What survives is a prefix of what was replied to, over all disks: with a step, all steps survive that were replied to before
that one was begun.  A step under way at the end may have left any of its sectors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.engine.content import read_stamps
from tests.engine.model import SECTOR

SHOWN_MAX = 10


@dataclass
class Step:
    """One request; bytes count from the start of the disk, times are ticks of one clock for all lanes."""

    number: int
    offset: int
    length: int
    zeros: bool  # else stamps
    begun: int
    replied: int | None = None


@dataclass
class Lane:
    """A writer and what it did since the last start.

    `steps` are begun, the first `replied` of them answered, and the first `durable` of them covered by a flush that was
    acknowledged, as are those with a number in `certain`, by FUA.
    """

    writer: int
    export: str
    offset: int
    length: int
    number: int = 0  # of the latest step
    steps: list[Step] = field(default_factory=list)
    replied: int = 0
    durable: int = 0
    certain: set[int] = field(default_factory=set)

    def begin(self, offset: int, length: int, zeros: bool, now: int) -> Step:
        self.number += 1
        step = Step(self.number, self.offset + offset, length, zeros, now)
        self.steps.append(step)
        return step

    def end(self, step: Step, now: int) -> None:
        step.replied = now
        self.replied += 1

    def forget(self) -> None:
        """What it did is known content from now on."""
        self.steps, self.replied, self.durable, self.certain = [], 0, 0, set()


@dataclass
class Holding:
    """What a disk holds where a lane writes: `known` before its first step, and no step but the first `begun` ones.

    The first `done` steps must be there, and those with numbers in `certain`.
    """

    lane: Lane
    found: bytes
    known: bytes
    begun: int
    done: int
    certain: Collection[int] = ()


def check_together(holdings: Sequence[Holding]) -> None:
    """AssertionError when disks of one instant do not hold what they must, or hold anything else."""
    looks = [_Look(holding) for holding in holdings]
    newest = max((look.newest for look in looks), default=-1)
    wrong = [line for look in looks for line in look.wrong(newest)]
    shown = "\n  ".join(wrong[:SHOWN_MAX])
    assert not wrong, f"{len(wrong)} sectors do not hold what is acknowledged\n  {shown}"


class _Look:
    """The sectors of a holding.  The arrays have one item a sector."""

    def __init__(self, holding: Holding) -> None:
        self.holding, self.lane = holding, holding.lane
        part = slice(self.lane.offset, self.lane.offset + self.lane.length)
        found, known = holding.found[part], holding.known[part]
        stamps = np.array(read_stamps(found, part.start), dtype=np.uint64)
        self.writer, self.number = stamps[:, 0], stamps[:, 1]
        differing = np.frombuffer(found, np.uint8) != np.frombuffer(known, np.uint8)
        self.is_known = ~differing.reshape(-1, SECTOR).any(axis=1)
        self.is_step = np.zeros(len(stamps), bool)  # it holds what a step wrote there
        self.newest_zeros = np.zeros(len(stamps), np.uint64)  # the latest step that may have zeroed it
        self.newest = -1  # when the latest step was begun of which a sector is there
        for step in self._steps():
            self._allow(step)

    def _steps(self) -> list[Step]:
        return self.lane.steps[: self.holding.begun]

    def _place(self, step: Step) -> slice:
        first = (step.offset - self.lane.offset) // SECTOR
        return slice(first, first + step.length // SECTOR)

    def _allow(self, step: Step) -> None:
        at = self._place(step)
        if step.zeros:
            self.newest_zeros[at] = step.number
            return
        here = (self.number[at] == step.number) & (self.writer[at] == self.lane.writer)
        self.is_step[at] |= here
        if here.any():
            self.newest = max(self.newest, step.begun)

    def wrong(self, newest: int) -> list[str]:
        """The sectors that are wrong if a step begun at `newest` is there."""
        floor = np.zeros(len(self.number), np.uint64)  # the latest step that must be there
        for index, step in enumerate(self._steps()):
            is_before = step.replied is not None and step.replied < newest
            if index < self.holding.done or is_before or step.number in self.holding.certain:
                floor[self._place(step)] = step.number
        unchanged = self.is_known & (floor == 0)
        zeros = (self.writer == 0) & (self.newest_zeros > 0) & (self.newest_zeros >= floor)
        written = self.is_step & (self.number >= floor)
        return [
            f"{self.lane.export}, sector {self.lane.offset // SECTOR + at}: step {self.number[at]} of writer "
            f"{self.writer[at]}, not {floor[at]} or later of writer {self.lane.writer}"
            for at in np.flatnonzero(~(unchanged | zeros | written))
        ]
