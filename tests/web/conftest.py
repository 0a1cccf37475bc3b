"""A served home with the console, and browsers without a screen and without scripts: httpx clients that keep cookies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.cli.rest_home import api_address, home, rest
from tests.cli.served import Home, fresh_home
from tests.ports import free_address
from tests.web.browser import Browser

__all__ = ["api_address", "home", "rest"]


@pytest.fixture(scope="session")
def tokens(home: Home) -> dict[str, str]:
    """A token of each role."""
    return {role: home("token", "add", f"web-{role}", "--role", role).strip() for role in ("viewer", "operator", "admin")}


@pytest.fixture
def browser(home: Home, api_address: str) -> Iterator[Callable[[], Browser]]:
    """browser(): one that nobody has signed in with."""
    trust = home.trust()
    with ExitStack() as opened:
        yield lambda: opened.enter_context(Browser(f"https://{api_address}", trust))


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
