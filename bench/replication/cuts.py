"""A first transfer that is cut again and again: how many more bytes travel than when nobody cuts it.

`python -m bench.replication.cuts [--size MIB] [--cuts N] [--seed N]` sends a VM of incompressible blocks to an empty home,
then once more to another one while the TCP connection is reset, blockdevd or the engine of either end is killed (SIGKILL),
or those of both ends at once, at N places anywhere in the transfer.  Bytes are those that TCP carried from the sender's
side.  In the end the snapshot is compared with its source by qemu-img, both pools are checked, and nothing of the
half-received ones may be left.  An engine that dies five times in a minute is given up by its supervisor, so one that
was killed three times in the last minute is left alone, and the connection is reset instead.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from tests.ports import free_port

from bench.replication import results
from bench.replication.homes import Home, pair, same_disk, until, write
from bench.replication.proxy import Proxy
from bench.replication.results import note
from bench.workloads import GIB, MIB

Kind = Literal["reset", "control of source", "control of target", "engine of source", "engine of target", "both controls", "both engines"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ENGINE_KILLS_MAX = 3  # in a minute
SHARE_MAX = 1.05  # of the bytes of an uncut transfer; asked of 200 cuts in 10 GiB
BYTES_PER_CUT_MAX = 10 * GIB * (SHARE_MAX - 1) / 200  # the same, for other sizes
STALL_SECONDS_MAX = 300.0


@dataclass
class Transfer:
    """One VM that went to a home that had nothing of it."""

    sent_bytes: int
    answered_bytes: int
    seconds: float
    cuts: dict[str, int] = field(default_factory=dict)
    connections: int = 0


class Place(NamedTuple):
    """Where it is cut: once so many bytes went over."""

    sent_bytes: int
    kind: Kind


def places(seed: int, count: int, total_bytes: int) -> list[Place]:
    chosen = random.Random(seed)
    return sorted(Place(chosen.randrange(total_bytes), chosen.choice(KINDS)) for _ in range(count))


def random_data(size_bytes: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) that neither compress nor repeat."""
    made = np.random.default_rng(seed)
    return ((at, made.bytes(MIB)) for at in range(0, size_bytes, MIB))


class Run:
    """The source, and one target after the other."""

    def __init__(self, folder: Path, size_bytes: int, seed: int, rate_mb: int | None) -> None:
        self._folder, self._size, self._seed, self._rate_mb = folder, size_bytes, seed, rate_mb
        self._engine_kills: dict[str, list[float]] = {"source": [], "target": []}
        self.source = Home(folder, "a", 4 * size_bytes + GIB)
        self.source.serve()
        self.source("vm", "create", "web", "--disk", f"root={size_bytes}")
        write(self.source, "web/root", random_data(size_bytes, seed))
        self.source("snapshot", "create", "web", "--name", "first")

    def close(self) -> None:
        self.source.close()

    def transfer(self, name: str, cuts: list[Place]) -> Transfer:
        """To a new home of this name, cut at these places."""
        target, port = Home(self._folder, name, 4 * self._size + GIB), free_port()
        try:
            with Proxy(port) as proxy:
                target.serve("--replicate", f"127.0.0.1:{port}")
                pair(self.source, target, f"127.0.0.1:{proxy.port}")
                if self._rate_mb is not None:
                    self.source("replicate", "path", "throttle", f"to-{name}", "--rate", str(self._rate_mb))
                before, begun = proxy.sent_bytes, time.perf_counter()
                self.source("replicate", "protect", "web", "--path", f"to-{name}")
                done = Counter(self._cut_at(target, proxy, before, cuts))
                target.until_received("web", "first", STALL_SECONDS_MAX)
                found = Transfer(
                    proxy.sent_bytes - before, proxy.answered_bytes, time.perf_counter() - begun, dict(done), proxy.connection_count
                )
                self._verify(target)
                self.source("replicate", "unprotect", "web", "--path", f"to-{name}")
        finally:
            target.close()
        return found

    def _cut_at(self, target: Home, proxy: Proxy, before: int, cuts: list[Place]) -> Iterator[Kind]:
        for number, place in enumerate(cuts, 1):
            # so that each cut hits a transfer that goes on again
            if not self._reaches(max(before + place.sent_bytes, proxy.sent_bytes + 1), target, proxy):
                return  # it is whole: what is left of the cuts would hit nothing
            kind = self._cut(place.kind, target, proxy)
            note(f"cut {number} of {len(cuts)} at {(proxy.sent_bytes - before) / MIB:,.0f} MiB: {kind}")
            yield kind

    def _reaches(self, wanted: int, target: Home, proxy: Proxy) -> bool:
        """Whether so many bytes are sent before the snapshot is there."""
        deadline = time.monotonic() + STALL_SECONDS_MAX
        while time.monotonic() < deadline:
            look = time.monotonic() + 0.5  # asking for the snapshot costs the target more than looking at a counter costs us
            while time.monotonic() < look:
                if proxy.sent_bytes >= wanted:
                    return True
                time.sleep(0.001)
            if "first" in target.snapshots("web"):
                return False
        raise RuntimeError(f"nothing more was sent for a long time: {self.source.run('replicate', 'status').stdout}")

    def _cut(self, kind: Kind, target: Home, proxy: Proxy) -> Kind:
        ends = {"source": self.source, "target": target}
        sides = [side for side in ends if side in kind or kind.startswith("both")]
        if "engine" in kind and any(self._is_tired(side) for side in sides):
            kind = "reset"
        if kind == "reset":
            proxy.cut()
            return kind
        process = "engine" if "engine" in kind else "control"
        pids = [until(lambda side=side: ends[side].children().get(process), f"the {process} of the {side}", 60, 0.005) for side in sides]  # type: ignore[misc]
        for side, pid in zip(sides, pids, strict=True):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if process == "engine":
                self._engine_kills[side].append(time.monotonic())
        return kind

    def _is_tired(self, side: str) -> bool:
        return sum(1 for killed in self._engine_kills[side] if killed > time.monotonic() - 60) >= ENGINE_KILLS_MAX

    def _verify(self, target: Home) -> None:
        if not same_disk(self.source, "web/root@first", target, "web/root@first"):
            raise RuntimeError("the snapshot that was received is not the one that was sent")
        for home in (self.source, target):
            home("pool", "check")
        status = until(lambda: target.get("/status"), "the status of the target")
        if status["foreign"] or status["missing"]:
            raise RuntimeError(f"something of half-received snapshots is left: {status['foreign']} {status['missing']}")


def measure(
    folder: Path, size_bytes: int, cut_count: int, seed: int, rate_mb: int | None = None
) -> tuple[Transfer, Transfer]:
    """(uncut, cut); rate_mb: what a small transfer is held to, in MB/s, so that there is time for the cuts."""
    run = Run(folder, size_bytes, seed, rate_mb)
    try:
        uncut = run.transfer("b", [])
        note(f"uncut: {uncut.sent_bytes:,} bytes in {uncut.seconds:.1f} s")
        return uncut, run.transfer("c", places(seed, cut_count, uncut.sent_bytes))
    finally:
        run.close()


def main() -> None:
    parser = results.parser("bench.replication.cuts", __doc__)
    parser.add_argument("--size", type=int, default=10 * 1024, metavar="MIB")
    parser.add_argument("--cuts", type=int, default=200, metavar="N")
    given = parser.parse_args()
    seed = results.seed_of(given)
    with results.scratch_folder(given.scratch, "cuts") as folder:
        result = results.Result("cuts", seed, folder, size_mib=given.size, cuts=given.cuts)
        uncut, cut = measure(folder, given.size * MIB, given.cuts, seed)
        share = cut.sent_bytes / uncut.sent_bytes
        result["uncut"], result["cut"], result["share"] = asdict(uncut), asdict(cut), share
        per_cut = (cut.sent_bytes - uncut.sent_bytes) / max(1, sum(cut.cuts.values()))
        rows = [
            ["", "bytes sent", "seconds", "cuts", "connections"],
            *(
                [name, f"{one.sent_bytes:,}", f"{one.seconds:.1f}", str(sum(one.cuts.values())), str(one.connections)]
                for name, one in (("uncut", uncut), ("cut", cut))
            ),
            [f"share {share:.4f} (at most {SHARE_MAX} for 200 cuts in 10 GiB)", "", "", "", ""],
            [f"a cut cost {per_cut / MIB:.2f} MiB (at most {BYTES_PER_CUT_MAX / MIB:.2f} by the same)", "", "", "", ""],
            *([f"  {kind}", str(count), "", "", ""] for kind, count in sorted(cut.cuts.items())),
        ]
        result.tell(rows, given.json)


if __name__ == "__main__":
    main()
