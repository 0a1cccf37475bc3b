"""A control plane with schedules on a real catalog and a real engine, whose clock a test sets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.schedule.runner import Scheduler
from blockdev.schedule.service import Schedules
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs

SHARED_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a sync is free there: a year has thousands of them
START = 1_830_297_600.0  # 2028-01-01T00:00:00Z


@dataclass
class Home:
    """All of one home; `now` is its clock's."""

    pool: Pool
    attachments: Attachments
    catalog: Catalog
    client: EngineClient
    socket: str
    now: float = START

    def __post_init__(self) -> None:
        self.server: EngineServer | None = None
        self.start_engine()
        self.start_control_plane()

    def start_engine(self) -> None:
        self.server = EngineServer(self.pool, self.attachments, self.socket, plugin="none")
        self.server.start()

    def stop_engine(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None

    def start_control_plane(self) -> None:
        """Anew, as after a restart."""
        self.vms = VMs(self.catalog, self.client, clock=lambda: self.now)
        self.schedules = Schedules(self.catalog, lambda: self.now)
        self.scheduler = Scheduler(
            self.vms, self.catalog, self.schedules, lambda: self.now, wait=lambda _seconds: None
        )

    def snapshots(self, vm: str) -> list[str]:
        return [one.name for one in self.vms.list_snapshots(vm)]


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="bd-", dir=SHARED_MEMORY) as directory:
        pool = Pool.create(f"{directory}/pool", 1 << 30, segment_bytes=4 << 20)
        catalog = Catalog(f"{directory}/catalog.db")
        socket = str(Path(directory, "engine.sock"))
        client = EngineClient(socket, "the test")
        made = Home(pool, Attachments(), catalog, client, socket)
        yield made
        made.stop_engine()
        client.close()
        catalog.close()
        pool.close()
