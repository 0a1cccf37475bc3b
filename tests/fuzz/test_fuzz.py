"""Every target runs its whole corpus, and fuzzes for a moment from a fixed seed; `make fuzz` does it for long."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blockdev.api.app import PREFIX, create_app
from tests.fuzz import frames, rest, session
from tests.fuzz.targets import TARGETS

SEED = 1
SECONDS = 1  # of fuzzing, behind the corpus
BLOCKS_MIN = 2000  # of the extensions; Python code alone has a few hundred branches
COVERED = re.compile(r"cov: (\d+)")
EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_what_a_moment_of_fuzzing_adds_find_nothing(name: str) -> None:
    outcome = session.fuzz(name, SECONDS, SEED, keep=False, quiet=True)
    assert outcome.status == 0, session.findings(name, outcome)
    executed = EXECUTED.search(outcome.output)
    files = list((session.CORPUS / name).iterdir())
    assert files and executed is not None and int(executed[1]) >= len(files), outcome.output[-2000:]
    if TARGETS[name].sanitized:
        covered = max(int(count) for count in COVERED.findall(outcome.output))
        assert covered > BLOCKS_MIN, f"only {covered} blocks ran: does the extensions' coverage reach libFuzzer?"


@pytest.mark.parametrize(
    "defect, told",
    {
        "property": "a property that does not hold",
        "overrun": "heap-buffer-overflow",
        "memory": "allocation-size-too-big",
        "hang": "libFuzzer: timeout",
    }.items(),
)
def test_a_defect_ends_the_session(tmp_path: Path, defect: str, told: str) -> None:
    culprit = tmp_path / "input"
    culprit.write_text(defect)
    limits = session.flags("canary", SEED)
    if defect == "hang":
        limits.append("-timeout=2")  # the last one counts
    outcome = session.run("canary", [*limits, str(culprit)], quiet=True)
    assert outcome.status != 0 and told in outcome.output, outcome.output[-2000:]


def test_what_was_found_is_told_with_the_line_that_runs_it_again() -> None:
    told = session.findings("pool-log", session.Outcome(77, "Test unit written to /found/pool-log-crash-1\n"))
    assert told.endswith("-m tests.fuzz pool-log --input /found/pool-log-crash-1")


def test_the_corpus_has_what_is_asked_today() -> None:
    """Else: .venv/bin/python -m tests.fuzz.corpus."""
    asked = {"rest": list(rest.SEEDS), "frame": [f"{number:02}-{body['op']}" for number, body in enumerate(frames.REQUESTS)]}
    for name, seeds in asked.items():
        there = {path.name for path in (session.CORPUS / name).glob("seed-*")}
        assert {f"seed-{seed}" for seed in seeds} <= there, name


def test_each_route_of_rest_has_a_seed() -> None:
    asked = {(method, target.partition("?")[0]) for method, target, _body in rest.SEEDS.values()}
    document = create_app(None).openapi()  # type: ignore[arg-type]  # nobody asks it anything
    routes = [(method.upper(), path.removeprefix(PREFIX)) for path, item in document["paths"].items() for method in item]
    forms = [(method, re.compile(re.sub(r"\{\w+\}", "[^/]+", path))) for method, path in routes]
    unasked = [(method, form.pattern) for method, form in forms if not any(method == one and form.fullmatch(path) for one, path in asked)]
    assert len(routes) > 90 and not unasked


def test_coverage_of_python_code_guides(tmp_path: Path) -> None:
    """One of the canary's words is found from nothing: by chance it would take 2^32 inputs."""
    limits = [*session.flags("canary", SEED), "-runs=100000", "-timeout=10"]  # the word may be the one that hangs
    outcome = session.run("canary", [*limits, str(tmp_path)], quiet=True)
    assert outcome.status != 0 and "ERROR" in outcome.output, outcome.output[-2000:]
