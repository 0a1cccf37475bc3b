"""Rounds over many VMs whose guests are frozen: several at once, one guest at a time, nothing left frozen, nothing done twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockdev import errors
from blockdev.schedule.runner import FREEZING_MAX, Round, RoundEnded, Scheduler
from tests.quiesce.agent_stand_in import FREEZE, StandIn, refusal, well_behaved
from tests.schedule.conftest import Home

MINUTE = 60.0
FROZEN = {"at": "cron * * * * *", "keep_seconds": 3600, "consistency": "vm", "if_not_frozen": "fail"}
VMS = 12


class Guests:
    """A guest for each VM; how many are frozen at once is counted."""

    def __init__(self, home: Home, directory: Path) -> None:
        self.agents: dict[str, StandIn] = {}
        self.frozen_max = 0
        self.gate: threading.Barrier | None = None  # of so many that are to be frozen together
        for number in range(VMS):
            name = f"vm{number}"
            agent = self.agents[name] = StandIn(directory / f"{name}.sock")
            agent.behaviours[FREEZE] = self._freeze
            home.vms.create_vm(name, [("root", 1 << 20)])
            home.vms.set_agent(name, agent.address)

    def _freeze(self, agent: StandIn, request: dict[str, object]) -> bytes:
        said = well_behaved(agent, request)
        self.frozen_max = max(self.frozen_max, self.frozen_count())
        if self.gate is not None:
            self.gate.wait(10)
        return said

    def frozen_count(self) -> int:
        return sum(one.frozen_count > 0 for one in self.agents.values())

    def close(self) -> None:
        for one in self.agents.values():
            one.close()


@pytest.fixture
def guests(home: Home, tmp_path: Path) -> Iterator[Guests]:
    made = Guests(home, tmp_path)
    home.schedules.put(None, "often", FROZEN)
    home.scheduler.round()
    yield made
    made.close()


def test_guests_are_frozen_together_and_their_snapshots_say_so(home: Home, guests: Guests) -> None:
    guests.gate = threading.Barrier(4)  # none of four goes on before the fourth is frozen
    home.now += MINUTE
    assert home.scheduler.round() == Round(VMS, 0, 0)
    assert 4 <= guests.frozen_max <= FREEZING_MAX and guests.frozen_count() == 0
    for name in guests.agents:
        [taken] = home.vms.list_snapshots(name)
        assert (taken.consistency, taken.schedule) == ("vm", "often")
    assert home.scheduler.round() == Round(0, 0, 0)


def test_one_guest_is_frozen_for_one_schedule_at_a_time(home: Home, guests: Guests) -> None:
    home.schedules.put(None, "also", FROZEN)
    home.scheduler.round()
    home.now += MINUTE
    assert home.scheduler.round() == Round(2 * VMS, 0, 0)
    for name in guests.agents:
        assert [one.consistency for one in home.vms.list_snapshots(name)] == ["vm", "vm"]


def test_a_guest_that_fails_is_noted_and_the_others_are_taken(home: Home, guests: Guests) -> None:
    guests.agents["vm3"].behaviours[FREEZE] = lambda agent, request: refusal("a hook failed")
    told: list[RoundEnded] = []
    scheduler = Scheduler(home.vms, home.catalog, home.schedules, lambda: home.now, lambda _seconds: None, ended=told.append)
    for _ in range(2):
        home.now += MINUTE
        assert scheduler.round() == Round(VMS - 1, 1, 0)
    [event] = home.catalog.events(None, ["error"], None, 10)
    assert (event.vm, event.kind) == ("vm3", "schedule") and "a hook failed" in event.message
    assert [(one.done, one.error) for one in told] == [(Round(VMS - 1, 1, 0), None)] * 2


def test_an_engine_that_goes_away_in_the_middle_leaves_the_rest_due_and_nobody_frozen(home: Home, guests: Guests) -> None:
    def go_away(agent: StandIn, request: dict[str, object]) -> bytes:
        home.stop_engine()
        return well_behaved(agent, request)

    guests.agents["vm5"].behaviours[FREEZE] = go_away
    told: list[RoundEnded] = []
    scheduler = Scheduler(home.vms, home.catalog, home.schedules, lambda: home.now, lambda _seconds: None, ended=told.append)
    home.now += MINUTE
    with pytest.raises(errors.Unavailable):
        scheduler.round()
    for agent in guests.agents.values():
        agent.wait_until(lambda agent=agent: agent.frozen_count == 0)
    taken = sum(one.done.taken for one in told)
    assert taken < VMS and all(isinstance(one.error, errors.Unavailable) for one in told)
    home.start_engine()
    guests.agents["vm5"].behaviours[FREEZE] = well_behaved
    assert scheduler.round() == Round(VMS - taken, 0, 0)
    assert all(len(home.snapshots(name)) == 1 for name in guests.agents)


def test_stopping_waits_for_those_under_way_and_begins_no_more(home: Home, guests: Guests) -> None:
    frozen, let_go = threading.Event(), threading.Event()

    def hold(agent: StandIn, request: dict[str, object]) -> bytes:
        frozen.set()
        assert let_go.wait(10)
        return well_behaved(agent, request)

    for agent in guests.agents.values():
        agent.behaviours[FREEZE] = hold
    home.now += MINUTE
    home.scheduler.start()
    assert frozen.wait(60)
    stopping = threading.Thread(target=home.scheduler.stop)
    stopping.start()
    assert stopping.is_alive()
    home.scheduler._stopping.wait(60)
    let_go.set()
    stopping.join(120)
    assert not stopping.is_alive() and guests.frozen_count() == 0
    taken = [name for name in guests.agents if home.snapshots(name)]
    assert 1 <= len(taken) <= FREEZING_MAX
    home.start_control_plane()
    assert home.scheduler.round() == Round(VMS - len(taken), 0, 0)
