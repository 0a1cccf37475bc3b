"""Received VMs: nobody changes them until they are promoted, and a VM of this home becomes one without losing anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blockdev import Pool
from blockdev.engine.client import EngineClient
from blockdev.errors import AlreadyExists, Busy, InvalidArgument, NotAllowed, NotFound, PoolFull, ReadOnly
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_domains import HypervisorRow
from blockdev.vmmap.clones import CustomClone
from blockdev.vmmap.service import VMs
from tests.vmmap.receiving import FAR, begin, receive
from tests.vmmap.world import MEBIBYTE, add_peer, build, check_agreed, copy_of, sent_copy, write


@pytest.fixture
def world(vms: VMs, pool: Pool) -> VMs:
    build(vms, pool)
    return vms


@pytest.fixture
def peer(world: VMs, catalog: Catalog) -> int:
    return add_peer(catalog, "east")


@pytest.fixture
def far(world: VMs, pool: Pool, peer: int) -> VMs:
    """With a VM of two received snapshots."""
    receive(world, pool, peer, 1)
    receive(world, pool, peer, 2, [1])
    return world


CHANGES: dict[str, Callable[[VMs], Any]] = {
    "snapshot": lambda vms: vms.create_snapshot(FAR, "own"),
    "clone of what runs": lambda vms: vms.clone(FAR, None, "copy"),
    "restore": lambda vms: vms.restore(FAR, "far-1"),
    "restore of a disk": lambda vms: vms.restore(FAR, "far-1", disk="root"),
    "restore beside": lambda vms: vms.restore_beside(FAR, "far-1", "older", disk="root"),
    "new disk": lambda vms: vms.add_disk(FAR, "more", 4096),
    "disk that goes": lambda vms: vms.remove_disk(FAR, "root"),
    "disk that grows": lambda vms: vms.resize_disk(FAR, "root", 2 * MEBIBYTE),
    "image": lambda vms: vms.begin_import(FAR, "more", 4096, create=True),
    "registration": lambda vms: vms.begin_registration(FAR, HypervisorRow(1, "hv", "qemu:///system", 1, "2026-11-22"), FAR),
    "configuration": lambda vms: vms.set_config(FAR, "<other/>"),
    "stream": lambda vms: vms.begin_copy(
        copy_of(vms, "s2")._replace(base_uuid=sent_copy(1).uuid, base_name="far-1", disks=[])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_received_VM_is_not_changed(far: VMs, pool: Pool, catalog: Catalog, client: EngineClient, change: str) -> None:
    before = far.show_vm(FAR), far.list_snapshots(FAR), far.get_config(FAR)
    with pytest.raises(ReadOnly, match=f"received from peer east.*blockdevctl replicate promote {FAR}"):
        CHANGES[change](far)
    assert (far.show_vm(FAR), far.list_snapshots(FAR), far.get_config(FAR)) == before
    check_agreed(far, catalog, client)


def test_what_does_not_change_it_is_done(far: VMs, pool: Pool, catalog: Catalog, client: EngineClient) -> None:
    assert far.clone(FAR, "far-1", "copy").received is None
    assert pool.find("copy/root").read(0, 512)[:1] == b"1"
    far.restore_beside(FAR, "far-2", "beside")
    seed = CustomClone("seeded", "99999999-0000-4000-8000-000000000000", 4096)
    far.clone_customized(FAR, "far-2", [seed], lambda exports: None)
    far.rename_vm(FAR, "mine")
    far.set_description("mine", "of the other site")
    far.set_policy("mine", {"dedup": "off"})
    far.change_snapshot("mine", "far-1", {"locked_until": "2026-12-22T12:00:00.000Z"})
    far.delete_snapshot("mine", "far-2")
    shown = far.show_vm("mine").received
    assert shown is not None and shown.peer == "east"
    check_agreed(far, catalog, client)


def test_promoting_gives_it_the_disks_of_its_newest_snapshot_and_refuses_its_peer(
    far: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient
) -> None:
    begin(far, peer, 3, [2, 1])
    done = far.promote(FAR)
    assert (done.snapshot, done.disks, done.safety_snapshot) == ("far-2", ["root", "data"], None)
    assert [disk.export for disk in done.vm.disks] == [f"{FAR}/root", f"{FAR}/data"]
    assert pool.find(f"{FAR}/root").read(0, 512)[:1] == b"2"
    assert done.vm.received is not None and done.vm.received.promoted is not None
    assert far.get_config(FAR) == "<far>2</far>"
    assert catalog.receipts() == []
    far.create_snapshot(FAR, "own")
    with pytest.raises(NotAllowed, match="promoted there at"):
        begin(far, peer, 4, [2, 1])
    with pytest.raises(InvalidArgument, match="promoted already"):
        far.promote(FAR)
    check_agreed(far, catalog, client)


def test_promoting_to_a_named_snapshot_takes_that_one(far: VMs, pool: Pool) -> None:
    far.promote(FAR, "far-1")
    assert pool.find(f"{FAR}/root").read(0, 512)[:1] == b"1"
    assert far.get_config(FAR) == "<far>1</far>"


def test_what_was_received_when_it_is_promoted_is_refused(far: VMs, peer: int) -> None:
    receipt = begin(far, peer, 3, [2, 1])
    digests = far.receipt_digests(receipt)
    far.promote(FAR)
    with pytest.raises(NotFound):
        far.finish_receipt(receipt, digests)


def test_only_a_received_VM_with_a_snapshot_is_promoted(far: VMs) -> None:
    with pytest.raises(InvalidArgument, match="not received"):
        far.promote("web")
    with pytest.raises(NotFound, match="no snapshot none"):
        far.promote(FAR, "none")
    far.delete_snapshot(FAR, "far-1")
    far.delete_snapshot(FAR, "far-2")
    with pytest.raises(NotFound, match="no snapshot to be promoted to"):
        far.promote(FAR)


def test_a_VM_whose_peer_a_lost_catalog_forgot_is_promoted_all_the_same(
    far: VMs, pool: Pool, client: EngineClient, tmp_path: object
) -> None:
    catalog = Catalog(f"{tmp_path}/another.db")
    found = VMs(catalog, client)
    found.promote(FAR)
    assert pool.find(f"{FAR}/root").read(0, 512)[:1] == b"2"
    check_agreed(found, catalog, client)
    catalog.close()


def test_a_demoted_VM_keeps_its_snapshots_and_what_its_disks_held(
    world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient
) -> None:
    with catalog.transaction():
        path = catalog.insert_path("north", "host", 1, "key", 3, "{}", "2026-11-22T12:00:00.000Z")
        catalog.put_protection(catalog.vms()[2].id, path, None, None, 0, "2026-11-22T12:00:00.000Z")
    assert world.show_vm("web").protected_over == ["north"]
    done = world.demote("web", peer)
    assert done.safety_snapshot is not None and done.safety_snapshot.startswith("demoted-")
    assert (done.vm.disks, done.vm.protected_over) == ([], [])
    assert done.vm.received is not None and (done.vm.received.peer, done.vm.received.promoted) == ("east", None)
    safety = world.show_snapshot("web", done.safety_snapshot)
    assert (safety.origin, safety.config) == ("restore", "<web>3</web>")
    assert pool.find(f"web/data@{safety.name}").read(0, 512)[:1] == b"c"
    assert [one.name for one in world.list_snapshots("web")] == ["s1", "s2", safety.name]
    check_agreed(world, catalog, client)
    assert world.demote("web", peer).safety_snapshot is None  # it is one already
    promoted = world.promote("web")
    assert promoted.snapshot == safety.name and len(promoted.vm.disks) == 2


def test_a_VM_that_is_as_its_newest_snapshot_is_demoted_without_another(world: VMs, peer: int) -> None:
    world.create_snapshot("web", "s3")
    assert world.demote("web", peer).safety_snapshot is None


@pytest.mark.parametrize("change", ["byte", "configuration", "size", "disk", "no snapshot"])
def test_whatever_differs_from_the_newest_snapshot_is_kept(world: VMs, pool: Pool, peer: int, change: str) -> None:
    world.create_snapshot("web", "s3")
    if change == "byte":
        pool.find("web/data").write(MEBIBYTE, b"x" * 512)
    elif change == "configuration":
        world.set_config("web", "<other/>")
    elif change == "size":
        world.resize_disk("web", "root", 2 * MEBIBYTE)
    elif change == "disk":
        world.add_disk("web", "more", 4096)
    else:
        for one in world.list_snapshots("web"):
            world.delete_snapshot("web", one.name)
    assert world.demote("web", peer).safety_snapshot is not None


def test_a_demoted_VM_is_sent_only_what_differs(world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient) -> None:
    common = world.show_snapshot("web", "s2")
    world.demote("web", peer)
    vm = world.show_vm("web")
    sent = sent_copy(1)._replace(vm_uuid=vm.uuid, vm_name="web-there")
    receipt = world.begin_receipt(peer, "protect", sent, [common.uuid])
    assert receipt is not None and (receipt.base_uuid, receipt.vm_name) == (common.uuid, "web")
    world.finish_receipt(receipt, world.receipt_digests(receipt))
    assert world.get_config("web") == sent.config
    check_agreed(world, catalog, client)


def test_a_VM_in_use_is_demoted_by_force_only(world: VMs, pool: Pool, peer: int, attach: Callable[..., None]) -> None:
    attach("web/root")
    before = world.list_snapshots("web")
    with pytest.raises(Busy, match="qemu"):
        world.demote("web", peer)
    assert world.list_snapshots("web") == before and len(world.show_vm("web").disks) == 2
    done = world.demote("web", peer, force=True)
    assert done.cut_off == ["web/root by pid 7 (qemu)"] and done.vm.disks == []


def test_an_import_under_way_keeps_a_VM_from_being_demoted(world: VMs, peer: int) -> None:
    world.begin_import("web", "more", 4096, create=True)
    with pytest.raises(Busy, match="being imported"):
        world.demote("web", peer, force=True)


def test_a_stream_that_was_begun_before_a_VM_was_received_does_not_come_into_it(
    world: VMs, peer: int, catalog: Catalog, client: EngineClient
) -> None:
    begun = world.begin_copy(copy_of(world, "s2"))
    world.demote("web", peer)
    before = world.list_snapshots("web")
    with pytest.raises(ReadOnly, match="received from peer east"):
        world.finish_copy(begun)
    world.abort_copy(begun)
    assert world.list_snapshots("web") == before
    check_agreed(world, catalog, client)


def test_a_VM_that_is_received_from_one_peer_is_not_given_to_another(far: VMs, catalog: Catalog) -> None:
    other = add_peer(catalog, "west")
    with pytest.raises(AlreadyExists, match="received from peer east"):
        far.demote(FAR, other)
    with pytest.raises(NotFound, match="no such peer"):
        far.demote("web", 99)
    far.promote(FAR)
    shown = far.demote(FAR, other).vm.received
    assert shown is not None and (shown.peer, shown.promoted) == ("west", None)


def test_a_seed_is_adopted_without_a_safety_snapshot(world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient) -> None:
    begun = world.begin_copy(copy_of(world, None))
    pool.find(begun.exports[0]).write(0, b"s" * 512)
    seed = world.finish_copy(begun)
    done = world.demote("far-away", peer)
    assert done.safety_snapshot is None
    sent = sent_copy(1)._replace(vm_uuid=done.vm.uuid)
    receipt = world.begin_receipt(peer, "protect", sent, [seed.uuid])
    assert receipt is not None and receipt.base_uuid == seed.uuid
    world.finish_receipt(receipt, world.receipt_digests(receipt))
    check_agreed(world, catalog, client)


def test_digests_of_snapshots_are_those_of_their_content_however_they_came_about(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    digest = client.digest

    def count(older: int | None, *rest: Any) -> bytes:
        asked.append(older)
        return digest(older, *rest)

    web = next(vm for vm in catalog.vms() if vm.name == "web")
    s1, s2 = catalog.snapshots(web.id)
    monkeypatch.setattr(client, "digest", count)
    first = world.snapshot_digests(s1.id)
    assert asked == [None, None, None]
    second = world.snapshot_digests(s2.id)
    assert None not in asked[3:] and len(asked) == 5
    assert (world.snapshot_digests(s1.id), world.snapshot_digests(s2.id)) == (first, second) and len(asked) == 5
    for row, made in ((s1, first), (s2, second)):
        ids = [disk.object_id for disk in catalog.snapshot_disks(row.id)]
        assert made == [digest(None, b"", id) for id in ids if id is not None]
    assert first[0] != second[0] and first[1] == second[1]  # root has changed between them, data has not
    world.delete_snapshot("web", "s1")
    with pytest.raises(NotFound, match="was deleted"):
        world.snapshot_digests(s1.id)


def test_a_digest_is_made_again_when_what_it_is_made_from_goes_meanwhile(
    world: VMs, catalog: Catalog, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = next(vm for vm in catalog.vms() if vm.name == "web")
    s1, s2 = catalog.snapshots(web.id)
    world.snapshot_digests(s1.id)
    digest = client.digest

    def delete_first(*arguments: Any) -> bytes:
        monkeypatch.undo()
        world.delete_snapshot("web", "s1")
        return digest(*arguments)

    monkeypatch.setattr(client, "digest", delete_first)
    ids = [disk.object_id for disk in catalog.snapshot_disks(s2.id)]
    assert world.snapshot_digests(s2.id) == [digest(None, b"", id) for id in ids if id is not None]


def test_a_digest_of_what_was_deleted_meanwhile_is_not_that_of_the_snapshot_that_took_its_place(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = world.create_snapshot("db", "late")
    [row] = [row for row in catalog.snapshots() if row.uuid == taken.uuid]
    digest = client.digest

    def replace_it(*arguments: Any) -> bytes:
        made = digest(*arguments)
        monkeypatch.undo()
        world.delete_snapshot("db", "late")
        write(pool, "db/root", b"n")
        world.create_snapshot("db", "later")
        return made

    monkeypatch.setattr(client, "digest", replace_it)
    world.snapshot_digests(row.id)
    [later] = [row for row in catalog.snapshots() if row.name == "later"]
    ids = [disk.object_id for disk in catalog.snapshot_disks(later.id)]
    assert world.snapshot_digests(later.id) == [digest(None, b"", id) for id in ids if id is not None]


def test_a_home_without_room_for_a_digest_has_it_all_the_same(world: VMs, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    row = catalog.snapshots()[0]
    transaction = catalog.transaction

    def refuse_to_grow(grows: bool = False) -> Any:
        if grows:
            raise PoolFull("the file system below HOME is full")
        return transaction()

    monkeypatch.setattr(catalog, "transaction", refuse_to_grow)
    first = world.snapshot_digests(row.id)
    assert all(disk.digest is None for disk in catalog.snapshot_disks(row.id))
    monkeypatch.undo()
    assert world.snapshot_digests(row.id) == first
    assert all(disk.digest is not None for disk in catalog.snapshot_disks(row.id))


def test_a_write_makes_another_digest(world: VMs, pool: Pool, catalog: Catalog) -> None:
    made = []
    for byte in (b"1", b"2", b"1"):
        write(pool, "db/root", byte)
        taken = world.create_snapshot("db")
        [row] = [row for row in catalog.snapshots() if row.uuid == taken.uuid]
        made += world.snapshot_digests(row.id)
    assert made[0] == made[2] != made[1]
