"""Lists come in pages, which neither repeat nor hide anything while things are made and deleted, and can be filtered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from blockdev.cli.client import Client
from blockdev.home import Home as Paths
from tests.cli.served import Home, until

DISK = [{"name": "root", "size_bytes": 512}]
NAMES = [f"page-{letter}{number}" for letter in "ab" for number in range(5)]


@pytest.fixture(scope="module", autouse=True)
def vms(rest: httpx.Client) -> Iterator[None]:
    for name in reversed(NAMES):
        assert rest.post("/vms", json={"name": name, "disks": DISK}).status_code == 201
    yield
    for vm in rest.get("/vms", params={"name": "page-*"}).json()["vms"]:
        assert rest.delete(f"/vms/{vm['name']}").status_code == 200


def pages(rest: httpx.Client, path: str, things: str, **query: Any) -> Iterator[list[str]]:
    """The names on each page."""
    after = None
    while True:
        answer = rest.get(path, params={**query, **({"after": after} if after else {})})
        assert answer.status_code == 200, answer.text
        yield [one["name"] for one in answer.json()[things]]
        after = answer.json()["next"]
        if after is None:
            return


def counted(rest: httpx.Client, vm: str) -> Any:
    found = rest.get(f"/vms/{vm}/snapshots").json()
    return all(one["changed_bytes"] is not None for one in found["snapshots"]) and found


@pytest.mark.parametrize(("count", "sizes"), [(1, [1] * 10), (3, [3, 3, 3, 1]), (5, [5, 5]), (10, [10]), (1000, [10])])
def test_pages_of_vms_are_all_of_them_by_name(rest: httpx.Client, count: int, sizes: list[int]) -> None:
    found = list(pages(rest, "/vms", "vms", name="page-*", count=count))
    assert [len(page) for page in found] == sizes
    assert [name for page in found for name in page] == NAMES


def test_a_page_is_the_same_as_one_vm_each(rest: httpx.Client) -> None:
    rest.post("/vms/page-a0/snapshots", json={"name": "s"})
    [listed] = rest.get("/vms", params={"name": "page-a0"}).json()["vms"]
    alone = rest.get("/vms/page-a0").json()
    assert listed["snapshot_count"] == 1 and alone["disks"][0]["clients"] == []
    assert listed == {**alone, "disks": [{**disk, "clients": None} for disk in alone["disks"]]}
    rest.delete("/vms/page-a0/snapshots/s")


def test_what_is_made_and_deleted_meanwhile_neither_hides_nor_repeats_the_others(rest: httpx.Client) -> None:
    walk = pages(rest, "/vms", "vms", name="page-*", count=4)
    first = next(walk)
    rest.delete(f"/vms/{first[-1]}")  # the cursor's own
    rest.post("/vms", json={"name": "page-a00", "disks": DISK})  # before it
    rest.post("/vms", json={"name": "page-b55", "disks": DISK})  # behind it
    rest.delete(f"/vms/{NAMES[-1]}")
    rest_of_it = [name for page in walk for name in page]
    assert first + rest_of_it == [*NAMES[:-1], "page-b55"]
    rest.delete("/vms/page-a00")
    rest.delete("/vms/page-b55")
    for name in (first[-1], NAMES[-1]):
        rest.post("/vms", json={"name": name, "disks": DISK})


@pytest.mark.parametrize(
    ("glob", "found"),
    [("page-a*", NAMES[:5]), ("page-?0", ["page-a0", "page-b0"]), ("page-[ab][1-2]", ["page-a1", "page-a2", "page-b1", "page-b2"]), ("PAGE-*", []), ("page-a", []), ("page-[", [])],
)
def test_vms_are_found_by_a_glob_of_their_name(rest: httpx.Client, home: Home, glob: str, found: list[str]) -> None:
    assert [name for page in pages(rest, "/vms", "vms", name=glob) for name in page] == found
    assert [vm["name"] for vm in home.json("vm", "list", "--name", glob)["vms"]] == found


def test_clones_are_found_by_what_they_came_from(rest: httpx.Client, home: Home) -> None:
    for snapshot, prefix in (("one", "page-d"), ("two", "page-e")):
        rest.post("/vms/page-a1/snapshots", json={"name": snapshot})
        assert rest.post("/vms/page-a1/clones", json={"snapshot": snapshot, "count": 3, "prefix": prefix}).status_code == 201
    rest.post("/vms/page-a11/clones", json={"name": "page-f"})
    whole = [f"page-{letter}-{number}" for letter in "de" for number in (1, 2, 3)]
    assert list(pages(rest, "/vms", "vms", cloned_from="page-a1", count=4)) == [whole[:4], whole[4:]]
    assert list(pages(rest, "/vms", "vms", cloned_from="page-a1@two", name="*-[12]")) == [["page-e-1", "page-e-2"]]
    assert [vm["name"] for vm in home.json("vm", "list", "--cloned-from", "page-a1")["vms"]] == whole
    assert list(pages(rest, "/vms", "vms", cloned_from="page-a")) == [[]]
    assert home("vm", "list", "--cloned-from", "page-a", "--name", "x*") == "no VM is a clone of page-a and has a name that matches x*\n"


def test_a_glob_of_many_stars_does_not_keep_the_server_busy(rest: httpx.Client) -> None:
    rest.post("/vms", json={"name": "page-" + "a" * 58, "disks": DISK})
    assert rest.get("/vms", params={"name": "*a" * 62 + "-b"}, timeout=10).json()["vms"] == []


def test_pages_of_snapshots_are_all_of_them_from_the_oldest_on(rest: httpx.Client, home: Home) -> None:
    names = ["z", "a", "m", "b", "y"]
    for name in names:
        assert rest.post("/vms/page-b0/snapshots", json={"name": name}).status_code == 201
    rest.post("/vms/page-b0/clones", json={"name": "page-c0"})
    whole = until(lambda: counted(rest, "page-b0"), "what changed to be counted")  # else it is, between two of the looks below
    assert whole["next"] is None and [one["name"] for one in whole["snapshots"]][:5] == names
    for count in (1, 2, 3, 6):
        found = list(pages(rest, "/vms/page-b0/snapshots", "snapshots", count=count))
        assert [name for page in found for name in page] == [one["name"] for one in whole["snapshots"]]
        assert all(len(page) == count for page in found[:-1])
    walk = pages(rest, "/vms/page-b0/snapshots", "snapshots", origin="manual", count=2)
    assert next(walk) == ["z", "a"]
    rest.delete("/vms/page-b0/snapshots/a")
    assert list(walk) == [["m", "b"], ["y"]]
    [taken_for_the_clone] = rest.get("/vms/page-b0/snapshots", params={"origin": "clone"}).json()["snapshots"]
    assert taken_for_the_clone == whole["snapshots"][-1]
    assert home.json("snapshot", "list", "page-b0", "--origin", "clone") == {"snapshots": [taken_for_the_clone]}
    rest.put("/vms/page-b0/schedules", json={"schedules": [{"name": "daily", "at": "daily 02:30", "keep_seconds": 3600}]})
    due = rest.post("/vms/page-b0/schedules/daily/run").json()
    assert home.json("snapshot", "list", "page-b0", "--schedule", "daily")["snapshots"] == [{**due, "config": None, "disks": [{**disk, "clients": None} for disk in due["disks"]]}]
    assert rest.get("/vms/page-b0/snapshots", params={"schedule": "hourly"}).json() == {"snapshots": [], "next": None}


def test_the_command_line_reads_all_pages(rest: httpx.Client, home: Home) -> None:
    client = Client(Paths.at(home.path))
    assert [vm["name"] for vm in client.get_all("/vms", "vms", count=3)["vms"]] == [vm["name"] for vm in rest.get("/vms").json()["vms"]]


@pytest.mark.parametrize(
    "query", ["count=0", "count=1001", "count=x", "after=a/b", "after=%00", "name=", "name=a/b", "name=%27%3B--", "after=" + "x" * 64]
)
def test_what_cannot_be_a_page_is_refused(rest: httpx.Client, query: str) -> None:
    assert rest.get(f"/vms?{query}").status_code == 422
    assert rest.get("/vms/page-a0/snapshots?after=nothing").status_code == 422
    assert rest.get("/vms/page-a0/snapshots?origin=nothing").status_code == 422
    assert rest.get("/vms/none/snapshots?count=1").status_code == 404
