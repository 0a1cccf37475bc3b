"""What the transport promises, over real SSH on loopback: who gets in, what he may do, and what a bad one costs."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncssh
import pytest

from blockdev.addresses import Address
from blockdev.constants import REPLICATION_PORT
from blockdev.errors import Busy, InvalidArgument, Unavailable
from blockdev.replicate import channel, driver, engine_watch, link, server, wire
from blockdev.replicate.channel import Channel, Cut
from blockdev.replicate.frames import LENGTH, Frame, Message, frame
from blockdev.replicate.halt import Halt, Halted, Rejected, Unreached
from blockdev.replicate.transport import Transport
from tests.cli.served import until
from tests.replicate.sides import ASK, GOT, SECONDS_MAX, STUFF, Chatterbox, Pusher, Side, Sink, two_sides
from tests.replicate.slow_link import SlowLink

MIB = 1 << 20


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    with two_sides(tmp_path) as made:
        yield made


def opened(sender: Side, receiver: Side, port: int | None = None) -> Channel:
    """A channel in our own hands."""
    made = sender.transport._link(sender.path_to(receiver, port))
    return sender.transport._loop.call(made.open())


def run_in_thread(sender: Side, receiver: Side, pusher: Pusher, halt: Halt, port: int | None = None) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            sender.transport.run(sender.path_to(receiver, port), pusher, halt)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, raised


def test_messages_come_whole_and_in_order_over_one_connection(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    for size in (0, 1, 4096, 2 * MIB - 1):
        pusher = Pusher(20, size)
        sender.transport.run(sender.path_to(receiver), pusher, Halt())
        assert int(pusher.total) == 20 * (size + 1) + 1
        assert receiver.doors.machines[-1].closed.wait(SECONDS_MAX)
    assert sender.sent_bytes > 20 * 2 * MIB
    assert receiver.doors.entered_keys == [sender.key], "more connections than one"


def test_eight_transfers_at_once_share_a_connection(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    pushers = [Pusher(10, MIB) for _ in range(8)]
    running = [run_in_thread(sender, receiver, pusher, Halt()) for pusher in pushers]
    for thread, raised in running:
        thread.join(SECONDS_MAX)
        assert not raised
    assert all(pusher.is_done for pusher in pushers)
    assert receiver.doors.entered_keys == [sender.key]


class Stuck(Sink):
    """Waits for an engine in the middle of its fifth message."""

    def __init__(self) -> None:
        super().__init__()
        self.works = threading.Event()

    def handle(self, message: Message) -> list[Frame]:
        if self.message_count == 4:
            assert self.works.wait(SECONDS_MAX)
        return super().handle(message)


def test_sender_is_told_that_the_engine_there_hangs_and_goes_on_when_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOK_SECONDS", "WORK_SECONDS", "HANGS_SECONDS_MAX"):
        monkeypatch.setattr(engine_watch, name, 0.01)
    with two_sides(tmp_path, Stuck) as (sender, receiver):
        receiver.doors.engine_hangs = True
        with pytest.raises(Unavailable, match="the engine there has not answered"):
            sender.transport.run(sender.path_to(receiver), Pusher(200, MIB), Halt())
        [stuck] = receiver.doors.machines
        assert isinstance(stuck, Stuck) and not stuck.closed.is_set(), "what it asked the engine for may be done yet"
        stuck.works.set()
        assert stuck.closed.wait(SECONDS_MAX)
        receiver.doors.engine_hangs = False
        halt = Halt()
        thread, raised = run_in_thread(sender, receiver, Pusher(5, MIB), halt)
        until(lambda: len(receiver.doors.machines) == 2, "the next try")
        time.sleep(0.2)  # many looks at an engine that is slow, and answers
        slow = receiver.doors.machines[1]
        assert isinstance(slow, Stuck)
        slow.works.set()
        thread.join(SECONDS_MAX)
        assert not raised and not thread.is_alive()


def test_round_trip_is_measured_over_a_channel(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    with SlowLink(receiver.port, delay_seconds=0.05) as slow:
        began = time.monotonic()
        measured = sender.transport.measure(sender.path_to(receiver, slow.port))
        assert 0.1 <= measured < time.monotonic() - began


def test_home_without_the_pinned_key_is_rejected_and_told_nothing(sides: tuple[Side, Side], tmp_path: Path) -> None:
    sender, receiver = sides
    with pytest.raises(Rejected, match="is not the home that it should be"):
        sender.transport.run(sender.path_to(receiver, key=sender.key), Pusher(1, 1), Halt())
    assert not receiver.doors.entered_keys and not receiver.doors.machines


def test_home_whose_key_is_no_peers_is_rejected(sides: tuple[Side, Side], tmp_path: Path) -> None:
    sender, receiver = sides
    receiver.doors.peers.clear()
    with pytest.raises(Rejected, match="does not know this home"):
        sender.transport.run(sender.path_to(receiver), Pusher(1, 1), Halt())
    assert not receiver.doors.machines


def test_nobody_there_is_unreached_and_a_taken_port_is_busy(sides: tuple[Side, Side], tmp_path: Path) -> None:
    sender, receiver = sides
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = Transport(receiver.home, ("127.0.0.1", port), receiver.doors)
        with pytest.raises(Busy, match="choose another port"):
            other.start()
    with pytest.raises(Unreached):
        sender.transport.run(sender.path_to(receiver, port), Pusher(1, 1), Halt())


def test_port_that_accepts_and_says_nothing_is_unreached(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "CONNECT_SECONDS_MAX", 0.2)
    monkeypatch.setattr(link.ssh, "LOGIN_SECONDS_MAX", 0.2)
    sender, receiver = sides
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unreached):
        sender.transport.run(sender.path_to(receiver, silent.getsockname()[1]), Pusher(1, 1), Halt())


def test_said_halt_ends_a_transfer_that_waits_for_an_answer(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    halt, pusher = Halt(), Pusher(10, 10, ahead=0)  # it never sends anything
    thread, raised = run_in_thread(sender, receiver, pusher, halt)
    assert receiver.doors.opened.wait(SECONDS_MAX)
    halt.say()
    thread.join(SECONDS_MAX)
    assert [type(one) for one in raised] == [Halted]
    assert receiver.doors.machines[0].closed.wait(SECONDS_MAX), "the receiving end was not told"


def test_cut_connection_ends_both_ends_and_the_next_transfer_connects_anew(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    with SlowLink(receiver.port, rate_bytes=20e6) as line:
        thread, raised = run_in_thread(sender, receiver, Pusher(1000, MIB), Halt(), line.port)
        until(lambda: receiver.doors.machines and receiver.doors.machines[0].message_count > 3, "the transfer")
        assert line.cut() == 1
        thread.join(SECONDS_MAX)
        assert len(raised) == 1 and isinstance(raised[0], Unavailable)  # a Cut, if the answer to the opening was through
        assert receiver.doors.machines[0].closed.wait(SECONDS_MAX)
        again = Pusher(3, 1000)
        sender.transport.run(sender.path_to(receiver, line.port), again, Halt())
        assert again.is_done


def test_line_that_is_dead_without_a_word_ends_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.ssh, "KEEPALIVE_SECONDS", 0.2)
    with two_sides(tmp_path) as (sender, receiver), SlowLink(receiver.port) as line:
        thread, raised = run_in_thread(sender, receiver, Pusher(10, 10, ahead=0), Halt(), line.port)
        assert receiver.doors.opened.wait(SECONDS_MAX)
        line.freeze()
        thread.join(SECONDS_MAX)
        assert len(raised) == 1 and isinstance(raised[0], Unavailable)  # a Cut, if the answer to the opening was through
        assert receiver.doors.machines[0].closed.wait(SECONDS_MAX)


def test_peer_that_is_disconnected_is_cut_off(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    thread, raised = run_in_thread(sender, receiver, Pusher(10, 10, ahead=0), Halt())
    assert receiver.doors.opened.wait(SECONDS_MAX)
    assert receiver.transport.connected_keys() == {sender.key}
    receiver.transport.disconnect_peer(sender.key)
    thread.join(SECONDS_MAX)
    assert [type(one) for one in raised] == [Cut]
    until(lambda: not receiver.transport.connected_keys(), "the end of the connection")


def test_message_too_long_closes_the_channel_and_no_other(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    bad, good = opened(sender, receiver), opened(sender, receiver)
    bad.send(frame(STUFF))
    bad.receive()
    bad.send(LENGTH.pack((2 << 20) + 1) + b"x")
    with pytest.raises(Cut):
        bad.receive(SECONDS_MAX)
    good.send(frame(ASK))
    assert good.receive(SECONDS_MAX)
    assert all(machine.closed.wait(SECONDS_MAX) for machine in receiver.doors.machines)


def test_half_a_message_and_silence_is_ended(sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "SILENCE_SECONDS_MAX", 0.3)
    sender, receiver = sides
    silent = opened(sender, receiver)
    silent.send(LENGTH.pack(100) + b"half")
    assert receiver.doors.opened.wait(SECONDS_MAX)
    assert receiver.doors.machines[0].closed.wait(SECONDS_MAX)
    assert receiver.doors.machines[0].message_count == 0


def test_silence_between_messages_is_no_fault_but_at_the_beginning_it_is(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "SILENCE_SECONDS_MAX", 0.2)
    sender, receiver = sides
    speaks = opened(sender, receiver)
    speaks.send(frame(STUFF))
    assert speaks.receive(SECONDS_MAX)
    monkeypatch.setattr(driver, "FIRST_SECONDS_MAX", 0.3)
    idle = opened(sender, receiver)
    until(lambda: len(receiver.doors.machines) == 2, "the second channel")
    assert receiver.doors.machines[1].closed.wait(SECONDS_MAX)
    with pytest.raises(Cut):
        idle.receive(SECONDS_MAX)
    assert not receiver.doors.machines[0].is_closed
    speaks.send(frame(ASK))
    assert speaks.receive(SECONDS_MAX)


def test_channels_beyond_the_limit_are_refused(sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CHANNELS_MAX", 3)
    sender, receiver = sides
    first = [opened(sender, receiver) for _ in range(3)]
    with pytest.raises(Unavailable, match="too many channels"):
        opened(sender, receiver)
    first[0].send(frame(ASK))
    assert first[0].receive(SECONDS_MAX)
    until(lambda: _opens(sender, receiver), "room for another channel")


def _opens(sender: Side, receiver: Side) -> bool:
    try:
        return bool(opened(sender, receiver))
    except Unavailable:
        return False


def test_strangers_beyond_the_limit_are_turned_away_and_peers_come_in_again_when_these_have_gone(
    sides: tuple[Side, Side],
) -> None:
    sender, receiver = sides
    knocking = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(server.STRANGERS_OF_ADDRESS_MAX)]
    for one in knocking:
        assert one.recv(4) == b"SSH-"
    with socket.create_connection(("127.0.0.1", receiver.port)) as late:
        late.settimeout(SECONDS_MAX)
        with pytest.raises(ConnectionResetError):
            assert late.recv(4) == b""
            raise ConnectionResetError  # it may also just be closed
    with pytest.raises(Unreached):
        sender.transport.run(sender.path_to(receiver), Pusher(1, 1), Halt())
    for one in knocking:
        one.close()
    until(lambda: _comes_in(sender, receiver), "the peer to come in")


def _comes_in(sender: Side, receiver: Side) -> bool:
    try:
        sender.transport.run(sender.path_to(receiver), Pusher(1, 1), Halt())
    except Unreached:
        return False
    return True


def test_stranger_who_does_not_log_in_is_closed_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.ssh, "LOGIN_SECONDS_MAX", 0.3)
    with two_sides(tmp_path) as (_sender, receiver), socket.create_connection(("127.0.0.1", receiver.port)) as one:
        one.settimeout(SECONDS_MAX)
        while one.recv(4096):
            pass


def test_peer_that_never_reads_costs_no_more_than_the_buffers(tmp_path: Path) -> None:
    with two_sides(tmp_path, Chatterbox) as (sender, receiver), SlowLink(receiver.port) as line:
        deaf = opened(sender, receiver, line.port)
        for _ in range(500):  # for 500 MiB of answers, of which it reads none
            deaf.send(frame(STUFF))
        assert receiver.doors.opened.wait(SECONDS_MAX)
        machine = receiver.doors.machines[0]
        assert isinstance(machine, Chatterbox)
        until(lambda: _has_settled(machine), "the answers to stop")
        bounded = channel.WINDOW_BYTES + channel.INCOMING_BYTES_MAX + channel.OUTGOING_BYTES_MAX + 16 * MIB
        assert machine.said_bytes <= bounded


def _has_settled(machine: Chatterbox) -> bool:
    before = machine.said_bytes
    time.sleep(0.5)  # in which 100 MiB could have been said
    return 0 < before == machine.said_bytes


def test_large_messages_of_channels_at_once_arrive_as_they_were_sent(tmp_path: Path, seed: int) -> None:
    """Packets of one channel are opened where those of another were expected."""

    class Keeper(Sink):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[bytes] = []

        def handle(self, message: Message) -> list[Frame]:
            self.kept.append(hashlib.sha256(message).digest())
            return [frame(GOT, message)]

    choice = random.Random(seed)
    sizes = (0, 5, 20_000, 700_000, MIB, 2 * MIB - 10)
    with two_sides(tmp_path, Keeper) as (sender, receiver):
        channels = [opened(sender, receiver) for _ in range(3)]
        frames = [[frame(STUFF, choice.randbytes(choice.choice(sizes))) for _ in range(12)] for _ in channels]
        answers: list[list[Message]] = [[] for _ in channels]

        def listen(number: int) -> None:
            answers[number] = [channels[number].receive(SECONDS_MAX) for _ in frames[number]]

        listening = [threading.Thread(target=listen, args=(number,)) for number in range(len(channels))]
        for thread in listening:
            thread.start()
        for row in zip(*frames, strict=True):
            for one, made in zip(channels, row, strict=True):
                one.send(made)
        for thread in listening:
            thread.join()
        sent = [[hashlib.sha256(made[LENGTH.size :]).digest() for made in row] for row in frames]
        assert sorted(sent) == sorted(machine.kept for machine in receiver.doors.machines if isinstance(machine, Keeper))
        assert answers == [[GOT.to_bytes(1, "little") + bytes(made[LENGTH.size :]) for made in row] for row in frames]


def test_windows_of_many_channels_are_small_and_of_few_large(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    channels = [opened(sender, receiver) for _ in range(server.CHANNELS_WIDE_MAX + 2)]
    windows = [one._ssh._send_window for one in channels]  # type: ignore[union-attr]
    assert windows == [channel.WINDOW_BYTES] * server.CHANNELS_WIDE_MAX + [server.WINDOW_BYTES_NARROW] * 2


def test_seventeen_paths_to_one_home_are_connected_at_once(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    path = sender.path_to(receiver)
    connections = [sender.transport._loop.call(sender.transport._link(path._replace(id=id)).open()) for id in range(1, 18)]
    windows = [one._ssh._send_window for one in connections]  # type: ignore[union-attr]
    narrow = len(windows) - server.CHANNELS_WIDE_OF_PEER_MAX
    assert sorted(windows) == [server.WINDOW_BYTES_NARROW] * narrow + [channel.WINDOW_BYTES] * server.CHANNELS_WIDE_OF_PEER_MAX
    for one in connections:
        one.send(frame(ASK))
        assert one.receive(SECONDS_MAX)


def test_one_connection_too_many_of_a_peer_ends_the_first(sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_OF_PEER_MAX", 2)
    sender, receiver = sides
    path = sender.path_to(receiver)
    connections = []
    for id in range(1, 4):
        connections.append(sender.transport._loop.call(sender.transport._link(path._replace(id=id)).open()))
    with pytest.raises(Cut):
        connections[0].receive(SECONDS_MAX)
    for one in connections[1:]:
        one.send(frame(ASK))
        assert one.receive(SECONDS_MAX)


def test_channels_of_a_peer_are_bounded_over_all_its_connections(sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CHANNELS_OF_PEER_MAX", 3)
    sender, receiver = sides
    path = sender.path_to(receiver)
    for id in range(1, 4):
        sender.transport._loop.call(sender.transport._link(path._replace(id=id)).open())
    with pytest.raises(Unavailable, match="channel"):
        sender.transport._loop.call(sender.transport._link(path._replace(id=4)).open())


def test_unread_messages_at_the_receiver_hold_the_sender_up(tmp_path: Path) -> None:
    gate = threading.Event()

    class Stuck(Chatterbox):
        def handle(self, message: Message) -> list[Frame]:
            self.began.set()
            assert gate.wait(SECONDS_MAX)
            return [frame(STUFF)]

    with two_sides(tmp_path, Stuck) as (sender, receiver):
        one = opened(sender, receiver)
        sent = []

        def push() -> None:
            with pytest.raises((Cut, Halted)):
                while True:
                    one.send(frame(STUFF, bytes(MIB)))
                    sent.append(MIB)

        thread = threading.Thread(target=push)
        thread.start()
        try:
            until(lambda: _stays(sent), "the sender to be held up")
            bounded = channel.WINDOW_BYTES + channel.INCOMING_BYTES_MAX + channel.OUTGOING_BYTES_MAX + 8 * MIB
            assert len(sent) * MIB <= bounded
        finally:
            gate.set()
            one.interrupt()
            thread.join(SECONDS_MAX)


def _stays(sent: list[int]) -> bool:
    before = len(sent)
    time.sleep(0.3)
    return 0 < before == len(sent)


def test_stop_lets_receiving_machines_save(tmp_path: Path) -> None:
    with two_sides(tmp_path) as (sender, receiver):
        thread, raised = run_in_thread(sender, receiver, Pusher(10, 10, ahead=0), Halt())
        assert receiver.doors.opened.wait(SECONDS_MAX)
        receiver.transport.stop(SECONDS_MAX)
        assert receiver.doors.machines[0].closed.is_set()
        thread.join(SECONDS_MAX)
        assert len(raised) == 1 and isinstance(raised[0], Unavailable)  # a Cut, if the answer to the opening was through


def test_stop_does_not_wait_for_a_machine_whose_engine_hangs_nor_for_a_name_that_is_looked_up(tmp_path: Path) -> None:
    gate, busy = threading.Event(), threading.Event()

    class Hanging(Sink):
        def handle(self, message: Message) -> list[Frame]:
            busy.set()
            gate.wait()
            return []

    async def look_up() -> None:
        sender.transport._loop.asyncio.run_in_executor(None, gate.wait)

    with two_sides(tmp_path, Hanging) as (sender, receiver):
        try:
            thread, raised = run_in_thread(sender, receiver, Pusher(10, 10), Halt())
            assert busy.wait(SECONDS_MAX)
            sender.transport._loop.call(look_up())
            receiver.transport.stop(0.1)
            sender.transport.stop(0.1)
            thread.join(SECONDS_MAX)
            assert len(raised) == 1 and not receiver.doors.machines[0].closed.is_set()
        finally:
            gate.set()


def test_environment_that_a_peer_sets_is_not_kept(sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    started = server.GuestSession.session_started

    def note(session: server.GuestSession) -> None:
        kept.append(len(session._ssh.get_environment_bytes()))
        started(session)

    monkeypatch.setattr(server.GuestSession, "session_started", note)
    sender, receiver = sides
    opened(sender, receiver)
    connection = sender.transport._links[1]._connection
    assert connection is not None

    async def open_with_environment() -> None:
        await connection.create_session(
            asyncssh.SSHClientSession, subsystem=link.ssh.SUBSYSTEM, encoding=None, env={str(number): "x" for number in range(100)}
        )

    sender.transport._loop.call(open_with_environment())
    until(lambda: len(kept) == 2, "both channels to begin")  # asyncssh answers the client before it tells the session
    assert kept == [0, 0]


def test_peer_is_let_in_while_every_name_look_up_hangs(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    gate = threading.Event()

    async def hang() -> None:
        for _ in range(100):  # of as many paths
            receiver.transport._loop.asyncio.run_in_executor(None, gate.wait)

    receiver.transport._loop.call(hang())
    try:
        pusher = Pusher(1, 1)
        thread, raised = run_in_thread(sender, receiver, pusher, Halt())
        thread.join(SECONDS_MAX)
        assert pusher.is_done and not raised
    finally:
        gate.set()


def test_connection_whose_peer_never_reads_is_aborted_before_it_costs_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "UNSENT_BYTES_MAX", MIB)
    said: list[int] = []

    class Parrot(asyncio.Protocol):
        """As SSH's own answers before a login: written without asking whether the socket takes more."""

        _auth_complete = False
        _transport = True

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            said.append(MIB)
            self.transport.write(bytes(MIB))  # type: ignore[attr-defined]

    async def talk() -> int:
        ended = asyncio.Event()
        listener = await asyncio.get_running_loop().create_server(
            lambda: wire.Wire(Parrot(), lambda _transport: ended.set()), "127.0.0.1", 0
        )
        _reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        _reader._transport.pause_reading()  # type: ignore[attr-defined]
        while not ended.is_set():
            with suppress(ConnectionError):
                writer.write(b"?")
                await asyncio.wait_for(writer.drain(), SECONDS_MAX)
            await asyncio.sleep(0)
        writer.transport.abort()
        listener.close()
        return sum(said)

    assert asyncio.run(asyncio.wait_for(talk(), SECONDS_MAX)) < 100 * MIB


def test_what_was_made_when_a_halt_was_said_is_not_lost(sides: tuple[Side, Side]) -> None:
    sender, _receiver = sides
    halt = Halt()

    async def make() -> int:
        halt.say()
        return 7

    assert sender.transport._loop.call(make(), halt) == 7
    with pytest.raises(Halted):
        sender.transport._loop.call(asyncio.sleep(SECONDS_MAX), halt)


def test_halt_keeps_nothing_of_attempts_that_have_ended(sides: tuple[Side, Side]) -> None:
    sender, receiver = sides
    halt, path = Halt(), sender.path_to(receiver)
    for _ in range(3):
        sender.transport.run(path, Pusher(1, 1), halt)
    assert halt._wakers == []


def test_sender_does_not_wait_for_a_channel_whose_writing_failed(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = sides
    broken = opened(sender, receiver)

    def fail(_frame: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(broken, "_write_frame", fail)
    with pytest.raises(Cut, match="ZeroDivisionError"):
        for _ in range(4):
            broken.send(frame(STUFF, bytes(MIB)))


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("0.0.0.0", "0.0.0.0:10810"),
        ("localhost", "127.0.0.1:10810"),
        ("::1", "[::1]:10810"),
        ("[::1]", "[::1]:10810"),
        ("127.0.0.1:5", "127.0.0.1:5"),
        ("[::1]:5", "[::1]:5"),
        (":5", "0.0.0.0:5"),
    ],
)
def test_address_for_peers_may_leave_the_port_away(text: str, means: str) -> None:
    assert str(Address.parse(text, REPLICATION_PORT)) == means


@pytest.mark.parametrize("text", ["", "nowhere", "nowhere:5", "1.2.3", "127.0.0.1:", "127.0.0.1:0", "[::1"])
def test_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Address.parse(text, REPLICATION_PORT)
