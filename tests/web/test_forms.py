"""The forms of protection, replication, the pool, targets and settings: what they do to the home, and what they say when they do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import unescape

import httpx
import pytest

from blockdev.web.console import ROUTES
from tests.cli.served import Home, served_home, until
from tests.ports import free_address
from tests.web.browser import Browser, csrf_of

SignIn = Callable[[str], Browser]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHcq7rJZ0FEVqW9a7Qdd7Hq3GJk4c0PpC3m8m2dVd1qL"
SECRET = "a-chap-secret-"
_names = (f"formed-{number}" for number in range(1000))


@pytest.fixture
def vm(rest: httpx.Client) -> str:
    """Of this test alone."""
    name = next(_names)
    answer = rest.post("/vms", json={"name": name, "disks": [{"name": "root", "size_bytes": 8 << 20}]})
    assert answer.status_code == 201, answer.text
    return name


@pytest.fixture
def admin(signed_in: SignIn) -> Browser:
    return signed_in("admin")


def error_of(answer: httpx.Response) -> str:
    """What a form that was refused says, as a person reads it."""
    assert answer.status_code >= 400, answer.text
    found = re.search(r'<p class="error"[^>]*>(.*?)</p>', answer.text)
    assert found, answer.text
    return unescape(found[1])


def test_no_form_does_anything_without_the_token_of_its_session(admin: Browser, rest: httpx.Client, vm: str) -> None:
    paths = [route.path for route in ROUTES if "POST" in (route.methods or ()) and route.path != "/sign-in"]
    assert len(paths) > 20
    newest = rest.get("/jobs", params={"count": 1}).json()["jobs"][0]["id"]
    for path in paths:
        there = path.replace("{vm}", vm)
        answer = admin.client.post(re.sub(r"\{\w+\}", "none", there), data={"name": "x", "set": "none", "kind": "compact"})
        if "{" in there:  # the form of a thing that is not there is not shown again either
            assert answer.status_code in (403, 404), path
        else:
            assert answer.status_code == 403 and "not of this session" in answer.text, (path, answer.status_code)
    assert rest.get("/jobs", params={"count": 1}).json()["jobs"][0]["id"] == newest
    assert admin.get("/pool").status_code == 200  # nor did it sign out


def test_a_vm_has_the_default_schedules_its_own_or_none(admin: Browser, rest: httpx.Client, vm: str) -> None:
    page = f"/vms/{vm}/protect"
    own = {"name-0": "workdays", "at-0": "daily 12:00 mon-fri", "keep-0": "5d", "consistency-0": "vm-only", "freeze-0": "30s", "replicate-0": "no"}
    assert admin.send(page, page, set="own", **own).status_code == 303
    found = rest.get(f"/vms/{vm}/schedules").json()
    assert found["own"] and len(found["schedules"]) == 1
    wanted = {"name": "workdays", "at": "daily 12:00 mon-fri", "keep_seconds": 5 * 86400, "consistency": "vm", "if_not_frozen": "fail"}
    wanted |= {"zone": found["schedules"][0]["zone"], "replicate": False, "keep_remote_seconds": None, "freeze_seconds_max": 30}
    assert found["schedules"] == [wanted]
    assert admin.send(page, page).status_code == 303  # as it was shown
    assert rest.get(f"/vms/{vm}/schedules").json() == found
    assert admin.send(page, page, set="none").status_code == 303
    assert rest.get(f"/vms/{vm}/schedules").json() == {"vm": vm, "own": True, "schedules": []}
    assert admin.send(page, page, set="default").status_code == 303
    assert not rest.get(f"/vms/{vm}/schedules").json()["own"]


def test_a_schedule_that_is_not_understood_is_shown_again_as_it_was_typed(admin: Browser, rest: httpx.Client, vm: str) -> None:
    page = f"/vms/{vm}/protect"
    typed = {"set": "own", "name-0": "odd", "at-0": "dayly <02:30>", "keep-0": "5d"}
    answer = admin.send(page, page, **typed)
    assert "is not a time for a schedule" in error_of(answer)
    assert "dayly &lt;02:30&gt;" in answer.text and "<02:30>" not in answer.text
    assert re.search(r'value="own" checked', answer.text)
    assert "has no name" in error_of(admin.send(page, page, **{**typed, "name-0": ""}))
    assert "fill one in" in error_of(admin.send(page, page, set="own", **{"name-0": "", "at-0": "", "keep-0": ""}))
    assert not rest.get(f"/vms/{vm}/schedules").json()["own"]


def test_what_schedules_will_take_is_shown_and_one_runs_at_once(admin: Browser, rest: httpx.Client, vm: str) -> None:
    rest.put(f"/vms/{vm}/schedules", json={"schedules": [{"name": "often", "at": "hourly :05", "keep_seconds": 10800}]})
    part = admin.page(f"/vms/{vm}/protect/preview?days=1")
    assert part.count("<td>often</td>") == 24 and "3 of them at one time" in part and "cap" not in part and "Kept on" not in part
    assert admin.send(f"/vms/{vm}/protect", f"/vms/{vm}/protect/run").status_code == 303
    taken = rest.get(f"/vms/{vm}/snapshots").json()["snapshots"]
    assert [one["schedule"] for one in taken] == ["often"]


def test_the_default_schedules_and_the_cap_are_changed(admin: Browser, rest: httpx.Client) -> None:
    row = {"name-0": "nightly", "at-0": "daily 02:30", "keep-0": "2d", "zone-0": "Europe/Zurich", "keep_remote-0": "30d"}
    assert admin.send("/settings", "/settings/schedules", **row).status_code == 303
    found = rest.get("/schedules").json()["schedules"]
    assert [(one["name"], one["zone"], one["keep_remote_seconds"]) for one in found] == [("nightly", "Europe/Zurich", 30 * 86400)]
    assert admin.send("/settings", "/settings/cap", cap="77").status_code == 303
    assert rest.get("/schedule-settings").json() == {"scheduled_snapshots_max": 77}
    refused = admin.send("/settings", "/settings/cap", cap="many")
    assert "whole number" in error_of(refused) and 'value="nightly"' in refused.text  # the other form keeps what it has
    assert admin.send("/settings", "/settings/schedules", **{"name-0": "", "at-0": "", "keep-0": ""}).status_code == 303
    assert rest.get("/schedules").json()["schedules"] == []


def test_a_token_is_shown_once_and_lets_in_until_it_is_removed(admin: Browser, signed_in: SignIn, home: Home) -> None:
    answer = admin.send("/settings", "/settings/tokens", name="passing", role="viewer", valid="1d")
    found = re.search(r"bdv_[A-Za-z0-9_-]{43}", answer.text)
    assert answer.status_code == 200 and found and answer.headers["Cache-Control"] == "no-store"
    later = admin.page("/settings")
    assert "passing" in later and found[0] not in later
    other = signed_in("viewer")
    assert other.sign_in(found[0]).status_code == 303 and other.get("/pool").status_code == 200
    removed = admin.client.post("/settings/tokens/remove", data={"csrf": csrf_of(later), "token": "passing"})
    assert removed.status_code == 303
    assert other.get("/pool").status_code == 303  # to sign in


def test_the_pool_changes_as_said_and_stays_where_nothing_was_changed(admin: Browser, rest: httpx.Client) -> None:
    before = rest.get("/status").json()["engine"]
    assert "nothing was to be changed" in followed(admin, admin.send("/pool", "/pool"))
    assert rest.get("/status").json()["engine"]["policy"] == before["policy"]
    assert admin.send("/pool", "/pool", capacity="5G", compression="inline", level="5", dedup="off", rate="20M").status_code == 303
    after = rest.get("/status").json()["engine"]
    assert after["capacity_bytes"] == 5 << 30
    assert after["policy"] == {"compression": "inline", "compression_level": 5, "dedup": "off", "compaction_rate_bytes": 20 << 20}
    assert "not a size" in error_of(admin.send("/pool", "/pool", capacity="much"))
    assert admin.send("/pool", "/pool", compression="cold", level="3", dedup="on", rate="auto").status_code == 303
    assert rest.get("/status").json()["engine"]["policy"] == before["policy"]


def followed(browser: Browser, answer: httpx.Response) -> str:
    assert answer.status_code == 303, answer.text
    return browser.page(answer.headers["Location"])


@pytest.mark.parametrize("kind", ["check", "scrub", "compact"])
def test_the_pool_is_looked_at_and_compacted(admin: Browser, rest: httpx.Client, kind: str) -> None:
    assert "is under way" in followed(admin, admin.send("/pool", "/pool/work", kind=kind))
    until(lambda: rest.get("/jobs", params={"kind": f"pool.{kind}", "state": "done"}).json()["jobs"], f"the {kind}")
    assert f"pool.{kind}" in admin.page("/activity")


def test_space_adds_up_on_the_page_as_in_the_answer(admin: Browser, rest: httpx.Client, vm: str) -> None:
    part, pool = admin.page("/pool/space"), rest.get("/pool/usage").json()["pool"]
    assert pool["used_bytes"] == pool["stored_bytes"] + pool["metadata_bytes"] + pool["reclaimable_bytes"]
    widths = [float(one) for one in re.findall(r'<rect[^>]* width="([0-9.]+)"', part)]
    assert len(widths) == 4 and 999 < sum(widths) < 1010
    assert f'href="/vms/{vm}"' in part


def test_a_path_is_added_by_a_key_throttled_changed_and_removed(admin: Browser, rest: httpx.Client) -> None:
    made = admin.send("/replication/new-path", name="new", place="127.0.0.1:9", level="5", how="key", key=KEY)
    page = "/replication/paths/new"  # no other page of that address
    assert (made.status_code, made.headers["Location"]) == (303, page)
    windows = "mon-fri 08:00-18:00=5\n22:00-06:00=none\n"
    assert admin.send(page, f"{page}/throttle", rate="2.5", windows=windows, zone="Europe/Zurich").status_code == 303
    assert rest.get(page).json()["throttle"] == {
        "rate_bytes": 2_500_000,
        "zone": "Europe/Zurich",
        "windows": [{"at": "mon-fri 08:00-18:00", "rate_bytes": 5_000_000}, {"at": "22:00-06:00", "rate_bytes": None}],
    }
    assert "mon-fri 08:00-18:00=5\n22:00-06:00=none</textarea>" in admin.page(page)
    assert admin.send(page, f"{page}/change", place="[2001:db8::7]:10811", level="0").status_code == 303
    found = rest.get(page).json()
    assert (found["host"], found["port"], found["level"]) == ("2001:db8::7", 10811, 0)
    assert "no window" in error_of(admin.client.post(f"{page}/throttle", data={"csrf": csrf_of(admin.page(page)), "windows": "always"}))
    assert admin.send(page, f"{page}/remove").status_code == 303
    assert rest.get(page).status_code == 404


@pytest.fixture(scope="module")
def other() -> Iterator[Home]:
    """Another home, that listens for peers."""
    with served_home("--replicate", free_address()) as made:
        yield made


def listening(home: Home) -> str:
    with home.rest() as rest:
        return str(rest.get("/replication/identity").json()["listening"])


def test_an_invitation_is_shown_once_and_lets_another_home_be_a_peer(admin: Browser, rest: httpx.Client, home: Home, other: Home) -> None:
    answer = admin.send("/replication/new-peer", name="elsewhere", vms="web* db", space="1G", valid="5m")
    found = re.search(r'<code class="once"[^>]*>([^<]+)</code>', answer.text)
    assert answer.status_code == 200 and found and answer.headers["Cache-Control"] == "no-store"
    other("replicate", "path", "add", "home", listening(home), "--code", found[1])
    page = "/replication/peers/elsewhere"
    peer = rest.get(page).json()
    assert (peer["vms"], peer["space_bytes"]) == (["web*", "db"], 1 << 30)
    assert found[1] not in admin.page("/replication") + admin.page("/replication/new-peer") + admin.page(page)
    assert admin.send(page, "", vms="", space="").status_code == 303
    changed = rest.get(page).json()
    assert (changed["vms"], changed["space_bytes"]) == ([], None)
    back = admin.send("/replication/new-path", name="back", place=listening(other), how="peer", peer="elsewhere")
    assert back.status_code == 303 and rest.get("/replication/paths/back").json()["peer"] == "elsewhere"
    assert admin.send("/replication/paths/back", "/replication/paths/back/remove").status_code == 303
    assert admin.send(page, f"{page}/remove").status_code == 303
    assert rest.get(page).status_code == 404


def test_a_vm_is_protected_over_a_path_that_a_code_made_and_paused_and_ended(
    admin: Browser, rest: httpx.Client, other: Home, vm: str
) -> None:
    code = other.json("replicate", "peer", "invite", "home")["code"]
    wrong = admin.send("/replication/new-path", name="there", place=free_address(), how="code", code=code)
    assert error_of(wrong) and code not in wrong.text
    assert admin.send("/replication/new-path", name="there", place=listening(other), how="code", code=code).status_code == 303
    page, state = f"/vms/{vm}/protect", f"/vms/{vm}/replication"
    assert admin.send(page, page, path="there", **{"rpo-there": "2h", "keep-at-there": "30d"}).status_code == 303
    [made] = rest.get(f"/vms/{vm}/protections").json()["protections"]
    assert (made["path"], made["rpo_seconds"], made["keep_seconds"]) == ("there", 7200, 30 * 86400)
    until(lambda: "up to date" in admin.page(f"{state}/state"), "the first snapshot to be there")
    assert "to there" in admin.page("/replication/states?state=up to date") and "whole" in admin.page(f"/replication/transfers?vm={vm}")
    assert admin.send(state, f"{state}/pause").status_code == 303 and "Resume" in admin.page(f"{state}/state")
    assert admin.send(state, f"{state}/resume").status_code == 303 and "Pause" in admin.page(f"{state}/state")
    rest.put(f"/vms/{vm}/schedules", json={"schedules": [{"name": "h", "at": "hourly", "keep_seconds": 3600, "keep_remote_seconds": 86400}]})
    part = admin.page(f"{page}/preview?days=1")
    assert "Kept on there for" in part and part.count("<td>1d</td>") == 24
    assert admin.send(state, f"{state}/elsewhere", how="clone", over="there", new_name=f"{vm}-there").status_code == 303
    assert f"{vm}-there" in [one["name"] for one in other.json("vm", "list")["vms"]]
    works = admin.client.post("/replication/paths/there/test", data={"csrf": csrf_of(admin.page("/replication"))})
    assert works.status_code == 200 and "Round trip" in works.text
    csrf = csrf_of(admin.page(page))
    assert admin.client.post(page, data={"csrf": csrf, "set": "default"}).status_code == 303  # no path is checked
    assert rest.get(f"/vms/{vm}/protections").json()["protections"] == []
    assert admin.send("/replication/paths/there", "/replication/paths/there/remove").status_code == 303


def test_a_chap_secret_goes_in_and_never_comes_out(admin: Browser, rest: httpx.Client, vm: str) -> None:
    page = f"/vms/{vm}/target"
    given = {"initiators": "iqn.1993-08.org.debian:01:a1b2c3", "chap-what": "set", "chap-user": "guest", "chap-secret": SECRET}
    answer = admin.send(page, None, **given)
    assert SECRET not in answer.text + admin.page(page) + admin.page("/targets") + admin.page("/activity")
    if answer.status_code == 503:  # this kernel has no LIO: tests/guest has one
        assert "iqn.1993-08.org.debian:01:a1b2c3" in answer.text and 'value="guest"' in answer.text
        assert rest.get(page).status_code == 404
    else:
        assert answer.status_code == 303 and rest.get(page).json()["chap_user"] == "guest"
        assert admin.send(page, f"{page}/remove").status_code == 303
    assert "the secret of CHAP is missing" in error_of(admin.send(page, None, **{**given, "chap-secret": ""}))


def test_jobs_and_events_are_filtered_and_come_in_pages(admin: Browser, rest: httpx.Client, vm: str) -> None:
    for number in range(35):
        rest.patch(f"/vms/{vm}", json={"description": f"the {number}."})
    first = admin.page(f"/activity?vm={vm}")
    assert first.count(">vm.change</a></td>") == 30
    older = re.search(r'href="([^"]*jobs_after=[^"]*)"', first)
    assert older
    second = admin.page(unescape(older[1]))
    assert second.count(">vm.change</a></td>") == 5 and ">vm.create</a></td>" in second
    assert "There is none." in admin.page(f"/activity/jobs?vm={vm}&state=failed")


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_a_form_of_a_higher_role_is_refused_with_the_role_that_it_needs(signed_in: SignIn, rest: httpx.Client, role: str) -> None:
    browser = signed_in(role)
    csrf = csrf_of(browser.page("/settings"))
    for path, fields in (
        ("/settings/cap", {"cap": "9"}),
        ("/settings/tokens", {"name": "mine", "role": "admin"}),
        ("/pool", {"capacity": "6G"}),
        ("/replication/new-path", {"name": "p", "place": "h", "how": "key", "key": KEY}),
    ):
        answer = browser.client.post(path, data={"csrf": csrf, **fields})
        assert answer.status_code == 403 and "needs the role admin" in error_of(answer), (path, answer.status_code)
    assert "The role admin sees and makes tokens" in browser.page("/settings")
    assert "mine" not in [one["name"] for one in rest.get("/tokens").json()["tokens"]]
