"""Runs cases in worker processes, one a core, and reports what failed with the line that runs it again.

A worker that dies or hangs fails the case it was at; another takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from time import monotonic

from tests.torture.later_starts import LATER_STARTS
from tests.torture.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "torture"
SHARED_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a sync is free there
STDERR_TOLD = 6000
PROGRESS_SECONDS = 60.0
NO_BUG = "BUG_NONE"
HUNTED_STATES = 8  # of one recording, when a bug is hunted


@dataclass(frozen=True)
class Job:
    """Some states of one recording."""

    scenario: str
    seed: int
    first: int
    end: int

    def rerun(self, state: int, bug: str) -> str:
        planted = "" if bug == NO_BUG else f" --bug {bug}"
        chosen = f" --state {state}" if state >= 0 else ""
        return f".venv/bin/python -m tests.torture --scenario {self.scenario} --seed {self.seed}{chosen}{planted}"


@dataclass(frozen=True)
class Failure:
    job: Job
    state: int  # -1: the recording itself
    why: str
    rerun: str
    case_number: int  # of those that this run had made by then, from 1

    def __str__(self) -> str:
        return f"FAILED {self.job.scenario} seed {self.job.seed} state {self.state}\n{self.why}\nagain: {self.rerun}"


@dataclass
class Totals:
    cases: int = 0
    states: int = 0
    scenarios: set[str] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.states} states in {self.cases} cases of {len(self.scenarios)} scenarios, "
            f"{self.seconds:.0f} s, {len(self.failures)} failures"
        )


def build() -> None:
    """Bring the torture build up to date."""
    subprocess.run(["make", "--quiet", "build/torture/.built"], cwd=ROOT, check=True, stdout=sys.stderr)


class Worker:
    """One process; it is given a job at a time."""

    def __init__(self, bug: str) -> None:
        self.directory = tempfile.mkdtemp(prefix="blockdev-torture-", dir=SHARED_MEMORY)
        self.log = open(f"{self.directory}/stderr", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.worker", self.directory, bug],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(BUILD)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            bufsize=1,
            process_group=0,  # Ctrl-C, and SIGTERM to the group, are for the campaign, which ends its workers
        )

    def give(self, job: Job) -> None:
        assert self.process.stdin is not None
        asked = {"scenario": job.scenario, "seed": job.seed, "first": job.first, "end": job.end}
        with contextlib.suppress(BrokenPipeError):  # hear() will tell
            self.process.stdin.write(json.dumps(asked) + "\n")

    def hear(self) -> dict | None:
        """The next event; None when the process is no more."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def end_of_it(self) -> str:
        """How the process ended, and the last of what it wrote on stderr."""
        status = self.process.wait()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self.log.seek(0)
        return f"the worker was {how}\n{self.log.read()[-STDERR_TOLD:]}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream is not None:
                stream.close()
        shutil.rmtree(self.directory)


class Campaign:
    """Jobs shared by worker processes, each led by a thread of this one."""

    def __init__(self, jobs: Iterable[Job], bug: str, only_one_failure: bool, told: Callable[[str], None]) -> None:
        self.totals = Totals()
        self._begun = self._progress_told = monotonic()
        self._jobs = iter(jobs)
        self._workers: set[Worker] = set()
        self._bug = bug
        self._only_one_failure = only_one_failure
        self._told = told
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # guards what is above

    def run(self, worker_count: int) -> Totals:
        with ThreadPoolExecutor(worker_count) as threads:
            try:
                for led in [threads.submit(self._lead) for _ in range(worker_count)]:
                    led.result()
            except BaseException:  # do not wait for the rest of the jobs
                self._stop()
                raise
        self.totals.seconds = monotonic() - self._begun
        return self.totals

    def _stop(self) -> None:
        with self._lock:
            self._stopped.set()
            self._jobs = iter(())
            for worker in self._workers:
                worker.process.kill()

    def _next(self) -> Job | None:
        with self._lock:
            self._tell_progress()
            over = self._only_one_failure and self.totals.failures
            return None if over else next(self._jobs, None)

    def _tell_progress(self) -> None:
        now = monotonic()
        if now - self._progress_told >= PROGRESS_SECONDS:
            self._progress_told = now
            self.totals.seconds = now - self._begun
            self._told(f"so far {self.totals}")

    def _lead(self) -> None:
        job = self._next()
        while job is not None:
            worker = self._hire()
            try:
                died_at = None
                while job is not None and died_at is None:
                    worker.give(job)
                    died_at = self._follow(worker, job)
                    if self._stopped.is_set():
                        job = None
                    elif died_at is not None and 0 <= died_at < job.end - 1:
                        job = replace(job, first=died_at + 1)
                    else:
                        job = self._next()
            finally:
                self._dismiss(worker)

    def _hire(self) -> Worker:
        worker = Worker(self._bug)
        with self._lock:
            self._workers.add(worker)
            if self._stopped.is_set():
                worker.process.kill()
        return worker

    def _dismiss(self, worker: Worker) -> None:
        with self._lock:
            self._workers.remove(worker)
        worker.close()

    def _follow(self, worker: Worker, job: Job) -> int | None:
        """Until the job is done; the state at which the worker died, if it did."""
        state = -1
        while (event := worker.hear()) is not None:
            if event["event"] == "done":
                return None
            state = event["state"]
            if event["event"] == "sound":
                self._sound(job, event["states"], state)
            elif event["event"] == "failed":
                self._failed(job, state, event["why"])
        why = worker.end_of_it()
        if not self._stopped.is_set():
            self._failed(job, state, why)
        return state

    def _sound(self, job: Job, states: int, state: int) -> None:
        with self._lock:
            self.totals.states += states
            self.totals.cases += state >= 0
            self.totals.scenarios.add(job.scenario)

    def _failed(self, job: Job, state: int, why: str) -> None:
        with self._lock:
            if self._only_one_failure and self.totals.failures:
                return
            self.totals.cases += 1
            failure = Failure(job, state, why, job.rerun(state, self._bug), self.totals.cases)
            self.totals.failures.append(failure)
            self._told(str(failure))


def quiet(_line: str) -> None:
    """For a caller that looks at the totals."""


def run(
    jobs: Iterable[Job],
    *,
    bug: str = NO_BUG,
    worker_count: int = os.cpu_count() or 1,
    only_one_failure: bool = False,
    told: Callable[[str], None] = quiet,
) -> Totals:
    """Build what is to be tortured, and run the jobs.  told: gets each failure at once."""
    build()
    return Campaign(jobs, bug, only_one_failure, told).run(worker_count)


def hunt(bug: str, cases_max: int, *, among: str = "", worker_count: int = 2) -> int | None:
    """The number of the case that caught a planted bug, counted from 1; None when none of `cases_max` did."""
    totals = run(hunting_ground(cases_max, among), bug=bug, worker_count=worker_count, only_one_failure=True)
    return totals.failures[0].case_number if totals.failures else None


def hunting_ground(cases_max: int, among: str = "") -> Iterator[Job]:
    """`cases_max` cases, a few of each scenario in turn whose name begins with `among`."""
    given = 0
    for seed in count():
        for scenario in SCENARIOS if not among else [*SCENARIOS, *LATER_STARTS]:
            if not scenario.startswith(among):
                continue
            if given == cases_max:
                return
            states = min(HUNTED_STATES, cases_max - given)
            given += states
            yield Job(scenario, seed, 0, states)
