"""What VMs and snapshots take, told by their names."""

from __future__ import annotations

import pytest

from blockdev import Pool
from blockdev.accounting import Group, Usage
from blockdev.engine.client import EngineClient
from blockdev.errors import NotFound
from blockdev.vmmap.service import VMs
from tests.engine.content import distinct_blocks
from tests.vmmap.world import MEBIBYTE

BLOCK = 4096


@pytest.fixture
def world(vms: VMs, pool: Pool) -> VMs:
    """web: 64 blocks on root, 16 of them written anew after s1, 8 after s2; copy: a clone of s2; bare: no disk."""
    vms.create_vm("web", [("root", MEBIBYTE), ("data", MEBIBYTE)])
    pool.find("web/root").write(0, distinct_blocks(0, 64))
    vms.create_snapshot("web", "s1")
    pool.find("web/root").write(0, distinct_blocks(1000, 16))
    vms.create_snapshot("web", "s2")
    pool.find("web/root").write(0, distinct_blocks(2000, 8))
    vms.clone("web", "s2", "copy")
    vms.create_vm("bare", [])
    return vms


def test_groups_are_the_vms_with_their_snapshots(
    world: VMs, pool: Pool, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Group]] = []
    account = client.account

    def listen(groups: list[Group]) -> Usage:
        asked.append(groups)
        return account(groups)

    monkeypatch.setattr(client, "account", listen)
    world.add_disk("web", "late", 512)
    world.create_snapshot("web", "s3")
    world.begin_import("web", "more", 512, create=True)
    pool.create_vdisk(512, "not ours")
    space = world.usage()
    assert [vm.vm for vm in space.vms] == ["bare", "copy", "web"]

    def ids(*names: str) -> list[int]:
        return [pool.find(name).id for name in names]

    root, data = (ids(*(f"web/{disk}@{snapshot}" for snapshot in ("s1", "s2", "s3"))) for disk in ("root", "data"))
    [late] = ids("web/late@s3")
    assert asked == [
        [
            Group([], []),
            Group(ids("copy/root", "copy/data"), []),
            Group(
                ids("web/root", "web/data", "web/late"),
                [
                    [(root[0], None), (data[0], None)],
                    [(root[1], root[0]), (data[1], data[0])],
                    [(root[2], root[1]), (data[2], data[1]), (late, None)],
                ],
            ),
        ]
    ]


def test_the_numbers_are_those_of_the_engine(world: VMs) -> None:
    space = world.usage()
    bare, copy, web = space.vms
    assert (web.size_bytes, web.data_bytes, bare.size_bytes, bare.data_bytes) == (2 * MEBIBYTE, 64 * BLOCK, 0, 0)
    assert web.shared_bytes == 56 * BLOCK, "with copy, but for what was written last"
    assert copy.shared_bytes == copy.data_bytes == 64 * BLOCK
    s1, s2 = web.snapshots
    assert (s1.snapshot, s2.snapshot) == ("s1", "s2") and s1.created < s2.created
    assert (s1.changed_bytes, s2.changed_bytes) == (64 * BLOCK, 16 * BLOCK)
    assert s1.frees_bytes >= 16 * BLOCK > 0 and s2.frees_bytes == 0
    pool = space.pool
    assert pool.used_bytes == pool.metadata_bytes + pool.stored_bytes + pool.reclaimable_bytes
    assert pool.logical_bytes == 128 * BLOCK and pool.referenced_bytes == 256 * BLOCK
    assert pool.dedup_saved_bytes == pool.logical_bytes - pool.disk_distinct_bytes == 56 * BLOCK
    assert pool.snapshot_only_bytes == pool.distinct_bytes - pool.disk_distinct_bytes == 16 * BLOCK
    assert pool.compression_saved_bytes == pool.distinct_bytes - pool.stored_bytes
    assert world.vm_usage("web") == web and world.vm_usage("bare") == bare
    with pytest.raises(NotFound, match="there is no VM none"):
        world.vm_usage("none")


def test_values_have_stable_field_names(world: VMs) -> None:
    space = world.usage().to_json()
    assert list(space) == ["pool", "vms"]
    assert list(space["pool"]) == [
        *("capacity_bytes", "used_bytes", "metadata_bytes", "stored_bytes", "reclaimable_bytes", "logical_bytes"),
        *("referenced_bytes", "disk_distinct_bytes", "distinct_bytes"),
        *("dedup_saved_bytes", "snapshot_only_bytes", "compression_saved_bytes"),
    ]
    web = space["vms"][2]
    assert list(web) == [
        *("vm", "size_bytes", "data_bytes", "shared_bytes", "unique_stored_bytes", "snapshots_stored_bytes"),
        "snapshots",
    ]
    assert list(web["snapshots"][0]) == ["snapshot", "created", "changed_bytes", "frees_bytes"]


def test_what_is_deleted_in_the_middle_or_missing_counts_as_nothing(
    world: VMs, pool: Pool, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = client.account

    def delete_first(groups: list[Group]) -> Usage:
        world.delete_snapshot("web", "s1")
        return account(groups)

    with monkeypatch.context() as patched:
        patched.setattr(client, "account", delete_first)
        gone, _stays = world.vm_usage("web").snapshots
    assert (gone.snapshot, gone.changed_bytes, gone.frees_bytes) == ("s1", 0, 0)
    pool.delete(pool.find("web/root"))
    assert world.vm_usage("web").data_bytes == 0
    world.reconcile()
    assert world.vm_usage("web").size_bytes == 2 * MEBIBYTE
