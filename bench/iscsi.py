"""What iSCSI costs: a LUN of ours beside LIO over a RAM disk and over a plain file, in one lab guest, in turns.

`python -m bench.iscsi [--rounds N] [--seconds S] [--workload NAME]...`

The guest is User-Mode Linux (docs/lab-guest.md), because LIO needs a kernel: one processor that the initiator, the target, the
kernel's NBD client and the engine share, and each system call and switch between processes costs several times what it does
elsewhere. So the IOPS say little of a real machine, but their ratios say who costs how much; all sides pay alike.
Where the time goes is told by the layers below, at one request at a time: the block device under our LUN, the engine over its
socket without the kernel, and the RAM disk itself.  The lab guest is the tests' (tests/lab), and so is what logs in (tests/targets).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.guest import Guest
from tests.lab.uml import UserModeMachine
from tests.targets import initiator, plain_lio
from tests.targets.world import DIRECTORY, World

from bench.replication import results
from bench.replication.results import note

MEBIBYTE = 1 << 20
SIZE_MIB = 128
PLAIN = "iqn.2026-11.org.example"
WORKLOADS = {
    "random reads, depth 1": ("randread", 4096, 1),
    "random writes, depth 1": ("randwrite", 4096, 1),
    "random reads, depth 32": ("randread", 4096, 32),
    "random writes, depth 32": ("randwrite", 4096, 32),
    "reads of 128 KiB, depth 8": ("read", 128 << 10, 8),
    "writes of 128 KiB, depth 8": ("write", 128 << 10, 8),
}
LUNS = ("ours", "RAM disk", "file")
LAYERS = ("our block device", "our engine over NBD", "the RAM disk itself")
FOUND = "found.json"


def fio(side: Sequence[str], workload: str, seconds: float, seed: int) -> dict[str, float]:
    """One run; `side` says fio how it gets there."""
    pattern, request_bytes, depth = WORKLOADS[workload]
    command = ["fio", "--name=one", *side, f"--rw={pattern}", f"--bs={request_bytes}", f"--iodepth={depth}"]
    command += [f"--size={SIZE_MIB}m", "--time_based", f"--runtime={round(seconds * 1000)}ms", f"--randseed={seed}"]
    command += ["--thread", "--norandommap", "--refill_buffers", "--output-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{\n") :])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"{' '.join(command)}: error {job['error']}")
    part = job["read" if "read" in pattern else "write"]
    latency = part["clat_ns"]
    return {
        "iops": part["iops"],
        "mean_us": latency["mean"] / 1000,
        "p99_us": latency["percentile"]["99.000000"] / 1000,
    }


def on_device(path: Path) -> list[str]:
    return ["--ioengine=libaio", "--direct=1", f"--filename={path}"]


def set_up(world: World, seed: int) -> dict[str, list[str]]:
    """The sides, all filled with data that does not compress."""
    world.make_vm("ours", disk=SIZE_MIB)
    ours = initiator.login(world.offer("ours")["iqn"]).disks(1)[0]
    plain_lio.load_lio()
    ram = plain_lio.ram_disk(SIZE_MIB * MEBIBYTE)
    file = plain_lio.sparse_file(DIRECTORY / "plain", SIZE_MIB * MEBIBYTE)
    luns = {}
    for name, port, backstore in (
        ("ram", 3271, plain_lio.block_backstore("ram", ram)),
        ("file", 3272, plain_lio.file_backstore("file", file)),
    ):
        plain_lio.target(f"{PLAIN}:{name}", [backstore], f"127.0.0.1:{port}")
        luns[name] = initiator.login(f"{PLAIN}:{name}", f"127.0.0.1:{port}").disks(1)[0]
    for disk in (ours, *luns.values()):
        fill = ["fio", "--name=fill", *on_device(disk), "--rw=write", "--bs=1m", "--iodepth=4", "--refill_buffers"]
        subprocess.run([*fill, f"--randseed={seed}", "--end_fsync=1"], check=True, stdout=subprocess.DEVNULL)
    device = next(path for path in Path("/sys/block").glob("nbd*") if (path / "pid").exists())
    return {
        "ours": on_device(ours),
        "RAM disk": on_device(luns["ram"]),
        "file": on_device(luns["file"]),
        "our block device": on_device(Path("/dev") / device.name),
        "our engine over NBD": ["--ioengine=nbd", f"--uri={world.home.uri('kept:ours/disk')}"],
        "the RAM disk itself": on_device(ram),
    }


def inside(rounds: int, seconds: float, seed: int, workloads: list[str]) -> None:
    """In the guest."""
    world = World(DIRECTORY)
    world.begin("2G")
    sides = set_up(world, seed)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    seeds = itertools.count(seed + 1)  # a run that wrote what an earlier one did would be measured by its dedup hits
    for workload in workloads:
        names = [*LUNS, *(LAYERS if WORKLOADS[workload][2] == 1 else ())]
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                one = fio(sides[name], workload, seconds, next(seeds))
                found.setdefault(workload, {}).setdefault(name, []).append(one)
        print(f"{workload} done", file=sys.stderr, flush=True)
    (Path(os.environ["LAB_SHARE"]) / FOUND).write_text(json.dumps(found))
    world.end()


def rows_of(found: dict[str, dict[str, list[dict[str, float]]]]) -> list[list[str]]:
    """Medians; ratios are of ours to the other in the same round."""
    rows = [["", "IOPS", "mean us", "p99 us", "ours / this: IOPS", "mean"]]
    for workload, sides in found.items():
        rows.append([workload, "", "", "", "", ""])
        for name, runs in sides.items():
            shown = [f"{statistics.median(run[key] for run in runs):.0f}" for key in ("iops", "mean_us", "p99_us")]
            ratios = [
                f"{statistics.median(our[key] / run[key] for our, run in zip(sides['ours'], runs, strict=True)):.2f}"
                for key in ("iops", "mean_us")
            ]
            rows.append([f"  {name}", *shown, *(ratios if name != "ours" else ("", ""))])
    return rows


def main() -> None:
    parser = results.parser("bench.iscsi", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of one run")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    seed, workloads = results.seed_of(given), given.workload or list(WORKLOADS)
    if given.inside:
        inside(given.rounds, given.seconds, seed, workloads)
        return
    command = [sys.executable, "-m", "bench.iscsi", "--inside", f"--rounds={given.rounds}", f"--seconds={given.seconds}"]
    command += [f"--seed={seed}", *(f"--workload={one}" for one in workloads)]
    limit_s = 600 + 40 * given.rounds * (given.seconds + 5)
    with results.scratch_folder(given.scratch, "iscsi") as folder:
        result = results.Result("iscsi", seed, folder, size_mib=SIZE_MIB, rounds=given.rounds, seconds=given.seconds)
        note("the guest starts")
        machine = UserModeMachine(memory_mib=3072, time_limit_s=limit_s)
        with Guest(command, machine, stderr=lambda data: note(data.decode(errors="replace").rstrip())) as guest:
            done = guest.wait()
            if done.status != 0:
                raise SystemExit(done.describe())
            found: dict[str, Any] = json.loads((guest.share / FOUND).read_text())
            result["kernel"] = next((line for line in done.kernel_log.splitlines() if "Linux version" in line), "")
        result["found"] = found
        result.tell(rows_of(found), given.json)


if __name__ == "__main__":
    main()
