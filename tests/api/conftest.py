"""A served home with the REST API on the Unix socket and on TCP."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.cli.served import SECONDS_MAX, Home


@pytest.fixture(scope="session")
def api_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="session")
def home(api_address: str) -> Iterator[Home]:
    made = Home()
    try:
        made.init()
        made.serve("--api", api_address)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def rest(home: Home) -> Iterator[httpx.Client]:
    """The owner's client."""
    with home.rest() as client:
        yield client


@pytest.fixture(scope="session")
def tcp(home: Home, api_address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{api_address}/api/v1", timeout=SECONDS_MAX) as client:
        yield client
