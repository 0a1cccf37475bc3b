"""What clients are told before they read or write: the export list, sizes, flags, limits and descriptions."""

from __future__ import annotations

import json
import os

import pytest

import nbd
from blockdev import Pool
from tests.nbd.conftest import DISK, DISK_BYTES, MEBIBYTE, Server

CREATED = "2026-11-22T15:03:01Z"


@pytest.fixture
def listed(idle_server: Server) -> Server:
    """demo/root with a snapshot, demo/data, and an import under way that users were not told of."""
    idle_server.create(root=DISK_BYTES, data=3 * MEBIBYTE + 512)
    with_snapshot = Pool.open(str(idle_server.home.pool))
    tag = json.dumps({"v": 1, "vm": "u", "created": CREATED}).encode()
    with_snapshot.snapshot([with_snapshot.find(DISK)], [f"{DISK}@monday"], [tag])
    hidden = json.dumps({"v": 1, "vm": "u", "created": CREATED, "temporary": True}).encode()
    with_snapshot.create_vdisk(MEBIBYTE, "demo/new~1", hidden)
    with_snapshot.close()
    idle_server.start()
    return idle_server


def exports(server: Server, run) -> dict[str, dict]:
    listing = json.loads(run("nbdinfo", "--list", "--json", server.uri("")))
    return {export["export-name"]: export for export in listing["exports"]}


def test_list_names_every_disk_and_snapshot_with_its_size_and_description(listed: Server, run) -> None:
    found = exports(listed, run)
    assert list(found) == ["demo/data", DISK, f"{DISK}@monday"]
    assert {name: export["export-size"] for name, export in found.items()} == {
        "demo/data": 3 * MEBIBYTE + 512,
        DISK: DISK_BYTES,
        f"{DISK}@monday": DISK_BYTES,
    }
    assert found["demo/data"]["description"] == "disk data of VM demo, 3M"
    assert found[DISK]["description"] == "disk root of VM demo, 64M"
    assert (
        found[f"{DISK}@monday"]["description"]
        == f"disk root of VM demo, 64M, read-only, snapshot monday of {CREATED}"
    )


def test_a_disk_offers_every_command_and_the_block_sizes(listed: Server, run) -> None:
    disk = exports(listed, run)[DISK]
    offered = {name: disk[name] for name in disk if name.startswith(("can_", "is_"))}
    assert offered == {
        "is_rotational": False,
        "is_read_only": False,
        **dict.fromkeys(("can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua"), True),
        **dict.fromkeys(("can_multi_conn", "can_trim", "can_zero"), True),
    }
    sizes = (disk["block_size_minimum"], disk["block_size_preferred"], disk["block_size_maximum"])
    assert sizes == (512, 4096, 32 * MEBIBYTE)
    assert disk["contexts"] == ["base:allocation"]


def test_a_snapshot_is_read_only(listed: Server, run) -> None:
    snapshot = exports(listed, run)[f"{DISK}@monday"]
    assert snapshot["is_read_only"]
    assert not any(snapshot[name] for name in ("can_trim", "can_zero", "can_fua", "can_fast_zero"))
    assert snapshot["can_multi_conn"] and snapshot["can_cache"]


def test_what_users_were_not_told_of_still_opens_by_name(listed: Server, run) -> None:
    assert run("nbdinfo", "--size", listed.uri("demo/new~1")).strip() == str(MEBIBYTE)


def test_the_plain_listing_is_readable(listed: Server, run) -> None:
    text = run("nbdinfo", "--list", listed.uri(""))
    assert 'export="demo/root@monday"' in text and "block_size_minimum: 512" in text


def test_the_empty_name_is_refused_when_it_could_mean_several(listed: Server, run) -> None:
    assert "No such file or directory" in run("nbdinfo", listed.uri(""), status=1)
    assert "name one as VM/DISK" in listed.log()


def test_the_empty_name_means_the_only_export(server: Server, run) -> None:
    assert run("nbdinfo", "--size", server.uri("")).strip() == str(DISK_BYTES)


def test_an_unknown_export_is_refused_and_the_log_says_which(server: Server, run) -> None:
    assert "No such file or directory" in run("nbdinfo", server.uri("demo/nope"), status=1)
    assert "demo/nope" in server.log()


@pytest.mark.parametrize("name", ["x" * 4000, "demo/\udcff", "demo/root\n", "../demo/root"])
def test_an_unusable_export_name_is_refused_and_the_engine_lives(server: Server, name: str) -> None:
    handle = nbd.NBD()
    handle.set_export_name(os.fsencode(name).decode("latin-1") if "\udcff" in name else name)
    with pytest.raises(nbd.Error):
        handle.connect_unix(str(server.home.nbd_socket))
    assert server.connect().get_size() == DISK_BYTES


def test_a_disk_that_was_created_while_serving_is_listed_and_opens(server: Server, run) -> None:
    control = server.control()
    control.lead()
    control.create([(MEBIBYTE, "other/disk", b"")])
    assert sorted(exports(server, run)) == [DISK, "other/disk"]
    assert server.connect("other/disk").get_size() == MEBIBYTE
    control.close()
