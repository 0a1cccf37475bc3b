"""A guest is thawed, whatever dies, hangs or lies between freeze and thaw."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blockdev.errors import Busy, GuestFailed, InvalidArgument, Unavailable
from blockdev.quiesce import freeze
from blockdev.quiesce.freeze import frozen
from tests.quiesce.agent_stand_in import (
    FREEZE,
    STATUS,
    THAW,
    StandIn,
    answer,
    closing_after,
    once,
    refusal,
    saying,
    well_behaved,
)
from tests.quiesce.owner import OWNER, watchdogs_of

LONG_BEFORE_THE_LIMIT_S = 40.0  # of owner()


def watchdogs(agent: StandIn) -> list[int]:
    return watchdogs_of(agent.address)


def await_no_watchdog(agent: StandIn, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while watchdogs(agent):
        assert time.monotonic() < deadline, f"a watchdog goes on: {watchdogs(agent)}"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def no_watchdog_is_left(agent: StandIn) -> Iterator[None]:
    yield
    await_no_watchdog(agent)


@contextmanager
def owner(agent: StandIn, limit_s: float = 60.0) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the guest frozen until its standard input ends."""
    command = [sys.executable, "-c", OWNER, agent.address, str(limit_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "frozen\n"
        assert agent.frozen_count == 2
        yield process
        if process.poll() is None:
            process.kill()


def test_the_guest_is_frozen_for_the_body_and_thawed_behind_it(agent: StandIn) -> None:
    with frozen(agent.address) as held:
        assert agent.frozen_count == 2
        assert (held.file_system_count, held.frozen_ms, held.was_whole) == (2, None, False)
        time.sleep(0.1)
    assert agent.frozen_count == 0
    assert held.was_whole
    assert held.frozen_ms is not None and 100 <= held.frozen_ms < 5000
    assert agent.connection_count == 1  # nobody could have come in between


def test_one_freeze_after_another(agent: StandIn) -> None:
    for _ in range(5):
        with frozen(agent.address) as held:
            assert agent.frozen_count == 2
        assert held.was_whole


def test_a_second_freeze_of_the_same_guest_has_to_wait_and_changes_nothing(agent: StandIn) -> None:
    with frozen(agent.address, 30.0) as held, pytest.raises(Unavailable, match="no other program"), frozen(agent.address):
        raise AssertionError("frozen twice")
    assert held.was_whole


@pytest.mark.parametrize("limit", [0, -1, 61, float("nan"), float("inf")])
def test_a_limit_that_cannot_be_used(agent: StandIn, limit: float) -> None:
    with pytest.raises(InvalidArgument), frozen(agent.address, limit):
        raise AssertionError("frozen")
    assert not agent.requests


def test_nobody_there(agent: StandIn) -> None:
    with pytest.raises(Unavailable, match="No such file"), frozen(agent.address + ".none"):
        raise AssertionError("frozen")


def test_an_agent_that_does_not_answer_is_not_frozen(agent: StandIn) -> None:
    agent.behaviours["guest-ping"] = saying(b"")
    with pytest.raises(Unavailable, match="did not answer"), frozen(agent.address):
        raise AssertionError("frozen")
    assert FREEZE not in agent.requests


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_bodys_error_comes_out_of_a_thawed_guest(agent: StandIn, error: type[BaseException]) -> None:
    with pytest.raises(error), frozen(agent.address) as held:
        raise error
    assert agent.frozen_count == 0 and held.was_whole


def test_a_freeze_that_is_refused(agent: StandIn) -> None:
    def half_frozen(stand_in: StandIn, request: dict[str, Any]) -> bytes:
        stand_in.set_frozen(1)
        return refusal("failed to freeze /srv: Input/output error")

    agent.behaviours[FREEZE] = half_frozen
    with pytest.raises(GuestFailed, match="Input/output error"), frozen(agent.address):
        raise AssertionError("frozen")
    assert agent.frozen_count == 0 and THAW in agent.requests


@pytest.mark.parametrize("last_words", [b"", b'{"return": ', b"?\n"])
def test_a_connection_lost_while_freezing(agent: StandIn, last_words: bytes) -> None:
    def freeze_and_close(stand_in: StandIn, request: dict[str, Any]) -> bytes:
        well_behaved(stand_in, request)
        return closing_after(last_words)(stand_in, request)

    agent.behaviours[FREEZE] = freeze_and_close
    with pytest.raises((Unavailable, GuestFailed)), frozen(agent.address):
        raise AssertionError("frozen")
    assert agent.frozen_count == 0


def test_a_guest_without_a_file_system_to_freeze(agent: StandIn) -> None:
    agent.file_system_count = 0
    with pytest.raises(GuestFailed, match="no file system"), frozen(agent.address):
        raise AssertionError("frozen")


def test_a_guest_that_is_frozen_already_is_left_so(agent: StandIn) -> None:
    agent.set_frozen(2)
    with pytest.raises(Busy, match="frozen already"), frozen(agent.address):
        raise AssertionError("frozen")
    assert agent.frozen_count == 2


def test_a_freeze_that_is_answered_too_late_is_undone(agent: StandIn) -> None:
    go_on = threading.Event()

    def late(stand_in: StandIn, request: dict[str, Any]) -> bytes:
        assert go_on.wait(30)
        return well_behaved(stand_in, request)

    agent.behaviours[FREEZE] = late
    with pytest.raises(Unavailable, match="may be frozen"), frozen(agent.address, 0.5):
        raise AssertionError("frozen")
    go_on.set()
    agent.wait_until(lambda: FREEZE in agent.requests and THAW in agent.requests and not agent.frozen_count)


def test_a_body_that_exceeds_the_limit_loses_the_freeze(agent: StandIn) -> None:
    with frozen(agent.address, 0.5) as held:
        started = time.monotonic()
        agent.wait_until(lambda: not agent.frozen_count)
        assert time.monotonic() - started < 8  # by default it is ten
    assert not held.was_whole
    assert held.frozen_ms is not None and held.frozen_ms < 8000


@pytest.mark.parametrize("left_count", [0, 1])
def test_a_guest_that_was_thawed_meanwhile_was_not_whole(agent: StandIn, left_count: int) -> None:
    with frozen(agent.address) as held:
        agent.set_frozen(left_count)
    assert agent.frozen_count == 0 and not held.was_whole


def test_an_agent_that_forgot_of_the_freeze_thaws_but_it_was_not_whole(agent: StandIn) -> None:
    with frozen(agent.address) as held:
        agent.behaviours[STATUS] = saying(answer("thawed"))
    assert agent.frozen_count == 0 and not held.was_whole


def test_an_agent_whose_connection_breaks_meanwhile_is_thawed_by_a_new_one(agent: StandIn) -> None:
    with frozen(agent.address) as held:
        agent.behaviours[STATUS] = once(closing_after(b""))
    assert agent.frozen_count == 0 and held.was_whole
    assert agent.connection_count == 2


def test_a_thaw_without_an_answer_is_an_error_and_goes_on_being_tried(
    agent: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "THAW_PATIENCE_SECONDS", 1.0)
    agent.behaviours[THAW] = saying(b"")
    with pytest.raises(Unavailable, match="may still be frozen"), frozen(agent.address) as held:
        pass
    assert agent.frozen_count == 2 and not held.was_whole
    del agent.behaviours[THAW]
    agent.wait_until(lambda: not agent.frozen_count)


def test_a_thaw_without_an_answer_does_not_hide_the_bodys_error(agent: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "THAW_PATIENCE_SECONDS", 1.0)
    agent.behaviours[THAW] = saying(b"")
    with pytest.raises(ZeroDivisionError), frozen(agent.address):
        raise ZeroDivisionError
    del agent.behaviours[THAW]
    agent.wait_until(lambda: not agent.frozen_count)


def test_a_process_killed_while_it_holds_a_guest_frozen(agent: StandIn) -> None:
    with owner(agent) as process:
        os.kill(process.pid, signal.SIGKILL)
        agent.wait_until(lambda: not agent.frozen_count, LONG_BEFORE_THE_LIMIT_S)


def test_a_process_killed_while_the_guest_is_freezing(agent: StandIn) -> None:
    go_on = threading.Event()

    def late(stand_in: StandIn, request: dict[str, Any]) -> bytes:
        assert go_on.wait(30)
        return well_behaved(stand_in, request)

    agent.behaviours[FREEZE] = late
    with subprocess.Popen([sys.executable, "-c", OWNER, agent.address, "60"], stdin=subprocess.PIPE) as process:
        agent.wait_until(lambda: FREEZE in agent.requests)
        process.kill()
        process.wait()
        go_on.set()
        agent.wait_until(lambda: THAW in agent.requests and not agent.frozen_count, LONG_BEFORE_THE_LIMIT_S)


def test_a_process_that_is_stopped_while_it_holds_a_guest_frozen(agent: StandIn) -> None:
    with owner(agent, 1.0) as process:
        os.kill(process.pid, signal.SIGSTOP)
        agent.wait_until(lambda: not agent.frozen_count)
        os.kill(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=300)[0] == "False\n"


def test_signals_that_end_a_service_leave_the_watchdog_at_work(agent: StandIn) -> None:
    with owner(agent) as process:
        (watchdog,) = watchdogs(agent)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(watchdog, number)
        assert process.communicate(timeout=300)[0] == "True\n"
    assert agent.frozen_count == 0


def test_a_killed_watchdog_is_replaced_by_its_owner(agent: StandIn) -> None:
    with frozen(agent.address) as held:
        (watchdog,) = watchdogs(agent)
        os.kill(watchdog, signal.SIGKILL)
        await_no_watchdog(agent)
        assert agent.frozen_count == 2
    assert agent.frozen_count == 0 and held.was_whole


def test_a_watchdog_killed_while_the_guest_is_freezing(agent: StandIn) -> None:
    def killing(stand_in: StandIn, request: dict[str, Any]) -> bytes:
        os.kill(watchdogs(stand_in)[0], signal.SIGKILL)
        return well_behaved(stand_in, request)

    agent.behaviours[FREEZE] = killing
    with pytest.raises(Unavailable, match="try again"), frozen(agent.address):
        raise AssertionError("frozen")
    assert agent.frozen_count == 0
