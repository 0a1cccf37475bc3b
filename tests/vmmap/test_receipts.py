"""Snapshots that a peer sends: they go on after any restart, are seen when they are whole, and leave nothing when they are dropped."""

from __future__ import annotations

import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import AnswerLost, EngineClient
from blockdev.engine.server import EngineServer
from blockdev.errors import AlreadyExists, Busy, InvalidArgument, NotAllowed, NotFound, Unavailable
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs
from tests.vmmap.receiving import FAR, begin, fill, receive
from tests.vmmap.world import LATER, MEBIBYTE, add_peer, build, check_agreed, sent_copy


@pytest.fixture
def world(vms: VMs, pool: Pool) -> VMs:
    build(vms, pool)
    return vms


@pytest.fixture
def peer(world: VMs, catalog: Catalog) -> int:
    return add_peer(catalog, "east")


def names(pool: Pool) -> set[str | None]:
    return {thing.name for thing in pool.things()}


def test_the_first_snapshot_makes_a_VM_without_disks(world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient) -> None:
    sent = sent_copy(1)
    receipt = begin(world, peer)
    assert receipt.base_uuid is None and [disk[2:] for disk in receipt.disks] == [(MEBIBYTE, 0, False), (8192, 0, False)]
    assert FAR not in [vm.name for vm in world.list_vms()]
    fill(pool, receipt, b"1")
    digests = world.receipt_digests(receipt)
    made = world.finish_receipt(receipt, digests, keep_seconds=60.0, rpo_seconds=300)
    assert (made.vm, made.name, made.uuid, made.created) == (FAR, sent.name, sent.uuid, sent.created)
    assert (made.origin, made.asked, made.consistency, made.frozen_ms) == ("replication", "vm", "vm", 12)
    assert made.expires is not None and made.expires.startswith("2026-11-22T12:01")
    vm = world.show_vm(FAR)
    assert (vm.uuid, vm.disks, vm.snapshot_count) == (sent.vm_uuid, [], 1)
    assert vm.received is not None and (vm.received.peer, vm.received.promoted) == ("east", None)
    assert world.get_config(FAR) == sent.config
    assert names(pool).issuperset({f"{FAR}/root@{sent.name}", f"{FAR}/data@{sent.name}"})
    assert not [name for name in names(pool) if "~" in str(name) or name == f"{FAR}/root"]
    [row] = catalog.received_vms(peer)
    assert row.rpo_seconds == 300
    [snapshot] = [one for one in catalog.snapshots() if one.uuid == sent.uuid]
    assert [disk.digest for disk in catalog.snapshot_disks(snapshot.id)] == digests == world.snapshot_digests(snapshot.id)
    assert catalog.receipts() == [] == catalog.receipt_disks()
    check_agreed(world, catalog, client)


def test_the_next_one_builds_on_the_newest_that_both_have(
    world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient
) -> None:
    receive(world, pool, peer, 1)
    receive(world, pool, peer, 2, [1])
    receipt = begin(world, peer, 4, [3, 2, 1])
    assert receipt.base_uuid == sent_copy(2).uuid and all(disk.is_based for disk in receipt.disks)
    root, _ = (pool.get(disk.object_id) for disk in receipt.disks)
    assert root.read(0, 512)[:1] == b"2"
    root.write(4096, b"4" * 512)
    digests = world.receipt_digests(receipt)
    assert digests == [client.digest(None, b"", disk.object_id) for disk in receipt.disks]
    made = world.finish_receipt(receipt, digests)
    assert [one.name for one in world.list_snapshots(FAR)] == ["far-1", "far-2", "far-4"]
    assert pool.find(made.disks[0].export).read(0, 512)[:1] == b"2"
    assert made.expires is None
    check_agreed(world, catalog, client)


def test_disks_that_come_go_and_change_their_size_do_so_here(world: VMs, pool: Pool, peer: int) -> None:
    receive(world, pool, peer, 1)
    sent = sent_copy(2)
    root, data = sent.disks
    sent = sent._replace(disks=[root._replace(size_bytes=2 * MEBIBYTE), data._replace(name="new")])
    receipt = world.begin_receipt(peer, "protect", sent, [sent_copy(1).uuid])
    assert receipt is not None
    assert [(disk.name, disk.size_bytes, disk.is_based) for disk in receipt.disks] == [
        ("root", 2 * MEBIBYTE, True),
        ("new", 8192, False),
    ]
    assert pool.get(receipt.disks[0].object_id).size_bytes == 2 * MEBIBYTE


def test_what_is_here_already_is_not_begun(world: VMs, pool: Pool, peer: int) -> None:
    receive(world, pool, peer, 1)
    before = names(pool)
    assert world.begin_receipt(peer, "protect", sent_copy(1), []) is None
    assert names(pool) == before


def test_a_receipt_goes_on_where_it_was_saved(world: VMs, pool: Pool, peer: int) -> None:
    first = begin(world, peer)
    world.save_receipt(first, [7, 1], 12345)
    again = begin(world, peer)
    assert again == first._replace(
        data_bytes=12345, disks=[disk._replace(next_block=block) for disk, block in zip(first.disks, [7, 1], strict=True)]
    )


def test_a_dead_control_plane_leaves_its_receipts_to_the_next(
    world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient
) -> None:
    first = begin(world, peer)
    world.save_receipt(first, [7, 1], 12345)
    after = VMs(catalog, client)
    assert after.reconcile().dropped == []
    again = begin(after, peer)
    assert (again.id, [disk.next_block for disk in again.disks]) == (first.id, [7, 1])
    after.finish_receipt(again, after.receipt_digests(again))
    check_agreed(after, catalog, client)


def test_an_engine_that_was_restarted_has_what_was_saved_and_says_that_the_rest_may_be_lost(
    world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient, server: EngineServer, socket_path: str
) -> None:
    first = begin(world, peer)
    world.save_receipt(first, [7, 1], 12345)
    server.stop()
    another = EngineServer(pool, Attachments(), socket_path)
    another.start()
    with pytest.raises(Unavailable, match="restarted"):
        world.make_receipt_durable(first)
    with pytest.raises(Unavailable, match="restarted"):
        world.receipt_digests(first)
    again = begin(world, peer)
    assert (again.id, [disk.next_block for disk in again.disks]) == (first.id, [7, 1])
    world.save_receipt(again, [9, 2], 23456)
    world.finish_receipt(again, world.receipt_digests(again))
    check_agreed(world, catalog, client)
    another.stop()


def test_a_receipt_that_lost_a_vdisk_is_dropped_with_the_others(
    world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient
) -> None:
    first = begin(world, peer)
    client.delete([first.disks[1].object_id])
    assert len(world.reconcile().dropped) == 1
    assert catalog.receipts() == [] and not [name for name in names(pool) if "~" in str(name)]
    with pytest.raises(NotFound):
        world.save_receipt(first, [1, 1], 1)
    again = begin(world, peer)
    client.delete([again.disks[0].object_id])
    assert begin(world, peer).id == again.id, "nobody has noticed yet"
    world.doubt_receipt(again.id)
    anew = begin(world, peer)
    assert anew.id > again.id and len([name for name in names(pool) if "~" in str(name)]) == 2


def test_a_base_that_the_peer_lost_begins_it_anew(world: VMs, pool: Pool, peer: int) -> None:
    receive(world, pool, peer, 1)
    receive(world, pool, peer, 2, [1])
    first = begin(world, peer, 3, [2, 1])
    again = begin(world, peer, 3, [1])
    assert (first.base_uuid, again.base_uuid) == (sent_copy(2).uuid, sent_copy(1).uuid)
    none = begin(world, peer, 3, [])
    assert none.base_uuid is None and not any(disk.is_based for disk in none.disks)
    assert len([name for name in names(pool) if "~" in str(name)]) == 2


def test_a_base_that_was_deleted_here_leaves_the_receipt_whole_and_the_next_one_takes_an_older(
    world: VMs, pool: Pool, peer: int, client: EngineClient
) -> None:
    receive(world, pool, peer, 1)
    receive(world, pool, peer, 2, [1])
    receipt = begin(world, peer, 3, [2, 1])
    world.delete_snapshot(FAR, "far-2")
    assert world.receipt_digests(receipt) == [client.digest(None, b"", disk.object_id) for disk in receipt.disks]
    world.drop_receipt(receipt.id)
    assert begin(world, peer, 3, [2, 1]).base_uuid == sent_copy(1).uuid


def test_the_receipt_before_stays_until_the_next_is_whole_and_no_more_than_one(world: VMs, pool: Pool, peer: int, catalog: Catalog) -> None:
    for number in (1, 2, 3):
        begin(world, peer, number)
    assert [row.snapshot_uuid for row in catalog.receipts()] == [sent_copy(2).uuid, sent_copy(3).uuid]
    assert len([name for name in names(pool) if "~" in str(name)]) == 4
    receive(world, pool, peer, 3)
    assert catalog.receipts() == [] and not [name for name in names(pool) if "~" in str(name)]


def test_dropped_receipts_leave_nothing(world: VMs, pool: Pool, peer: int, catalog: Catalog) -> None:
    before = names(pool)
    other = add_peer(catalog, "west")
    first = begin(world, peer)
    world.drop_receipt(first.id)
    world.drop_receipt(first.id)
    assert names(pool) == before
    begin(world, peer)
    world.begin_receipt(other, "copy", sent_copy(1)._replace(vm_name="other"), [])
    world.forget_peer(peer)
    assert [row.peer_id for row in catalog.receipts()] == [other] and catalog.peer_by_id(peer) is None
    with pytest.raises(NotFound, match="no peer of this home"):
        begin(world, peer)
    assert world.drop_stale_receipts("2026-11-22T12:00:00.000Z") == []
    assert world.drop_stale_receipts(LATER) == ["other@far-1"]
    assert names(pool) == before and catalog.receipts() == []


def test_a_VM_that_is_deleted_takes_its_receipts_along(world: VMs, pool: Pool, peer: int, catalog: Catalog) -> None:
    before = names(pool)
    receive(world, pool, peer, 1)
    receipt = begin(world, peer, 2, [1])
    with pytest.raises(Busy, match="sends it again"):
        world.delete_vm(FAR)
    world.delete_vm(FAR, force=True)
    assert names(pool) == before and catalog.receipts() == []
    with pytest.raises(NotFound):
        world.finish_receipt(receipt, [b"", b""])


def test_a_copy_is_a_VM_of_its_own(world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient) -> None:
    receive(world, pool, peer, 1)
    sent = sent_copy(1)._replace(vm_name="copied")
    receipt = world.begin_receipt(peer, "copy", sent, [sent.uuid])
    assert receipt is not None and receipt.base_uuid == sent.uuid
    beside = world.begin_receipt(peer, "copy", sent._replace(vm_name="another"), [])
    assert beside is not None and beside.id != receipt.id and beside.base_uuid is None
    made = world.finish_receipt(receipt, world.receipt_digests(receipt))
    vm = world.show_vm("copied")
    assert (made.vm, made.uuid, vm.received) == ("copied", sent.uuid, None)
    assert vm.uuid != sent.vm_uuid and [disk.name for disk in vm.disks] == ["root", "data"]
    assert pool.find("copied/root").read(0, 512)[:1] == b"1"
    world.create_snapshot("copied", "own")
    assert world.begin_receipt(peer, "copy", sent, []) is None  # it is whole: the answer was lost
    world.drop_receipt(beside.id)
    check_agreed(world, catalog, client)


def test_a_copy_needs_a_free_name(world: VMs, pool: Pool, peer: int) -> None:
    receive(world, pool, peer, 1)
    for name in ("web", FAR):  # the received one is not the copy that is asked for
        with pytest.raises(AlreadyExists, match=f"VM {name}"):
            world.begin_receipt(peer, "copy", sent_copy(1)._replace(vm_name=name), [])
    receipt = world.begin_receipt(peer, "copy", sent_copy(1)._replace(vm_name="free"), [])
    assert receipt is not None
    world.create_vm("free", [])
    with pytest.raises(AlreadyExists):
        world.finish_receipt(receipt, world.receipt_digests(receipt))


def test_a_copy_builds_on_nothing_that_another_peer_sent(world: VMs, pool: Pool, peer: int, catalog: Catalog) -> None:
    receive(world, pool, peer, 1)
    other = add_peer(catalog, "west")
    receipt = world.begin_receipt(other, "copy", sent_copy(2)._replace(vm_name="copied"), [sent_copy(1).uuid])
    assert receipt is not None and receipt.base_uuid is None


def test_names_that_are_taken_here_are_not_in_the_way(world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient) -> None:
    world.create_vm(FAR, [])
    receive(world, pool, peer, 1)
    vm = world.show_vm(f"{FAR}-2")
    assert vm.uuid == sent_copy(1).vm_uuid
    receipt = world.begin_receipt(peer, "protect", sent_copy(2)._replace(name="far-1"), [sent_copy(1).uuid])
    assert receipt is not None
    made = world.finish_receipt(receipt, world.receipt_digests(receipt))
    assert (made.vm, made.name, made.uuid) == (f"{FAR}-2", "far-1-2", sent_copy(2).uuid)
    check_agreed(world, catalog, client)


def test_a_VM_that_was_renamed_here_is_received_further(world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient) -> None:
    receive(world, pool, peer, 1)
    receipt = begin(world, peer, 2, [1])
    world.rename_vm(FAR, "mine")
    made = world.finish_receipt(receipt, world.receipt_digests(receipt))
    assert (made.vm, world.show_vm("mine").snapshot_count) == ("mine", 2)
    check_agreed(world, catalog, client)


def test_a_VM_with_disks_here_refuses_a_peer_and_so_does_one_of_another(world: VMs, pool: Pool, peer: int, catalog: Catalog) -> None:
    mine = sent_copy(1)._replace(vm_uuid=world.show_vm("web").uuid)
    with pytest.raises(AlreadyExists, match="replicate receive web"):
        world.begin_receipt(peer, "protect", mine, [])
    receive(world, pool, peer, 1)
    other = add_peer(catalog, "west")
    with pytest.raises(NotAllowed, match="another peer"):
        world.begin_receipt(other, "protect", sent_copy(2), [])


def test_a_VM_that_came_meanwhile_refuses_the_end(world: VMs, pool: Pool, peer: int, catalog: Catalog) -> None:
    """From another peer, say: whose it is, is what the first whole snapshot says."""
    other = add_peer(catalog, "west")
    receipt = begin(world, peer)
    receive(world, pool, other, 2)
    with pytest.raises(NotAllowed):
        world.finish_receipt(receipt, world.receipt_digests(receipt))


@pytest.mark.parametrize("is_done", [False, True])
def test_a_lost_answer_to_the_end_is_found_out_by_beginning_again(
    world: VMs, pool: Pool, peer: int, catalog: Catalog, client: EngineClient, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    receipt = begin(world, peer)
    world.save_receipt(receipt, [3, 0], 1)
    relabel = client.relabel

    def lose(*arguments: object, **named: object) -> None:
        monkeypatch.undo()
        if is_done:
            relabel(*arguments, **named)  # type: ignore[arg-type]
        raise AnswerLost("the answer is lost")

    digests = world.receipt_digests(receipt)
    monkeypatch.setattr(client, "relabel", lose)
    with pytest.raises(AnswerLost):
        world.finish_receipt(receipt, digests)
    again = world.begin_receipt(peer, "protect", sent_copy(1), [])
    assert again is None if is_done else again is not None and again.disks[0].next_block == 3
    assert (FAR in [vm.name for vm in world.list_vms()]) == is_done
    if again is not None:
        world.drop_receipt(again.id)
    check_agreed(world, catalog, client)


def test_names_that_cannot_be_used_are_refused(world: VMs, peer: int) -> None:
    for wrong in ({"vm_name": "a/b"}, {"name": "a@b"}):
        with pytest.raises(InvalidArgument):
            world.begin_receipt(peer, "protect", sent_copy(1)._replace(**wrong), [])  # type: ignore[arg-type]


def test_a_lost_catalog_knows_the_VM_again_as_received_and_its_peer_goes_on(
    world: VMs, pool: Pool, peer: int, client: EngineClient, tmp_path: object
) -> None:
    receive(world, pool, peer, 1)
    begin(world, peer, 2, [1])
    catalog = Catalog(f"{tmp_path}/another.db")
    found = VMs(catalog, client)
    assert len(found.reconcile().dropped) == 2  # the receipt: the catalog alone knew how far it was
    assert found.show_vm(FAR).received is None
    again = add_peer(catalog, "east")
    [mine] = found.list_snapshots(FAR)
    receipt = found.begin_receipt(again, "protect", sent_copy(2), [mine.uuid])
    assert receipt is not None and receipt.base_uuid == mine.uuid
    found.finish_receipt(receipt, found.receipt_digests(receipt))
    shown = found.show_vm(FAR).received
    assert shown is not None and shown.peer == "east"
    check_agreed(found, catalog, client)
    catalog.close()
