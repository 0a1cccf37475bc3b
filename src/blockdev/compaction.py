"""Giving space back: a round marks what the maps reach, then rewrites or removes the segments that hold much else.

The order of the steps, and why nothing that is needed can go, is in _compact.pxd.  Interrupted anywhere, by a cancellation,
a failure or a power cut, a round leaves a sound pool in which some segments are rewritten and the others are as they were.

Threads: as Runner; a round holds no lock of the pool for longer than a step, checkpoints apart.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from blockdev import diagnostics
from blockdev._compact import Marker, Packing, lend_spare, roll_log, trim_nodes
from blockdev.clock import monotonic_seconds
from blockdev.constants import BLOCK_BYTES
from blockdev.errors import Busy, Gone, MediumError, PoolFull
from blockdev.policies import AS_POOL, Compression, decode_disk_policy
from blockdev.records import KIND_SNAPSHOT, ObjectState
from blockdev.recovery import list_segments
from blockdev.runner import Pace, Runner, State, Work

if TYPE_CHECKING:
    from blockdev._pool import Core
    from blockdev.pool import MarkBase, Pool

NODE_BYTES = 4608  # in each of the two node files
MARK_NODES = 64  # between two looks at the clock
REWRITE_SLOTS = 256
KEPT_NAMED = 20  # segments that could not be rewritten, in a report
CLOSED_AT_ONCE = 16  # segments that take no dedup hits meanwhile
DEAD_SHARE = 0.25  # of a segment's blocks: with less it is left alone
DEAD_SHARE_EAGER = 0.02
COMPACT, RECLAIM = "compact", "reclaim"  # a round that somebody asked for; one of the pool's own
IDLE_RATE_BYTES = 100 << 20  # a second, of a round that nobody waits for
IDLE_SECONDS = 600.0
PAUSE_SECONDS = 5.0  # between two rounds of the pool's own, unless a write waits for room
ADDED_BYTES_MIN = 256 << 20
SOON_BYTES_MIN = 64 << 20  # written since the last round, where blocks are to be compressed soon,
SOON_SHARE = 16  # and this part of what the pool holds: a round looks at all its maps
PACKINGS: dict[Compression, Packing] = {
    "off": Packing.PACK_NEVER,
    "inline": Packing.PACK_SOON,
    "cold": Packing.PACK_COLD,
}


class CompactionReport(NamedTuple):
    """What a round did."""

    segments_removed: int
    segments_rewritten: int
    nodes_freed: int  # slots of the node files that can be used again
    freed_bytes: int  # given back to the file system, by segments and node files
    copied_bytes: int  # live blocks that were read to be written again
    live_bytes: int  # in the blocks that a map reaches, of the segments that were looked at
    kept: tuple[str, ...]  # segments that could not be rewritten, and why


class Candidate(NamedTuple):
    """A segment that a round may rewrite."""

    id: int
    dead_share: float  # of its blocks
    size_bytes: int  # of its file


class Compaction:
    """One round, from `run` to its report.  Its steps can be called one by one: begin, mark, free_nodes, rewrite, end."""

    def __init__(self, pool: Pool, pace: Pace, *, eager: bool = True, cold_end: int = 0) -> None:
        """eager: look at all that was ever written, compress it, and take small gains too.

        cold_end: segments below are compressed even if they hold nothing dead.
        """
        self.kind = COMPACT if eager else RECLAIM
        self.total_bytes = 0
        self.segment_end = 0  # segments below were looked at
        self._cold_end = cold_end
        self._pool = pool
        self._pace = pace
        self._eager = eager
        self._marker = Marker(pool.core)
        self._base: MarkBase | None = None
        self._removed = self._rewritten = self._nodes_freed = 0
        self._freed_bytes = self._copied_bytes = self._live_bytes = 0
        self._kept: list[str] = []
        self._patient = False  # a newer look gave nothing back: go on with this one to its end

    @property
    def done_bytes(self) -> int:
        return min(self._pace.done_bytes, self.total_bytes)

    def run(self) -> CompactionReport:
        """Cancelled; Corrupt when a map node cannot be read, Gone when the pool is closed meanwhile."""
        while not self._pass():
            pass
        self.trim()
        self.total_bytes = self._pace.done_bytes
        return CompactionReport(
            self._removed,
            self._rewritten,
            self._nodes_freed,
            max(self._freed_bytes, 0),
            self._copied_bytes,
            self._live_bytes,
            (*self._kept[:KEPT_NAMED], *self._kept_more()),
        )

    def _pass(self) -> bool:
        """From a checkpoint to the last segment; False when a writer that waits for room calls for a newer look."""
        freed_before, lsn = self._freed_bytes, self._pool.core.stats()["next_lsn"]
        self._pool.compactor.starved.clear()
        try:
            self.begin()
            self.mark()
            self.free_nodes()
            complete = self.rewrite()
        finally:
            self.end()
        if not complete and self._freed_bytes <= freed_before:
            self._pool.core.found_no_room(lsn)
            self._patient = True
        return complete

    def _kept_more(self) -> list[str]:
        more = len(self._kept) - KEPT_NAMED
        return [f"{more} more segments could not be rewritten"] if more > 0 else []

    def begin(self) -> None:
        if self._eager:
            with contextlib.suppress(PoolFull):  # then what the newest segment holds waits for the next round
                roll_log(self._pool.core)
        self._marker.begin(self._pool.segment_end())
        base = self._base = self._take_base()
        self.segment_end = base.segment_end
        table = base.table
        packings = packings_of(table.objects, self._pool.policy.compression)
        roots = [(thing.root, thing.height, packings[thing.id]) for thing in table.objects]
        self._marker.aim(base.segment_end, table.next_node_id, roots, table.free_ids, table.retired)
        stats = self._pool.core.stats()
        self.total_bytes = stats["map_bytes"] // 2 + stats["segment_bytes"]

    def _take_base(self) -> MarkBase:
        try:
            return self._pool.take_mark_base()
        except (MediumError, PoolFull) as failure:
            if failure.errno != errno.ENOSPC:
                raise
        lend_spare(self._pool.core, True)  # a checkpoint needs little, and nothing comes back without it
        return self._pool.take_mark_base()

    def mark(self) -> None:
        """Find out what is live."""
        before = 0
        more = True
        while more:
            more = self._marker.mark(MARK_NODES)
            self._pace.spend((self._marker.nodes - before) * NODE_BYTES)
            before = self._marker.nodes

    def free_nodes(self) -> None:
        """Let node slots that no map reaches be used again, two checkpoints from now."""
        assert self._base is not None
        self._nodes_freed += self._marker.retire(self._base.table.generation)

    def rewrite(self) -> bool:
        """Rewrite or remove segments, those first that give back most for what is to be copied.

        False: it ended where little more was to be given back, as a writer waits for room.
        """
        live = self._marker.live_blocks()
        self._live_bytes = sum(live.values()) * BLOCK_BYTES
        self._rewrite_all([id for id, blocks in live.items() if blocks == 0])
        candidates = sorted(self._candidates(live), key=lambda candidate: (-candidate.dead_share, candidate.id))
        self.total_bytes = self._pace.done_bytes + sum(candidate.size_bytes for candidate in candidates)
        for first in range(0, len(candidates), CLOSED_AT_ONCE):
            group = candidates[first : first + CLOSED_AT_ONCE]
            if self._pool.compactor.starved.is_set():
                self._pace.hurry()
                if group[0].dead_share < DEAD_SHARE and not self._patient:
                    return False
            self._rewrite_all([candidate.id for candidate in group])
        return True

    def _candidates(self, live: dict[int, int]) -> Iterator[Candidate]:
        """Of the segments that have live blocks."""
        files = {id: (generation, size) for id, generation, size in list_segments(f"{self._pool.path}/segments")}
        for id, live_blocks in live.items():
            if live_blocks == 0:
                continue
            self._pace.spend(0)
            generation, size_bytes = files.get(id, (0, 0))
            blocks = self._marker.block_count(id)
            if blocks is None:
                self._kept.append(f"segment {id:08x} cannot be opened, or parts of it cannot be read")
                continue
            dead_share = 1 - live_blocks / blocks
            if dead_share >= (DEAD_SHARE_EAGER if self._eager else DEAD_SHARE) or self._is_to_be_packed(
                id, generation, live_blocks
            ):
                yield Candidate(id, dead_share, size_bytes)

    def _is_to_be_packed(self, id: int, generation: int, live_blocks: int) -> bool:
        """Whether a segment whose blocks were counted is to be compressed, or compressed no more."""
        if generation == 0:
            plain = self._marker.plain_blocks(id)
            soon = 2 * self._marker.soon_blocks(id) >= live_blocks
            return plain < live_blocks and (self._eager or id < self._cold_end or soon)
        if not self._eager:
            return False
        odd, frames = self._marker.odd_frames(id)
        return odd > DEAD_SHARE_EAGER * frames

    def _rewrite_all(self, ids: list[int]) -> None:
        """Rewrite or remove segments, which take no references meanwhile."""
        if not ids:
            return
        self._marker.close(ids)
        # blocks that were referred to since they were chosen are live now
        live = self._marker.live_blocks(ids)
        try:
            for id in ids:
                self._compact(id, live[id])
        finally:
            self._marker.reopen(ids)

    def _compact(self, id: int, live: int) -> None:
        """Rewrite one closed segment, or leave it as it is."""
        try:
            if live == 0:
                with self._pool.core.segment_work:
                    self._freed_bytes += self._marker.remove(id)
                self._removed += 1
                return
            if not self._pool.has_room(live * BLOCK_BYTES):
                self._kept.append(f"segment {id:08x}: the pool has no room for its live blocks")
                return
            self._marker.rewrite_begin(id, self._pool.policy.compression_level)
            more = True
            while more:
                more = self._marker.rewrite(REWRITE_SLOTS)
                self._pace.spend(REWRITE_SLOTS * BLOCK_BYTES)
            with self._pool.core.segment_work:
                self._freed_bytes += self._marker.rewrite_end()
            self._rewritten += 1
            self._copied_bytes += live * BLOCK_BYTES
        except MediumError as failure:
            self._kept.append(failure.message)

    def end(self) -> None:
        """Be done with it, wherever it is."""
        self._marker.end()
        if self._base is not None:
            self._pool.release_mark_base(self._base)
            self._base = None
        lend_spare(self._pool.core, False)

    def trim(self) -> None:
        """Shorten the node files by what is free at their ends by now."""
        if self._nodes_freed:
            self._pool.checkpoint_if_room()
        with self._pool.no_checkpoint():
            self._freed_bytes += 2 * NODE_BYTES * trim_nodes(self._pool.core)


class Compactor(Runner[CompactionReport]):
    """The rounds of one pool: those that somebody asks for, and those that the pool begins by itself.

    The pool's own look at what gives back much, and compress what a round before has seen: that is cold.
    """

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.starved = threading.Event()  # a write waits for room
        self._cold_end = 0
        # the latest round; before the first one: now, and that it was no round
        self._begun = change_of(core.stats())._replace(lsn=-1)

    def _gives_way(self, running: str, to: str) -> bool:
        return (running, to) == (RECLAIM, COMPACT)

    def tend(self, stats: dict[str, int]) -> None:
        """Begin a round of the pool's own if one is due.  stats: Pool.stats()."""
        if self._core.starved():
            self.starved.set()
        now, available_bytes = change_of(stats), stats["available_bytes"]
        hurry = self.starved.is_set() or available_bytes < stats["segment_bytes"]
        if self.progress() is not None:
            if self.starved.is_set():
                self.hurry()
            return
        if self.starved.is_set() or self._begun.calls_for_round(now, available_bytes) or self._packs_soon(now, stats):
            with contextlib.suppress(Busy, Gone):  # somebody was faster
                self.start(RECLAIM, None if hurry else self._rate_bytes())

    def _rate_bytes(self) -> int:
        """What a round that nobody waits for may read in a second."""
        pool = self._core.pool()
        return (pool and pool.policy.compaction_rate_bytes) or IDLE_RATE_BYTES

    def _packs_soon(self, now: Change, stats: dict[str, int]) -> bool:
        """Whether enough was written for a round of its own, and a disk wants it compressed."""
        pool = self._core.pool()
        added = now.added_bytes - self._begun.added_bytes
        if pool is None or added < max(SOON_BYTES_MIN, stats["segment_bytes"] // SOON_SHARE):
            return False
        if now.seconds - self._begun.seconds < PAUSE_SECONDS:
            return False
        usual = pool.policy.compression
        return usual == "inline" or any(vdisk.policy.compression == "inline" for vdisk in pool.vdisks())

    def _make(self, pool: Pool, kind: str, pace: Pace) -> Compaction:
        self._begun = change_of(self._core.stats())
        return Compaction(pool, pace, eager=kind == COMPACT, cold_end=self._cold_end)

    def _before_over(self, work: Work[CompactionReport], state: State) -> None:
        pool = self._core.pool()
        if state == "done" and isinstance(work, Compaction):
            self._cold_end = work.segment_end
        if state == "cancelled" or pool is None or self._core.closed:
            return
        self.starved.clear()
        if not pool.has_room_for_guests():
            self._core.found_no_room(self._begun.lsn)

    def _keep(self, report: CompactionReport) -> CompactionReport:
        for reason in report.kept:
            diagnostics.report(f"compaction: {reason}")
        return report


def packings_of(objects: Sequence[ObjectState], usual: Compression) -> dict[int, Packing]:
    """Object id -> what its policy says of its blocks; a snapshot follows its vdisk while that is there."""
    policies = {thing.id: decode_disk_policy(thing.policy) for thing in objects}
    return {
        thing.id: PACKINGS[
            policies.get(thing.origin_id if thing.kind == KIND_SNAPSHOT else thing.id, AS_POOL).compression or usual
        ]
        for thing in objects
    }


class Change(NamedTuple):
    """How far the pool had come when a round began."""

    lsn: int
    added_bytes: int
    seconds: float

    def calls_for_round(self, now: Change, available_bytes: int) -> bool:
        """The less room there is, the less must have been written since for another look to be worth it."""
        waited = now.seconds - self.seconds
        added = now.added_bytes - self.added_bytes
        if now.lsn == self.lsn or waited < PAUSE_SECONDS:
            return False
        return added >= max(ADDED_BYTES_MIN, available_bytes // 4) or waited >= IDLE_SECONDS


def change_of(stats: dict[str, int]) -> Change:
    """How far the pool has come now.  stats: Core.stats()."""
    return Change(stats["next_lsn"], stats["segment_bytes_added"], monotonic_seconds())
