"""`python -m bench.profile`: where a server's CPU time goes under one workload, by perf.

For people who change the hot path; it measures nothing that is compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import fio
from bench.__main__ import DEFAULT_FOLDER
from bench.disks import Sizes, served_disk
from bench.fio import FioFailed
from bench.peers import PEERS
from bench.rounds import Plan
from bench.server import ServerFailed
from bench.workloads import GIB, NATIVE, WORKLOADS, Workload
from blockdev.errors import BlockdevError

SAMPLES_PER_SECOND = 999  # not a divisor of the kernel's own timers, whose work would be seen always or never


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.profile", description="perf of one peer under one workload")
    parser.add_argument("workload", choices=[workload.name for workload in WORKLOADS])
    parser.add_argument("--peer", choices=list(PEERS), default=NATIVE)
    parser.add_argument("--runtime", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--percent", type=float, default=0.7, help="costs below this are not shown")
    parser.add_argument("--callers", action="store_true", help="show call graphs")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="keep perf's record for perf report and annotate"
    )
    return parser.parse_args()


@contextmanager
def _perf(process_id: int, target: Path) -> Iterator[None]:
    """perf follows the process and every thread it starts from here on; without the handshake it could miss some."""
    commands, acknowledgements = target.with_suffix(".commands"), target.with_suffix(".acknowledgements")
    for fifo in (commands, acknowledgements):
        os.mkfifo(fifo)
    command = [
        "perf",
        "record",
        "-q",
        "-g",
        "-F",
        str(SAMPLES_PER_SECOND),
        "-p",
        str(process_id),
        "-o",
        str(target),
    ]
    perf = subprocess.Popen([*command, "--delay=-1", f"--control=fifo:{commands},{acknowledgements}"])
    try:
        with commands.open("w") as control:
            control.write("enable\n")
        with acknowledgements.open() as answer:
            answer.readline()
        yield
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait()
        for fifo in (commands, acknowledgements):
            fifo.unlink()


def _record(plan: Plan, workload: Workload, peer: str, target: Path) -> fio.Measurement:
    output, folder = plan.scratch / "fio.json", plan.scratch / "disk"
    with (
        served_disk(workload, PEERS[peer], plan.sizes, folder, plan.seed) as disk,
        _perf(disk.peer.process_id, target),
    ):
        size_bytes = disk.peer.size_bytes
        return fio.measure(workload, disk.uris, size_bytes, plan.runtime_seconds, plan.seed, output)


def _show(record: Path, percent: float, callers: bool) -> None:
    report = ["perf", "report", "-i", str(record), "--stdio", f"--percent-limit={percent}"]
    flat = ["--no-children", "-g", "none"]
    tables = (
        [["-G", "--sort=symbol"]]
        if callers
        else [[*flat, "-F", "overhead,dso"], [*flat, "-F", "overhead,dso,symbol"]]
    )
    for table in tables:
        done = subprocess.run([*report, *table], capture_output=True, text=True, check=True)
        print(
            "\n".join(line for line in done.stdout.splitlines() if line.strip() and not line.startswith("#"))
        )
        print()


def main() -> int:
    arguments = _arguments()
    workload = next(workload for workload in WORKLOADS if workload.name == arguments.workload)
    DEFAULT_FOLDER.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=DEFAULT_FOLDER))
    record: Path = arguments.keep or scratch / "perf.data"
    plan = Plan(1, arguments.runtime, Sizes(GIB, 4 * GIB, 8 * GIB), 1, scratch)
    try:
        done = _record(plan, workload, arguments.peer, record)
        print(f"{arguments.peer}, {workload.title}: {done.iops:,.0f} IOPS under perf\n")
        _show(record, arguments.percent, arguments.callers)
    except (BlockdevError, FioFailed, ServerFailed, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
