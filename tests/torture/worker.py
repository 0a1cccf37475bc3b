"""A process that runs cases in a torture build: jobs come in on stdin, one JSON line each; a line goes out for each event.

A case that hangs ends the process, with the stacks of all threads on stderr.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from random import Random
from typing import Any

from blockdev import _medium
from tests.torture.cases import Bench
from tests.torture.catalog_bugs import CATALOG_BUGS
from tests.torture.catalog_cases import CatalogBench
from tests.torture.catalog_faults import CATALOG_FAULTS, CatalogFaultBench
from tests.torture.catalog_scenarios import CATALOG_SCENARIOS
from tests.torture.later_starts import LATER_STARTS, LaterStartBench
from tests.torture.restarts import RESTARTS, RestartBench
from tests.torture.small_files import SMALL_FILES, SmallFileBench

CASE_SECONDS_MAX = 120.0
BENCHES = {
    **dict.fromkeys(CATALOG_SCENARIOS, CatalogBench),
    **dict.fromkeys(CATALOG_FAULTS, CatalogFaultBench),
    **dict.fromkeys(RESTARTS, RestartBench),
    **dict.fromkeys(LATER_STARTS, LaterStartBench),
    **dict.fromkeys(SMALL_FILES, SmallFileBench),
}


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def watch() -> None:
    """End the process if this is not called again in time."""
    faulthandler.dump_traceback_later(CASE_SECONDS_MAX, exit=True)


def run_job(bench: Any, scenario: str, seed: int, first: int, end: int) -> None:
    """Events: began (a state; -1 is the recording), then sound (with how many trees were opened) or failed (and why)."""
    recording = None
    for number in (-1, *range(first, end)):
        say(event="began", state=number)
        watch()
        told: list[str] = []
        states = 0
        try:
            if recording is None:
                recording = bench.record(scenario, seed)
            else:
                for _ in bench.run(recording, Random(f"{scenario} {seed} {number}"), told):
                    states += 1
        except Exception:
            say(event="failed", state=number, why="\n".join([*told, traceback.format_exc()]))
            if recording is None:
                return
            continue
        say(event="sound", state=number, states=states)


def plant(bug: str) -> None:
    if bug in CATALOG_BUGS:
        CATALOG_BUGS[bug]()
    else:
        _medium.plant(_medium.PlantedBug[bug])


def main() -> None:
    directory, bug = sys.argv[1:]
    plant(bug)
    benches: dict[type, Any] = {}
    for line in sys.stdin:
        watch()
        job = json.loads(line)
        kind = BENCHES.get(job["scenario"], Bench)
        if kind not in benches:
            benches[kind] = kind(directory)
        run_job(benches[kind], **job)
        faulthandler.cancel_dump_traceback_later()
        say(event="done")


if __name__ == "__main__":
    main()
