"""Two homes with all of their replication but the wire: messages go straight from one to the other."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from blockdev import Pool
from blockdev.clock import now_seconds
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.home import Home
from blockdev.replicate import parts
from blockdev.replicate.keys import parse_key
from blockdev.replicate.model import Replicated
from blockdev.replicate.service import Replication
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.events import Events
from blockdev.vmmap.recorder import Recorder
from blockdev.vmmap.service import VMs
from tests.cli.served import until
from tests.replicate.direct import DirectTransport, Net

MEBIBYTE = 1 << 20
PREFIX = b"\0\0\0\x0bssh-ed25519\0\0\0 "


def a_key(number: int) -> str:
    return parse_key(f"ssh-ed25519 {base64.b64encode(PREFIX + bytes([number]) * 32).decode()}")


class Site:
    """One home, without processes of its own."""

    def __init__(self, stack: ExitStack, path: Path, net: Net, number: int) -> None:
        path.mkdir()
        self.key = a_key(number)
        self.pool = stack.enter_context(Pool.create(str(path / "pool"), 512 * MEBIBYTE, segment_bytes=4 * MEBIBYTE))
        server = EngineServer(self.pool, Attachments(), str(path / "engine.sock"), plugin="none")
        server.start()
        stack.callback(server.stop)
        self.engine = EngineClient(str(path / "engine.sock"), f"home {number}")
        stack.callback(self.engine.close)
        self.catalog = Catalog(path / "catalog.db")
        stack.callback(self.catalog.close)
        recorder = Recorder(self.catalog)
        events = Events(recorder.put, now_seconds)
        self.vms = VMs(self.catalog, self.engine, events=events)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "Transport", lambda _home, _listen, doors: DirectTransport(net, self.key, doors))
            self.service = Replication(
                Home(path), self.vms, self.catalog, self.engine, now_seconds, events, recorder, None
            )
        self.service.start()
        stack.callback(self.service.stop)

    def status(self, vm: str, direction: str = "sent") -> Replicated:
        return next(one for one in self.service.status(vm) if one.direction in (direction, None))

    def events(self) -> list[str]:
        return [f"{row.level} {row.vm}: {row.message}" for row in self.catalog.events(None, ["info", "warning", "error"], None, 100, "replication")]

    def write(self, export: str, place: int, text: bytes) -> None:
        self.pool.find(export).write(place * 4096, text.ljust(4096, b"."))

    def read(self, export: str, place: int) -> bytes:
        return bytes(self.pool.find(export).read(place * 4096, 4096)).rstrip(b".")


class World:
    def __init__(self, here: Site, there: Site, net: Net) -> None:
        self.here = here
        self.there = there
        self.net = net

    def wait(self, vm: str = "web") -> Replicated:
        return until(
            lambda: (status := self.here.status(vm)).state == "up to date" and status, f"{vm} to be there", seconds=30
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """here has a path to there, and a VM web with two disks and a snapshot s1."""
    with ExitStack() as stack:
        net = Net()
        here, there = (Site(stack, tmp_path / name, net, number) for number, name in enumerate(("here", "there"), 1))
        here.service.add_path("far", "there.example", key=there.key)
        there.service.add_peer("origin", here.key, ["web*"])
        here.vms.create_vm("web", [("root", 2 * MEBIBYTE), ("data", MEBIBYTE)], "<web/>")
        here.write("web/root", 0, b"first")
        here.vms.create_snapshot("web", "s1")
        yield World(here, there, net)
