"""The client of the guest agent, against guests that misspeak the protocol."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from blockdev.errors import BlockdevError, Busy, GuestFailed, InvalidArgument, Unavailable
from blockdev.quiesce import watchdog
from blockdev.quiesce.agent import ANSWER_BYTES_MAX, Agent
from tests.quiesce.agent_stand_in import (
    FREEZE,
    STATUS,
    SYNC,
    THAW,
    Behaviour,
    StandIn,
    answer,
    closing_after,
    once,
    refusal,
    saying,
    well_behaved,
)

LIMIT_S = 30.0
SHORT_S = 0.5


def test_every_call_of_a_well_behaved_agent(agent: StandIn) -> None:
    agent.behaviours["guest-info"] = saying(answer({"version": "7.2.22", "supported_commands": []}))
    with Agent(agent.address) as client:
        client.ping(LIMIT_S)
        assert client.version(LIMIT_S) == "7.2.22"
        assert not client.is_frozen(LIMIT_S)
        assert client.freeze(LIMIT_S) == 2
        assert client.is_frozen(LIMIT_S)
        release = client.thaw(LIMIT_S)
        assert (release.was_frozen, release.count) == (True, 2)
        assert not client.is_frozen(LIMIT_S)
    assert agent.connection_count == 1


@pytest.mark.parametrize(
    "left_behind",
    [
        answer(7),
        b'{"return": "half an ans',
        b"\xff" + answer(1234),
        b"\xff" + b'{"return": 1' + b"\xff\xff" + answer(99) + b"\xff" + answer(98),
        refusal("something else"),
        b"\xff\xff\xff",
        b'{"return": {"buf-b64": "' + b"A" * (3 * ANSWER_BYTES_MAX) + b'"}}\n',
        b"\xff" * 100_000,
        b"\xff" + b"A" * (3 * ANSWER_BYTES_MAX),
        bytes(range(256)) * 1000,
    ],
    ids=range(10),
)
def test_what_an_earlier_client_left_is_dropped(agent: StandIn, left_behind: bytes) -> None:
    agent.left_behind = left_behind
    with Agent(agent.address) as client:
        client.ping(LIMIT_S)
        assert client.freeze(LIMIT_S) == 2


MISBEHAVIOURS: list[tuple[str, Behaviour, type[BlockdevError]]] = [
    ("garbage", saying(b"\x00\x01 what?\n"), GuestFailed),
    ("not utf-8", saying(b'{"return": "\xc3\x28"}\n'), GuestFailed),
    ("half json", saying(b'{"return": \n'), GuestFailed),
    ("deep json", saying(b"[" * 100_000 + b"\n"), GuestFailed),
    ("long number", saying(b'{"return": ' + b"9" * 100_000 + b"}\n"), GuestFailed),
    ("no object", saying(b"[1]\n"), GuestFailed),
    ("neither return nor error", saying(b'{"result": 1}\n'), GuestFailed),
    ("an error that is none", saying(b'{"error": 5}\n'), GuestFailed),
    ("a refusal", saying(refusal("not today")), GuestFailed),
    ("a refusal without reason", saying(b'{"error": {}}\n'), GuestFailed),
    ("a huge line", saying(b"x" * (8 << 20) + b"\n"), GuestFailed),
    ("a huge answer", saying(answer("x" * (8 << 20))), GuestFailed),
    ("silence", saying(b""), Unavailable),
    ("half an answer", saying(b'{"return": '), Unavailable),
    ("closing", closing_after(b""), Unavailable),
    ("closing in the middle", closing_after(b'{"return": '), Unavailable),
]


@pytest.mark.parametrize("command", ["guest-ping", STATUS, FREEZE, THAW])
@pytest.mark.parametrize(("name", "behaviour", "kind"), MISBEHAVIOURS, ids=[m[0] for m in MISBEHAVIOURS])
def test_misbehaviour_is_one_error_in_time_and_the_next_call_works(
    agent: StandIn, command: str, name: str, behaviour: Behaviour, kind: type[BlockdevError]
) -> None:
    agent.behaviours[command] = once(behaviour)
    with Agent(agent.address) as client:
        call = {"guest-ping": client.ping, STATUS: client.is_frozen, FREEZE: client.freeze, THAW: client.thaw}[command]
        started = time.monotonic()
        if (command, name) in {(THAW, "a refusal"), (THAW, "a refusal without reason")}:
            assert client.thaw(LIMIT_S).count == 0  # the agent says that the guest is thawed: only its hook failed
        else:
            with pytest.raises(kind) as caught:
                call(SHORT_S if kind is Unavailable else LIMIT_S)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
        assert time.monotonic() - started < LIMIT_S
        client.ping(LIMIT_S)
        client.thaw(LIMIT_S)
        assert client.freeze(LIMIT_S) == 2


@pytest.mark.parametrize("content", ["thawing", 1, None, True, ["frozen"], {"x": 1}])
def test_a_status_that_is_none(agent: StandIn, content: object) -> None:
    agent.behaviours[STATUS] = saying(answer(content))
    with Agent(agent.address) as client, pytest.raises(GuestFailed):
        client.is_frozen(LIMIT_S)


@pytest.mark.parametrize("content", ["2", -1, 1.5, True, None, [], 10**30])
def test_a_count_that_is_none(agent: StandIn, content: object) -> None:
    agent.behaviours[FREEZE] = saying(answer(content))
    with Agent(agent.address) as client, pytest.raises(GuestFailed):
        client.freeze(LIMIT_S)


def test_what_a_guest_says_does_not_reach_a_terminal_as_it_is(agent: StandIn) -> None:
    agent.behaviours["guest-ping"] = saying(refusal("\x1b[2J\r\nerror: pool is gone\x07" + "x" * 10_000))
    with Agent(agent.address) as client, pytest.raises(GuestFailed) as caught:
        client.ping(LIMIT_S)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_answers_to_other_syncs_do_not_count(agent: StandIn) -> None:
    agent.behaviours[SYNC] = saying(b"\xff" + answer(1) + b"\xff" + answer("2") + b"\xff" + answer(None))
    with Agent(agent.address) as client, pytest.raises(Unavailable):
        client.ping(SHORT_S)


def test_a_guest_that_never_stops_sending_is_given_up(agent: StandIn) -> None:
    agent.behaviours[SYNC] = saying(b"y" * (65 << 20))
    with Agent(agent.address) as client, pytest.raises(GuestFailed, match="does not stop"):
        client.ping(30.0)


def test_an_answer_byte_by_byte_does_not_stretch_the_limit(agent: StandIn) -> None:
    def trickle(stand_in: StandIn, request: dict[str, object]) -> bytes:
        client = stand_in._client
        assert client is not None
        while True:  # until the test closes the connection
            client.sendall(b" ")
            time.sleep(0.05)

    agent.behaviours["guest-ping"] = trickle
    started = time.monotonic()
    with Agent(agent.address) as client, pytest.raises(Unavailable):
        client.ping(SHORT_S)
    assert time.monotonic() - started < 5


def test_addresses_that_nobody_can_reach(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        Agent(tmp_path / "none").ping(LIMIT_S)
    with pytest.raises(InvalidArgument, match="too long"):
        Agent(tmp_path / ("x" * 110)).ping(LIMIT_S)
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="refused"):
        Agent(tmp_path / "file").ping(LIMIT_S)


def test_a_socket_that_another_client_holds_and_others_wait_for(tmp_path: Path) -> None:
    address = str(tmp_path / "busy.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(0)
        with Agent(address) as first:
            with pytest.raises(Unavailable, match="no other program holds the socket"):
                first.ping(SHORT_S)
            with pytest.raises(Busy):
                Agent(address).ping(SHORT_S)


def test_a_thaw_is_tried_again_until_it_succeeds(agent: StandIn) -> None:
    agent.set_frozen(2)
    tries = iter([closing_after(b""), saying(refusal("frozen stiff")), saying(b"?\n"), well_behaved])

    def reluctant(stand_in: StandIn, request: dict[str, object]) -> bytes:
        return next(tries)(stand_in, request)

    agent.behaviours[THAW] = reluctant
    with Agent(agent.address) as client:
        assert watchdog.thaw_persistently(client, LIMIT_S).count == 2
    assert agent.requests.count(THAW) == 4


def test_a_thaw_that_never_succeeds_ends_at_its_limit(agent: StandIn) -> None:
    agent.set_frozen(2)
    agent.behaviours[THAW] = saying(refusal("frozen stiff"))
    started = time.monotonic()
    with Agent(agent.address) as client, pytest.raises(GuestFailed, match="frozen stiff"):
        watchdog.thaw_persistently(client, 1.0)
    assert time.monotonic() - started < 5
