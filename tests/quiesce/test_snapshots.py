"""Snapshots asked for with a frozen guest say what was achieved, never more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockdev.errors import GuestFailed, InvalidArgument, NotFound, Unavailable
from blockdev.quiesce.snapshots import take_snapshot
from blockdev.vmmap.model import Terms
from tests.quiesce.agent_stand_in import FREEZE, STATUS, THAW, StandIn, answer, refusal, saying, well_behaved
from tests.schedule.conftest import Home, home

__all__ = ["home"]
FROZEN = Terms(asked="vm")


@pytest.fixture
def web(home: Home, agent: StandIn) -> Iterator[Home]:
    home.vms.create_vm("web", [("root", 1 << 20)])
    home.vms.set_agent("web", agent.address)
    yield home


def test_a_frozen_guest_makes_a_consistent_snapshot(web: Home, agent: StandIn) -> None:
    taken = take_snapshot(web.vms, "web", "s", terms=FROZEN)
    assert (taken.asked, taken.consistency) == ("vm", "vm")
    assert taken.frozen_ms is not None and 1 <= taken.frozen_ms < 10_000
    assert taken == web.vms.show_snapshot("web", "s")
    assert agent.requests.index(FREEZE) < agent.requests.index(THAW) and agent.frozen_count == 0


def test_nobody_is_frozen_for_a_snapshot_that_does_not_ask(web: Home, agent: StandIn) -> None:
    taken = take_snapshot(web.vms, "web", "s")
    assert (taken.asked, taken.consistency, taken.frozen_ms) == ("crash", "crash", None)
    assert agent.requests == []


def test_a_guest_that_cannot_be_frozen_follows_what_was_said(web: Home, agent: StandIn) -> None:
    agent.behaviours[FREEZE] = lambda agent, request: refusal("a hook failed")
    taken = take_snapshot(web.vms, "web", "s", terms=FROZEN)
    assert (taken.asked, taken.consistency, taken.frozen_ms) == ("vm", "crash", None)
    with pytest.raises(GuestFailed, match="a hook failed"):
        take_snapshot(web.vms, "web", "t", terms=FROZEN, if_not_frozen="fail")
    assert web.snapshots("web") == ["s"]


def test_a_guest_that_thawed_meanwhile_is_not_called_consistent(web: Home, agent: StandIn) -> None:
    agent.behaviours[STATUS] = saying(answer("thawed"))
    agent.behaviours[THAW] = lambda agent, request: (well_behaved(agent, request), answer(0))[1]
    taken = take_snapshot(web.vms, "web", "s", terms=FROZEN)
    assert (taken.asked, taken.consistency) == ("vm", "crash")


def test_without_an_agent_it_is_crash_consistent_or_refused(web: Home, agent: StandIn) -> None:
    web.vms.set_agent("web", None)
    assert take_snapshot(web.vms, "web", "s", terms=FROZEN).consistency == "crash"
    with pytest.raises(InvalidArgument, match="vm agent web PATH"):
        take_snapshot(web.vms, "web", "t", terms=FROZEN, if_not_frozen="fail")
    web.vms.set_agent("web", "/nowhere/agent.sock")
    assert take_snapshot(web.vms, "web", "t", terms=FROZEN).consistency == "crash"
    with pytest.raises(Unavailable):
        take_snapshot(web.vms, "web", "u", terms=FROZEN, if_not_frozen="fail")
    assert web.snapshots("web") == ["s", "t"]


def test_the_guest_is_thawed_when_the_snapshot_fails(web: Home, agent: StandIn) -> None:
    take_snapshot(web.vms, "web", "s")
    with pytest.raises(Exception, match="s"):
        take_snapshot(web.vms, "web", "s", terms=FROZEN)  # the name is taken
    agent.wait_until(lambda: agent.frozen_count == 0)
    with pytest.raises(NotFound):
        take_snapshot(web.vms, "none", "s", terms=FROZEN)


def test_a_schedule_freezes_when_it_says_so(web: Home, agent: StandIn) -> None:
    web.schedules.put(
        None, "hourly", {"at": "hourly :05", "keep_seconds": 3600, "consistency": "vm", "if_not_frozen": "fail"}
    )
    web.scheduler.round()
    web.now += 3600
    assert web.scheduler.round().taken == 1
    [first] = web.vms.list_snapshots("web")
    assert (first.consistency, first.schedule) == ("vm", "hourly")
    agent.behaviours[FREEZE] = lambda agent, request: refusal("no")
    web.now += 3600
    assert web.scheduler.round()[:2] == (0, 1)
    [event] = web.catalog.events("web", ["error"], None, 10)
    assert "no" in event.message


def test_a_schedule_says_how_long_its_guest_may_be_frozen_and_the_catalog_keeps_it(web: Home, agent: StandIn) -> None:
    rule = {"at": "hourly :05", "keep_seconds": 3600, "consistency": "vm", "if_not_frozen": "fail"}
    web.schedules.put(None, "hourly", {**rule, "freeze_seconds_max": 1})
    assert web.schedules.show().schedules[0].freeze_seconds_max == 1
    agent.behaviours[FREEZE] = lambda agent, request: b""
    with pytest.raises(GuestFailed, match="did not freeze within 1 s"):
        web.scheduler.run_now("web", "hourly")
    assert web.catalog.schedules()[None][0]["freeze_seconds_max"] == 1
    web.schedules.put(None, "hourly", {"freeze_seconds_max": 10})
    assert "freeze_seconds_max" not in web.catalog.schedules()[None][0], "earlier builds read it"


def test_a_guest_that_does_not_answer_fails_its_own_run_and_keeps_no_other_from_its_time(web: Home) -> None:
    web.vms.set_agent("web", "/nowhere/agent.sock")
    web.vms.create_vm("other", [("root", 1 << 20)])
    rule = {"at": "hourly :05", "keep_seconds": 3600, "consistency": "vm", "if_not_frozen": "fail"}
    web.schedules.put("web", "hourly", rule)
    web.schedules.put("other", "hourly", {**rule, "if_not_frozen": "crash"})
    web.scheduler.round()
    web.now += 3600
    assert web.scheduler.round()[:2] == (1, 1)
    assert (web.snapshots("web"), len(web.snapshots("other"))) == ([], 1)


@pytest.mark.parametrize("path", ["relative", "", "/" + "x" * 107, "/a\nb"])
def test_a_socket_that_cannot_be_is_refused(web: Home, path: str) -> None:
    with pytest.raises(InvalidArgument):
        web.vms.set_agent("web", path)
    assert Path(web.vms.agent("web") or "").name == "agent.sock"
