"""A thousand VMs in the browser: how soon the table can be used, and how soon it is sorted and filtered.

Other tests on the same two cores make a page late, never early: the least of some tries is what the console takes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import Site
from tests.browser.conftest import Visit

USABLE_MS_MAX, SORTED_MS_MAX = 1000, 200
TRIES = 12
VM_COUNT = 1000
PAINTED = "requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())))"
# since the navigation began, until everything was loaded, run and painted, and the page answers
USABLE = f"""() => new Promise(done => {{
    const tell = () => setTimeout(() => {PAINTED});
    if (document.readyState === 'complete') tell(); else addEventListener('load', tell);
}})"""
# since a button was pressed, until the rows in their new order are painted
SORTED = f"""async words => {{
    const button = Array.from(document.querySelectorAll('#vms thead button')).find(one => one.textContent === words);
    const began = performance.now();
    button.click();
    return await new Promise(done => {PAINTED}) - began;
}}"""
FILTERED = f"""async words => {{
    const field = document.getElementById('q');
    const began = performance.now();
    field.value = words;
    field.dispatchEvent(new Event('input', {{bubbles: true}}));
    return await new Promise(done => {PAINTED}) - began;
}}"""


@pytest.fixture(scope="module", autouse=True)
def fleet(site: Site) -> None:
    """golden, and clones of it."""
    with site.home.rest() as rest:
        for path, body in (
            ("/vms", {"name": "golden", "disks": [{"name": "root", "size_bytes": 1 << 30}, {"name": "data", "size_bytes": 256 << 20}]}),
            ("/vms/golden/clones", {"count": 500, "prefix": "web-###"}),
            ("/vms/golden/clones", {"count": VM_COUNT - 501, "prefix": "db-###"}),
        ):
            answer = rest.post(path, json=body)
            assert answer.status_code == 201, answer.text


def least(what: str, limit_ms: float, measure: Callable[[], float]) -> float:
    """Milliseconds, of up to TRIES."""
    found = [measure()]
    while min(found) >= limit_ms and len(found) < TRIES:
        found.append(measure())
    print(f"{what}: {', '.join(f'{one:.0f}' for one in found)} ms, at most {limit_ms:.0f}")
    return min(found)


def names(page: Page) -> list[str]:
    found: list[str] = page.locator("#vms tbody tr:not([hidden]) th a").all_inner_texts()
    return found


def open_list(page: Page) -> float:
    page.goto("/", wait_until="commit")
    return float(page.evaluate(USABLE))


def test_the_table_of_1000_vms_is_usable_within_a_second(visit: Visit) -> None:
    page = visit()
    assert least("usable", USABLE_MS_MAX, lambda: open_list(page)) < USABLE_MS_MAX
    expect(page.get_by_text(f"{VM_COUNT:,} VMs", exact=True)).to_be_visible()
    page.get_by_role("link", name="db-001", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("db-001")


@pytest.mark.parametrize("column", ["Name", "IOPS", "Space", "Size", "Replication"])
def test_1000_vms_are_sorted_within_200_ms(visit: Visit, column: str) -> None:
    page = visit()
    open_list(page)
    assert least(f"sorted by {column}", SORTED_MS_MAX, lambda: float(page.evaluate(SORTED, column))) < SORTED_MS_MAX
    expect(page.locator("#vms th[aria-sort]")).to_have_text(column)


def test_the_table_is_sorted_by_what_its_head_says(visit: Visit) -> None:
    page = visit()
    open_list(page)
    assert names(page)[:2] == ["db-001", "db-002"]
    page.get_by_role("button", name="Name").click()
    expect(page.locator("#vms th[aria-sort=descending]")).to_have_text("Name")
    assert names(page)[:2] == ["web-500", "web-499"]


def test_every_vm_is_reached_by_going_down(visit: Visit) -> None:
    page = visit()
    open_list(page)
    while page.get_by_role("link", name="web-500", exact=True).count() == 0:
        there = len(names(page))
        page.keyboard.press("End")
        page.wait_for_function("there => document.querySelectorAll('#vms tbody tr').length > there", arg=there)
    assert sorted(names(page)) == names(page) and len(names(page)) == VM_COUNT


def test_1000_vms_are_filtered_within_200_ms(visit: Visit) -> None:
    page = visit()
    open_list(page)
    assert least("filtered", SORTED_MS_MAX, lambda: float(page.evaluate(FILTERED, "web-1"))) < SORTED_MS_MAX
    assert len(names(page)) == 100 and all(name.startswith("web-1") for name in names(page))
    expect(page.get_by_text(f"100 of {VM_COUNT:,} VMs")).to_be_visible()
