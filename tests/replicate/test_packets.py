"""The packets of data that packets.py makes and reads are those of asyncssh: held to asyncssh as it comes, at either end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncssh
import pytest

from blockdev.replicate import packets, ssh
from blockdev.replicate.frames import ROOM_BYTES
from blockdev.replicate.wire import Dialer, Doorkeeper, Wire

SECONDS_MAX = 60
MIB = 1 << 20
PACKET_BYTES = 1 << 18
WINDOW_BYTES = 1 << 20
Alter = Callable[[bytes], bytes]


class End(asyncssh.SSHServerSession, asyncssh.SSHClientSession):
    """Hashes what comes, and lets go of it."""

    def __init__(self) -> None:
        self.came = hashlib.sha256()
        self.count = 0
        self.sizes: list[int] = []
        self.changed = asyncio.Event()
        self.takes_more = asyncio.Event()
        self.takes_more.set()
        self.lost: Exception | None = None
        self.is_lost = False

    def connection_made(self, chan: Any) -> None:
        self.chan = chan

    def exec_requested(self, command: str) -> bool:
        return True

    def data_received(self, data: Any, datatype: object) -> None:
        self.came.update(data)
        self.count += len(data)
        self.sizes.append(len(data))
        self.changed.set()

    def pause_writing(self) -> None:
        self.takes_more.clear()

    def resume_writing(self) -> None:
        self.takes_more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.is_lost = exc, True
        self.changed.set()
        self.takes_more.set()

    async def until(self, count: int) -> None:
        while self.count < count and not self.is_lost:
            self.changed.clear()
            await self.changed.wait()


class Host(asyncssh.SSHServer):
    """Lets anybody in, with one channel."""

    def __init__(self, end: End) -> None:
        self._end = end

    def begin_auth(self, username: str) -> bool:
        return False

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def session_requested(self) -> tuple[Any, End]:
        return self._connection.create_server_channel(None, "strict", WINDOW_BYTES, PACKET_BYTES), self._end


class Pair:
    """Two ends over a real socket; `client` and `server`: whether that end has a Wire, or is asyncssh as it comes."""

    def __init__(self, client: bool, server: bool, alter: Alter | None = None, **options: Any) -> None:
        self._client_has_wire, self._server_has_wire = client, server
        self._alter = alter
        self._options = {**ssh.options(), **options}

    async def __aenter__(self) -> Pair:
        self.there = End()
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        key = asyncssh.generate_private_key("ssh-ed25519")
        options: dict[str, Any] = {"server_factory": lambda: Host(self.there), "server_host_keys": [key], **self._options}
        if self._server_has_wire:
            door = Doorkeeper(self._listener, lambda _transport: True, lambda _transport: None)
            self._acceptor = await asyncssh.listen("", 0, tunnel=door, **options)
        else:
            self._acceptor = await asyncssh.listen(sock=self._listener, **options)
        if self._alter is not None:
            self._between = await asyncio.start_server(self._pass_on(port), "127.0.0.1", 0)
            port = self._between.sockets[0].getsockname()[1]
        options = {"tunnel": Dialer()} if self._client_has_wire else {}
        self.connection = await asyncssh.connect(
            "127.0.0.1", port, known_hosts=None, client_keys=None, username="x", agent_path=None, **options, **self._options
        )
        self.chan, self.here = await self.connection.create_session(
            End, "x", encoding=None, window=WINDOW_BYTES, max_pktsize=PACKET_BYTES
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.connection.abort()
        self._acceptor.close()
        if self._alter is not None:
            self._between.close()

    def _pass_on(self, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
        """What the client says goes through `alter`."""
        assert self._alter is not None

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, alter: Alter) -> None:
            with suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    writer.write(alter(data))
                    await writer.drain()
            writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            assert self._alter is not None
            await asyncio.gather(copy(reader, there_writer, self._alter), copy(there_reader, writer, lambda data: data))

        return serve


async def pour(chan: Any, end: End, size: int, seed: int) -> bytes:
    """Random bytes in pieces of random sizes, through the wire if there is one; their hash."""
    choice = random.Random(seed)
    wire = chan.get_extra_info("wire")
    sent, left = hashlib.sha256(), size
    while left and not end.is_lost:
        piece = choice.randbytes(min(left, choice.choice((1, 5, 4096, 70_000, PACKET_BYTES, PACKET_BYTES - 9))))
        await end.takes_more.wait()
        if isinstance(wire, Wire):
            await wire.writable()
            around = choice.randbytes(ROOM_BYTES)
            memory = bytearray(around + piece + around)
            wire.packets.write(chan, memoryview(memory), ROOM_BYTES, len(piece))
            assert memory == around + piece + around
        else:
            chan.write(piece)
        sent.update(piece)
        left -= len(piece)
        await asyncio.sleep(0)
    return sent.digest()


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, SECONDS_MAX))


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("client", [True, False])
def test_what_one_end_writes_the_other_reads_in_both_directions_at_once(client: bool, server: bool) -> None:
    async def work() -> None:
        async with Pair(client, server) as pair:
            size = 24 * MIB
            sent = await asyncio.gather(pour(pair.chan, pair.here, size, 1), pour(pair.there.chan, pair.there, size, 2))
            await asyncio.gather(pair.there.until(size), pair.here.until(size))
            assert [pair.there.came.digest(), pair.here.came.digest()] == sent
            ciphers = [pair.connection._send_encryption, pair.connection._recv_encryption]  # type: ignore[attr-defined]
            assert [isinstance(one, packets.Gcm) for one in ciphers] == [client, client]

    run(work())


@pytest.mark.parametrize("server", [True, False])
def test_keys_are_exchanged_anew_in_the_middle(server: bool) -> None:
    async def work() -> None:
        async with Pair(True, server, rekey_bytes=str(MIB)) as pair:
            first = pair.connection._send_encryption  # type: ignore[attr-defined]
            size = 16 * MIB
            sent = await asyncio.gather(pour(pair.chan, pair.here, size, 3), pour(pair.there.chan, pair.there, size, 4))
            await asyncio.gather(pair.there.until(size), pair.here.until(size))
            assert [pair.there.came.digest(), pair.here.came.digest()] == sent
            assert pair.connection._send_encryption is not first  # type: ignore[attr-defined]

    run(work())


@pytest.mark.parametrize("cipher", ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"])
def test_other_ciphers_are_spoken(cipher: str) -> None:
    async def work() -> None:
        async with Pair(True, True, encryption_algs=[cipher]) as pair:
            sent = await pour(pair.chan, pair.here, 4 * MIB, 5)
            await pair.there.until(4 * MIB)
            assert pair.there.came.digest() == sent

    run(work())


def test_data_that_is_not_read_waits_within_the_window() -> None:
    async def work() -> None:
        async with Pair(True, True) as pair:
            pair.there.chan.pause_reading()
            pouring = asyncio.create_task(pour(pair.chan, pair.here, 8 * MIB, 6))
            while pair.chan._send_window:
                await asyncio.sleep(0)
            assert pair.there.count == 0 and not pouring.done()
            pair.there.chan.resume_reading()
            sent = await pouring
            await pair.there.until(8 * MIB)
            assert pair.there.came.digest() == sent

    run(work())


@pytest.mark.parametrize("client", [True, False])
def test_a_bit_that_is_turned_over_on_the_way_ends_the_connection(client: bool) -> None:
    seen = 0
    turned_at = 2 * MIB + random.Random(7).randrange(MIB)

    def turn(data: bytes) -> bytes:
        nonlocal seen
        begin, seen = seen, seen + len(data)
        if not begin <= turned_at < seen:
            return data
        place = turned_at - begin
        return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]

    async def work() -> None:
        async with Pair(client, True, turn) as pair:
            with suppress(OSError):
                await pour(pair.chan, pair.here, 8 * MIB, 8)
            await pair.there.until(8 * MIB)
            assert pair.there.is_lost and pair.there.count <= turned_at
            assert isinstance(pair.there.lost, asyncssh.DisconnectError)

    run(work())


def forge(pair: Pair, plain: bytes) -> None:
    """Send a packet that is whole and well sealed, whatever is in it."""
    connection = pair.connection
    cipher = connection._send_encryption  # type: ignore[attr-defined]
    header = packets.LENGTH.pack(len(plain))
    connection._send(b"".join(cipher.encrypt_packet(0, header, plain)))  # type: ignore[attr-defined]


def packet(number: int, byte_count: int, data: bytes, padding: int | None = None, kind: int = 94) -> bytes:
    real = -(10 + len(data)) % 16 or 16
    real += 16 if real < 4 else 0
    return packets.DATA_HEAD.pack(real if padding is None else padding, kind, number, byte_count) + data + bytes(real)


@pytest.mark.parametrize(
    "forged",
    [
        packet(9, 100, bytes(100)),
        packet(0, 99, bytes(100)),
        packet(0, 101, bytes(100)),
        packet(0, 2**32 - 1, bytes(100)),
        packet(0, 100, bytes(100), padding=255),
        packet(0, WINDOW_BYTES + 1, bytes(WINDOW_BYTES + 1)),
    ],
    ids=["unknown channel", "longer than it says", "shorter", "much shorter", "all padding", "beyond the window"],
)
def test_a_packet_that_no_friend_sends_ends_the_connection_as_with_asyncssh(forged: bytes) -> None:
    async def work(server: bool) -> tuple[int, str]:
        async with Pair(False, server) as pair:
            forge(pair, forged)
            await pair.there.until(1)
            assert pair.there.is_lost
            return pair.there.count, repr(pair.there.lost)

    assert run(work(True)) == run(work(False))


def test_noise_before_and_after_the_login_ends_the_connection() -> None:
    async def work(seed: int) -> None:
        choice = random.Random(seed)
        async with Pair(True, True) as pair:
            transport = pair.connection._transport  # type: ignore[attr-defined]
            transport.write(choice.randbytes(choice.choice((1, 16, 100, 4 * MIB))))
            transport.write(os.urandom(MIB))
            await pair.there.until(1)
            assert pair.there.count == 0 and isinstance(pair.there.lost, asyncssh.DisconnectError)

    for seed in range(6):
        run(work(seed))
