"""An engine socket on a real pool, in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer

StartEngine = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def socket_path() -> Iterator[str]:
    """In a directory with a short name: a Unix socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bd-") as directory:
        yield str(Path(directory, "engine.sock"))


@pytest.fixture
def attachments() -> Attachments:
    return Attachments()


@pytest.fixture
def server(pool: Pool, attachments: Attachments, socket_path: str) -> Iterator[EngineServer]:
    started = EngineServer(pool, attachments, socket_path, plugin="none")
    started.start()
    yield started
    started.stop()


@pytest.fixture
def client(server: EngineServer, socket_path: str) -> Iterator[EngineClient]:
    made = EngineClient(socket_path, "the test")
    yield made
    made.close()


@pytest.fixture
def start_engine(pool_path: str, socket_path: str) -> Iterator[StartEngine]:
    """Starts an engine process on `pool_path`, which it may make; ends what is left of it after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(die_at: str = "") -> subprocess.Popen[str]:
        if not Path(pool_path).exists():
            Pool.create(pool_path, 256 << 20, segment_bytes=4 << 20).close()
        command = [sys.executable, "-m", "tests.engine_socket.engine_main", pool_path, socket_path, die_at]
        engine = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(engine)
        assert engine.stdout is not None
        assert engine.stdout.readline() == "ready\n"
        return engine

    yield start
    for engine in started:
        engine.kill()
        engine.wait()
        for pipe in (engine.stdin, engine.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
