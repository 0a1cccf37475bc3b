"""A served home with the console, and browsers without a screen and without scripts: httpx clients that keep cookies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.cli.served import Home, fresh_home, served_home
from tests.ports import free_address
from tests.web.browser import Browser


@pytest.fixture(scope="session")
def console_address() -> str:
    return free_address()


@pytest.fixture(scope="session")
def home(console_address: str) -> Iterator[Home]:
    with served_home("--api", console_address, "--replicate", free_address()) as made:
        yield made


@pytest.fixture(scope="session")
def rest(home: Home) -> Iterator[httpx.Client]:
    """The owner's client."""
    with home.rest() as client:
        yield client


@pytest.fixture(scope="session")
def tokens(home: Home) -> dict[str, str]:
    """A token of each role."""
    return {role: home("token", "add", f"web-{role}", "--role", role).strip() for role in ("viewer", "operator", "admin")}


@pytest.fixture
def browser(home: Home, console_address: str) -> Iterator[Callable[[], Browser]]:
    """browser(): one that nobody has signed in with."""
    trust = home.trust()
    with ExitStack() as opened:
        yield lambda: opened.enter_context(Browser(f"https://{console_address}", trust))


@pytest.fixture
def signed_in(browser: Callable[[], Browser], tokens: dict[str, str]) -> Callable[[str], Browser]:
    """signed_in(role)."""

    def sign_in(role: str) -> Browser:
        made = browser()
        assert made.sign_in(tokens[role]).status_code == 303
        return made

    return sign_in


@pytest.fixture
def fresh_console() -> Iterator[tuple[Home, Browser]]:
    """A home of this test alone, and a browser that is signed in to its console."""
    address = free_address()
    with fresh_home() as made:
        made.serve("--api", address)
        trust = made.trust()
        with Browser(f"https://{address}", trust) as one:
            one.sign_in(made("token", "add", "fresh", "--role", "viewer").strip())
            yield made, one
