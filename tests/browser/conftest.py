"""A browser and a served home for each file of tests: playwright's loop must be gone when the next file runs in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import WAIT_MS, Site, chromium, console_site, signed_in

expect.set_options(timeout=WAIT_MS)  # by itself it waits for five seconds, which a busy machine takes


class Visit(Protocol):
    """Opens a page that is signed in, see browser.signed_in; it is closed with the test."""

    def __call__(self, **given: Any) -> Page: ...


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Tests make VMs of their own in it and expect nothing of others'."""
    with console_site() as served:
        yield served


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visit]:
    with ExitStack() as opened:

        def visit(**given: Any) -> Page:
            return opened.enter_context(signed_in(browser, site, **given))

        yield visit
