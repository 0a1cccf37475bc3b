"""Homes in one process, and links between them that are none: each message goes straight to the other end."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from blockdev.errors import Unavailable
from blockdev.replicate.doors import Doors
from blockdev.replicate.driver import Sending
from blockdev.replicate.frames import LENGTH_BYTES
from blockdev.replicate.halt import Halt, Rejected, Unreached
from blockdev.replicate.keys import fingerprint
from blockdev.replicate.throttle import Throttle
from blockdev.vmmap.catalog_replication import PathRow


class Net:
    """Who is reached by which key; what a test does to messages."""

    def __init__(self) -> None:
        self.homes: dict[str, DirectTransport] = {}
        self.is_down = False
        self.alter: Callable[[bytes], bytes | None] = lambda message: message  # None: the cable is cut


class Own(NamedTuple):
    key: str
    fingerprint: str


class DirectTransport:
    """What Transport does, without a wire."""

    listening = None

    def __init__(self, net: Net, key: str, doors: Doors) -> None:
        self.net = net
        self._key = key
        self.doors = doors

    def own(self) -> Own:
        return Own(self._key, fingerprint(self._key))

    def is_connected(self, path_id: int) -> bool:
        return False

    def connected_keys(self) -> set[str]:
        return set()

    def measure(self, path: PathRow) -> float:
        return 0.001

    def close_path(self, path_id: int) -> None:
        pass

    def disconnect_peer(self, key: str) -> None:
        pass

    def set_throttle(self, path_id: int, throttle: Throttle) -> None:
        pass

    def start(self) -> None:
        self.net.homes[self._key] = self

    def cut(self) -> None:
        self.net.homes.pop(self._key, None)

    def stop(self, seconds: float) -> None:
        pass

    def run(self, path: PathRow, sender: Sending, halt: Halt) -> None:
        other = self.net.homes.get(path.key)
        if other is None or self.net.is_down:
            raise Unreached(f"{path.host} is not reached")
        peer = other.doors.find_peer(self._key)
        if peer is None:
            raise Rejected("the other end does not know this home")
        other.doors.entered(peer)
        reception = other.doors.open(peer)
        try:
            sender.start()
            while not sender.is_done:
                halt.check()
                made = sender.next()
                if made is None:
                    raise Unavailable("the other end said nothing")
                message = self.net.alter(bytes(made[LENGTH_BYTES:]))
                if message is None:
                    raise Unavailable("the connection was cut")
                for answer in reception.handle(message):
                    sender.handle(answer[LENGTH_BYTES:])
        finally:
            reception.close()
