"""The watch over the engine: a trouble is told once when it begins and once when it ends, whatever restarts in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from blockdev.api.watch import SETTLE_SECONDS, Watch, Watched, compare
from blockdev.vmmap.events import Events
from blockdev.vmmap.recorder import Recorder
from tests.schedule.conftest import Home, home

__all__ = ["home"]
EVERY = ["info", "warning", "error"]


def status(pid: int = 7, **stats: Any) -> dict[str, Any]:
    return {"pid": pid, "stats": {"poisoned": False, "level": "ok", "available_bytes": 3 << 30, "checksum_errors_since_scrub": 0, **stats}}


class Seen:
    """What is told of one look after the other."""

    def __init__(self) -> None:
        self.known = Watched()
        self.now = 1000.0

    def __call__(self, found: dict[str, Any] | None, later: float = 5.0) -> list[tuple[str, str, str]]:
        self.now += later
        self.known, told = compare(self.known, found, "it is gone", self.now)
        return [tuple(one) for one in told]


def test_an_engine_that_goes_away_and_comes_back_is_told_with_how_long() -> None:
    seen = Seen()
    assert seen(None) == [], "it was not there yet"
    assert seen(status()) == []
    assert seen(None) == [("error", "engine", "the engine does not answer: it is gone")]
    assert seen(None) == seen(None) == []
    back, restarted = seen(status(pid=8), 60)
    assert back == ("info", "engine", "the engine answers again after 70 s") and restarted[0] == "warning"
    assert seen(status(pid=8)) == []


def test_an_engine_that_was_restarted_between_two_looks_is_told() -> None:
    seen = Seen()
    seen(status())
    [told] = seen(status(pid=8))
    assert told[0] == "warning" and "had not flushed" in told[2]


def test_a_poisoned_engine_is_told_once() -> None:
    seen = Seen()
    seen(status())
    assert [one[0] for one in seen(status(poisoned=True))] == ["error"]
    assert seen(status(poisoned=True)) == []
    assert [one[0] for one in seen(status(pid=8))] == ["warning", "info"]


def test_a_pool_that_fills_up_is_told_at_each_level_and_once_when_it_is_well_for_a_while() -> None:
    seen = Seen()
    assert seen(status(level="warning")) == [("warning", "pool", "the pool is filling up: 3.0 GiB left for guests' data")]
    assert [one[0] for one in seen(status(level="critical"))] == ["error"]
    for _ in range(5):
        assert seen(status(level="warning"), SETTLE_SECONDS / 2) == seen(status(level="critical")) == []
    assert seen(status(level="ok")) == []
    assert seen(status(level="ok"), SETTLE_SECONDS) == [("info", "pool", "the pool has room again: 3.0 GiB left for guests' data")]


def test_damage_that_a_guest_met_is_told_once_until_a_scrub_looked() -> None:
    seen = Seen()
    seen(status())
    assert [one[:2] for one in seen(status(checksum_errors_since_scrub=1))] == [("error", "pool")]
    assert seen(status(checksum_errors_since_scrub=9)) == []
    assert seen(status(checksum_errors_since_scrub=0)) == []
    assert [one[:2] for one in seen(status(checksum_errors_since_scrub=1))] == [("error", "pool")]


@pytest.fixture
def watched(home: Home) -> Iterator[Home]:
    home.vms.create_vm("web", [("root", 1 << 20)])
    yield home


def watch(home: Home) -> Watch:
    recorder = Recorder(home.catalog)
    return Watch(home.catalog, home.client, recorder, Events(recorder.put, lambda: home.now), lambda: home.now)


def test_what_was_told_is_known_to_the_next_control_plane(watched: Home) -> None:
    first = watch(watched)
    first.look()
    watched.stop_engine()
    first.look()
    watched.now += 3600
    second = watch(watched)
    second.look()
    watched.start_engine()
    second.look()
    told = [(one.level, one.kind, one.message) for one in reversed(watched.catalog.events(None, EVERY, None, 9))]
    assert [one[:2] for one in told] == [("error", "engine"), ("info", "engine")]
    assert "not running" in told[0][2] and told[1][2] == "the engine answers again after 60 min"


def test_a_setting_of_another_build_is_no_reason_to_stop(watched: Home) -> None:
    with watched.catalog.transaction():
        watched.catalog.set_setting("watched", '{"surprise": 1}')
    watch(watched).look()
    assert watched.catalog.events(None, EVERY, None, 9) == []
