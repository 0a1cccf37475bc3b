"""An engine that hangs is told from one that is slow, and from a machine that stood still."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from blockdev.errors import BlockdevError, Unavailable
from blockdev.replicate.engine_watch import (
    ANSWER_SECONDS_MAX,
    HANGS_SECONDS_MAX,
    LOOK_SECONDS,
    QUESTIONS_MIN,
    WORK_SECONDS,
    EngineWatch,
    Work,
)


class World:
    """A clock, an engine that answers or not, and channels."""

    def __init__(self, stack: ExitStack) -> None:
        self.now = 1000.0
        self.is_hung = False
        self.questions = 0
        self.given_up: list[tuple[str, BlockdevError]] = []
        self.watch = EngineWatch(self._answers, lambda: self.now)
        self._stack = stack

    def _answers(self, seconds: float) -> bool:
        self.questions += 1
        self.now += seconds if self.is_hung else 0.001
        return not self.is_hung

    def channel(self, name: str) -> Work:
        return self._stack.enter_context(self.watch.working(lambda error: self.given_up.append((name, error))))

    def live(self, until: Callable[[], object], seconds_max: float) -> float:
        """Look as often as it is done, until that is so; how long it took."""
        began = self.now
        while not until() and self.now - began < seconds_max:
            self.now += LOOK_SECONDS
            self.watch.look()
        return self.now - began

    def names(self) -> list[str]:
        return [name for name, _error in self.given_up]


@pytest.fixture
def world() -> World:
    with ExitStack() as stack:
        return World(stack)


def test_an_engine_that_answers_has_all_the_time_it_takes(world: World) -> None:
    with world.channel("slow"):
        world.live(lambda: False, 3600)
    assert not world.given_up and world.questions > 100


def test_nobody_asks_an_engine_that_keeps_nobody_waiting(world: World) -> None:
    world.is_hung = True
    channel = world.channel("idle")
    world.live(lambda: False, 600)
    with channel:
        world.now += WORK_SECONDS / 2
        world.watch.look()
    assert not world.questions and not world.given_up


def test_who_waits_for_an_engine_that_hangs_is_told_once_within_90_seconds(world: World) -> None:
    busy, other, idle = (world.channel(name) for name in ("busy", "other", "idle"))
    assert idle.since is None
    with busy:
        world.is_hung = True
        with other:
            took = world.live(lambda: world.given_up, 600)
            assert HANGS_SECONDS_MAX <= took <= 90
            world.live(lambda: False, 600)
    assert sorted(world.names()) == ["busy", "other"]
    assert all(isinstance(error, Unavailable) and "has not answered" in error.message for _name, error in world.given_up)


def test_who_begins_to_wait_later_is_told_later(world: World) -> None:
    first, second = world.channel("first"), world.channel("second")
    world.is_hung = True
    with first:
        world.live(lambda: False, 40)
        with second:
            began = world.now
            world.live(lambda: world.given_up, 600)
            assert world.names() == ["first"]
            world.live(lambda: len(world.given_up) == 2, 600)
            assert world.names() == ["first", "second"] and HANGS_SECONDS_MAX <= world.now - began <= 180


def test_an_answer_in_between_begins_the_time_anew(world: World) -> None:
    with world.channel("busy"):
        for _ in range(20):
            world.is_hung = True
            world.live(lambda: False, HANGS_SECONDS_MAX - ANSWER_SECONDS_MAX - LOOK_SECONDS)
            world.is_hung = False
            world.watch.look()
    assert not world.given_up


def test_a_machine_that_stood_still_during_a_question_gives_nobody_up(world: World) -> None:
    with world.channel("busy"):
        world.now += WORK_SECONDS + 1
        for _ in range(QUESTIONS_MIN - 1):
            world.is_hung = True
            world.watch.look()
            world.now += 600
        assert not world.given_up
        world.is_hung = False
        world.watch.look()
        world.live(lambda: False, 600)
    assert not world.given_up
