"""blockdevctl job and events --follow: what runs and what ran, watched and stopped from another terminal."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import get_args

import pytest

from blockdev.api.jobs import JobState
from blockdev.cli import events, job
from blockdev.vmmap.events import Kind
from tests.cli.served import SECONDS_MAX, Home, until


@pytest.fixture(scope="module")
def content(home: Home, images: Path) -> str:
    """A VM whose data makes a slow compaction last."""
    home("vm", "create", "job-content", "--image", f"root={images / 'fs.qcow2'}")
    return "job-content"


@pytest.fixture
def slow(home: Home, content: str) -> str:
    """A job that goes on."""
    told = home("pool", "compact", "--rate", "1K", "--detach")
    [id] = re.findall(r"pool.compact of pool goes on: blockdevctl job watch (\w+)", told)
    return id


def test_the_words_are_those_of_the_server() -> None:
    assert get_args(JobState) == job.STATES and get_args(Kind) == events.KINDS


def test_what_was_done_is_listed_and_shown(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    home("snapshot", "create", name, "--name", "s1")
    home.run("snapshot", "create", name, "--name", "s1")
    found = home.json("job", "list", "--subject", name)
    assert [(one["kind"], one["state"]) for one in found["jobs"]] == [
        ("snapshot.create", "failed"),
        ("snapshot.create", "done"),
        ("vm.create", "done"),
    ]
    lines = home("job", "list", "--subject", name, "--state", "failed", "--kind", "snapshot", "--count", "5").splitlines()
    assert lines[0].split() == ["JOB", "BEGAN", "KIND", "ON", "BY", "STATE"] and len(lines) == 2
    assert f"{name}@s1" in lines[1] and "choose another name" in lines[1] and "owner" in lines[1]
    shown = home("job", "show", found["jobs"][1]["id"])
    assert re.search(r"state: +done", shown) and re.search(r"disks: +root", shown)
    assert home("job", "list", "--caller", "nobody") == "no jobs\n"


def test_a_job_that_is_not_there_is_no_crash(home: Home) -> None:
    for verb in ("show", "watch", "cancel"):
        assert home.run("job", verb, "0123456789abcdef").status == 3
        assert home.run("job", verb, "../vms").status == 2


def test_a_detached_job_is_watched_and_cancelled_by_others(home: Home, slow: str) -> None:
    assert re.search(r"state: +running", home("job", "show", slow))
    watching = home.start_command("job", "watch", slow)
    told = home("job", "cancel", slow)
    assert told == "pool.compact of pool: cancelled\n"
    _, error = watching.communicate(timeout=SECONDS_MAX)
    assert watching.returncode == 1 and "cancelled" in error
    assert home.run("job", "watch", slow).status == 1
    assert home.json("job", "cancel", slow)["state"] == "cancelled", "it stays as it ended"


def test_who_stops_watching_does_not_stop_the_job(home: Home, slow: str) -> None:
    watching = home.start_command("job", "watch", slow)
    assert watching.stderr is not None and watching.stderr.readline().startswith("pool.compact of pool: ")
    watching.send_signal(signal.SIGINT)
    _, told = watching.communicate(timeout=SECONDS_MAX)
    assert watching.returncode == 130 and told.endswith(f"goes on: blockdevctl job watch {slow}\n") and "error" not in told
    assert home.json("job", "show", slow)["state"] == "running"
    home("job", "cancel", slow)


def test_a_job_that_is_watched_to_its_end_says_what_came_of_it(home: Home, name: str, images: Path) -> None:
    started = home.json("vm", "create", name, "--image", f"root={images / 'fs.qcow2'}", "--detach")
    assert home.json("job", "watch", started["id"])["name"] == name
    assert home("job", "watch", started["id"]) == f"vm.create of {name}: done\n"
    assert home.run("vm", "create", name, "--disk", "root=1M").status == 4
    [failed] = home.json("job", "list", "--subject", name, "--state", "failed")["jobs"]
    assert home.run("job", "watch", failed["id"]).status == 4


@pytest.mark.parametrize("command", [("vm", "create", "x", "--disk", "root=1M"), ("pool", "check", "--offline")])
def test_what_is_done_at_once_or_here_is_not_detached(home: Home, command: tuple[str, ...]) -> None:
    result = home.run(*command, "--detach")
    assert result.status == 2 and "--" in result.error


def test_a_follower_sees_what_comes_without_asking_again(home: Home, name: str) -> None:
    following = home.start_command("events", "--follow", "--json", "--kind", "vm", "--vm", name)
    home("vm", "create", name, "--disk", "root=1M")
    home("vm", "delete", name, "--yes")
    assert following.stdout is not None
    seen = json.loads(following.stdout.readline())
    assert (seen["kind"], seen["vm"]) == ("vm", name) and "was deleted by owner" in seen["message"]
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=SECONDS_MAX)
    assert (following.returncode, told) == (0, "")
    until(lambda: name in home("events", "--kind", "vm"), "the list")
