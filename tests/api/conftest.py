"""A served home with the REST API on the Unix socket and on TCP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.cli.rest_home import api_address, home, rest
from tests.cli.served import SECONDS_MAX, Home, fresh_home

__all__ = ["api_address", "home", "rest"]


@pytest.fixture
def fresh() -> Iterator[Home]:
    """A home of this test alone: initialised, not served."""
    with fresh_home() as made:
        yield made


@pytest.fixture(scope="session")
def over_tcp(home: Home, api_address: str) -> Iterator[Callable[[str | None], httpx.Client]]:
    """over_tcp(token): somebody's client, who trusts the home's certificate and no other."""
    trust = home.trust()
    with ExitStack() as clients:

        def client(token: str | None) -> httpx.Client:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            base = f"https://{api_address}/api/v1"
            return clients.enter_context(httpx.Client(base_url=base, verify=trust, headers=headers, timeout=SECONDS_MAX))

        yield client


@pytest.fixture(scope="session")
def callers(home: Home, over_tcp: Callable[[str | None], httpx.Client]) -> dict[str, httpx.Client]:
    """A client of each role."""
    roles = ("scraper", "viewer", "operator", "admin")
    return {role: over_tcp(home("token", "add", f"a-{role}", "--role", role).strip()) for role in roles}


@pytest.fixture(scope="session")
def tcp(callers: dict[str, httpx.Client]) -> httpx.Client:
    """An admin's."""
    return callers["admin"]
