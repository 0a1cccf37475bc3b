"""The console by keyboard alone: every page walked by Tab, dialogs left and sent, graphs read, nothing lost when a part comes anew."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import Site
from tests.browser.conftest import Visit
from tests.browser.places import PAGES
from tests.browser.test_pages import VM, furnish, settle

# what Tab has to reach, by place in the page, also when a part has come anew; of radio buttons only one of a group is a stop
STOPS = """() => {
    const all = Array.from(document.querySelectorAll("a[href], button:enabled, input:enabled:not([type=hidden], [type=radio]), select, textarea, summary, [tabindex='0']"));
    return all.filter(one => one.checkVisibility({visibilityProperty: true}));
}"""
COUNT = f"() => ({STOPS})().length"
# the stop that has the focus: its place, and what is wrong with how it shows that
FOCUSED = f"""() => {{
    const one = document.activeElement;
    if (one === document.body) return null;
    const style = getComputedStyle(one), box = one.getBoundingClientRect();
    const isMarked = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
    const isSeen = box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight;
    return {{place: ({STOPS})().indexOf(one), fault: isMarked && isSeen ? null : one.outerHTML.slice(0, 200)}};
}}"""
ACTIVE = "() => document.activeElement.outerHTML"


@pytest.fixture(scope="module", autouse=True)
def furnished(site: Site) -> None:
    furnish(site)
    with site.home.rest() as rest:
        assert rest.post(f"/vms/{VM}/restore", json={"snapshot": "monday"}).is_success  # an event


def test_tab_reaches_everything_in_order_and_what_has_the_focus_is_seen(visit: Visit) -> None:
    page = visit()
    faults = []
    for name in PAGES:
        settle(page, name)
        page.locator(".skip").focus()
        count, reached = page.evaluate(COUNT), [0]
        for _ in range(count + 20):  # radio buttons beside
            page.keyboard.press("Tab")
            found = page.evaluate(FOCUSED)
            if found is None or (found["place"] >= 0 and found["place"] in reached):
                break
            faults += [f"{name}: not seen to have the focus: {found['fault']}"] if found["fault"] else []
            reached += [found["place"]] if found["place"] >= 0 else []
        if reached != list(range(count)):
            faults.append(f"{name}: {reached} of {count}")
    assert not faults, "\n".join(faults)


def test_escape_leaves_a_dialog_for_where_it_was_opened_but_not_what_was_typed(visit: Visit) -> None:
    page = visit()
    page.goto(f"/vms/{VM}")
    opener = page.get_by_role("link", name="Clone", exact=True)
    opener.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/clone$"))
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile(f"/vms/{VM}$"))
    expect(opener).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_label("How many").fill("2")
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Cancel")).to_be_focused()
    expect(page.get_by_label("How many")).to_have_value("2")


def test_enter_sends_a_form_and_the_focus_is_at_what_came_of_it(visit: Visit) -> None:
    page = visit(expected=("409",))
    page.goto(f"/vms/{VM}/rename")
    name = page.get_by_label("Name", exact=True)
    name.fill("copy")
    name.press("Enter")
    expect(page.get_by_role("alert")).to_be_focused()  # it is taken
    expect(name).to_have_value("copy")
    page.goto(f"/vms/{VM}/clone")
    page.get_by_label("Name", exact=True).fill("sent-by-enter")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/vms/sent-by-enter$"))
    expect(page.get_by_role("status").first).to_be_focused()


def test_what_has_the_focus_keeps_it_when_its_part_comes_anew(visit: Visit) -> None:
    page = visit()
    settle(page, "activity")
    link = page.locator("#events a").first
    link.focus()
    link.evaluate("element => { element.isOld = true; }")
    page.evaluate("htmx.trigger(document.body, 'live:events')")
    page.wait_for_function("() => !document.activeElement.isOld")
    expect(link).to_be_focused()
    page.evaluate("document.querySelector('#events a').textContent = 'is gone next time'")
    page.evaluate("htmx.trigger(document.body, 'live:events')")
    page.wait_for_function("() => document.activeElement.querySelector('#events')")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('section') === document.querySelector('#events').closest('section')")


def test_a_table_is_sorted_by_keyboard(visit: Visit) -> None:
    page = visit()
    page.goto("/")
    button = page.get_by_role("button", name="Size")
    button.focus()
    for key, order in (("Enter", "descending"), ("Space", "ascending")):
        page.keyboard.press(key)
        expect(page.locator(f"#vms th[aria-sort={order}]")).to_have_text("Size")
        expect(button).to_be_focused()


def test_a_graph_is_zoomed_and_read_by_keyboard_and_told_in_words(visit: Visit) -> None:
    page = visit()
    page.goto(f"/vms/{VM}")
    graph = page.locator("figure.graph").first
    expect(graph.locator("canvas")).to_be_visible()
    expect(graph).to_have_attribute("aria-label", re.compile("^IOPS. Read: .*Arrow keys move the cursor"))
    graph.focus()
    said = graph.locator("[aria-live]")
    for key in ("Home", "End", "ArrowLeft"):
        before = said.inner_text()
        page.keyboard.press(key)
        expect(said).to_have_text(re.compile(": Read .*, Write .*, Flush "))
        assert said.inner_text() != before, key
    _has_one_cursor(page)
    page.keyboard.press("+")
    expect(said).to_have_text(re.compile("^Shown: "))
    expect(page.get_by_role("button", name="Zoom out")).to_be_visible()
    page.get_by_role("button", name="Zoom out").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="1 h", exact=True)).to_be_focused()  # the one pressed goes
    expect(page.get_by_role("button", name="Zoom out")).to_be_hidden()


def _has_one_cursor(page: Page) -> None:
    moments = page.locator("figure.graph .u-legend .u-series:first-child .u-value").all_inner_texts()
    assert len(moments) > 3 and len(set(moments)) == 1 and moments[0] != "–", moments
