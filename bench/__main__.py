"""`python -m bench`: run the workloads against the peers, print ratios and tables, keep everything as JSON.

Never a test: the exit status says whether it ran, not how fast.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from bench import machine, plot, report
from bench.disks import Sizes
from bench.peers import PEERS
from bench.rounds import Cell, Failure, Plan, Run, cells, run_all
from bench.server import ServerFailed
from bench.workloads import GIB, MIB, WORKLOADS

DEFAULT_FOLDER = Path(__file__).parents[1] / ".cache" / "bench"
FULL = {"rounds": 5, "runtime": 2.0, "filled": 1 * GIB, "fresh": 4 * GIB, "sustained": 8 * GIB}
QUICK = {"rounds": 3, "runtime": 1.0, "filled": 256 * MIB, "fresh": 1 * GIB, "sustained": 512 * MIB}


def _arguments(given: list[str] | None) -> argparse.Namespace:
    names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="short runs on small disks, of what has a bar: a look, not a measurement",
    )
    parser.add_argument("--workload", action="append", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--peer", action="append", choices=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--runtime", type=float, metavar="SECONDS", help="of one run")
    parser.add_argument("--filled-mib", type=int, metavar="N", help="size of disks filled before the run")
    parser.add_argument(
        "--fresh-mib", type=int, metavar="N", help="size of disks never written before the run"
    )
    parser.add_argument(
        "--sustained-mib", type=int, metavar="N", help="written by each run of sustained writes"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="repeat a run's data and offsets")
    parser.add_argument(
        "--scratch", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="where the disks lie"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="the result (default: a new file in the scratch)"
    )
    return parser.parse_args(given)


def _plan(arguments: argparse.Namespace, scratch: Path) -> Plan:
    default = QUICK if arguments.quick else FULL
    return Plan(
        rounds=arguments.rounds or int(default["rounds"]),
        runtime_seconds=arguments.runtime or default["runtime"],
        sizes=Sizes(
            filled_bytes=(arguments.filled_mib or 0) * MIB or int(default["filled"]),
            fresh_bytes=(arguments.fresh_mib or 0) * MIB or int(default["fresh"]),
            sustained_bytes=(arguments.sustained_mib or 0) * MIB or int(default["sustained"]),
        ),
        seed=random.SystemRandom().randrange(1 << 30) if arguments.seed is None else arguments.seed,
        scratch=scratch,
    )


def _tell(done: Run | Failure) -> None:
    name = f"round {done.round + 1} {done.workload:26} {done.peer:18}"
    if isinstance(done, Failure):
        print(f"{name} FAILED: {done.message}", file=sys.stderr, flush=True)
        return
    print(
        f"{name} {done.iops:10,.0f} IOPS {done.megabytes_per_second:8,.1f} MB/s  "
        f"others' CPU {done.other_cpu_share:.0%}",
        file=sys.stderr,
        flush=True,
    )


def _measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    plan = _plan(arguments, scratch)
    wanted = {name: PEERS[name] for name in PEERS if name in (arguments.peer or PEERS)}
    left_out = {name: reason for name, peer in wanted.items() if (reason := peer.missing())}
    peers = [peer for name, peer in wanted.items() if name not in left_out]
    if not peers:
        raise ServerFailed(
            "no peer can run here: " + "; ".join(f"{name}: {why}" for name, why in left_out.items())
        )
    workloads = [
        workload for workload in WORKLOADS if workload.name in (arguments.workload or [workload.name])
    ]
    # A workload that was asked for by name runs in full.
    wanted_cells = cells(workloads, peers, only_for_the_bars=arguments.quick and not arguments.workload)
    head = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": arguments.quick,
        "machine": machine.describe(scratch),
        "plan": {**asdict(plan), "scratch": str(scratch)},
        "workloads": [asdict(workload) for workload in dict.fromkeys(workload for workload, _ in wanted_cells)],
        "left_out": left_out,
    }
    done, stopped = _run_until_stopped(plan, wanted_cells)
    runs = [run for run in done if isinstance(run, Run)]
    failures = [asdict(failure) for failure in done if isinstance(failure, Failure)]
    return report.result({**head, "failures": failures, "stopped": stopped}, runs)


def _run_until_stopped(plan: Plan, wanted: Sequence[Cell]) -> tuple[list[Run | Failure], str | None]:
    """All runs, or those that were done when something ended them early, and what that was."""
    done: list[Run | Failure] = []
    try:
        for each in run_all(plan, wanted):
            done.append(each)
            _tell(each)
    except (ServerFailed, OSError, KeyboardInterrupt, Terminated) as error:
        return done, f"{type(error).__name__}: {error}".removesuffix(": ")
    return done, None


class Terminated(Exception):
    """SIGTERM; unwinds, which stops the servers."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def main(given: list[str] | None = None) -> int:
    arguments = _arguments(given)
    signal.signal(signal.SIGTERM, _stop)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=arguments.scratch.absolute()))
    try:
        result = _measure(arguments, scratch)
    except (ServerFailed, OSError, Terminated) as error:
        print(f"bench: {error or 'stopped'}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    stamp = datetime.fromisoformat(result["started"]).strftime("%Y%m%dT%H%M%SZ")
    target: Path = arguments.json or arguments.scratch / f"result-{stamp}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    shown = report.text(result)
    target.with_suffix(".txt").write_text(shown)
    plot.draw(result, target.with_suffix(""))
    print(f"{shown}\nwritten to {target}, {target.with_suffix('.txt')} and the charts in {target.with_suffix('')}")
    return 1 if result["failures"] or result["stopped"] else 0


if __name__ == "__main__":
    sys.exit(main())
