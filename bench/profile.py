"""`python -m bench.profile`: where a server's CPU time goes under one workload, by perf.

For people who change the hot path; it measures nothing that is compared.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import fio
from bench.__main__ import DEFAULT_FOLDER
from bench.fio import FioFailed
from bench.peers import PEERS
from bench.rounds import Plan, served_disk
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


def _record(plan: Plan, workload: Workload, peer: str, target: Path) -> fio.Measurement:
    with served_disk(plan, workload, PEERS[peer]) as disk:
        command = ["perf", "record", "-q", "-F", str(SAMPLES_PER_SECOND), "-g", "-p", str(disk.process_id)]
        perf = subprocess.Popen([*command, "-o", str(target)])
        try:
            return fio.measure(
                workload,
                disk.uri,
                disk.size_bytes,
                plan.runtime_seconds,
                plan.seed,
                plan.scratch / "fio.json",
            )
        finally:
            perf.send_signal(signal.SIGINT)
            perf.wait()


def _show(record: Path, percent: float, callers: bool) -> None:
    report = ["perf", "report", "-i", str(record), "--stdio", f"--percent-limit={percent}"]
    report += (
        ["-G", "--sort=symbol"]
        if callers
        else ["--no-children", "-g", "none", "--fields=overhead,dso,symbol"]
    )
    done = subprocess.run(report, capture_output=True, text=True, check=True)
    print("\n".join(line for line in done.stdout.splitlines() if line.strip() and not line.startswith("#")))


def main() -> int:
    arguments = _arguments()
    workload = next(workload for workload in WORKLOADS if workload.name == arguments.workload)
    DEFAULT_FOLDER.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=DEFAULT_FOLDER))
    record: Path = arguments.keep or scratch / "perf.data"
    plan = Plan(1, arguments.runtime, GIB, 4 * GIB, 1, scratch)
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
