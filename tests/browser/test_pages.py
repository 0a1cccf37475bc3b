"""Each page of the console in a real browser: nothing that people with a screen reader or a keyboard stumble over, nothing on the console."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.chromium import DESKTOP, SMALL_PHONE, Site, accessibility_faults, console_site, signed_in
from tests.browser.conftest import Visit
from tests.browser.places import PAGES, address

VM = "web"
WRITING = {"new-vm", "add-disk", "change-disk", "clone", "snapshot", "restore", "rename", "delete", "path-new", "peer-new"}  # forms alone


@pytest.fixture(scope="module", autouse=True)
def furnished(site: Site) -> None:
    furnish(site)


def furnish(site: Site) -> None:
    """A VM with a snapshot, a clone, an event, a job and a default schedule, a path and a peer: what tables show."""
    with site.home.rest() as rest:
        key = rest.get("/replication/identity").json()["key"]  # any will do: nobody is asked for it
        for path, body in (
            ("/replication/peers", {"name": "site-c", "key": key, "vms": ["web*"], "space_bytes": 1 << 40}),
            ("/replication/paths", {"name": "site-b", "host": "127.0.0.1", "port": 9, "key": key}),
            ("/vms", {"name": VM, "disks": [{"name": "root", "size_bytes": 64 << 20}, {"name": "data", "size_bytes": 16 << 20}]}),
            (f"/vms/{VM}/snapshots", {"name": "monday"}),
            (f"/vms/{VM}/clones", {"snapshot": "monday", "name": "copy"}),
            ("/pool/check", {}),
        ):
            answer = rest.post(path, json=body)
            assert answer.is_success, answer.text
        answer = rest.patch("/schedules/nightly", json={"at": "daily 02:30", "keep_seconds": 172800})
        assert answer.is_success, answer.text


def settle(page: Page, name: str) -> None:
    """Open a page and wait for its parts."""
    page.goto(address(name, VM))
    page.wait_for_function("() => !document.querySelector('.htmx-request')")


class Seen(NamedTuple):
    """What there was to see of one page."""

    headings: int
    faults: list[str]
    width: int


@pytest.fixture(scope="module", params=[("light", DESKTOP), ("dark", SMALL_PHONE)], ids=["desktop", "phone"])
def all_seen(request: pytest.FixtureRequest, browser: Browser, site: Site) -> tuple[int, dict[str, Seen]]:
    """How wide the window is, and each page in it by its name: opened once for the tests that look at all of them."""
    scheme, size = request.param
    found = {}
    with signed_in(browser, site, scheme=scheme, size=size) as page:
        for name in PAGES:
            settle(page, name)
            headings = page.get_by_role("heading", level=1)
            headings.first.wait_for()
            width = page.evaluate("document.scrollingElement.scrollWidth")
            found[name] = Seen(headings.count(), accessibility_faults(page), width)
    return size[0], found


def test_no_page_has_a_serious_fault_for_those_who_do_not_see_or_point(all_seen: tuple[int, dict[str, Seen]]) -> None:
    _, pages = all_seen
    assert not {name: seen.headings for name, seen in pages.items() if seen.headings != 1}
    assert not any(seen.faults for seen in pages.values()), "\n".join(f"{name}: {fault}" for name, seen in pages.items() for fault in seen.faults)


def test_no_page_is_wider_than_the_window(all_seen: tuple[int, dict[str, Seen]]) -> None:
    window, pages = all_seen
    assert not {name: seen.width for name, seen in pages.items() if seen.width > window}


def test_nor_has_the_page_of_a_job(visit: Visit) -> None:
    page = visit(scheme="dark", size=SMALL_PHONE)
    settle(page, "activity")
    page.locator("a[href^='/activity/jobs/']").first.click()
    page.wait_for_url("**/activity/jobs/*")
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    assert not accessibility_faults(page)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= SMALL_PHONE[0]


def test_a_wide_table_that_was_fetched_anew_is_reached_by_keyboard_at_once(visit: Visit) -> None:
    page = visit(size=SMALL_PHONE)
    page.goto(f"/vms/{VM}")
    reached = page.evaluate("""() => new Promise(done => {
        document.addEventListener('htmx:afterSwap', event => {
            const boxes = Array.from(event.target.querySelectorAll('.scroll'));
            if (boxes.length) done(boxes.filter(box => box.scrollWidth > box.clientWidth).map(box => box.tabIndex));
        });
        document.body.dispatchEvent(new CustomEvent('live:jobs', {bubbles: true}));
    })""")
    assert reached and set(reached) == {0}


def test_a_viewer_is_shown_no_form_but_what_the_role_does_not_allow(visit: Visit) -> None:
    page = visit(role="viewer", expected=("403",))
    offers = {}
    for name in PAGES:
        settle(page, name)
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        told = page.get_by_role("heading", name="Your role does not allow this").count()
        assert told == (name in WRITING), name
        if told:
            expect(page.get_by_role("alert")).to_contain_text(re.compile("needs the role (operator|admin); you are signed in as test-viewer, with the role viewer"))
        buttons = page.locator("form[method=post]:not([action='/sign-out']) button:enabled").all_inner_texts()
        if buttons:
            offers[name] = buttons
    assert not offers
    settle(page, "clone")
    assert not accessibility_faults(page)


def test_the_pages_of_the_menu_are_reached_by_the_keyboard_alone(visit: Visit) -> None:
    page = visit()
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for name in ("Pool", "Replication", "Targets", "Activity", "Settings"):
        page.evaluate("document.activeElement.blur()")
        link = page.get_by_role("navigation", name="Main").get_by_role("link", name=name)
        for _ in range(30):
            page.keyboard.press("Tab")
            if link.evaluate("element => element === document.activeElement"):
                break
        expect(link).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_contain_text("iSCSI targets" if name == "Targets" else name)
        expect(page.get_by_role("navigation", name="Main").get_by_role("link", name=name)).to_have_attribute("aria-current", "page")


def test_a_page_says_that_blockdevd_is_away_and_when_it_is_to_be_loaded_again(browser: Browser) -> None:
    """Sessions are in memory: who was signed in before is not afterwards."""
    with console_site() as own, signed_in(browser, own, expected=("ERR_", "401")) as page:
        page.goto("/")
        own.home.stop()
        expect(page.locator("#live")).to_contain_text("blockdevd does not answer", timeout=60_000)
        own.home.serve("--api", own.origin.removeprefix("https://"))
        expect(page.locator("#live")).to_contain_text("load it again", timeout=60_000)
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
