"""How fast it replicates beside a bare SSH channel, what a snapshot without changes takes, and what a guest notices.

`python -m bench.replication.speed [--part channel|unchanged|guest]... [--size MIB] [--mapped GIB] [--rounds N]`

- `channel`: in turns, a bare asyncssh channel moves bytes from one process to another, and a new VM of incompressible blocks
  goes to a home that has nothing of it.  Seconds are from `protect` until the snapshot is there, MB are of the disk.
- `unchanged`: a VM of which every block is mapped (a few blocks over and over, which makes maps as large as any) has a
  snapshot taken of which nothing changed: seconds until it is there.
- `guest`: fio writes and reads blocks of 4 KiB of one VM while another one replicates, and while nothing does, in turns: one
  request after the other, as fast as it can, and at a rate (where fio spins between requests, and competes for the CPU
  itself).  Both ends and fio share this machine's cores, which is harder than two machines are; so in the same turns fio runs
  beside a bare asyncssh channel that has nothing to do with it.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.guest_load import guest_load
from bench.replication import channel, results
from bench.replication.cuts import random_data
from bench.replication.homes import Pair, write
from bench.replication.results import note
from bench.workloads import GIB, MIB
from blockdev.transfer.nbd import Export

PARTS = ("channel", "unchanged", "guest")
CHANNEL_SHARE_MIN = 0.8
UNCHANGED_SECONDS_MAX = 2.0
GUEST_RATIO_MAX = 2.0
RATE_MAX = 1e9  # that no replication reaches
FEW_BLOCKS_BYTES = MIB  # that a large disk is filled with, over and over
BESIDES = {"alone": "alone", "bare": "beside a bare channel", "beside": "beside replication"}
GUEST_BYTES = 512 * MIB
GUEST_SECONDS = 8
GUEST_LOADS = {
    "one request after the other": ("--iodepth=1",),
    "as fast as it can, depth 16": ("--iodepth=16",),
    "2,000 IOPS, depth 4": ("--iodepth=4", "--rate_iops=1400,600"),
}


def make_vm(pair: Pair, vm: str, size_bytes: int, seed: int) -> None:
    pair.source("vm", "create", vm, "--disk", f"root={size_bytes}")
    write(pair.source, f"{vm}/root", random_data(size_bytes, seed))
    pair.source("snapshot", "create", vm, "--name", "first")


def replicate(pair: Pair, vm: str, size_bytes: int, seed: int) -> tuple[float, list[float]]:
    """Bytes a second of a new VM with random blocks, and the CPU seconds of both ends."""
    make_vm(pair, vm, size_bytes, seed)
    os.sync()
    homes = (pair.source, pair.target)
    before, begun = [home.cpu_seconds() for home in homes], time.perf_counter()
    pair.source.protect(vm, f"to-{pair.target.name}")
    time.sleep(size_bytes / RATE_MAX)  # each look takes the target's CPU
    pair.target.until_received(vm, "first", pause=0.1)
    seconds = time.perf_counter() - begun
    cpu = [home.cpu_seconds() - used for home, used in zip(homes, before, strict=True)]
    forget(pair, vm)
    tidy(pair)
    return size_bytes / seconds, cpu


def measure_channel(folder: Path, size_bytes: int, rounds: int, seed: int) -> dict[str, Any]:
    """In turns; the ratio is taken within each round."""
    plain, bare, ours, cpu = [], [], [], []
    with Pair(folder, 8 * rounds * size_bytes + 8 * GIB, through_proxy=False) as pair:
        for number in range(rounds):
            plain.append(channel.measure(size_bytes, tuned=False))
            bare.append(channel.measure(size_bytes))
            rate, used = replicate(pair, f"vm-{number}", size_bytes, seed + number)
            ours.append(rate)
            cpu.append([seconds / size_bytes * 1e9 for seconds in used])
            note(f"round {number + 1}: bare channel {plain[-1] / 1e6:.0f} and {bare[-1] / 1e6:.0f} MB/s, replication {ours[-1] / 1e6:.0f} MB/s")
    found: dict[str, Any] = {"plain": plain, "bare": bare, "ours": ours, "cpu_seconds_per_gb": cpu}
    for name, theirs in (("plain", plain), ("bare", bare)):
        found[f"ratios_{name}"] = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return found


def fill_with_few_blocks(pair: Pair, vm: str, size_bytes: int, seed: int) -> None:
    (_, piece), = random_data(FEW_BLOCKS_BYTES, seed)
    begun = time.perf_counter()
    with Export(pair.source.socket, f"{vm}/root") as disk:
        large = piece * 4
        for offset in range(0, size_bytes, len(large)):
            disk.write(offset, large)
        disk.flush()
    note(f"mapped {size_bytes / GIB:.0f} GiB in {time.perf_counter() - begun:.0f} s")


def measure_unchanged(folder: Path, mapped_bytes: int, rounds: int, seed: int) -> dict[str, Any]:
    with Pair(folder, 2 * mapped_bytes) as pair:
        pair.source("vm", "create", "large", "--disk", f"root={mapped_bytes}")
        fill_with_few_blocks(pair, "large", mapped_bytes, seed)
        pair.source("snapshot", "create", "large", "--name", "first")
        begun, sent = time.perf_counter(), pair.proxy.total_bytes
        pair.source.protect("large", f"to-{pair.target.name}")
        pair.target.until_received("large", "first", 3600)
        first = {"seconds": time.perf_counter() - begun, "wire_bytes": pair.proxy.total_bytes - sent}
        note(f"the first one took {first['seconds']:.0f} s and {first['wire_bytes'] / 1e6:,.0f} MB")
        seconds, wire = [], []
        for number in range(rounds):
            begun, sent = time.perf_counter(), pair.proxy.total_bytes
            pair.source("snapshot", "create", "large", "--name", f"again-{number}")
            pair.target.until_received("large", f"again-{number}", pause=0.02)
            seconds.append(time.perf_counter() - begun)
            wire.append(pair.proxy.total_bytes - sent)
            note(f"nothing changed: {seconds[-1]:.2f} s, {wire[-1]:,} bytes on the wire")
    return {"first": first, "seconds": seconds, "wire_bytes": wire, "seconds_median": statistics.median(seconds)}


@contextmanager
def replicating(pair: Pair, size_bytes: int, first_seed: int) -> Iterator[list[float]]:
    """New VMs of random blocks go over, one after the other; their rates. They are made before."""
    path, stop, rates = f"to-{pair.target.name}", threading.Event(), []
    vms = [f"big-{first_seed}-{number}" for number in range(3)]
    for number, vm in enumerate(vms):
        make_vm(pair, vm, size_bytes, first_seed + number)

    def work() -> None:
        for vm in vms:
            if not stop.is_set():
                pair.source.protect(vm, path)
                rates.append(size_bytes / pair.target.until_received(vm, "first"))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        time.sleep(1.0)  # past the connecting and the first answers: what is measured is the transfer
        yield rates
        if not thread.is_alive():
            raise RuntimeError("the replication was over before fio was: give it a larger --size")
    finally:
        stop.set()
        thread.join()
        for vm in vms:
            forget(pair, vm)


def forget(pair: Pair, vm: str) -> None:
    """Delete it on both ends."""
    pair.source.run("replicate", "unprotect", vm)  # it may never have been protected
    pair.source("vm", "delete", vm, "--yes")
    pair.target.run("vm", "delete", vm, "--force", "--yes")  # nor have arrived


def tidy(pair: Pair) -> None:
    """Give the space of what was deleted back, and leave nothing to be written out beside what is measured next."""
    for home in (pair.source, pair.target):
        home("pool", "compact")
    os.sync()


def measure_guest(folder: Path, size_bytes: int, rounds: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Pair(folder, 16 * rounds * size_bytes + 16 * GIB, through_proxy=False) as pair:
        pair.source("vm", "create", "guest", "--disk", f"root={GUEST_BYTES}")
        write(pair.source, "guest/root", random_data(GUEST_BYTES, seed))

        def load_of(its_seed: int, options: tuple[str, ...]) -> dict[str, float]:
            uri, mixed = pair.source.uri("guest/root"), ("--rw=randrw", "--rwmixread=70", *options)
            return guest_load(uri, GUEST_BYTES, GUEST_SECONDS, its_seed, folder / "fio.json", mixed)

        for load, options in GUEST_LOADS.items():
            one: dict[str, Any] = {"alone": [], "beside": [], "bare": [], "bytes_per_second": []}
            for number in range(rounds):
                run_seed = seed + 10 * number + 1000 * len(found)
                tidy(pair)
                one["alone"].append(load_of(run_seed, options))
                with channel.busy():
                    one["bare"].append(load_of(run_seed + 2, options))
                with replicating(pair, size_bytes, run_seed + 5000) as reached:
                    one["beside"].append(load_of(run_seed + 1, options))
                one["bytes_per_second"] += reached
                told = ", ".join(f"{one[key][-1]['p99']:.0f} us {name}" for key, name in BESIDES.items())
                note(f"{load}: p99 {told}; it replicated at {[round(rate / 1e6) for rate in reached]} MB/s")
            for key in ("beside", "bare"):
                one[f"ratios_{key}"] = [two["p99"] / first["p99"] for first, two in zip(one["alone"], one[key], strict=True)]
            found[load] = one
    return found


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    rows = [["", "median", "all", "asked"]]
    if one := found.get("channel"):
        names = {"plain": "bare asyncssh channel, MB/s", "bare": "the same, tuned as replication is"}
        for key, name in {**names, "ours": "replication of incompressible blocks, MB/s"}.items():
            rows.append([name, f"{statistics.median(one[key]) / 1e6:.0f}", " ".join(f"{v / 1e6:.0f}" for v in one[key]), ""])
        for key, name in (("plain", "  of the channel as it comes"), ("bare", "  of the tuned one")):
            ratios = one[f"ratios_{key}"]
            asked = f">= {CHANNEL_SHARE_MIN}" if key == "plain" else ""
            rows.append([name, f"{statistics.median(ratios):.2f}", " ".join(f"{v:.2f}" for v in ratios), asked])
        for name, values in zip(("source", "target"), zip(*one["cpu_seconds_per_gb"], strict=True), strict=True):
            rows.append([f"  CPU seconds of the {name}'s two processes a GB", f"{statistics.median(values):.1f}", " ".join(f"{v:.1f}" for v in values), ""])
    if one := found.get("unchanged"):
        values = " ".join(f"{value:.2f}" for value in one["seconds"])
        rows.append(["a snapshot without changes, s", f"{one['seconds_median']:.2f}", values, f"< {UNCHANGED_SECONDS_MAX:.0f}"])
    for load, one in found.get("guest", {}).items():
        for key, name in BESIDES.items():
            values = [each["p99"] for each in one[key]]
            rows.append([f"guest, {load}: p99 us {name}", f"{statistics.median(values):.0f}", " ".join(f"{v:.0f}" for v in values), ""])
            if ratios := one.get(f"ratios_{key}"):
                asked = f"<= {GUEST_RATIO_MAX}" if key == "beside" else ""
                rows.append(["  ratio", f"{statistics.median(ratios):.2f}", " ".join(f"{v:.2f}" for v in ratios), asked])
    return rows


def main() -> None:
    parser = results.parser("bench.replication.speed", __doc__)
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of a VM that replicates")
    parser.add_argument("--mapped", type=float, default=100, metavar="GIB", help="of the VM of which nothing changes")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    seed, parts = results.seed_of(given), given.part or list(PARTS)
    with results.scratch_folder(given.scratch, "speed") as folder:
        result = results.Result("speed", seed, folder, size_mib=given.size, mapped_gib=given.mapped, rounds=given.rounds)
        found: dict[str, Any] = {}
        if "channel" in parts:
            found["channel"] = measure_channel(folder, given.size * MIB, given.rounds, seed)
        if "unchanged" in parts:
            found["unchanged"] = measure_unchanged(folder, int(given.mapped * GIB), given.rounds, seed)
        if "guest" in parts:
            found["guest"] = measure_guest(folder, given.size * MIB, given.rounds, seed)
        result["found"] = found
        result.tell(rows_of(found), given.json)


if __name__ == "__main__":
    main()
