"""The pages of VMs, as somebody uses them whose browser runs no scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.cli.served import Home, run_tool
from tests.web.browser import Browser, csrf_of

As = Callable[[str], Browser]


@pytest.fixture
def vm(rest: httpx.Client) -> Iterator[str]:
    """A VM of one disk, and whatever clones a test makes of it."""
    made = rest.post("/vms", json={"name": "paged", "disks": [{"name": "root", "size_bytes": 1 << 20}]})
    assert made.status_code == 201, made.text
    yield "paged"
    for one in rest.get("/vms").json()["vms"]:
        if one["name"].startswith("paged"):
            rest.delete(f"/vms/{one['name']}", params={"force": True})


def test_a_vm_is_made_with_its_disks_and_one_without_a_size_is_asked_for(signed_in: As, rest: httpx.Client) -> None:
    one = signed_in("operator")
    refused = one.send("/new-vm", name="paged-new", disk_name="root", disk_size="")
    assert refused.status_code == 400 and "needs a size" in refused.text and 'value="paged-new"' in refused.text
    made = one.send("/new-vm", name="paged-new", disk_name="root", disk_size="1.5G")
    assert made.status_code == 303 and made.headers["Location"] == "/vms/paged-new"
    assert rest.get("/vms/paged-new").json()["size_bytes"] == 3 << 29
    assert "created paged-new" in one.page("/vms/paged-new")
    rest.delete("/vms/paged-new")


def test_the_list_and_the_page_show_what_there_is(signed_in: As, vm: str, rest: httpx.Client) -> None:
    rest.post(f"/vms/{vm}/snapshots", json={"name": "s1"})
    viewer = signed_in("viewer")
    assert f'href="/vms/{vm}"' in viewer.page("/")
    page = viewer.page(f"/vms/{vm}")
    for words in ("s1", "root", "Clients attached", "Schedules", "Replication", "snapshot.create"):
        assert words in page
    for action in ("snapshot", "clone", "restore", "rename", "delete"):
        assert f'href="/vms/{vm}/{action}"' not in page, "a viewer is offered nothing that is refused"


@pytest.mark.parametrize("path", ["/vms/none", "/vms/none/clone", "/vms/none/restore", "/vms/none/attach", "/vms/none/series", "/vms/..%2ftokens", "/nowhere"])
def test_what_is_not_there_is_said_with_404(signed_in: As, path: str) -> None:
    assert signed_in("admin").get(path).status_code == 404


def test_a_snapshot_is_taken_kept_locked_and_deleted(signed_in: As, vm: str, rest: httpx.Client) -> None:
    one = signed_in("operator")
    taken = one.send(f"/vms/{vm}/snapshot", name="by-hand", description="before the upgrade", keep="3d")
    assert taken.status_code == 303
    made = rest.get(f"/vms/{vm}/snapshots/by-hand").json()
    assert made["description"] == "before the upgrade" and made["expires"] is not None and made["locked_until"] is None
    here = f"/vms/{vm}/snapshots/by-hand"
    assert one.send(here, f"{here}/change", description="kept", forever="yes", lock="1h").status_code == 303
    made = rest.get(f"/vms/{vm}/snapshots/by-hand").json()
    assert (made["description"], made["expires"]) == ("kept", None) and made["locked_until"] is not None
    assert one.send(here, f"{here}/delete").status_code == 409
    assert one.send(here, f"{here}/change", unlock="yes").status_code == 303
    assert one.send(here, f"{here}/delete").status_code == 303
    assert rest.get(f"/vms/{vm}/snapshots/by-hand").status_code == 404


def test_clones_are_made_with_names_by_a_pattern(signed_in: As, vm: str, rest: httpx.Client) -> None:
    one = signed_in("operator")
    made = one.send(f"/vms/{vm}/clone", count="3", names="paged-##")
    assert made.status_code == 303 and made.headers["Location"] == "/"
    names = [found["name"] for found in rest.get("/vms").json()["vms"]]
    assert {"paged-01", "paged-02", "paged-03"} <= set(names)
    alone = one.send(f"/vms/{vm}/clone", count="1", names="paged-alone", customize="yes", hostname="h-@number@")
    assert alone.headers["Location"] == "/vms/paged-alone"
    assert [disk["name"] for disk in rest.get("/vms/paged-alone").json()["disks"]] == ["root", "seed"]
    for count in ("0", "501", "many", ""):
        assert one.send(f"/vms/{vm}/clone", count=count, names="paged-x").status_code == 400


def test_a_restore_tells_what_it_changes_and_keeps_what_was_before(signed_in: As, vm: str, rest: httpx.Client, home: Home) -> None:
    rest.post(f"/vms/{vm}/snapshots", json={"name": "s1"})
    run_tool("qemu-io", "-f", "raw", "-c", "write -P 7 0 8k", home.uri(f"{vm}/root"))
    one = signed_in("operator")
    page = one.page(f"/vms/{vm}/restore?snapshot=s1")
    assert "<strong>8 KiB</strong>" in page
    fields = {"csrf": re.findall(r'name="csrf" value="([^"]+)"', page)[0], "snapshot": "s1", "how": "place"}
    done = one.client.post(f"/vms/{vm}/restore", data=fields)
    assert done.status_code == 303
    origins = [found["origin"] for found in rest.get(f"/vms/{vm}/snapshots").json()["snapshots"]]
    assert "restore" in origins
    assert "<strong>0 B</strong>" in one.page(f"/vms/{vm}/restore?snapshot=s1")
    beside = one.client.post(f"/vms/{vm}/restore", data={**fields, "how": "beside", "beside": "paged-beside"})
    assert beside.headers["Location"] == "/vms/paged-beside"


def test_disks_are_added_resized_and_removed_by_name(signed_in: As, vm: str, rest: httpx.Client) -> None:
    one = signed_in("admin")
    assert one.send(f"/vms/{vm}/add-disk", name="more", size="2M").status_code == 303
    here = f"/vms/{vm}/disks/more"
    assert one.send(f"{here}/change", f"{here}/change", size="1M").status_code == 400, "a smaller size has to be allowed"
    assert one.send(f"{here}/change", f"{here}/change", size="4M").status_code == 303
    assert one.send(f"{here}/change", f"{here}/remove", confirm="mroe").status_code == 400
    assert [disk["size_bytes"] for disk in rest.get(f"/vms/{vm}").json()["disks"]] == [1 << 20, 4 << 20]
    assert one.send(f"{here}/change", f"{here}/remove", confirm="more").status_code == 303


def test_deleting_needs_the_name_and_an_admin(signed_in: As, vm: str, rest: httpx.Client) -> None:
    one = signed_in("admin")
    assert one.send(f"/vms/{vm}/delete", confirm="something").status_code == 400
    assert rest.get(f"/vms/{vm}").status_code == 200
    operator = signed_in("operator")
    assert operator.client.post(f"/vms/{vm}/delete", data={"csrf": csrf_of(operator.page("/")), "confirm": vm}).status_code == 403
    assert one.send(f"/vms/{vm}/delete", confirm=vm).headers["Location"] == "/"
    assert rest.get(f"/vms/{vm}").status_code == 404


def test_how_to_attach_names_the_export_for_each_client(signed_in: As, vm: str, home: Home) -> None:
    page = signed_in("viewer").page(f"/vms/{vm}/attach")
    for words in (home.uri(f"{vm}/root"), "-blockdev", "&lt;disk", "nbd-client"):
        assert words in page


def test_a_rename_goes_to_the_page_of_the_new_name(signed_in: As, vm: str) -> None:
    one = signed_in("operator")
    assert one.send(f"/vms/{vm}/rename", name="paged-renamed").headers["Location"] == "/vms/paged-renamed"
    assert one.get(f"/vms/{vm}").status_code == 404


def test_what_was_done_is_said_by_the_page_it_leads_to_and_by_no_other_tab(signed_in: As, vm: str) -> None:
    one = signed_in("operator")
    done = one.send(f"/vms/{vm}/rename", name="paged-b")
    assert "changed paged-b" not in one.page("/")
    assert "changed paged-b" in one.page(done.headers["Location"])
    assert "changed paged-b" not in one.page("/vms/paged-b")


def test_events_and_jobs_come_as_they_happen(signed_in: As, vm: str, rest: httpx.Client) -> None:
    with signed_in("viewer").client.stream("GET", "/live") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines).startswith("retry:")
        rest.post(f"/vms/{vm}/snapshots", json={"name": "live"})
        found = next(line for line in lines if line.startswith("data:") and "live" in line)
        assert "snapshot.create" in found


@pytest.mark.parametrize("seen", ["²", "-1", "9" * 40, "none"])
def test_a_stream_that_goes_on_from_what_is_no_event_is_one_from_now_on(signed_in: As, seen: str) -> None:
    with signed_in("viewer").client.stream("GET", "/live", params={"after": seen}) as answer:
        assert next(answer.iter_lines()).startswith("retry:")


def test_a_stream_ends_with_its_session(signed_in: As) -> None:
    one = signed_in("viewer")
    csrf = re.findall(r'name="csrf" value="([^"]+)"', one.page("/"))[0]
    with one.client.stream("GET", "/live") as answer:
        lines = answer.iter_lines()
        next(lines)
        one.client.post("/sign-out", data={"csrf": csrf})
        for _line in lines:
            pass  # to its end, which comes


def test_stopping_does_not_wait_for_pages_that_are_open(fresh_console: tuple[Home, Browser]) -> None:
    home, one = fresh_console
    with one.client.stream("GET", "/live") as answer:
        next(answer.iter_lines())
        output = home.stop()
    assert "Traceback" not in output
