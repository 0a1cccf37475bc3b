"""Stream files and pages of diffs over REST: who may name files, and what a page says."""

from __future__ import annotations

import httpx

from blockdev.transfer.nbd import Export
from tests.cli.served import Home


def test_files_are_named_by_clients_of_the_unix_socket_only(tcp: httpx.Client) -> None:
    for path in ("/vms/web/snapshots/s1/export", "/streams/import", "/streams/inspect"):
        answer = tcp.post(path, json={"path": "/tmp/file"})
        assert answer.status_code == 403 and "Unix socket" in answer.json()["error"]["message"]


def test_bodies_of_the_wrong_shape_are_refused(rest: httpx.Client) -> None:
    for path, body in (
        ("/streams/import", {}),
        ("/streams/import", {"path": "/x", "keep_seconds": 1}),
        ("/streams/import", {"path": "a\0b"}),
        ("/streams/inspect", {"path": "/x", "more": 1}),
        ("/vms/web/snapshots/s1/export", {"path": "/x", "level": 20}),
    ):
        assert rest.post(path, json=body).status_code == 422
    assert rest.post("/streams/inspect", json={"path": "/dev/zero"}).status_code == 400
    assert rest.post("/streams/inspect", json={"path": "/" + "x" * 300}).status_code == 400


def test_a_diff_is_taken_page_by_page(home: Home, rest: httpx.Client) -> None:
    rest.post("/vms", json={"name": "pages", "disks": [{"name": name, "size_bytes": 1 << 20} for name in ("a", "b")]})
    for name in ("a", "b"):
        with Export(home.path / "run/nbd.sock", f"pages/{name}") as disk:
            for block in range(0, 10, 2):
                disk.write(block * 4096, bytes([block + 1]) * 4096)
    rest.post("/vms/pages/snapshots", json={"name": "s"})
    path, found, after = "/vms/pages/snapshots/s/diff", [], None
    first = rest.get(path, params={"count": 0}).json()
    assert first["changed_bytes"] == 10 * 4096 and [disk["extent_count"] for disk in first["disks"]] == [5, 5]
    while True:
        page = rest.get(path, params={"count": 3, **({"after": after} if after else {})}).json()
        found += [(disk["disk"], extent["offset"]) for disk in page["disks"] for extent in disk["extents"]]
        assert (page["changed_bytes"] is None) == (after is not None)
        after = page["next"]
        if after is None:
            break
    assert found == [(name, block * 4096) for name in ("a", "b") for block in range(0, 10, 2)]
    assert rest.get(path).json()["next"] is None
    assert rest.get(path, params={"after": "a:1"}).status_code == 400
    assert rest.get(path, params={"count": 1 << 17}).status_code == 422
