"""Tortures the pool with power cuts: `python -m tests.torture --seeds 1000`, or one case again as a failure told it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial

from blockdev._medium import PlantedBug
from tests.torture import runner
from tests.torture.catalog_bugs import CATALOG_BUGS
from tests.torture.catalog_faults import CATALOG_FAULTS
from tests.torture.catalog_scenarios import CATALOG_SCENARIOS
from tests.torture.later_starts import LATER_STARTS
from tests.torture.restarts import RESTARTS
from tests.torture.runner import Job
from tests.torture.scenarios import SCENARIOS
from tests.torture.small_files import SMALL_FILES

STATES = 100
NAMES = [*SCENARIOS, *CATALOG_SCENARIOS, *CATALOG_FAULTS, *RESTARTS, *LATER_STARTS, *SMALL_FILES]
BUGS = [*(bug.name for bug in PlantedBug), *CATALOG_BUGS]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seeds", type=int, default=len(NAMES), help="recordings to make, of each scenario in turn")
    parser.add_argument("--states", type=int, default=STATES, help=f"cases in each recording, {STATES} unless told")
    parser.add_argument("--scenario", choices=sorted(NAMES), help="this one only")
    parser.add_argument("--seed", type=int, help="this recording only (with --scenario)")
    parser.add_argument("--state", type=int, help="this case of it only")
    parser.add_argument("--first-seed", type=int, default=0, help="where --seeds begins to count")
    parser.add_argument("--bug", choices=BUGS, default=runner.NO_BUG, help="plant it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, one a core unless told")
    return parser.parse_args()


def jobs(asked: argparse.Namespace) -> Iterator[Job]:
    names = [asked.scenario] if asked.scenario else NAMES
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds) if asked.seed is None else [asked.seed]
    first, end = (0, asked.states) if asked.state is None else (asked.state, asked.state + 1)
    for seed in seeds:
        yield Job(names[seed % len(names)], seed, first, end)


def main() -> int:
    asked = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end like Ctrl-C does: the workers too
    totals = runner.run(
        jobs(asked), bug=asked.bug, worker_count=asked.jobs, told=partial(print, flush=True)
    )
    print(totals)
    return 1 if totals.failures else 0


if __name__ == "__main__":
    sys.exit(main())
