"""Clones with seeds, and restores beside what is there: all or none, and nothing else changes."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from blockdev import Pool
from blockdev.engine.client import EngineClient
from blockdev.errors import AlreadyExists, BlockdevError, Gone, NotFound, PoolFull, ToolFailed, Unavailable
from blockdev.policies import DiskPolicy
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.clones import CustomClone
from blockdev.vmmap.service import VMs
from tests.vmmap.world import MEBIBYTE, Clock, check_agreed, first_byte, observe, write

CLONES = [CustomClone(f"copy-{number}", str(uuid.UUID(int=number)), number * 4096) for number in (1, 2, 3)]


@pytest.fixture
def web(vms: VMs, pool: Pool) -> VMs:
    """A VM `web` with a policy, `root` of A, `seed` of s, and a snapshot s1 of it; since then `root` of B."""
    vms.create_vm("web", [("root", MEBIBYTE), ("seed", MEBIBYTE)], "<web/>", "the web server", DiskPolicy("off", None))
    write(pool, "web/root", b"A")
    write(pool, "web/seed", b"s")
    vms.create_snapshot("web", "s1")
    write(pool, "web/root", b"B")
    return vms


def seeds_of(pool: Pool) -> Callable[[list[str]], None]:
    """Writes the number of each clone."""

    def write_seeds(exports: list[str]) -> None:
        for number, export in enumerate(exports, 1):
            write(pool, export, b"%d" % number)

    return write_seeds


def test_each_clone_has_a_seed_of_its_own_in_the_place_of_the_origins(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    before = observe(web, pool)
    made = web.clone_customized("web", "s1", CLONES, seeds_of(pool))
    assert [(vm.name, vm.uuid) for vm in made] == [(clone.name, clone.uuid) for clone in CLONES]
    seen = observe(web, pool)
    for number in (1, 2, 3):
        clone = seen.pop(f"copy-{number}")
        assert clone["disks"] == {"root": (MEBIBYTE, b"A"), "seed": (number * 4096, b"%d" % number)}
        assert (clone["cloned_from"], clone["config"]) == ("web@s1", "<web/>")
        assert set(clone["policies"].values()) == {DiskPolicy("off", None)}
    assert seen == before
    check_agreed(web, catalog, client)


def test_a_customized_clone_is_cloned_again(web: VMs, pool: Pool) -> None:
    web.clone_customized("web", "s1", CLONES[:1], seeds_of(pool))
    web.create_snapshot("copy-1", "s1")
    again = CustomClone("again", str(uuid.UUID(int=9)), 8192)
    web.clone_customized("copy-1", "s1", [again], lambda exports: write(pool, exports[0], b"9"))
    assert observe(web, pool)["again"]["disks"] == {"root": (MEBIBYTE, b"A"), "seed": (8192, b"9")}


def test_a_vm_of_a_seed_alone_is_cloned(web: VMs, pool: Pool) -> None:
    web.remove_disk("web", "root")
    web.create_snapshot("web", "s2")
    web.clone_customized("web", "s2", CLONES[:1], seeds_of(pool))
    assert list(observe(web, pool)["copy-1"]["disks"]) == ["seed"]


@pytest.mark.parametrize("error", [PoolFull, Unavailable, Gone, ToolFailed])
def test_seeds_that_cannot_be_written_leave_nothing(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient, error: type[BlockdevError]
) -> None:
    before, names = observe(web, pool), {thing.name for thing in client.objects()}

    def write_seeds(exports: list[str]) -> None:
        write(pool, exports[0], b"1")
        raise error("no")

    with pytest.raises(error):
        web.clone_customized("web", "s1", CLONES, write_seeds)
    web.set_description("web", "the next change agrees first, if need be")
    assert {thing.name for thing in client.objects()} == names
    web.set_description("web", before["web"]["description"])
    assert observe(web, pool) == before
    check_agreed(web, catalog, client)


def test_a_name_taken_in_the_pool_meanwhile_leaves_nothing_else(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient
) -> None:
    """By foreign hands: the last record is refused as a whole."""

    def take(step: str) -> None:
        if step == "clone:cloned":
            pool.create_vdisk(4096, "copy-2/root")

    late = VMs(catalog, client, clock=Clock(), at_step=take)
    before = observe(web, pool)
    with pytest.raises(AlreadyExists):
        late.clone_customized("web", "s1", CLONES, seeds_of(pool))
    assert not [thing.name for thing in client.objects() if "~" in (thing.name or "")]
    late.reconcile()
    assert {name for name in observe(late, pool) if name not in before} == {"copy-2"}


def test_names_are_refused_before_a_snapshot_is_taken(web: VMs) -> None:
    with pytest.raises(AlreadyExists):
        web.snapshot_to_clone("web", None, ["new", "web"])
    assert len(web.list_snapshots("web")) == 1
    taken = web.snapshot_to_clone("web", None, ["new"])
    assert (taken.origin, taken.config) == ("clone", "<web/>")
    assert web.snapshot_to_clone("web", taken.name, ["new"]) == taken


# restores beside


def test_a_snapshot_comes_back_beside_its_vm(web: VMs, pool: Pool, catalog: Catalog, client: EngineClient) -> None:
    before = observe(web, pool)
    done = web.restore_beside("web", "s1", "www")
    assert (done.vm.name, done.disks, done.safety_snapshot, done.cut_off) == ("www", ["root", "seed"], None, [])
    seen = observe(web, pool)
    www = seen.pop("www")
    assert seen == before
    assert www["disks"] == before["web"]["snapshots"]["s1"]["disks"] and www["cloned_from"] == "web@s1"
    assert www["description"].startswith("restored from web@s1 of 20")
    check_agreed(web, catalog, client)


def test_a_disk_comes_back_beside_itself(web: VMs, pool: Pool, catalog: Catalog, client: EngineClient) -> None:
    done = web.restore_beside("web", "s1", "older", disk="root")
    assert (done.disks, [disk.name for disk in done.vm.disks]) == (["older"], ["root", "seed", "older"])
    assert first_byte(pool, "web/root", MEBIBYTE)[1] == b"B"
    assert first_byte(pool, "web/older", MEBIBYTE)[1] == b"A"
    assert pool.find("web/older").policy == DiskPolicy("off", None)
    check_agreed(web, catalog, client)


@pytest.mark.parametrize(
    ("snapshot", "new_name", "disk", "error"),
    [
        ("s1", "web", None, AlreadyExists),
        ("s1", "root", "root", AlreadyExists),
        ("s1", "new", "none", NotFound),
        ("none", "new", None, NotFound),
    ],
)
def test_a_restore_beside_is_refused(
    web: VMs, pool: Pool, snapshot: str, new_name: str, disk: str | None, error: type[BlockdevError]
) -> None:
    before = observe(web, pool)
    with pytest.raises(error):
        web.restore_beside("web", snapshot, new_name, disk)
    assert observe(web, pool) == before


def test_a_hypervisor_is_asked_for_the_configuration_only_when_a_snapshot_is_taken(web: VMs) -> None:
    asked: list[str] = []

    def refresh(vm: str) -> None:
        asked.append(vm)

    web.refresh_config = refresh
    name = web.list_snapshots("web")[0].name
    web.clone("web", name, "one")
    web.clone_many("web", name, 2, "many")
    web.snapshot_to_clone("web", name, ["other"])
    assert asked == []
    web.clone("web", None, "newest")
    assert asked == ["web"]
