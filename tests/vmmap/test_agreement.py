"""Catalog and pool that do not agree: the pool says what exists, the catalog keeps what it alone knows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.errors import Busy, InvalidArgument, NotFound, Poisoned, PoolFull
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.model import Agreement
from blockdev.vmmap.service import VMs
from blockdev.vmmap.tags import Tag, encode_tag
from tests.vmmap.world import MEBIBYTE, Clock, build, check_agreed, observe

UUID = "8d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b11"
NOW = "2026-11-22T12:00:00.000Z"


@pytest.fixture
def world(vms: VMs, pool: Pool) -> VMs:
    build(vms, pool)
    return vms


@pytest.fixture
def fresh(client: EngineClient, tmp_path: Path) -> VMs:
    """On the same pool, with an empty catalog."""
    return VMs(Catalog(tmp_path / "fresh.db"), client, clock=Clock())


def tagged(vm_uuid: str, temporary: bool = False) -> bytes:
    return encode_tag(Tag(vm_uuid, NOW, temporary=temporary))


def shapes(vms: VMs) -> dict[str, tuple[list[str], list[str]]]:
    """VM -> its disks and its snapshots."""
    return {
        vm.name: (
            sorted(disk.name for disk in vm.disks),
            [snapshot.name for snapshot in vms.list_snapshots(vm.name)],
        )
        for vm in vms.list_vms()
    }


def test_where_they_agree_nothing_is_done(world: VMs, catalog: Catalog, client: EngineClient) -> None:
    lsn = client.status()["stats"]["next_lsn"]
    assert world.reconcile() == Agreement()
    check_agreed(world, catalog, client)
    assert client.status()["stats"]["next_lsn"] == lsn


def test_a_lost_catalog_is_taken_from_the_pool(world: VMs, pool: Pool, fresh: VMs, clock: Clock) -> None:
    world.clone("web", None, "copy")
    world.restore("web", "s2")
    before = observe(world, pool)
    uuids = {vm.name: vm.uuid for vm in world.list_vms()}
    agreement = fresh.reconcile()
    assert "web/root@s1" in agreement.adopted
    after = observe(fresh, pool)
    assert {vm.name: vm.uuid for vm in fresh.list_vms()} == {name: uuids[name] for name in after}
    del before["spare"]  # a VM without disks was only in the catalog
    for vm in before.values():
        for part in (vm, *vm["snapshots"].values()):
            part["config"] = part["description"] = ""
        vm["cloned_from"] = None
    assert after == before
    [old, new] = [
        {snapshot.name: snapshot for snapshot in side.list_snapshots("web")} for side in (world, fresh)
    ]
    assert {name: (s.created, s.lsn, s.origin) for name, s in old.items()} == {
        name: (s.created, s.lsn, s.origin) for name, s in new.items()
    }
    assert fresh.reconcile() == Agreement()


def test_an_old_copy_of_the_catalog_catches_up(
    world: VMs, pool: Pool, client: EngineClient, catalog: Catalog, tmp_path: Path
) -> None:
    """VMs that changed names in a circle, one that was deleted, one that was made, a disk that grew."""
    catalog._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old_path = tmp_path / "old.db"
    shutil.copy(catalog.path, old_path)
    world.rename_vm("web", "x")
    world.rename_vm("db", "web")
    world.rename_vm("x", "db")
    world.resize_disk("db", "data", 8 * MEBIBYTE)
    world.delete_snapshot("web", "s1")
    world.create_vm("new", [("root", 512)])
    now = shapes(world)
    old_catalog = Catalog(old_path)
    old = VMs(old_catalog, client, clock=Clock())
    agreement = old.reconcile()
    assert "VM new" in agreement.adopted
    assert "db/data has 8388608 bytes" in agreement.corrected
    assert agreement.missing == ["web/root@s1"], "deleted meanwhile, but who knows: it is shown as missing"
    now["web"] = (["root"], ["s1"])
    assert shapes(old) == now
    assert old.show_snapshot("web", "s1").disks[0].state == "missing"
    old.delete_snapshot("web", "s1")
    check_agreed(old, old_catalog, client)


def test_what_the_pool_lacks_is_kept_and_shown_as_missing(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    pool.delete([pool.find("web/data"), pool.find("web/root@s1")])
    agreement = world.reconcile()
    assert agreement.missing == ["web/data", "web/root@s1"] == world.status().missing
    assert [disk.state for disk in world.show_vm("web").disks] == ["ok", "missing"]
    for refused in (
        lambda: world.create_snapshot("web"),
        lambda: world.resize_disk("web", "data", 8 * MEBIBYTE),
        lambda: world.restore("web", "s1"),
        lambda: world.clone("web", "s1", "copy"),
        lambda: world.diff("web", "s1", "s2"),
    ):
        with pytest.raises(NotFound, match="is missing from the pool"):
            refused()
    world.rename_vm("web", "www")
    assert world.restore("www", "s2").safety_snapshot is not None
    assert [disk.state for disk in world.show_vm("www").disks] == ["ok", "ok"]
    world.delete_snapshot("www", "s1")
    check_agreed(world, catalog, client)


def test_a_missing_disk_that_comes_back_is_known_again(world: VMs, pool: Pool, catalog: Catalog) -> None:
    vm = world.show_vm("web")
    pool.delete(pool.find("web/data"))
    world.reconcile()
    pool.create_vdisk(MEBIBYTE, "web/data", tagged(vm.uuid))
    assert world.reconcile().adopted == ["web/data"]
    again = world.show_vm("web").disks[1]
    assert (again.state, again.size_bytes, again.created) == ("ok", MEBIBYTE, vm.disks[1].created)


def test_missing_things_can_be_removed(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    pool.delete([thing for thing in (*pool.vdisks(), *pool.snapshots()) if thing.name.startswith("web/")])
    world.reconcile()
    world.remove_disk("web", "data")
    world.delete_snapshot("web", "s1")
    world.delete_vm("web")
    assert list(shapes(world)) == ["db", "spare"]
    check_agreed(world, catalog, client)


def test_objects_made_by_hand_are_adopted_by_their_names(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    [hand] = pool.create_vdisks([(MEBIBYTE, "hand/root", b"")])
    pool.snapshot([hand], ["hand/root@mine"], [b"not a tag"])
    pool.create_vdisk(512, "web/extra")
    pool.create_vdisk(512, "spare/first")
    agreement = world.reconcile()
    assert sorted(agreement.adopted) == [
        *("VM hand", "hand/root", "hand/root@mine", "spare/first", "web/extra")
    ]
    assert shapes(world)["hand"] == (["root"], ["mine"])
    assert shapes(world)["web"][0] == ["data", "extra", "root"]
    assert shapes(world)["spare"][0] == ["first"]
    check_agreed(world, catalog, client)
    world.rename_vm("hand", "taken")
    check_agreed(world, catalog, client)


def test_objects_with_other_names_are_left_alone(world: VMs, pool: Pool, client: EngineClient) -> None:
    pool.create_vdisk(512)
    pool.create_vdisk(512, "just a name")
    pool.create_vdisk(512, "a/b/c", b"tag")
    before = client.objects()
    agreement = world.reconcile()
    assert len(agreement.foreign) == 3
    assert "just a name" in agreement.foreign
    assert client.objects() == before


def test_two_vms_of_one_name_are_both_kept(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    """Only by foreign hands: a second VM's disk under a name that the catalog knows for another."""
    mine = world.show_vm("web").uuid
    pool.create_vdisk(512, "web/alien", tagged(UUID))
    agreement = world.reconcile()
    assert "web/alien is now called web-2/alien" in agreement.corrected
    assert shapes(world)["web-2"] == (["alien"], [])
    assert world.show_vm("web").uuid == mine
    assert world.show_vm("web-2").uuid == UUID
    check_agreed(world, catalog, client)


def test_a_vm_without_disks_yields_its_name(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    pool.create_vdisk(512, "spare/root", tagged(UUID))
    world.reconcile()
    assert world.show_vm("spare").uuid == UUID
    assert shapes(world)["spare-2"] == ([], [])
    check_agreed(world, catalog, client)


def test_one_vm_under_two_names_is_taken_apart(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    web = world.show_vm("web")
    pool.create_vdisk(512, "torn/root", tagged(web.uuid))
    world.reconcile()
    assert world.show_vm("web").uuid == web.uuid
    assert world.show_vm("torn").uuid != web.uuid
    assert shapes(world)["torn"] == (["root"], [])
    check_agreed(world, catalog, client)


def test_temporary_objects_go_even_when_somebody_is_attached(
    world: VMs, pool: Pool, attachments: Attachments, catalog: Catalog, client: EngineClient
) -> None:
    """The qemu-img of an import that nobody will finish."""
    left = pool.create_vdisk(512, "web/more~import", tagged(world.show_vm("web").uuid, temporary=True))
    token = attachments.attach(left, "pid 9 (qemu-img)")
    assert world.reconcile().dropped == ["web/more~import"]
    attachments.detach(token)
    check_agreed(world, catalog, client)


def test_an_import_goes_on_when_its_control_plane_agrees_again(world: VMs, client: EngineClient) -> None:
    begun = world.begin_import("web", "more", 512, create=True)
    assert world.reconcile() == Agreement()
    world.finish_import(begun.id)
    assert client.find("web/more").size_bytes == 512


def test_an_import_ends_with_its_control_plane(
    world: VMs, catalog: Catalog, client: EngineClient, clock: Clock
) -> None:
    begun = world.begin_import("web", "more", 512, create=True)
    again = VMs(catalog, client, clock=clock)
    assert again.reconcile().dropped == ["web/more~import"]
    with pytest.raises(NotFound, match="is no more"):
        again.finish_import(begun.id)
    again.begin_import("web", "more", 512, create=True)


def test_an_import_ends_with_its_engine(
    world: VMs, server: EngineServer, pool: Pool, socket_path: str, catalog: Catalog
) -> None:
    begun = world.begin_import("web", "more", 512, create=True)
    server.stop()
    another = EngineServer(pool, Attachments(), socket_path)
    another.start()
    with pytest.raises(NotFound, match="engine was restarted"):
        world.finish_import(begun.id)
    assert catalog.imports() == []
    another.stop()


def test_the_first_change_after_an_engine_restart_agrees_first(
    world: VMs, server: EngineServer, pool: Pool, socket_path: str
) -> None:
    server.stop()
    pool.create_vdisk(512, "web/meanwhile")
    another = EngineServer(pool, Attachments(), socket_path)
    another.start()
    world.add_disk("web", "more", 512)
    assert shapes(world)["web"][0] == ["data", "meanwhile", "more", "root"]
    another.stop()


def test_the_catalog_of_another_pool_is_refused(
    world: VMs, server: EngineServer, socket_path: str, tmp_path: Path
) -> None:
    server.stop()
    with Pool.create(tmp_path / "other", 64 << 20) as other:
        another = EngineServer(other, Attachments(), socket_path)
        another.start()
        with pytest.raises(InvalidArgument, match="is of pool"):
            world.reconcile()
        with pytest.raises(InvalidArgument, match="is of pool"):
            world.create_vm("new", [("root", 512)])
        assert other.vdisks() == []
        assert "web" in shapes(world)
        another.stop()


def test_nothing_is_agreed_with_a_poisoned_engine(
    world: VMs, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = pool.stats()
    monkeypatch.setattr(pool, "stats", lambda: {**stats, "poisoned": 5})
    with pytest.raises(Poisoned, match="restart the engine"):
        world.reconcile()


def test_an_operation_in_doubt_is_settled_before_the_next(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's write failed after the record was in memory: done or not is known after a restart only."""
    create = pool.create_vdisks

    def fail_after(specs: list) -> list:
        create(specs)
        raise Poisoned("the write failed")

    monkeypatch.setattr(pool, "create_vdisks", fail_after)
    with pytest.raises(Poisoned):
        world.add_disk("web", "more", 512)
    assert len(catalog.intents()) == 1
    assert not world.status().agreed
    monkeypatch.undo()
    world.set_description("web", "x")
    assert shapes(world)["web"][0] == ["data", "more", "root"]
    check_agreed(world, catalog, client)


def test_an_operation_that_the_catalog_cannot_hold_holds_up_nothing(
    world: VMs, pool: Pool, client: EngineClient, catalog: Catalog
) -> None:
    """Two VMs of one uuid: what a fault of an earlier build left behind its engine step."""
    uuid = world.show_vm("web").uuid
    world.reconcile()
    client.create([(MEBIBYTE, "twin/root", encode_tag(Tag(uuid, NOW)))])
    with catalog.transaction():
        body = {"uuid": uuid, "name": "twin", "description": "", "config": "", "created": NOW, "disks": [["root", MEBIBYTE]]}
        catalog.insert_intent("create_vm", body)
    agreement = world.reconcile()
    assert any(line.startswith("create VM twin: ") for line in agreement.corrected)
    assert [disk.name for disk in world.show_vm("twin").disks] == ["root"] and world.show_vm("twin").uuid != uuid
    world.create_snapshot("twin", "s1")
    check_agreed(world, catalog, client)
    assert catalog.intents() == [] and world.reconcile() == Agreement()


@pytest.mark.parametrize("full_at", ["create_vm:intended", "create_vm:applied"])
def test_a_catalog_on_a_full_disk_loses_nothing(
    world: VMs, catalog: Catalog, client: EngineClient, full_at: str
) -> None:
    """The disk is full before the catalog step; the next change, with room again, finishes what was begun."""
    database = catalog._database
    usual = database.execute("PRAGMA max_page_count").fetchone()[0]

    def fill(step: str) -> None:
        if step == full_at:
            database.execute("PRAGMA max_page_count = 1")  # no more than there are

    filling = VMs(catalog, client, clock=Clock(), at_step=fill)
    with pytest.raises(PoolFull, match="is full"):
        filling.create_vm("new", [("root", 512)], config="x" * 100_000)
    assert "new" not in shapes(filling)
    assert not filling.status().agreed
    database.execute(f"PRAGMA max_page_count = {usual}")
    filling.set_description("web", "x")
    assert filling.get_config("new") == "x" * 100_000
    check_agreed(filling, catalog, client)


def test_a_second_control_plane_takes_over_and_the_first_changes_nothing_more(
    world: VMs, socket_path: str, tmp_path: Path
) -> None:
    second_engine = EngineClient(socket_path, "the second")
    second = VMs(Catalog(tmp_path / "second.db"), second_engine, clock=Clock())
    second.reconcile()
    with pytest.raises(Busy, match="the second has taken over"):
        world.create_vm("new", [("root", 512)])
    second.create_vm("new", [("root", 512)])
    second_engine.close()


@pytest.mark.parametrize("hold", [True, False])
def test_free_names_are_found_within_the_limit(
    vms: VMs, pool: Pool, catalog: Catalog, client: EngineClient, hold: bool
) -> None:
    name = "x" * 63
    vms.create_vm(name, [("root", 512)])
    if hold:
        vms.create_vm("x" * 61 + "-2", [])
    pool.create_vdisk(512, f"{name}/alien", tagged(UUID))
    vms.reconcile()
    assert vms.show_vm("x" * 61 + ("-3" if hold else "-2")).uuid == UUID
    check_agreed(vms, catalog, client)
