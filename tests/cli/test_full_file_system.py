"""A whole served home on a file system without a block left: a person is told, and can delete, without and after restarts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.served import Home, until
from tests.nbd.file_system import mounted, take_all_room

FULL = "the file system below {} is full: make room there; until then snapshots, disks and VMs can only be deleted"


@pytest.fixture
def full_home() -> Iterator[Home]:
    """Two VMs, one with snapshots."""
    with mounted("ext4", 192 << 20) as directory:
        home = Home()
        home.path = directory / "home"
        try:
            home.init("4G")
            home.serve()
            for vm in ("web", "db"):
                home("vm", "create", vm, "--disk", "root=16M")
            for snapshot in ("s0", "s1"):
                home("snapshot", "create", "web", "--name", snapshot)
            take_all_room(foreign(home))
            yield home
        finally:
            home.close()


def foreign(home: Home) -> Path:
    return home.path.parent / "foreign"


def check_refused_and_deleting(home: Home, snapshot: str) -> None:
    before = home.state()
    for command in (["vm", "create", "new", "--disk", "root=16M"], ["snapshot", "create", "web"]):
        result = home.run(*command)
        assert result.status == 7 and result.error == FULL.format(home.path)
    assert home.state() == before
    home("snapshot", "delete", f"web@{snapshot}", "--yes")
    assert snapshot not in [one["name"] for one in home.json("snapshot", "list", "web")["snapshots"]]


def test_a_person_is_told_and_can_delete(full_home: Home) -> None:
    engine = full_home.engine_pid()
    check_refused_and_deleting(full_home, "s0")
    control = full_home.control_pid()
    os.kill(control, signal.SIGKILL)
    until(lambda: full_home.control_pid() not in (0, control), "another control plane")
    until(lambda: full_home.run("vm", "list").status == 0, "its answer")
    check_refused_and_deleting(full_home, "s1")
    assert full_home.engine_pid() == engine
    full_home("vm", "delete", "db", "--yes")
    foreign(full_home).unlink()
    full_home("vm", "create", "new", "--disk", "root=16M")
    full_home("snapshot", "create", "web")
    assert full_home.engine_pid() == engine


def test_a_home_is_served_again_without_room(full_home: Home) -> None:
    full_home.stop()
    take_all_room(foreign(full_home))
    full_home.serve()
    check_refused_and_deleting(full_home, "s0")
    foreign(full_home).unlink()
    full_home("vm", "create", "new", "--disk", "root=16M")
    full_home("pool", "check")
