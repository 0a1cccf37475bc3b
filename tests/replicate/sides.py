"""Two homes as far as the transport knows them: keys, peers and machines that say what a test wants; real SSH over loopback."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blockdev.home import Home
from blockdev.replicate.control import decode_refuse
from blockdev.replicate.frames import Frame, Message, frame
from blockdev.replicate.messages import Kind
from blockdev.replicate.pairing import Invited
from blockdev.replicate.transport import Transport
from blockdev.vmmap.catalog_replication import PathRow, PeerRow

SECONDS_MAX = 60.0
BYTES_SENT_AT = 200  # in the kernel's tcp_info: u64 tcpi_bytes_sent
STUFF, ASK, GOT, DONE = 200, 201, 202, 203  # kinds of messages that no protocol has


class Sink:
    """Takes what comes, answers each message, and ends when asked to."""

    def __init__(self) -> None:
        self.is_closed = False
        self.message_count = 0
        self.byte_count = 0
        self.closed = threading.Event()

    def handle(self, message: Message) -> list[Frame]:
        self.message_count += 1
        self.byte_count += len(message)
        if message[0] == ASK:
            self.is_closed = True
            return [frame(DONE, b"%d" % self.byte_count)]
        return [frame(GOT)]

    def close(self) -> None:
        self.is_closed = True
        self.closed.set()


class Chatterbox(Sink):
    """Says more than it is told: ANSWER_BYTES to each message."""

    ANSWER_BYTES = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.said_bytes = 0
        self.began = threading.Event()

    def handle(self, message: Message) -> list[Frame]:
        self.began.set()
        self.said_bytes += self.ANSWER_BYTES
        return [frame(GOT, bytes(self.ANSWER_BYTES))]


class Pusher:
    """Sends `count` messages, at most `ahead` of them unanswered, then asks for the end."""

    def __init__(self, count: int, size: int, ahead: int = 32) -> None:
        self.is_done = False
        self.total = b""
        self.answered = 0
        self._frame = frame(STUFF, os.urandom(size))
        self._left, self._ahead, self._out, self._asked = count, ahead, 0, False

    def start(self) -> None:
        pass

    def handle(self, message: Message) -> None:
        if message[0] == Kind.REFUSE:
            raise decode_refuse(memoryview(message)[1:])
        if message[0] == DONE:
            self.is_done, self.total = True, bytes(message[1:])
        else:
            self._out -= 1
            self.answered += 1

    def next(self) -> Frame | None:
        if self._left and self._out < self._ahead:
            self._left -= 1
            self._out += 1
            return self._frame
        if not self._left and not self._asked:
            self._asked = True
            return frame(ASK)
        return None


class Doors:
    """Peers by key, and every machine that was opened."""

    def __init__(self, make: Callable[[], Sink]) -> None:
        self.peers: dict[str, PeerRow] = {}
        self.machines: list[Sink] = []
        self.opened = threading.Event()
        self.entered_keys: list[str] = []
        self._make = make
        self.engine_hangs = False

    def find_peer(self, key: str) -> PeerRow | None:
        return self.peers.get(key)

    def entered(self, peer: PeerRow) -> None:
        self.entered_keys.append(peer.key)

    def open(self, peer: PeerRow) -> Sink:
        self.machines.append(self._make())
        self.opened.set()
        return self.machines[-1]

    def engine_answers(self, seconds: float) -> bool:
        return not self.engine_hangs

    def admit(self, invited: Invited, key: str) -> None:
        self.add(key, invited.name)

    def add(self, key: str, name: str = "peer") -> None:
        self.peers[key] = PeerRow(len(self.peers) + 1, name, key, "[]", None, "")


class Side:
    """One home."""

    def __init__(self, path: Path, listens: bool, make: Callable[[], Sink] = Sink) -> None:
        self.home = Home.at(path)
        self.doors = Doors(make)
        self.transport = Transport(self.home, ("127.0.0.1", 0) if listens else None, self.doors)
        self.transport.start()

    @property
    def key(self) -> str:
        return self.transport.own().key

    @property
    def port(self) -> int:
        assert self.transport.listening is not None
        return self.transport.listening[1]

    @property
    def sent_bytes(self) -> int:
        """Over the socket of the path, as the kernel counted them: SSH's own bytes, too."""
        connection = self.transport._links[1]._connection
        assert connection is not None
        info = connection.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_SENT_AT + 8)
        return int.from_bytes(info[BYTES_SENT_AT:], "little")

    def path_to(self, other: Side, port: int | None = None, key: str | None = None, throttle: str = "{}") -> PathRow:
        return PathRow(1, "there", "127.0.0.1", port or other.port, key or other.key, 3, throttle, "")


@contextmanager
def two_sides(folder: Path, make: Callable[[], Sink] = Sink) -> Iterator[tuple[Side, Side]]:
    """One that sends, and one that listens and knows it."""
    sender, receiver = Side(folder / "a", False), Side(folder / "b", True, make)
    receiver.doors.add(sender.key)
    try:
        yield sender, receiver
    finally:
        sender.transport.stop(SECONDS_MAX)
        receiver.transport.stop(SECONDS_MAX)
