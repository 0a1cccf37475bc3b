"""What people do that no page asks for: names that are odd, many tabs at once, a form sent twice, the back button, a POST reloaded."""

from __future__ import annotations

import re
from urllib.parse import quote

from playwright.sync_api import Page, expect

from tests.browser.chromium import SMALL_PHONE, Site
from tests.browser.conftest import Visit

LONG_VM, LONG_DISK, LONG_SNAPSHOT = "v" * 63, "d" * 63, "s" * 63
SCRIPT = "<script>alert(1)</script>"
TABS = 7  # a browser has six connections to one origin
HIDE = "() => { Object.defineProperty(document, 'hidden', {value: true}); document.dispatchEvent(new Event('visibilitychange')); }"
COUNT_ANEW = "window.told = {opened: 0, jobs: 0}"  # what a tab was told: that there is a stream, and of jobs
COUNT = f"{COUNT_ANEW}; addEventListener('live:jobs', event => {{ told[event.detail ? 'jobs' : 'opened'] += 1; }});"
LOOK = "() => { document.dispatchEvent(new Event('visibilitychange'))"  # the list asks for figures now, and not in five seconds


def make(site: Site, name: str, *disks: str, description: str = "") -> None:
    with site.home.rest() as rest:
        answer = rest.post("/vms", json={"name": name, "description": description, "disks": [{"name": disk, "size_bytes": 1 << 20} for disk in disks or ("root",)]})
        assert answer.status_code == 201, answer.text


def snapshots(site: Site, vm: str) -> list[str]:
    with site.home.rest() as rest:
        return [one["name"] for one in rest.get(f"/vms/{vm}/snapshots").json()["snapshots"]]


def test_the_longest_names_fit_a_small_phone_and_none_is_taken_for_a_part_of_the_page(visit: Visit, site: Site) -> None:
    """Disks are called as elements of the page are."""
    page = visit(size=SMALL_PHONE)
    make(site, LONG_VM, LONG_DISK, "main", "live", description=f"{SCRIPT} 日本語🙂 \"'&" + "x" * 200)
    with site.home.rest() as rest:
        assert rest.post(f"/vms/{LONG_VM}/snapshots", json={"name": LONG_SNAPSHOT, "description": "</title>" + "y" * 200}).status_code == 201
    here, wide = f"/vms/{LONG_VM}", {}
    for path in ("", f"/snapshots/{LONG_SNAPSHOT}", "/restore", "/attach", f"/disks/{LONG_DISK}/change"):
        page.goto(here + path)
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        width = page.evaluate("document.scrollingElement.scrollWidth")
        if width > SMALL_PHONE[0]:
            wide[path] = width
        assert page.evaluate("[document.getElementById('main').tagName, document.getElementById('live').className]") == ["MAIN", "toasts"], path
    assert not wide
    page.goto("/")
    page.get_by_label("Filter").fill("日本語🙂 <script>")
    expect(page.get_by_role("link", name=LONG_VM)).to_be_visible()
    expect(page.locator("#vms tbody small.line")).to_contain_text(SCRIPT)


def test_a_name_that_cannot_be_used_is_told_in_words_and_stays_in_the_form(visit: Visit) -> None:
    page = visit(expected=("400", "404"))
    for name in ("my vm", f'Zürich 🙂">{SCRIPT}', "a%2Fb", "x" * 10_000):
        page.goto("/new-vm")
        field = page.get_by_label("Name", exact=True)
        field.fill(name)
        page.get_by_label("Size of disk 1").fill("1M")
        page.get_by_role("button", name="Create").click()
        told = page.get_by_role("alert")
        expect(told).to_contain_text(f"VM name '{name[:80]}")
        expect(told).to_contain_text("take 1 to 63 letters, digits, '.', '_' and '-'")
        assert len(told.inner_text()) < 250
        expect(field).to_have_value(name)
        answer = page.goto(f"/vms/{quote(name, safe='')}")
        assert answer is not None and answer.status == 404
        expect(page.get_by_role("heading", level=1)).to_have_text("That did not work")
        assert len(page.get_by_role("alert").inner_text()) < 150


def test_many_tabs_have_one_stream_and_another_takes_it_over(visit: Visit, site: Site) -> None:
    page = visit()
    make(site, "seen")
    page.context.add_init_script(COUNT)
    tabs = [page, *(page.context.new_page() for _ in range(TABS - 1))]
    for tab in tabs:
        tab.goto("/vms/seen/rename")  # each stream would hold a connection, and the seventh tab wait for ever
    wait_until(tabs[:1], "told.opened")
    for leaves in (lambda tab: tab.close(), lambda tab: tab.evaluate(HIDE)):
        leader, *tabs = tabs
        for tab in tabs:
            tab.evaluate(COUNT_ANEW)
        leaves(leader)
        wait_until(tabs, "told.opened")  # another one has the stream
        tell_a_change(site, "seen")
        wait_until(tabs, "told.jobs")


def test_a_tab_whose_stream_was_refused_leaves_it_to_one_that_is_opened_later(visit: Visit, site: Site) -> None:
    page = visit(expected=("503",))
    make(site, "refused")
    page.route("**/live*", lambda route: route.fulfill(status=503))  # as when there are too many of them
    page.goto("/vms/refused/rename")
    expect(page.locator("#live")).to_contain_text("This page is no longer live")
    later = page.context.new_page()
    later.add_init_script(COUNT)
    later.goto("/vms/refused/rename")
    wait_until([later], "told.opened")


def test_tabs_without_locks_have_a_stream_each_and_tell_each_other_nothing(visit: Visit, site: Site) -> None:
    """By plain HTTP and another name than localhost; else each would hear everything as often as there are tabs."""
    page = visit()
    make(site, "unlocked")
    page.context.add_init_script(f"delete Navigator.prototype.locks; {COUNT}")
    tabs = [page, page.context.new_page()]
    for tab in tabs:
        tab.goto("/vms/unlocked/rename")
        wait_until([tab], "told.opened")
    tell_a_change(site, "unlocked")
    wait_until(tabs, "told.jobs")
    assert [tab.evaluate("told.opened") for tab in tabs] == [1, 1]


def wait_until(tabs: list[Page], fact: str) -> None:
    for tab in tabs:
        tab.wait_for_function(f"() => {fact}", polling=50)


def tell_a_change(site: Site, vm: str) -> None:
    with site.home.rest() as rest:
        assert rest.post(f"/vms/{vm}/snapshots", json={}).is_success


def test_what_was_deleted_in_another_tab_is_said_to_be_gone(visit: Visit, site: Site) -> None:
    page = visit(expected=("404",))
    make(site, "goes")
    make(site, "stays")
    one, all_of_them, form = page, page.context.new_page(), page.context.new_page()
    one.goto("/vms/goes")
    form.goto("/vms/goes/snapshot")
    all_of_them.goto("/")
    row = all_of_them.locator("#vms tbody tr").filter(has=all_of_them.get_by_role("link", name="goes", exact=True))
    all_of_them.wait_for_function(f"{LOOK}; return document.querySelector(`#vms [data-v=goes]`).nextElementSibling.dataset.v !== ''; }}", polling=100)
    other = page.context.new_page()
    other.goto("/vms/goes/delete")
    other.get_by_label("Type goes to delete it").fill("goes")
    other.get_by_role("button", name="Delete goes").click()
    expect(other.get_by_role("status").first).to_contain_text("deleted goes")
    expect(one.locator("#live")).to_contain_text("not there any more: it was deleted or renamed")
    all_of_them.wait_for_function(f"{LOOK}; return document.querySelector('#vms tbody').textContent.includes('deleted'); }}", polling=100)
    expect(row).to_contain_text("deleted")
    form.get_by_role("button", name="Take snapshot").click()
    expect(form.get_by_role("alert")).to_have_text("there is no VM goes")


def test_a_form_that_is_sent_twice_is_done_once(visit: Visit, site: Site) -> None:
    page = visit(expected=("409",))
    make(site, "once")
    page.goto("/vms/once/snapshot")
    page.get_by_role("button", name="Take snapshot").evaluate("button => { button.click(); button.click(); button.form.requestSubmit(); }")
    expect(page).to_have_url(re.compile("/vms/once#snapshots$"))
    assert len(snapshots(site, "once")) == 1
    page.goto("/vms/once/clone")
    other = page.context.new_page()
    other.goto("/vms/once/clone")
    for tab in (page, other):
        expect(tab.get_by_text("Makes once-clone.")).to_be_visible()
        tab.get_by_role("button", name="Clone", exact=True).click()
    expect(page).to_have_url(re.compile("/vms/once-clone$"))
    expect(other.get_by_role("alert")).to_contain_text("there is a VM once-clone already")


def test_the_back_button_shows_a_form_anew_and_nothing_after_signing_out(visit: Visit, site: Site) -> None:
    page = visit(expected=("401",))  # the other tab's stream
    make(site, "private")
    page.goto("/vms/private/snapshot")
    page.get_by_label("Name", exact=True).fill("typed")
    page.get_by_role("button", name="Take snapshot").click()
    expect(page).to_have_url(re.compile("#snapshots$"))
    page.go_back()
    expect(page.get_by_label("Name", exact=True)).to_have_value("")
    expect(page.get_by_role("button", name="Take snapshot")).to_be_enabled()
    page.go_forward()
    kept = page.context.new_page()
    kept.goto("/vms/private/attach")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    for _ in range(2):
        page.go_back()
        signed_out(page)
    kept.evaluate("window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")  # as out of a browser's memory
    signed_out(kept)


def signed_out(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert "private" not in page.content().replace("/vms/private", "")


def test_a_token_is_neither_made_again_nor_shown_again_by_loading_its_page_again(visit: Visit) -> None:
    page = visit(expected=("409",))
    page.goto("/settings")
    form = page.locator("form[action='/settings/tokens']")
    form.get_by_label("Name").fill("reloaded")
    form.get_by_role("button").click()
    expect(page.get_by_text(re.compile("^bdv_"))).to_be_visible()
    page.reload()  # sends the form again
    expect(page.get_by_role("alert")).to_contain_text("there is a token reloaded already")
    assert "bdv_" not in page.content()
