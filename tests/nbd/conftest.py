"""Engines to test: a real nbdkit with a real pool in a home of its own, once with each plugin."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockdev.targets.attach import nbd_uri
from blockdev.targets.nbdkit import NbdServer, Options, start

import nbd
from blockdev import Pool
from blockdev.engine.client import EngineClient
from blockdev.home import Home

MEBIBYTE = 1 << 20
DISK = "demo/root"
DISK_BYTES = 64 * MEBIBYTE


class Server:
    """One home, and the engines that were started on it one after the other."""

    def __init__(self, home: Home, plugin: str) -> None:
        self.home = home
        self.plugin = plugin
        self.engine: NbdServer | None = None
        self._handles: list[nbd.NBD] = []

    def create(self, capacity_bytes: int = 1024 * MEBIBYTE, **disks: int) -> None:
        """A pool with disks demo/NAME of the given sizes; demo/root of 64 MiB without any."""
        self.home.make_directories()
        pool = Pool.create(str(self.home.pool), capacity_bytes, segment_bytes=4 * MEBIBYTE)
        for name, size_bytes in (disks or {"root": DISK_BYTES}).items():
            pool.create_vdisk(size_bytes, f"demo/{name}")
        pool.close()

    def start(self, **options: Any) -> NbdServer:
        self.engine = start(Options(home=self.home.path, plugin=self.plugin, **options))
        return self.engine

    def stop(self) -> int:
        self._handles.clear()
        assert self.engine is not None
        engine, self.engine = self.engine, None
        return engine.stop()

    def uri(self, export: str = DISK) -> str:
        return nbd_uri(export, self.home)

    def connect(self, export: str = DISK, **flags: bool) -> nbd.NBD:
        """A libnbd connection that checks nothing itself, so that the server is asked everything."""
        handle = nbd.NBD()
        handle.set_strict_mode(0)
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.connect_uri(self.uri(export))
        self._handles.append(handle)
        return handle

    def control(self) -> EngineClient:
        """The engine's own socket."""
        return EngineClient(str(self.home.engine_socket))

    def log(self) -> str:
        return (self.home.run / "engine.log").read_text()


@pytest.fixture(params=["native", "python"])
def plugin(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def home() -> Iterator[Home]:
    """An empty home with a path short enough for sockets; on the disk, not in pytest's directory."""
    directory = tempfile.mkdtemp(prefix="blockdev-nbd-")
    yield Home.at(directory)
    shutil.rmtree(directory)


@pytest.fixture
def idle_server(home: Home, plugin: str) -> Iterator[Server]:
    """A home where nothing was created or started yet."""
    server = Server(home, plugin)
    yield server
    if server.engine is not None:
        server.stop()


@pytest.fixture
def server(idle_server: Server) -> Server:
    """An engine that serves demo/root, 64 MiB, empty."""
    idle_server.create()
    idle_server.start()
    return idle_server


@pytest.fixture
def run() -> Callable[..., str]:
    """Runs a program that must succeed; returns what it printed."""

    def call(*command: str | Path, timeout_s: float = 120, status: int = 0) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, f"{command} ended with {done.returncode}: {done.stdout}"
        return done.stdout

    return call


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A directory for images; emptied after the test, because pytest would keep it."""
    yield tmp_path
    shutil.rmtree(tmp_path)
