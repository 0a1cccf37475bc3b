"""Eight homes send to one at once, and it sends to each of them meanwhile, over a network that delays and loses packets.

`python -m bench.replication.many [--sources N] [--size MIB] [--rate MB/S] [--delay MS] [--loss PERCENT]` needs root.  The
homes live in network namespaces behind a switch in user space (bench/replication/fabric.py), as this must run on kernels
without netem.  Three phases, each with VMs of its own, all of incompressible blocks: one home sends alone, over delay only;
all at once and back, over delay only; the same with loss.  Each copy is compared by qemu-img.  The link is what its rate is
set to; what plain TCP makes of it with as many connections, headers and slow start included, stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.replication import fabric, results
from bench.replication.cuts import random_data
from bench.replication.fabric import Fabric
from bench.replication.homes import Home, pair, same_disk, write
from bench.replication.results import note
from bench.workloads import GIB, MIB

PORT = 10810
SHARE_MIN = 0.7  # of the link, over delay without loss
LINK_SECONDS = 5.0
ALONE = 4  # times the size of the others' VMs has that of the home that sends alone


@dataclass(frozen=True)
class Phase:
    """What went at once, and how fast."""

    name: str
    transfers: int
    loss: float
    seconds: float
    data_bytes: int  # of blocks that one direction of the receiving home's link carried
    share: float  # of the link's rate
    plain_share: float  # that plain TCP makes of it, with as many connections each way


class Homes:
    """The receiver, number 0, and the sources, paired both ways."""

    def __init__(self, folder: Path, net: Fabric, count: int, size_bytes: int) -> None:
        self.net = net
        self.all: list[Home] = []
        self.size_bytes = size_bytes
        try:
            for number in range(count + 1):
                home = Home(folder, f"h{number}", (4 * count + 8) * size_bytes + GIB, net.inside(number))
                self.all.append(home)
                home.serve("--replicate", f"{net.address(number)}:{PORT}")
            self.target, self.sources = self.all[0], self.all[1:]
            for number, source in enumerate(self.sources, 1):
                pair(source, self.target, f"{net.address(0)}:{PORT}")
                pair(self.target, source, f"{net.address(number)}:{PORT}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for home in self.all:
            home.close()

    def make_vm(self, home: Home, vm: str, seed: int, size_bytes: int) -> None:
        home("vm", "create", vm, "--disk", f"root={size_bytes}")
        write(home, f"{vm}/root", random_data(size_bytes, seed))
        home("snapshot", "create", vm, "--name", "first")

    def send(self, vms: Sequence[tuple[Home, Home, str]]) -> float:
        """Protect (source, target, VM) each, at once; seconds until all are there, which is then verified."""
        begun = time.perf_counter()
        with ThreadPoolExecutor(len(vms)) as pool:
            list(pool.map(lambda one: one[0].protect(one[2], f"to-{one[1].name}"), vms))
            list(pool.map(lambda one: one[1].until_received(one[2], "first"), vms))
        seconds = time.perf_counter() - begun
        for source, target, vm in vms:
            if not same_disk(source, f"{vm}/root@first", target, f"{vm}/root@first"):
                raise RuntimeError(f"{vm} from {source.name} to {target.name} is not what was sent")
        return seconds


def measure(folder: Path, given: Any, seed: int, loss: float, alone: bool) -> tuple[list[Phase], dict[str, Any]]:
    """Over a network with this loss; `alone`: first one home by itself."""
    rate, size = given.rate * 1e6, given.size * MIB
    net = Fabric(given.sources + 1, given.delay / 1000, loss, rate, seed)
    try:
        there = [(number, 0) for number in range(1, given.sources + 1)]
        plain_one = sum(fabric.throughput(net, [(1, 0)], LINK_SECONDS)) / rate
        plain_all = sum(fabric.throughput(net, [*there, *((end, begin) for begin, end in there)], LINK_SECONDS)[: len(there)]) / rate
        note(f"plain TCP: {plain_one:.2f} of the link by one connection, {plain_all:.2f} by {len(there)} and back")
        homes = Homes(folder, net, given.sources, size)
        try:
            phases = []
            if alone:
                phases.append(_one(homes, seed, rate, plain_one))
                note(str(phases[-1]))
            phases.append(_all(homes, seed, rate, plain_all, loss))
            note(str(phases[-1]))
        finally:
            homes.close()
    finally:
        told = net.close()
    return phases, told


def _one(homes: Homes, seed: int, rate: float, plain: float) -> Phase:
    size = ALONE * homes.size_bytes
    homes.make_vm(homes.sources[0], "alone", seed, size)
    seconds = homes.send([(homes.sources[0], homes.target, "alone")])
    return Phase("one source", 1, 0.0, seconds, size, size / seconds / rate, plain)


def _all(homes: Homes, seed: int, rate: float, plain: float, loss: float) -> Phase:
    vms = []
    for number, source in enumerate(homes.sources, 1):
        homes.make_vm(source, f"vm-{number}", seed + number, homes.size_bytes)
        homes.make_vm(homes.target, f"back-{number}", seed + 1000 + number, homes.size_bytes)
        vms += [(source, homes.target, f"vm-{number}"), (homes.target, source, f"back-{number}")]
    seconds = homes.send(vms)
    total = homes.size_bytes * len(homes.sources)
    return Phase(f"{len(homes.sources)} sources and back", len(vms), loss, seconds, total, total / seconds / rate, plain)


def main() -> None:
    parser = results.parser("bench.replication.many", __doc__)
    parser.add_argument("--sources", type=int, default=8, metavar="N")
    parser.add_argument("--size", type=int, default=64, metavar="MIB", help="of each VM")
    parser.add_argument("--rate", type=float, default=12.5, metavar="MB/S", help="of each home's link, each way")
    parser.add_argument("--delay", type=float, default=40.0, metavar="MS", help="of a packet; a round trip takes twice that")
    parser.add_argument("--loss", type=float, default=1.0, metavar="PERCENT")
    given = parser.parse_args()
    if (reason := fabric.missing()) is not None:
        raise SystemExit(reason)
    seed = results.seed_of(given)
    with results.scratch_folder(given.scratch, "many") as folder:
        told = {name: getattr(given, name) for name in ("sources", "size", "rate", "delay", "loss")}
        result = results.Result("many to one, both directions", seed, folder, **told)
        phases, counts = measure(folder, given, seed, 0.0, True)
        lossy, lossy_counts = measure(folder, given, seed, given.loss / 100, False)
        phases += lossy
        result["phases"] = [asdict(phase) for phase in phases]
        result["switch"] = {"delay": counts, "loss": lossy_counts}
        rows = [["", "transfers", "loss", "seconds", "MB/s into the receiver", "share of the link", "plain TCP's share"]]
        rows += [
            [p.name, str(p.transfers), f"{p.loss:.0%}", f"{p.seconds:.1f}", f"{p.data_bytes / p.seconds / 1e6:.1f}", f"{p.share:.2f}", f"{p.plain_share:.2f}"]
            for p in phases
        ]
        result.tell(rows, given.json)


if __name__ == "__main__":
    main()
