"""`make screenshots`: docs/console/*.png, each page of the console in light and dark, of two real homes with guests at work."""

from __future__ import annotations

import time
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page

from tests.browser.chromium import PHONE, Scheme, Site, chromium, console_site, signed_in
from tests.browser.load import fio, write
from tests.browser.places import PAGES, address
from tests.cli.served import until
from tests.ports import free_address

FOLDER = Path(__file__).parents[2] / "docs" / "console"
VM = "web"
COLOURS = 200  # of a palette: a page has few, and a picture is a third as large
LOAD_SECONDS = 60  # so that graphs have something to show
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def main() -> None:
    """The pictures that there were are replaced."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        there = stack.enter_context(console_site("--replicate", free_address()))
        here = stack.enter_context(console_site("--replicate", free_address(), capacity="8G"))
        furnish(here, there)
        for export, iops, kind in ((f"{VM}/root", 900, "randrw"), ("db/data", 500, "randwrite"), ("mail/root", 200, "randread")):
            stack.enter_context(fio(here.home, export, iops, kind))
        take(here, stack)


def furnish(here: Site, there: Site) -> None:
    """A few VMs with snapshots, clones, schedules of their own, and a path that they are replicated over."""
    with here.home.rest() as rest:
        for name, disks in ((VM, ("root", "data")), ("db", ("root", "data")), ("mail", ("root",))):
            post(rest, "/vms", {"name": name, "description": f"{name}, made for the pictures", "disks": [{"name": one, "size_bytes": 256 << 20} for one in disks]})
            for number, disk in enumerate(disks):
                write(here.home, f"{name}/{disk}", 0x31 + number, 0, 24 << 20)
        for name in ("monday", "before-upgrade"):
            post(rest, f"/vms/{VM}/snapshots", {"name": name})
            write(here.home, f"{VM}/data", 0x51, 32 << 20, 8 << 20)
        post(rest, f"/vms/{VM}/clones", {"snapshot": "monday", "count": 12, "prefix": "desk-##"})
        put(rest, "/schedules", {"schedules": [{"name": "hourly", "at": "hourly :05", "keep_seconds": 10800}, {"name": "daily", "at": "daily 02:30", "keep_seconds": 172800}]})
        put(rest, "/vms/db/schedules", {"schedules": [{"name": "workdays", "at": "daily 12:00,18:00 mon-fri", "keep_seconds": 432000}]})
        code = there.home.json("replicate", "peer", "invite", "site-a")["code"]
        with there.home.rest() as other:
            host, port = other.get("/replication/identity").json()["listening"].split(":")
        key = rest.get("/replication/identity").json()["key"]
        post(rest, "/replication/peers", {"name": "site-c", "key": key, "vms": ["web*"], "space_bytes": 1 << 40})
        post(rest, "/replication/paths", {"name": "site-b", "host": host, "port": int(port), "code": code})
        for name in (VM, "db"):
            put(rest, f"/vms/{name}/protections/site-b", {"rpo_seconds": 7200})
        post(rest, "/pool/scrub", {})
        until(lambda: rest.get("/replication/status", params={"state": "up to date"}).json()["replications"], "a copy to be there")


def post(rest: httpx.Client, path: str, body: object) -> None:
    answer = rest.post(path, json=body)
    assert answer.is_success, (path, answer.text)


def put(rest: httpx.Client, path: str, body: object) -> None:
    answer = rest.put(path, json=body)
    assert answer.is_success, (path, answer.text)


def take(here: Site, stack: ExitStack) -> None:
    browser = stack.enter_context(chromium())
    began = time.monotonic()
    for scheme in SCHEMES:
        with signed_in(browser, here, scheme=scheme) as page:
            if scheme == SCHEMES[0]:
                page.goto(address("vm", VM))
                page.wait_for_timeout(max(0, LOAD_SECONDS - (time.monotonic() - began)) * 1000)
            for name in PAGES:
                keep(page, name, scheme)
        with signed_in(browser, here, scheme=scheme, size=PHONE) as page:
            keep(page, "vms", scheme, "phone-")
    with browser.new_context(base_url=here.origin, ignore_https_errors=True) as context:
        page = context.new_page()
        page.goto("/sign-in")
        save(page, "sign-in-light")


def settle(page: Page) -> None:
    """Parts have come, graphs are drawn."""
    page.wait_for_function("() => !document.querySelector('.htmx-request')")
    page.wait_for_timeout(700)


def keep(page: Page, name: str, scheme: Scheme, before: str = "") -> None:
    page.goto(address(name, VM))
    settle(page)
    save(page, f"{before}{name}-{scheme}")


def save(page: Page, name: str) -> None:
    picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    few = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(FOLDER / f"{name}.png", optimize=True)
    print(f"docs/console/{name}.png", (FOLDER / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main()
