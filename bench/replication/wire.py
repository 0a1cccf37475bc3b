"""Bytes on the wire for the same change of a disk: blockdev's replication, and qemu-img, rsync and dirty bitmaps over ssh.

`python -m bench.replication.wire [--case NAME]... [--peers-only] [--scratch DIR]` needs root, sshd, rsync and debootstrap
(apt-get install openssh-server rsync debootstrap) and, the first time, the mirror.  All go through the same proxy, which
counts payload bytes of TCP in both directions, handshakes included; each copy is compared with the disk afterwards.
blockdev's path is connected before, as it is when a snapshot comes; the others' connections are part of what they do.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.replication import results, sshd
from bench.replication.homes import Pair, same_disk, until, write
from bench.replication.images import BLOCK_BYTES, Case, cases, changed_blocks
from bench.replication.proxy import Proxy
from bench.replication.results import note
from bench.replication.wire_peers import LEVEL, WIRE_PEERS, WirePeer
from bench.workloads import MIB

BLOCKDEV = "blockdev"


@dataclass(frozen=True)
class Sent:
    """What one way took for one case."""

    case: str
    way: str
    sent_bytes: int  # from the disk's side
    answered_bytes: int
    seconds: float

    @property
    def total_bytes(self) -> int:
        return self.sent_bytes + self.answered_bytes


def measure_peer(kind: type[WirePeer], case: Case, folder: Path, server: sshd.Sshd) -> Sent:
    with Proxy(server.port) as proxy:
        peer = kind(folder, server, proxy)
        peer.prepare(case)
        sent, answered, begun = proxy.sent_bytes, proxy.answered_bytes, time.perf_counter()
        peer.send(case)
        seconds = time.perf_counter() - begun
        if not peer.is_right(case):
            raise RuntimeError(f"{kind.name}, {case.name}: the copy is not what was sent")
        found = Sent(case.name, kind.name, proxy.sent_bytes - sent, proxy.answered_bytes - answered, seconds)
    shutil.rmtree(folder)
    return found


def measure_blockdev(case: Case, folder: Path) -> Sent:
    """Protected before the change, so that what is counted is the snapshot after it; a VM new to the other end from nothing."""
    folder.mkdir()
    with Pair(folder, level=LEVEL) as pair:
        path, proxy = f"to-{pair.target.name}", pair.proxy
        pair.source("vm", "create", "web", "--image", f"root={case.before or case.after}", "--format", "raw")
        if case.known is not None:
            pair.target("vm", "create", "template", "--image", f"root={case.known}", "--format", "raw")
        pair.source("snapshot", "create", "web", "--name", "first")
        if case.before is not None:
            pair.source("replicate", "protect", "web", "--path", path)
            pair.target.until_received("web", "first")
            write(pair.source, "web/root", ((block * BLOCK_BYTES, data) for block, data in changed_blocks(case.before, case.after)))
        pair.source("replicate", "path", "test", path)
        settle(proxy)
        sent, answered, begun = proxy.sent_bytes, proxy.answered_bytes, time.perf_counter()
        if case.before is None:
            name = "first"
            pair.source("replicate", "protect", "web", "--path", path)
        else:
            name = "second"
            pair.source("snapshot", "create", "web", "--name", name)
        pair.target.until_received("web", name)
        seconds = time.perf_counter() - begun
        settle(proxy)
        found = Sent(case.name, BLOCKDEV, proxy.sent_bytes - sent, proxy.answered_bytes - answered, seconds)
        if not same_disk(pair.source, f"web/root@{name}", pair.target, f"web/root@{name}"):
            raise RuntimeError(f"blockdev, {case.name}: the copy is not what was sent")
    shutil.rmtree(folder)
    return found


def settle(proxy: Proxy, seconds: float = 1.0) -> None:
    """Wait until nothing went through for a while."""
    last, since = proxy.total_bytes, time.monotonic()

    def is_quiet() -> bool:
        nonlocal last, since
        if proxy.total_bytes != last:
            last, since = proxy.total_bytes, time.monotonic()
        return time.monotonic() - since > seconds

    until(is_quiet, "the path to be quiet")


def measure(case: Case, folder: Path, server: sshd.Sshd, peers_only: bool, ours_only: bool) -> list[Sent]:
    found = []
    if not peers_only:
        found.append(measure_blockdev(case, folder / "b"))
        tell(found[-1])
    for number, kind in enumerate([] if ours_only else WIRE_PEERS):
        if case.name in kind.cases:
            found.append(measure_peer(kind, case, folder / str(number), server))
            tell(found[-1])
    return found


def tell(sent: Sent) -> None:
    note(f"{sent.case:8} {sent.way:40} {sent.sent_bytes:14,} {sent.answered_bytes:12,} {sent.seconds:7.1f} s")


def table(chosen: Sequence[Case], found: Sequence[Sent]) -> list[list[str]]:
    """MB on the wire of each way in each case; the fewest marked."""
    ways = list(dict.fromkeys(sent.way for sent in found))
    rows = [["MB on the wire, both directions", *(case.name for case in chosen)]]
    fewest = {case.name: min(sent.total_bytes for sent in found if sent.case == case.name) for case in chosen}
    for way in ways:
        row = [way]
        for case in chosen:
            of_both = [sent for sent in found if (sent.case, sent.way) == (case.name, way)]
            row.append("".join(f"{s.total_bytes / 1e6:,.2f}{' *' if s.total_bytes == fewest[case.name] else '  '}" for s in of_both))
        rows.append(row)
    return rows


def describe(case: Case) -> dict[str, Any]:
    changed = sum(1 for _ in changed_blocks(case.before, case.after)) * BLOCK_BYTES if case.before else None
    used = case.after.stat().st_blocks * 512
    return {"name": case.name, "title": case.title, "disk_bytes": case.after.stat().st_size, "used_bytes": used, "changed_bytes": changed}


def main() -> None:
    parser = results.parser("bench.replication.wire", __doc__)
    parser.add_argument("--case", action="append", choices=["known", "random", "upgrade"], metavar="NAME")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--peers-only", action="store_true")
    alone.add_argument("--ours-only", action="store_true")
    alone.add_argument("--peers", type=Path, metavar="FILE", help="take theirs from the JSON of an earlier run with the same seed")
    given = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("making the disks needs root")
    if (reason := sshd.missing()) is not None:
        raise SystemExit(reason)
    seed = results.seed_of(given)
    earlier = json.loads(given.peers.read_text()) if given.peers else {"seed": seed, "sent": []}
    if earlier["seed"] != seed:
        raise SystemExit(f"{given.peers} is of a run with seed {earlier['seed']}: say --seed {earlier['seed']}")
    kept = given.scratch.absolute() / "replication-images"
    with results.scratch_folder(given.scratch, "wire") as folder, sshd.Sshd(folder / "sshd") as server:
        chosen = [case for case in cases(folder, kept, seed) if case.name in (given.case or [case.name])]
        result = results.Result("bytes on the wire", seed, folder, level=LEVEL)
        result["cases"] = described = [describe(case) for case in chosen]
        for case in described:
            changed = f", {case['changed_bytes'] / MIB:,.0f} MiB of it differ" if case["changed_bytes"] else ""
            note(f"{case['name']}: {case['title']}; {case['disk_bytes'] / MIB:,.0f} MiB, {case['used_bytes'] / MIB:,.0f} MiB in use{changed}")
        ours_only = given.ours_only or bool(given.peers)
        found = [sent for case in chosen for sent in measure(case, folder, server, given.peers_only, ours_only)]
        found += [Sent(**sent) for sent in earlier["sent"] if sent["case"] in {case.name for case in chosen} and sent["way"] != BLOCKDEV]
        result["peers_of"] = earlier.get("started")  # None: of this run
        result["sent"] = [asdict(sent) for sent in found]
        result.tell(table(chosen, found), given.json)


if __name__ == "__main__":
    main()
