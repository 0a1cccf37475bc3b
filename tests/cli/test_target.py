"""blockdevctl target where the kernel has no LIO: what is refused, what is kept, and that no secret gets anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blockdev.targets.chap import ChapFiles, Credential, Credentials

from blockdev.vmmap.catalog import Catalog
from tests.cli.served import Home

INITIATOR = "iqn.1993-08.org.debian:01:a1b2c3"
SECRET = "topsecret12345"


@pytest.fixture
def offered(fresh: Home) -> Iterator[Home]:
    """A home whose catalog wants a target for the VM web, as if it had come from a machine with LIO."""
    fresh.serve()
    fresh("vm", "create", "web", "--disk", "root=1M", "--disk", "data=1M")
    fresh.stop()
    catalog = Catalog(fresh.path / "catalog.db")
    with catalog.transaction():
        row = catalog.vm("web")
        assert row is not None
        target_id = catalog.insert_target(row.id, f"iqn.2026-11.io.blockdev:{catalog.pool_uuid()[:8]}:web.{row.uuid[:8]}", False, 64, row.created)
        catalog.set_target_portals(target_id, [("127.0.0.1", 3260)])
        catalog.set_target_secrets(target_id, "me", None, ChapFiles(fresh.path / "keys/targets").write(Credentials(Credential("me", SECRET))))
    catalog.close()
    fresh.serve()
    yield fresh


def secret_file(home: Home, mode: int = 0o600) -> Path:
    path = home.above / "secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(mode)
    return path


def test_a_target_is_refused_with_what_is_missing_and_what_there_is_meanwhile(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    refused = home.run("target", "add", name, "--initiator", INITIATOR)
    assert refused.status == 11
    assert "LIO" in refused.error and "blockdevctl attach VM/DISK" in refused.error
    assert home.run("target", "show", name).status == 3
    assert home.run("attach", name, "--as", "iscsi").status == 3
    assert home.json("target", "list") == {"targets": []}
    assert "no targets" in home("target", "list")


def test_what_cannot_be_wanted_is_refused_before_the_kernel_is_asked(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    secret = secret_file(home)
    chap = ("--chap-user", "me", "--chap-secret-file", secret)
    for arguments, words in (
        (("--portal", "192.0.2.7", "--initiator", INITIATOR), "--insecure"),
        (("--portal", "0.0.0.0:3260", *chap), "--insecure"),
        (("--portal", "192.0.2.7", *chap, "--initiator", INITIATOR, "--demo"), "--insecure"),
        (("--initiator", "me"), "not an initiator's name"),
        (("--portal", "nowhere"), "ADDR:PORT"),
        (("--chap-user", "me"), "belong together"),
        (("--mutual-user", "me", "--mutual-secret-file", secret), "mutual CHAP is CHAP both ways"),
        ((*chap, "--mutual-user", "it", "--mutual-secret-file", secret), "another one"),
    ):
        refused = home.run("target", "add", name, *arguments)
        assert refused.status == 2 and words in refused.error, arguments
    assert "can be read by others" in home.run("target", "add", name, "--chap-user", "me", "--chap-secret-file", secret_file(home, 0o644)).error


def test_a_target_that_the_kernel_cannot_offer_is_kept_shown_changed_and_removed(offered: Home) -> None:
    shown = offered.json("target", "show", "web")
    assert shown["state"] == "unavailable" and "LIO" in shown["reasons"][0] and shown["chap_user"] == "me"
    assert [(lun["number"], lun["export"]) for lun in shown["luns"]] == [(0, "web/root"), (1, "web/data")]
    offered("disk", "remove", "web/data", "--yes")
    offered("disk", "add", "web/more", "1M")
    offered("snapshot", "create", "web", "--name", "s1")
    changed = offered.json(
        *("target", "change", "web", "--initiator", INITIATOR, "--portal", "192.0.2.7,::1", "--depth", "32", "--snapshot", "s1"),
    )
    assert (changed["initiators"], changed["depth"]) == ([INITIATOR], 32)
    assert changed["portals"] == ["127.0.0.1:3260", "192.0.2.7:3260", "[::1]:3260"]
    luns = [(lun["number"], lun["export"]) for lun in changed["luns"]]
    assert luns == [(0, "web/root"), (2, "web/more"), (3, "web/root@s1"), (4, "web/more@s1")]
    assert changed["luns"][0]["serial"] == shown["luns"][0]["serial"]
    assert offered.run("target", "change", "web", "--no-chap").status == 2, "off loopback"
    assert offered.run("target", "change", "web", "--remove-initiator", "iqn.1993-08.org.debian:01:x").status == 2
    offered("target", "change", "web", "--remove-portal", "192.0.2.7", "--remove-portal", "[::1]", "--no-chap", "--remove-snapshot", "s1")
    told = offered("target", "show", "web")
    assert "CHAP:        none" in told and "web/root@s1" not in told
    assert "iscsiadm -m node" in offered("attach", "web/root", "--as", "iscsi")
    offered("vm", "rename", "web", "shop")
    assert [one["vm"] for one in offered.json("target", "list")["targets"]] == ["shop"]
    assert offered.json("target", "remove", "shop")["iqn"] == shown["iqn"]
    assert offered.json("target", "list") == {"targets": []}


def test_no_lun_has_a_number_that_few_initiators_know(offered: Home) -> None:
    for name in ("s1", "s2"):
        offered("snapshot", "create", "web", "--name", name)
    offered.stop()
    catalog = Catalog(offered.path / "catalog.db")
    with catalog.transaction():
        catalog._do("UPDATE target SET next_lun = 16382")
    catalog.close()
    offered.serve()
    shown = offered.json("target", "change", "web", "--snapshot", "s1")
    assert [lun["number"] for lun in shown["luns"]] == [0, 1, 16382, 16383]
    refused = offered.run("target", "change", "web", "--snapshot", "s2")
    assert refused.status == 2 and "remove it and add it again" in refused.error
    assert offered.json("target", "show", "web")["luns"] == shown["luns"]


def test_a_secret_is_in_its_file_and_nowhere_else(offered: Home) -> None:
    new = "anothersecret99"
    told = [offered.run("target", "change", "web", "--chap-user", "you", "--chap-secret-file", "-", stdin=f"{new}\n").stdout]
    told += [offered("target", "show", "web", "--json"), offered("target", "list"), offered("job", "list", "--json"), offered("events", "--json")]
    told += [offered.run("target", "change", "web", "--chap-user", "a b", "--chap-secret-file", "-", stdin=f"{new}\n").stderr]
    told.append(offered.stop())
    assert "you" in told[1] and not any(one in text for text in told for one in (SECRET, new))
    files = [path for path in offered.path.rglob("*") if path.is_file() and new.encode() in path.read_bytes()]
    assert [path.parent for path in files] == [offered.path / "keys/targets"] and files[0].stat().st_mode & 0o077 == 0
    assert not [path for path in offered.path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()], "the old one is gone"


def test_a_target_goes_with_its_vm(offered: Home) -> None:
    offered("vm", "delete", "web", "--yes")
    assert offered.json("target", "list") == {"targets": []}
