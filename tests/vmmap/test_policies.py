"""A VM's policy is the catalog's; each of its vdisks has it, however it became one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blockdev import Pool
from blockdev.engine.client import AnswerLost, EngineClient, EngineRestarted
from blockdev.errors import InvalidArgument, NotFound, PoolFull
from blockdev.policies import AS_POOL, DiskPolicy, PoolPolicy
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.model import Policy
from blockdev.vmmap.service import VMs
from tests.vmmap.world import MEBIBYTE, Clock, check_agreed

PLAIN = DiskPolicy("off", "off")


@pytest.fixture
def web(vms: VMs) -> VMs:
    """VM web with two disks and a snapshot, its policy another than the pool's."""
    vms.create_vm("web", [("root", MEBIBYTE), ("data", MEBIBYTE)], policy=PLAIN)
    vms.create_snapshot("web", "s1")
    return vms


def policies(pool: Pool) -> dict[str | None, DiskPolicy]:
    return {vdisk.name: vdisk.policy for vdisk in pool.vdisks()}


def import_disk(vms: VMs, disk: str, create: bool) -> None:
    begun = vms.begin_import("web", disk, MEBIBYTE, create)
    vms.finish_import(begun.id)


BECOMES: dict[str, tuple[Callable[[VMs], Any], list[str]]] = {
    "create": (lambda vms: vms.create_vm("new", [("a", 512), ("b", 512)], policy=PLAIN), ["new/a", "new/b"]),
    "add": (lambda vms: vms.add_disk("web", "more", 512), ["web/more"]),
    "clone": (lambda vms: vms.clone("web", "s1", "copy"), ["copy/root", "copy/data"]),
    "clone what runs": (lambda vms: vms.clone("web", None, "copy"), ["copy/root", "copy/data"]),
    "clone many": (lambda vms: vms.clone_many("web", "s1", 2, "copy"), ["copy-1/root", "copy-2/data"]),
    "restore": (lambda vms: vms.restore("web", "s1"), ["web/root", "web/data"]),
    "restore a disk": (lambda vms: vms.restore("web", "s1", disk="root"), ["web/root"]),
    "import": (lambda vms: import_disk(vms, "more", create=True), ["web/more"]),
    "import over": (lambda vms: import_disk(vms, "root", create=False), ["web/root"]),
}


@pytest.mark.parametrize("way", BECOMES)
def test_every_vdisk_that_becomes_a_disk_has_its_vms_policy(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient, way: str
) -> None:
    before = {vdisk.name: vdisk.id for vdisk in pool.vdisks()}
    perform, disks = BECOMES[way]
    perform(web)
    for disk in disks:
        assert pool.find(disk).id != before.get(disk), "it is the vdisk that was there"
        assert pool.find(disk).policy == PLAIN
    assert {vm.policy for vm in web.list_vms()} == {Policy("off", "off")}
    check_agreed(web, catalog, client)


@pytest.mark.parametrize("way", [way for way in BECOMES if way != "create"])
def test_where_a_vms_policy_is_the_pools_nothing_is_asked_of_the_engine(
    web: VMs, pool: Pool, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    web.set_policy("web", {"compression": None, "dedup": None})
    monkeypatch.setattr(pool, "set_disk_policies", lambda policies: pytest.fail("it was asked"))
    BECOMES[way][0](web)
    assert set(policies(pool).values()) == {AS_POOL}


def test_a_policy_is_set_field_by_field_for_all_disks(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    changed = web.set_policy("web", {"compression": "inline"})
    assert changed == web.show_vm("web") and changed.policy == Policy("inline", "off")
    assert policies(pool) == dict.fromkeys(["web/root", "web/data"], DiskPolicy("inline", "off"))
    assert web.set_policy("web", {"dedup": None}).policy == Policy("inline", None)
    assert pool.find("web/data").policy == DiskPolicy("inline", None)
    web.create_vm("bare", [])
    assert web.set_policy("bare", {"dedup": "on"}).policy == Policy(None, "on")
    web.add_disk("bare", "first", 512)
    assert pool.find("bare/first").policy == DiskPolicy(None, "on")
    with pytest.raises(InvalidArgument, match="compression is cold, inline, off"):
        web.set_policy("web", {"compression": "hot"})
    with pytest.raises(InvalidArgument, match="dedup is on or off"):
        web.create_vm("bad", [], policy=DiskPolicy(None, "maybe"))  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        web.set_policy("none", {"dedup": "on"})
    check_agreed(web, catalog, client)


def test_a_policy_holds_for_an_import_under_way(web: VMs, pool: Pool) -> None:
    begun = web.begin_import("web", "more", MEBIBYTE, create=True)
    assert pool.find(begun.export).policy == PLAIN
    web.set_policy("web", {"compression": "inline", "dedup": None})
    assert pool.find(begun.export).policy == DiskPolicy("inline", None)
    web.finish_import(begun.id)
    assert pool.find("web/more").policy == DiskPolicy("inline", None)


def test_a_missing_disk_keeps_no_policy_from_being_set(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    pool.delete(pool.find("web/data"))
    web.reconcile()
    assert web.set_policy("web", {"dedup": None}).policy == Policy("off", None)
    check_agreed(web, catalog, client, ["web/data"])


def test_the_pools_policy_is_set_field_by_field(vms: VMs, pool: Pool) -> None:
    status = vms.set_pool_policy({"compression": "inline", "compaction_rate_bytes": 20 << 20})
    assert status.engine["policy"] == PoolPolicy("inline", compaction_rate_bytes=20 << 20)._asdict()
    vms.set_pool_policy({"compression_level": 9})
    assert pool.policy == PoolPolicy("inline", 9, "on", 20 << 20)
    with pytest.raises(InvalidArgument, match="1 to 19"):
        vms.set_pool_policy({"compression_level": 20, "dedup": "off"})
    assert pool.policy == PoolPolicy("inline", 9, "on", 20 << 20)


# agreement


def test_disks_that_have_another_policy_get_the_catalogs(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    pool.set_disk_policies([(pool.find("web/root"), AS_POOL)])
    pool.create_vdisk(512, "web/by-hand")
    agreement = web.reconcile()
    assert sorted(agreement.corrected) == ["web/by-hand has its VM's policy", "web/root has its VM's policy"]
    assert set(policies(pool).values()) == {PLAIN}
    check_agreed(web, catalog, client)


def test_a_vm_that_the_catalog_does_not_know_takes_the_policy_of_its_first_disk(
    web: VMs, pool: Pool, client: EngineClient, tmp_path: Any
) -> None:
    pool.set_disk_policies([(pool.find("web/data"), DiskPolicy(None, "on"))])
    web.create_vm("bare", [("root", 512)])
    fresh = Catalog(tmp_path / "fresh.db")
    taken = VMs(fresh, client, clock=Clock())
    assert taken.reconcile().corrected == ["web/data has its VM's policy"]
    assert [vm.policy for vm in taken.list_vms()] == [Policy(None, None), Policy("off", "off")]
    check_agreed(taken, fresh, client)
    fresh.close()


def test_an_engine_that_is_restarted_before_the_policy_is_given_makes_nothing_twice(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restarted(policies: Any) -> None:
        raise EngineRestarted("another engine")

    with monkeypatch.context() as patched:
        patched.setattr(client, "set_disk_policies", restarted)
        with pytest.raises(AnswerLost, match="during: add disk web/more"):
            web.add_disk("web", "more", 512)
    assert not web.status().agreed
    web.set_description("web", "x")
    assert pool.find("web/more").policy == PLAIN
    assert [disk.name for disk in web.show_vm("web").disks] == ["root", "data", "more"]
    check_agreed(web, catalog, client)


def test_a_pool_without_room_for_a_policy_still_agrees_and_deletes(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(policies: Any) -> None:
        raise PoolFull("no room")

    with monkeypatch.context() as patched:
        patched.setattr(pool, "set_disk_policies", full)
        with pytest.raises(PoolFull):
            web.add_disk("web", "more", 512)
        with pytest.raises(PoolFull):
            web.set_policy("web", {"dedup": None})
        web.delete_snapshot("web", "s1")
        assert pool.find("web/more").policy == AS_POOL
    web.reconcile()
    assert web.show_vm("web").policy == Policy("off", "off")
    check_agreed(web, catalog, client)
