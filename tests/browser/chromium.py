"""A real Chromium, headless, in front of a served home: pages that are signed in, and all that went wrong in them.

Chromium is Debian's.  Playwright's driver holds it by a pipe: when the test process ends, however it does, both go.
Whoever opens a page is told at the end of what no page may do: write an error to the browser's console, ask another origin.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from tests.cli.served import Home
from tests.ports import free_address

Role = Literal["viewer", "operator", "admin"]
Scheme = Literal["light", "dark"]
AXE = Path(__file__).with_name("axe") / "axe.min.js"
CHROMIUM = "chromium"
WAIT_MS = 60_000
DESKTOP, PHONE, SMALL_PHONE = (1280, 900), (390, 844), (320, 640)
SERIOUS = ("serious", "critical")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Ended when it is left.  In between asyncio.run does not work in this thread: playwright's loop runs there."""
    found = shutil.which(CHROMIUM)
    assert found is not None, f"no {CHROMIUM}: apt-get install {CHROMIUM} (packages.apt)"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Faults:
    """What pages did that none may do."""

    origin: str
    found: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # parts of console messages that a test provokes

    def watch(self, context: BrowserContext) -> None:
        context.on("console", self._on_console)
        context.on("weberror", lambda error: self.found.append(f"exception: {error.error}"))
        context.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.found.append(f"{message.type}: {message.text} ({message.location.get('url')})")

    def _on_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "data" and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.found.append(f"request to another origin: {request.url} from {request.frame.url}")

    def unexpected(self) -> list[str]:
        return [one for one in self.found if not any(part in one for part in self.expected)]


@dataclass
class Site:
    """A home that is served with its console."""

    home: Home
    origin: str
    tokens: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, Any] = field(default_factory=dict)  # of who has signed in, by role

    def token(self, role: Role) -> str:
        """One that this test run made."""
        if role not in self.tokens:
            with self.home.rest() as rest:
                answer = rest.post("/tokens", json={"name": f"test-{role}", "role": role})
                assert answer.status_code == 201, answer.text
                self.tokens[role] = answer.json()["token"]
        return self.tokens[role]


@contextmanager
def console_site(*options: str, capacity: str = "4G") -> Iterator[Site]:
    """A home of its own, served over TCP with TLS, as `serve --api` does without being told more."""
    home = Home()
    try:
        home.init(capacity)
        address = free_address()
        home.serve("--api", address, *options)
        yield Site(home, f"https://{address}")
    finally:
        home.close()


@contextmanager
def signed_in(
    browser: Browser,
    site: Site,
    role: Role = "admin",
    scheme: Scheme = "light",
    size: tuple[int, int] = DESKTOP,
    expected: tuple[str, ...] = (),
) -> Iterator[Page]:
    """The list of VMs, of somebody who is signed in, at first by the form; at the end no page may have been at fault.

    A page of the same role goes on with the session of the one before, if it is still there: signing in takes a second.
    expected: parts of console messages that are provoked, such as that of an answer that is an error.
    """
    faults = Faults(site.origin, expected=list(expected))
    context = browser.new_context(
        base_url=site.origin,
        ignore_https_errors=True,  # the home's certificate is its own
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
    )
    try:
        context.set_default_timeout(WAIT_MS)
        faults.watch(context)
        context.add_cookies(site.cookies.get(role, []))
        page = context.new_page()
        page.goto("/")
        if urlsplit(page.url).path == "/sign-in":
            sign_in(page, site.token(role))
            site.cookies[role] = context.cookies()
        yield page
    finally:
        context.close()
    assert not faults.unexpected(), "\n".join(faults.unexpected())


def sign_in(page: Page, token: str) -> None:
    """By the form that is shown, as a person does."""
    page.get_by_label("Token or one-time code").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/sign-in" not in url)


@lru_cache(1)
def _axe() -> str:
    return AXE.read_text()


def accessibility_faults(page: Page) -> list[str]:
    """What axe-core finds in the page as it is that is serious or critical: one line for each element."""
    session = page.context.new_cdp_session(page)  # the page's own policy lets no script of others in
    try:
        session.send("Runtime.evaluate", {"expression": _axe()})
        answer: dict[str, Any] = session.send(
            "Runtime.evaluate",
            {"expression": "axe.run(document, {resultTypes: ['violations']})", "awaitPromise": True, "returnByValue": True},
        )
    finally:
        session.detach()
    assert "value" in answer["result"], answer
    found: dict[str, Any] = answer["result"]["value"]
    assert found["passes"], "axe looked at nothing"
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {' '.join(map(str, node['target']))}: {node['html'][:200]}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]
