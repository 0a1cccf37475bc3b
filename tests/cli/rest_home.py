"""Fixtures of a home that is served for a whole session, with the REST API on the Unix socket and on TCP.

A folder that imports them has such a home of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.cli.served import Home, served_home
from tests.ports import free_address


@pytest.fixture(scope="session")
def api_address() -> str:
    return free_address()


@pytest.fixture(scope="session")
def home(api_address: str) -> Iterator[Home]:
    with served_home("--api", api_address, "--replicate", free_address()) as made:
        yield made


@pytest.fixture(scope="session")
def rest(home: Home) -> Iterator[httpx.Client]:
    """The owner's client."""
    with home.rest() as client:
        yield client
