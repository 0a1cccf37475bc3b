"""The operations on VMs, on a real pool through a real engine socket."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.errors import (
    AlreadyExists,
    Busy,
    InvalidArgument,
    NotFound,
    PoolFull,
    Unavailable,
)
from blockdev.types import Extent
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.clones import CLONES_MAX, clone_names
from blockdev.vmmap.model import Diff, DiskDiff
from blockdev.vmmap.names import CONFIG_BYTES_MAX
from blockdev.vmmap.service import VMs
from tests.vmmap.world import (
    MEBIBYTE,
    Clock,
    check_agreed,
    observe,
    without_automatic_snapshots,
    write,
)

Attach = Callable[..., None]


def first_byte(pool: Pool, export: str) -> bytes:
    return pool.find(export).read(0, 512)[:1]


@pytest.fixture
def web(vms: VMs, pool: Pool) -> VMs:
    """A VM `web` with `root` of A and `data` of a, and a snapshot s1 of it; since then of B and b."""
    vms.create_vm("web", [("root", MEBIBYTE), ("data", 2 * MEBIBYTE)], "<web/>", "the web server")
    write(pool, "web/root", b"A")
    write(pool, "web/data", b"a")
    vms.create_snapshot("web", "s1")
    write(pool, "web/root", b"B")
    write(pool, "web/data", b"b")
    return vms


# VMs


def test_a_new_vm_is_shown_and_served(vms: VMs, pool: Pool) -> None:
    made = vms.create_vm("web", [("root", MEBIBYTE), ("data", 512)], config="<x/>", description="d")
    assert vms.show_vm("web") == made
    assert (made.size_bytes, made.snapshot_count, made.cloned_from) == (MEBIBYTE + 512, 0, None)
    assert [disk.export for disk in made.disks] == ["web/root", "web/data"]
    assert pool.find("web/data").size_bytes == 512
    assert vms.get_config("web") == "<x/>"


def test_values_have_stable_field_names(web: VMs) -> None:
    vm = web.show_vm("web").to_json()
    assert vm["created"] == "2026-11-22T12:00:02.000Z"
    assert list(vm) == [
        *("name", "uuid", "description", "created", "size_bytes", "snapshot_count", "cloned_from"),
        *("policy", "agent", "domain", "protected_over", "received", "disks"),
    ]
    assert vm["policy"] == {"compression": None, "dedup": None}
    assert list(vm["disks"][0]) == [
        "name",
        "size_bytes",
        "export",
        "object_id",
        "created",
        "state",
        "clients",
    ]
    snapshot = web.show_snapshot("web", "s1").to_json()
    assert list(snapshot) == [
        *(
            "vm",
            "name",
            "description",
            "created",
            "lsn",
            "consistency",
            "origin",
            "size_bytes",
            "disks",
            "config",
            *("asked", "frozen_ms", "expires", "locked_until", "schedule", "uuid", "changed_bytes", "newest_on"),
        )
    ]
    assert list(snapshot["disks"][0]) == ["name", "size_bytes", "export", "object_id", "state", "clients"]
    diff = web.diff("web", None, "s1").to_json()
    assert list(diff) == ["vm", "older", "newer", "changed_bytes", "disks", "next"]
    assert list(diff["disks"][0]) == ["disk", "changed_bytes", "extent_count", "extents"]
    assert diff["disks"][0]["extents"] == [{"offset": 0, "length": 4096, "state": "data"}]


@pytest.mark.parametrize(
    ("name", "disks", "error", "words"),
    [
        ("a/b", [], InvalidArgument, "VM name 'a/b'"),
        ("new", [("a@b", 512)], InvalidArgument, "disk name 'a@b'"),
        ("new", [("root", 1000)], InvalidArgument, "nearest good size is 1024"),
        ("new", [("root", 512), ("root", 512)], AlreadyExists, "named twice"),
        ("web", [], AlreadyExists, "there is a VM web already"),
    ],
)
def test_a_vm_that_cannot_be_made_changes_nothing(
    web: VMs, pool: Pool, name: str, disks: list[tuple[str, int]], error: type[Exception], words: str
) -> None:
    before = observe(web, pool)
    with pytest.raises(error, match=words):
        web.create_vm(name, disks)
    assert observe(web, pool) == before


def test_texts_that_are_too_long_are_refused(vms: VMs) -> None:
    with pytest.raises(InvalidArgument, match="configuration"):
        vms.create_vm("web", [], config="x" * (CONFIG_BYTES_MAX + 1))
    with pytest.raises(InvalidArgument, match="description"):
        vms.create_vm("web", [], description="x" * 5000)
    assert vms.list_vms() == []


def test_a_pool_that_refuses_leaves_no_vm(
    vms: VMs, catalog: Catalog, client: EngineClient, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(specs: Any) -> Any:
        raise PoolFull("no room")

    vms.reconcile()
    monkeypatch.setattr(pool, "create_vdisks", refuse)
    with pytest.raises(PoolFull):
        vms.create_vm("web", [("root", 512)])
    monkeypatch.undo()
    assert vms.list_vms() == []
    assert vms.status().agreed
    check_agreed(vms, catalog, client)


@pytest.mark.parametrize(
    "call",
    [
        lambda vms: vms.show_vm("no"),
        lambda vms: vms.rename_vm("no", "new"),
        lambda vms: vms.delete_vm("no"),
        lambda vms: vms.get_config("no"),
        lambda vms: vms.set_config("no", ""),
        lambda vms: vms.add_disk("no", "root", 512),
        lambda vms: vms.remove_disk("web", "no"),
        lambda vms: vms.resize_disk("web", "no", 512),
        lambda vms: vms.create_snapshot("no"),
        lambda vms: vms.list_snapshots("no"),
        lambda vms: vms.show_snapshot("web", "no"),
        lambda vms: vms.delete_snapshot("web", "no"),
        lambda vms: vms.diff("web", None, "no"),
        lambda vms: vms.diff("web", "no", "s1"),
        lambda vms: vms.diff("web", None, "s1", disk="no"),
        lambda vms: vms.clone("web", "no", "new"),
        lambda vms: vms.restore("web", "no"),
        lambda vms: vms.restore("web", "s1", disk="no"),
        lambda vms: vms.begin_import("web", "no", 512, create=False),
        lambda vms: vms.finish_import(77),
        lambda vms: vms.show_vm("a/../b"),
        lambda vms: vms.show_vm("a\udc80"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_changes(
    web: VMs, pool: Pool, call: Callable[[VMs], Any]
) -> None:
    before = observe(web, pool)
    with pytest.raises(NotFound):
        call(web)
    assert observe(web, pool) == before


def test_renaming_renames_every_export_at_once(web: VMs, client: EngineClient) -> None:
    lsn = client.status()["stats"]["next_lsn"]
    renamed = web.rename_vm("web", "www")
    assert client.status()["stats"]["next_lsn"] == lsn + 1, "a rename is one record"
    assert renamed.name == "www"
    assert sorted(thing.name or "" for thing in client.objects()) == [
        *("www/data", "www/data@s1", "www/root", "www/root@s1")
    ]
    with pytest.raises(NotFound):
        web.show_vm("web")
    assert web.show_snapshot("www", "s1").disks[0].export == "www/root@s1"


def test_renaming_to_a_taken_name_is_refused(web: VMs) -> None:
    web.create_vm("db", [])
    for name in ("db", "web"):
        with pytest.raises(AlreadyExists):
            web.rename_vm("web", name)


def test_deleting_a_vm_deletes_its_disks_and_snapshots_but_no_clone(web: VMs, client: EngineClient) -> None:
    web.clone("web", "s1", "copy")
    was = web.delete_vm("web")
    assert (was.name, was.snapshot_count) == ("web", 1)
    assert [vm.name for vm in web.list_vms()] == ["copy"]
    assert sorted(thing.name or "" for thing in client.objects()) == ["copy/data", "copy/root"]


def test_attached_clients_are_named_and_kept_unless_forced(web: VMs, attach: Attach) -> None:
    attach("web/data", "pid 7 (qemu)")
    attach("web/root@s1", "192.0.2.7:40312")
    assert [disk.clients for disk in web.show_vm("web").disks] == [[], ["pid 7 (qemu)"]]
    assert web.show_snapshot("web", "s1").disks[0].clients == ["192.0.2.7:40312"]
    for refused in (
        lambda: web.rename_vm("web", "www"),
        lambda: web.delete_vm("web"),
        lambda: web.remove_disk("web", "data"),
        lambda: web.restore("web", "s1"),
        lambda: web.begin_import("web", "data", 512, create=False),
        lambda: web.resize_disk("web", "data", 512, force_shrink=True),
    ):
        with pytest.raises(Busy, match=r"web/data.*pid 7 \(qemu\)"):
            refused()
    with pytest.raises(Busy, match=r"192\.0\.2\.7"):
        web.delete_snapshot("web", "s1")
    assert [disk.name for disk in web.show_vm("web").disks] == ["root", "data"]
    web.resize_disk("web", "data", 3 * MEBIBYTE)
    assert web.rename_vm("web", "www", force=True).disks[1].clients == ["pid 7 (qemu)"]
    web.delete_vm("www", force=True)


# disks


def test_disks_come_and_go_and_change_size(web: VMs, pool: Pool) -> None:
    added = web.add_disk("web", "more", 4096)
    assert (added.size_bytes, added.export, added.state) == (4096, "web/more", "ok")
    with pytest.raises(AlreadyExists):
        web.add_disk("web", "more", 4096)
    assert web.resize_disk("web", "more", 8192).size_bytes == 8192
    assert pool.find("web/more").size_bytes == 8192
    with pytest.raises(InvalidArgument, match="loses what is beyond"):
        web.resize_disk("web", "more", 512)
    assert web.resize_disk("web", "more", 512, force_shrink=True).size_bytes == 512
    web.remove_disk("web", "more")
    assert [disk.name for disk in web.show_vm("web").disks] == ["root", "data"]


def test_a_removed_disk_stays_in_snapshots(web: VMs, pool: Pool) -> None:
    web.remove_disk("web", "data")
    assert first_byte(pool, "web/data@s1") == b"a"
    assert [disk.name for disk in web.show_snapshot("web", "s1").disks] == ["root", "data"]
    web.add_disk("web", "data", 512)
    assert first_byte(pool, "web/data@s1") == b"a"


# snapshots


def test_a_snapshot_is_of_all_disks_at_one_lsn_with_the_configuration(web: VMs, pool: Pool) -> None:
    web.set_config("web", "<changed/>")
    snapshot = web.show_snapshot("web", "s1")
    assert snapshot.config == "<web/>"
    assert (snapshot.consistency, snapshot.origin) == ("crash", "manual")
    assert {pool.find(disk.export).lsn for disk in snapshot.disks} == {snapshot.lsn}
    assert first_byte(pool, "web/root@s1") == b"A"


def test_a_snapshot_without_a_name_is_called_by_the_time(web: VMs, clock: Clock) -> None:
    name = web.create_snapshot("web").name
    assert re.fullmatch(r"20261122-1200\d\d", name)
    clock.moment -= 6  # the clock jumped back
    names = {web.create_snapshot("web").name for _ in range(8)}
    assert len(names) == 8
    assert f"{name}-2" in names


def test_snapshots_are_listed_oldest_first_whatever_the_clock_says(web: VMs, clock: Clock) -> None:
    clock.moment -= 1000
    web.create_snapshot("web", "a-later-one")
    assert [snapshot.name for snapshot in web.list_snapshots("web")] == ["s1", "a-later-one"]
    assert web.list_snapshots("web")[0].config is None


@pytest.mark.parametrize("name", ["s1", "a/b", "", "x" * 64])
def test_a_snapshot_name_that_is_taken_or_bad_is_refused(web: VMs, name: str) -> None:
    with pytest.raises((AlreadyExists, InvalidArgument)):
        web.create_snapshot("web", name)
    assert len(web.list_snapshots("web")) == 1


def test_a_vm_without_disks_has_no_snapshots(vms: VMs) -> None:
    vms.create_vm("empty", [])
    with pytest.raises(InvalidArgument, match="has no disks"):
        vms.create_snapshot("empty")


def test_a_diff_says_what_changed_on_each_disk(web: VMs, pool: Pool) -> None:
    pool.find("web/data").write(MEBIBYTE, b"x" * 8192)
    web.create_snapshot("web", "s2")
    data = [Extent(0, 4096, "data"), Extent(MEBIBYTE, 8192, "data")]
    assert web.diff("web", "s1", "s2") == Diff(
        *("web", "s1", "s2", 16384),
        [DiskDiff("root", 4096, 1, [Extent(0, 4096, "data")]), DiskDiff("data", 12288, 2, data)],
        None,
    )
    assert web.diff("web", "s1", "s2", disk="data").disks == [DiskDiff("data", 12288, 2, data)]
    assert web.diff("web", "s1", "s1").changed_bytes == 0
    assert web.diff("web", None, "s2", disk="data").disks[0].extents == data


def test_a_diff_comes_in_pages(web: VMs, pool: Pool) -> None:
    for block in range(3, 62, 2):
        pool.find("web/data").write(block * 4096, bytes([block]) * 4096)
    web.create_snapshot("web", "s2")
    whole = web.diff("web", "s1", "s2")
    for count in (1, 7, 30, 31, 32):
        pages, after = [], None
        while not pages or after is not None:
            pages.append(web.diff("web", "s1", "s2", count=count, after=after))
            assert sum(len(disk.extents) for disk in pages[-1].disks) <= count
            after = pages[-1].next
        for name in ("root", "data"):
            extents = [extent for page in pages for disk in page.disks if disk.disk == name for extent in disk.extents]
            assert extents == next(disk.extents for disk in whole.disks if disk.disk == name)
        assert [(disk.changed_bytes, disk.extent_count) for disk in pages[0].disks] == [(4096, 1), (31 * 4096, 31)]
        assert all(page.changed_bytes is None for page in pages[1:])
    alone = web.diff("web", "s1", "s2", count=0)
    assert alone.changed_bytes == whole.changed_bytes and not any(disk.extents for disk in alone.disks)
    for after in ("", "root", "root:", "root:x", "root:512", "no:0", "root:-4096", "root:" + "9" * 30, "root:٤٠٩٦"):
        with pytest.raises(InvalidArgument, match="no place in this diff"):
            web.diff("web", "s1", "s2", after=after)


def test_a_diff_of_a_disk_that_is_new_is_all_of_it(web: VMs, pool: Pool) -> None:
    web.add_disk("web", "more", MEBIBYTE)
    write(pool, "web/more", b"m")
    web.create_snapshot("web", "s2")
    assert web.diff("web", "s1", "s2", disk="more").changed_bytes == 4096


# clones and restores


def test_a_clone_has_the_snapshots_data_and_configuration(web: VMs, pool: Pool) -> None:
    web.set_config("web", "<changed/>")
    clone = web.clone("web", "s1", "copy")
    assert clone.cloned_from == "web@s1"
    assert clone.uuid != web.show_vm("web").uuid
    assert (first_byte(pool, "copy/root"), first_byte(pool, "copy/data")) == (b"A", b"a")
    assert web.get_config("copy") == "<web/>"
    write(pool, "copy/root", b"C")
    assert (first_byte(pool, "web/root"), first_byte(pool, "web/root@s1")) == (b"B", b"A")


def test_a_clone_of_what_runs_takes_a_snapshot_first(web: VMs, pool: Pool) -> None:
    clone = web.clone("web", None, "copy")
    taken = web.list_snapshots("web")[-1]
    assert taken.origin == "clone"
    assert clone.cloned_from == f"web@{taken.name}"
    assert first_byte(pool, "copy/root") == b"B"


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("a", ["a-1", "a-2"]),
        ("a-#", ["a-1", "a-2"]),
        ("a-###.b", ["a-001.b", "a-002.b"]),
        ("##", ["01", "02"]),
    ],
)
def test_clones_are_called_by_a_pattern(prefix: str, names: list[str]) -> None:
    assert clone_names(prefix, 2) == names


@pytest.mark.parametrize("prefix", ["", "-#", "a#b#", "a b", "x" * 62, "a/#", "#\n"])
def test_a_pattern_that_makes_no_names_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidArgument):
        clone_names(prefix, 2)


def test_a_pattern_is_refused_with_what_is_wrong_with_it() -> None:
    with pytest.raises(InvalidArgument, match="in two places of 'a-#-b-##'"):
        clone_names("a-#-b-##", 2)
    with pytest.raises(InvalidArgument, match="of 64 characters cannot be used"):
        clone_names("x" * 61, 10)


def test_many_clones_are_made_at_once_or_not_at_all(web: VMs, client: EngineClient) -> None:
    lsn = client.status()["stats"]["next_lsn"]
    made = web.clone_many("web", "s1", 100, "copy")
    assert client.status()["stats"]["next_lsn"] == lsn + 1, "all clones are one record"
    assert [vm.name for vm in made] == [f"copy-{number}" for number in range(1, 101)]
    web.create_vm("other-7", [])
    with pytest.raises(AlreadyExists, match="other-7"):
        web.clone_many("web", "s1", 10, "other")
    assert len(web.list_vms()) == 102
    for count in (0, -1, CLONES_MAX + 1, True):
        with pytest.raises(InvalidArgument, match="clones"):
            web.clone_many("web", "s1", count, "more")


def test_a_clone_to_a_taken_name_takes_no_snapshot(web: VMs) -> None:
    with pytest.raises(AlreadyExists):
        web.clone("web", None, "web")
    assert len(web.list_snapshots("web")) == 1


def test_a_restore_brings_back_disks_sizes_and_configuration(web: VMs, pool: Pool) -> None:
    web.set_config("web", "<changed/>")
    web.resize_disk("web", "data", 4 * MEBIBYTE)
    web.remove_disk("web", "root")
    web.add_disk("web", "later", 512)
    before = observe(web, pool)["web"]["disks"]
    restored = web.restore("web", "s1")
    assert sorted(restored.disks) == ["data", "root"]
    assert observe(web, pool)["web"]["disks"] == {
        "root": (MEBIBYTE, b"A"),
        "data": (2 * MEBIBYTE, b"a"),
        "later": (512, b"\0"),
    }
    assert web.get_config("web") == "<web/>"
    assert restored.safety_snapshot is not None
    safety = web.show_snapshot("web", restored.safety_snapshot)
    assert (safety.origin, safety.config) == ("restore", "<changed/>")
    web.restore("web", restored.safety_snapshot)
    after = observe(web, pool)["web"]["disks"]
    assert {name: after[name] for name in before} == before


def test_a_restore_of_one_disk_leaves_the_rest(web: VMs, pool: Pool) -> None:
    web.set_config("web", "<changed/>")
    created = web.show_vm("web").disks[0].created
    web.restore("web", "s1", disk="root")
    assert (first_byte(pool, "web/root"), first_byte(pool, "web/data")) == (b"A", b"b")
    assert web.get_config("web") == "<changed/>"
    assert web.show_vm("web").disks[0].created == created


def test_a_forced_restore_cuts_attached_clients_off(web: VMs, pool: Pool, attach: Attach) -> None:
    """A running guest gets errors; it does not get another disk under its caches."""
    held = pool.find("web/root")
    attach("web/root")
    with pytest.raises(Busy):
        web.restore("web", "s1")
    assert len(web.list_snapshots("web")) == 1, "a refused restore takes no safety snapshot"
    web.restore("web", "s1", force=True)
    with pytest.raises(Exception, match="deleted|gone|any more"):
        held.write(0, b"x" * 512)
    assert first_byte(pool, "web/root") == b"A"


def test_a_restore_refused_at_the_last_moment_leaves_only_its_safety_snapshot(
    web: VMs,
    pool: Pool,
    catalog: Catalog,
    client: EngineClient,
    attachments: Attachments,
) -> None:
    """A client that attached after the first look: the engine looks again."""
    before = observe(web, pool)
    tokens: list[int] = []

    def attach_late(step: str) -> None:
        if step == "restore:cloned":
            tokens.append(attachments.attach(pool.find("web/root"), "pid 9 (qemu)"))

    late = VMs(catalog, client, clock=Clock(), at_step=attach_late)
    with pytest.raises(Busy, match="pid 9"):
        late.restore("web", "s1")
    attachments.detach(tokens[0])
    assert without_automatic_snapshots(observe(late, pool)) == before
    assert late.status().agreed
    check_agreed(late, catalog, client)


def test_a_restore_of_everything_lost_needs_no_safety_snapshot(web: VMs, pool: Pool) -> None:
    web.remove_disk("web", "root")
    web.remove_disk("web", "data")
    assert web.restore("web", "s1").safety_snapshot is None
    assert first_byte(pool, "web/data") == b"a"


# imports


def test_an_import_shows_nothing_until_it_is_finished(web: VMs, pool: Pool) -> None:
    before = observe(web, pool)
    begun = web.begin_import("web", "more", MEBIBYTE, create=True)
    assert (begun.export, begun.size_bytes, begun.create) == ("web/more~import", MEBIBYTE, True)
    write(pool, begun.export, b"I")
    assert observe(web, pool) == before
    assert web.status().imports == [begun]
    assert web.finish_import(begun.id).export == "web/more"
    assert first_byte(pool, "web/more") == b"I"
    assert web.status().imports == []


def test_an_import_over_a_disk_replaces_it_at_once_and_keeps_the_larger_size(web: VMs, pool: Pool) -> None:
    begun = web.begin_import("web", "data", MEBIBYTE, create=False)
    assert begun.size_bytes == 2 * MEBIBYTE
    write(pool, begun.export, b"I")
    assert first_byte(pool, "web/data") == b"b"
    web.finish_import(begun.id)
    assert first_byte(pool, "web/data") == b"I"
    assert first_byte(pool, "web/data@s1") == b"a"
    begun = web.begin_import("web", "data", 8 * MEBIBYTE, create=False)
    assert web.finish_import(begun.id).size_bytes == 8 * MEBIBYTE


def test_an_import_that_is_given_up_leaves_nothing(web: VMs, pool: Pool, client: EngineClient) -> None:
    before, objects = observe(web, pool), client.objects()
    begun = web.begin_import("web", "root", MEBIBYTE, create=False)
    write(pool, begun.export, b"I")
    web.abort_import(begun.id)
    web.abort_import(begun.id)
    assert (observe(web, pool), client.objects()) == (before, objects)
    with pytest.raises(NotFound, match="is no more"):
        web.finish_import(begun.id)


def test_an_import_reserves_its_disk(web: VMs) -> None:
    begun = web.begin_import("web", "more", 512, create=True)
    replacing = web.begin_import("web", "root", 512, create=False)
    for refused in (
        lambda: web.add_disk("web", "more", 512),
        lambda: web.begin_import("web", "more", 512, create=True),
        lambda: web.begin_import("web", "root", 512, create=False),
        lambda: web.remove_disk("web", "root"),
        lambda: web.rename_vm("web", "www", force=True),
        lambda: web.delete_vm("web"),
        lambda: web.restore("web", "s1"),
    ):
        with pytest.raises((AlreadyExists, Busy), match="is being imported"):
            refused()
    web.create_snapshot("web")
    web.remove_disk("web", "root", force=True)
    with pytest.raises(NotFound):
        web.finish_import(replacing.id)
    web.delete_vm("web", force=True)
    with pytest.raises(NotFound):
        web.finish_import(begun.id)


def test_a_writer_of_an_image_that_lingers_does_not_hold_up_the_finish(web: VMs, attach: Attach) -> None:
    begun = web.begin_import("web", "more", 512, create=True)
    attach(begun.export, "pid 8 (qemu-img)")
    assert web.finish_import(begun.id).name == "more"


def test_a_disk_that_was_attached_since_is_not_replaced(web: VMs, pool: Pool, attach: Attach) -> None:
    begun = web.begin_import("web", "root", 512, create=False)
    attach("web/root")
    with pytest.raises(Busy, match="web/root"):
        web.finish_import(begun.id)
    assert first_byte(pool, "web/root") == b"B"
    web.finish_import(begun.id, force=True)
    assert first_byte(pool, "web/root") == b"\0"


# the engine away


def test_without_an_engine_vms_can_be_looked_at_but_not_changed(vms_without_engine: VMs) -> None:
    vms = vms_without_engine
    assert vms.list_vms() == []
    status = vms.status()
    assert not status.engine_running and not status.agreed
    assert status.engine_error is not None and "blockdevctl serve" in status.engine_error
    with pytest.raises(Unavailable, match="not running"):
        vms.create_vm("web", [("root", 512)])
    assert vms.list_vms() == []


@pytest.fixture
def vms_without_engine(catalog: Catalog, socket_path: str) -> VMs:
    return VMs(catalog, EngineClient(socket_path))


def test_status_counts(web: VMs, pool: Pool) -> None:
    pool.create_vdisk(512, "somebody else's")
    web.reconcile()
    status = web.status()
    assert (status.vm_count, status.disk_count, status.snapshot_count) == (1, 2, 1)
    assert status.engine["uuid"] == pool.uuid
    assert (status.missing, status.foreign, status.agreed) == ([], ["somebody else's"], True)


def test_no_password_of_a_configuration_is_kept_or_shown(vms: VMs) -> None:
    graphics = "<domain><devices><graphics type='vnc'{}/></devices></domain>"
    given, kept = graphics.format(" passwd='secret7'"), graphics.format("")
    vms.create_vm("web", [("root", MEBIBYTE)], config=given)
    assert vms.get_config("web") == kept
    vms.set_config("web", given)
    assert vms.get_config("web") == kept
    assert vms.create_snapshot("web").config in (None, kept) and vms.show_snapshot("web", vms.list_snapshots("web")[0].name).config == kept
