"""The oracle takes every prefix of the steps, and nothing else."""

from __future__ import annotations

import pytest

from tests.engine.model import BLOCK, Content
from tests.torture.oracle import Atomic, Change, State, Step, Thing, Wrong, settle

A, B, C = (letter * BLOCK for letter in (b"a", b"b", b"c"))


def state(*blocks: bytes, name: str | None = None) -> State:
    content = Content(8 * BLOCK)
    for number, block in enumerate(blocks):
        content.write(number * BLOCK, block, 0)
    return State({1: Thing(False, content, name)})


def rename(found: State) -> None:
    found.things[1].name = "new"


STEPS: list[Step] = [Change(1, 0, BLOCK, A), Change(1, BLOCK, 2 * BLOCK, B + C), Atomic("relabel", rename)]
HOLE = bytes(BLOCK)


@pytest.mark.parametrize(
    "observed", [state(), state(A), state(A, B), state(A, B, C), state(A, B, C, name="new")], ids=range(5)
)
def test_a_prefix_of_the_steps_is_legal(observed: State) -> None:
    assert settle(state(), STEPS, observed) == observed


@pytest.mark.parametrize(
    "observed",
    [
        state(HOLE, B, C),  # the first step is missing
        state(A, HOLE, C),  # the end of a step without its beginning
        state(A, B, name="new"),  # a step on objects before all of the one before it
        state(B),
        state(A, B, A),
        State({1: Thing(False, Content(4 * BLOCK))}),
        State(),
        State({}, exists=False),
    ],
    ids=range(8),
)
def test_anything_else_is_wrong(observed: State) -> None:
    with pytest.raises(Wrong):
        settle(state(), STEPS, observed)


def test_a_discard_survives_in_part() -> None:
    discard = Change(1, 0, 3 * BLOCK, None)
    assert settle(state(A, B, C), [discard], state(HOLE, B, C)) == state(HOLE, B, C)
    with pytest.raises(Wrong):
        settle(state(A, B, C), [discard], state(A, B))


def test_what_is_durable_is_not_lost() -> None:
    with pytest.raises(Wrong, match="the first 0, which holds zeros"):
        settle(state(A), [], state())
