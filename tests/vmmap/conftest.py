"""A whole control plane on a real engine socket in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs
from tests.engine_socket.conftest import (
    attachments,
    client,
    server,
    socket_path,
    start_engine,
)
from tests.vmmap.world import Clock

__all__ = ["attachments", "client", "server", "socket_path", "start_engine"]


@pytest.fixture
def catalog_path(tmp_path: Path) -> str:
    return str(tmp_path / "catalog.db")


@pytest.fixture
def catalog(catalog_path: str) -> Iterator[Catalog]:
    opened = Catalog(catalog_path)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vms(catalog: Catalog, client: EngineClient, clock: Clock) -> VMs:
    """On `pool`, through `server`."""
    return VMs(catalog, client, clock=clock)


@pytest.fixture
def attach(pool: Pool, attachments: Attachments, server: EngineServer) -> Iterator[object]:
    """Attaches a client to an export for the rest of the test."""
    tokens: list[int] = []

    def attach_client(export: str, name: str = "pid 7 (qemu)") -> None:
        tokens.append(attachments.attach(pool.find(export), name))

    yield attach_client
    for token in tokens:
        attachments.detach(token)
