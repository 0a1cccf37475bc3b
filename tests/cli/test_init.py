"""An init that is killed at any step: what it was told holds when the home is served, or nothing is there yet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from blockdev import _medium
from blockdev.clock import now_seconds
from blockdev.home import Home
from blockdev.schedule.service import Schedules
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.reserve import NO_RESERVE

KILLED = 9
SECONDS_MAX = 120
INIT = """
import os, sys
from blockdev import Pool, _medium, pool
from blockdev.cli import main
from blockdev.home import Home

def kill(*_arguments, **_named):
    os._exit(9)

def kill_after(owner, name):
    whole = getattr(owner, name)
    def work(*arguments, **named):
        whole(*arguments, **named)
        os._exit(9)
    setattr(owner, name, work)

{patch}
main.main()
"""
KILLS = {
    "before the directories": "Home.make_directories = kill",
    "after the directories": "kill_after(Home, 'make_directories')",
    "before the pool": "Pool.create = kill",
    "while the pool is made": "_medium.write_file = kill",
    "as soon as the pool has its name": "kill_after(pool, 'write_new_pool')",
    "after the pool": "kill_after(Pool, 'create')",
}


@pytest.fixture
def home() -> Iterator[Path]:
    with TemporaryDirectory(prefix="bd-") as above:
        yield Path(above, "home")


def init(home: Path, *options: str, patch: str = "") -> int:
    command = [sys.executable, "-c", INIT.format(patch=patch), "--home", str(home), "init", "--capacity", "64M", *options]
    return subprocess.run(command, capture_output=True, timeout=SECONDS_MAX).returncode


def default_schedules(home: Path) -> int:
    """How many there are when it is served: a control plane begins with this."""
    catalog = Catalog(str(home / "catalog.db"), NO_RESERVE)
    try:
        schedules = Schedules(catalog, now_seconds)
        schedules.ship()
        return len(schedules.show().schedules)
    finally:
        catalog.close()


@pytest.mark.parametrize(
    ("kill", "again"),
    [
        *((kill, ("--no-schedules",)) for kill in KILLS),
        *((kill, ()) for kill in ("after the directories", "before the pool", "while the pool is made")),
    ],
)
def test_a_killed_init_without_schedules_leaves_a_home_without_or_none(home: Path, kill: str, again: tuple[str, ...]) -> None:
    assert init(home, "--no-schedules", patch=KILLS[kill]) == KILLED
    if (home / "pool").exists():
        assert init(home, *again) != 0
        assert default_schedules(home) == 0
    else:
        assert init(home, *again) == 0
        assert (default_schedules(home) == 0) == bool(again)
    assert set(os.listdir(home)) <= {"catalog.db", "catalog.db-reserve", "keys", "pool", "run"}


def test_an_init_leaves_the_catalog_of_another_pool_as_it_is(home: Path) -> None:
    assert init(home) == 0
    assert default_schedules(home) > 0
    catalog = Catalog(str(home / "catalog.db"), NO_RESERVE)
    with catalog.transaction():
        catalog.set_pool_uuid("00000000-1111-4222-8333-444444444444")
    catalog.close()
    os.rename(home / "pool", home / "elsewhere")
    assert init(home, "--no-schedules") == 0
    assert default_schedules(home) > 0


def synced_by_a_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories whose names are durable when the directories of a home that is there have been seen to."""
    synced: list[str] = []
    sync = _medium.sync_directory

    def note(path: str) -> None:
        sync(path)
        synced.append(path)

    monkeypatch.setattr(_medium, "sync_directory", note)
    Home(home).make_directories()
    monkeypatch.undo()
    return synced


def test_a_start_makes_durable_the_home_whose_maker_was_killed_before_it_did(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = "sync = _medium.sync_directory"
    patch = f"{sync}; _medium.sync_directory = lambda path: kill() if path == os.path.dirname(sys.argv[2]) else sync(path)"
    assert init(home, patch=patch) == KILLED
    assert home.exists()
    assert {str(home.parent), str(home)} <= set(synced_by_a_start(home, monkeypatch))


def test_a_start_makes_durable_the_key_whose_maker_was_killed_before_it_did(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a home whose key others have pinned by then would be another one after a power cut."""
    patch = "from blockdev.replicate.identity import KeyPair; kill_after(os, 'link'); KeyPair.load(Home.at(sys.argv[2]))"
    assert init(home, patch=patch) == KILLED
    assert (home / "keys/identity").exists()
    assert str(home / "keys") in synced_by_a_start(home, monkeypatch)
