"""A person's whole walk through the console, in a real browser: from signing in to deleting the VM, the guest at work meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.chromium import Site, console_site, signed_in
from tests.browser.conftest import Visit
from tests.browser.load import fio, must_hold, write
from tests.ports import free_address

VM, PATH = "web", "site-b"
MEBIBYTE = 1 << 20
BEFORE, AFTER = 0x11, 0x22  # what the guest wrote before the snapshot and after it
FIGURE_MS = 120_000
ARRIVAL_MS = 120_000


@pytest.fixture(scope="module")
def there() -> Iterator[Site]:
    """The other site, that listens for peers."""
    with console_site("--replicate", free_address()) as served:
        yield served


def test_a_vm_is_made_seen_at_work_snapshotted_cloned_restored_protected_replicated_and_deleted(
    visit: Visit, browser: Browser, site: Site, there: Site
) -> None:
    page = visit()
    create(page)
    write(site.home, f"{VM}/root", BEFORE)
    with fio(site.home, f"{VM}/data"):
        see_the_graph_move(page)
        snapshot(page)
    write(site.home, f"{VM}/root", AFTER)
    must_hold(site.home, f"{VM}/root", AFTER)
    clone_20(page)
    restore(page)
    must_hold(site.home, f"{VM}/root", BEFORE)
    set_schedules(page)
    with signed_in(browser, there) as other:
        add_path(page, invite(other))
        watch_it_replicate(page)
        other.goto("/")
        expect(row(other, VM)).to_contain_text("from site-a")
        other.goto(f"/vms/{VM}")
        expect(other.get_by_role("heading", level=1)).to_have_text(VM)
        newest = site.home.json("snapshot", "list", VM)["snapshots"][-1]["name"]
        expect(other.get_by_role("link", name=newest, exact=True)).to_be_visible()
    delete(page)
    assert VM not in [one["name"] for one in site.home.json("vm", "list")["vms"]]


def row(page: Page, name: str) -> Locator:
    """Of the list of VMs."""
    return page.locator("#vms tbody tr").filter(has=page.get_by_role("link", name=name, exact=True))


def create(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="New VM").click()
    page.get_by_label("Name", exact=True).fill(VM)
    for number, (name, size) in enumerate((("root", "64M"), ("data", "64M")), 1):
        page.get_by_label(f"Name of disk {number}").fill(name)
        page.get_by_label(f"Size of disk {number}").fill(size)
    page.get_by_role("button", name="Create").click()
    expect(page).to_have_url(re.compile(f"/vms/{VM}$"))
    expect(page.get_by_role("heading", level=1)).to_have_text(VM)
    expect(page.get_by_role("status").first).to_contain_text(VM)


def see_the_graph_move(page: Page) -> None:
    """The figures become what fio does, and the graph of IOPS is drawn anew by itself."""
    page.goto(f"/vms/{VM}")
    graph = page.locator("figure.graph", has_text="IOPS")
    expect(graph.locator("canvas")).to_be_visible()
    idle = picture(graph)
    for figure in ("read_iops", "write_iops"):
        expect(page.locator(f"#now [data-figure={figure}]")).to_have_text(re.compile(r"^1\d\d|^2\d\d"), timeout=FIGURE_MS)
    page.wait_for_function(
        "([canvas, before]) => canvas.isConnected && canvas.toDataURL() !== before",
        arg=[graph.locator("canvas").element_handle(), idle],
        timeout=FIGURE_MS,
    )
    expect(page.get_by_text(f"{VM}/data").first).to_be_visible()


def picture(graph: Locator) -> str:
    return str(graph.locator("canvas").evaluate("canvas => canvas.toDataURL()"))


def snapshot(page: Page) -> None:
    page.goto(f"/vms/{VM}")
    page.get_by_role("link", name="Snapshot", exact=True).click()
    page.get_by_label("Name", exact=True).fill("before")
    page.get_by_role("button", name="Take snapshot").click()
    expect(page.get_by_role("rowheader", name="before").first).to_be_visible()


def clone_20(page: Page) -> None:
    page.goto(f"/vms/{VM}")
    page.get_by_role("link", name="Clone before").click()
    page.get_by_label("How many").fill("20")
    page.get_by_label("Name", exact=True).fill("desk-##")
    expect(page.get_by_text("Makes desk-01, desk-02, … desk-20.")).to_be_visible()
    page.get_by_role("button", name="Clone", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("20")
    page.goto("/")
    page.get_by_label("Filter").fill("desk-")
    expect(page.get_by_text("20 of 21 VMs")).to_be_visible()
    expect(row(page, "desk-20")).to_be_visible()


def restore(page: Page) -> None:
    """Told first what it changes: at least what was written over since."""
    page.goto(f"/vms/{VM}")
    page.get_by_role("link", name="Restore before").click()
    changes = page.get_by_role("region", name="What restoring before changes")
    expect(changes.get_by_role("row").filter(has_text="root")).to_contain_text("1 MiB")
    expect(changes).to_contain_text("The configuration stays as it is")
    page.get_by_role("button", name="Restore before").click()
    expect(page.get_by_role("status").first).to_contain_text("before")
    expect(page.get_by_role("cell", name="restore", exact=True)).to_be_visible()


def set_schedules(page: Page) -> None:
    page.goto(f"/vms/{VM}")
    page.get_by_role("link", name="Protect", exact=True).click()
    page.get_by_label("Schedules of its own").check()
    first = page.get_by_role("group", name="Schedule 1")
    first.get_by_label("Name").fill("workdays")
    first.get_by_label("When").fill("daily 12:00,18:00 mon-fri")
    first.get_by_label("Kept for").fill("5d")
    page.get_by_role("button", name="Protect", exact=True).click()
    expect(page.get_by_role("region", name="Schedules")).to_contain_text("daily 12:00,18:00 mon-fri")
    page.goto(f"/vms/{VM}/protect")
    page.get_by_role("button", name="30 days").click()
    expect(page.get_by_text(re.compile(r"^4\d snapshots within 30 days"))).to_be_visible()


def invite(other: Page) -> tuple[str, str]:
    """The address and the code of the other home."""
    other.goto("/replication")
    listening = other.get_by_role("definition").first.inner_text()
    other.get_by_role("link", name="Invite a peer").click()
    other.get_by_label("What it is called here").fill("site-a")
    other.get_by_role("button", name="Invite").click()
    return listening, other.get_by_label("Code", exact=True).inner_text()


def add_path(page: Page, invitation: tuple[str, str]) -> None:
    """So slow that a person sees the snapshot go."""
    page.goto("/replication")
    page.get_by_role("link", name="Add a path").click()
    page.get_by_label("Name of the path").fill(PATH)
    page.get_by_label("Where it is reached").fill(invitation[0])
    page.get_by_label("Code", exact=True).fill(invitation[1])
    page.get_by_role("button", name="Add the path").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Path {PATH}")
    page.get_by_role("button", name="Test it").click()
    expect(page.get_by_text("Round trip")).to_be_visible()
    page.get_by_label("Limit outside of the windows").fill("2")
    page.get_by_role("button", name="Set the throttle").click()
    expect(page.get_by_role("status").first).to_contain_text("the throttle holds")


def watch_it_replicate(page: Page) -> None:
    page.goto(f"/vms/{VM}/protect")
    page.get_by_label(f"Replicate over {PATH}").check()
    page.get_by_role("group", name=PATH).get_by_label("RPO").fill("2h")
    page.get_by_role("button", name="Protect", exact=True).click()
    page.get_by_role("link", name=f"Replication of {VM}").click()
    state = page.get_by_role("region", name=f"Replication to {PATH}")
    expect(state).to_contain_text("running")
    expect(state.get_by_role("progressbar")).to_be_visible()
    moved = "element => element.closest('main').querySelector('progress[value]')?.value > 0"
    page.wait_for_function(moved, arg=page.get_by_role("heading", level=1).element_handle(), timeout=ARRIVAL_MS)
    expect(state).to_contain_text("up to date", timeout=ARRIVAL_MS)
    expect(state).to_contain_text("2h")
    page.goto("/replication")
    expect(page.locator("#states")).to_contain_text("up to date")


def delete(page: Page) -> None:
    """Asked to type its name; not protected any more, as replication holds its snapshots."""
    page.goto(f"/vms/{VM}/protect")
    page.get_by_label(f"Replicate over {PATH}").uncheck()
    page.get_by_role("button", name="Protect", exact=True).click()
    page.goto(f"/vms/{VM}")
    page.get_by_role("link", name="Delete", exact=True).click()
    page.get_by_label(f"Type {VM} to delete it").fill(VM)
    page.get_by_role("button", name=f"Delete {VM}").click()
    expect(page).to_have_url(re.compile("/$"))
    expect(row(page, "desk-01")).to_be_visible()
    expect(row(page, VM)).to_have_count(0)
