"""Snapshots that come from elsewhere: seen when they are whole, dropped when nobody goes on with them."""

from __future__ import annotations

import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import AnswerLost, EngineClient
from blockdev.engine.server import EngineServer
from blockdev.errors import AlreadyExists, BlockdevError, InvalidArgument, NotFound
from blockdev.policies import DiskPolicy
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs
from tests.vmmap.world import LATER, MEBIBYTE, build, check_agreed, copy_of, write


@pytest.fixture
def world(vms: VMs, pool: Pool) -> VMs:
    build(vms, pool)
    return vms


def names(pool: Pool) -> set[str | None]:
    return {thing.name for thing in pool.things()}


def test_a_snapshot_on_a_base_has_its_bytes_where_nothing_was_written(world: VMs, pool: Pool) -> None:
    before = world.show_vm("web")
    begun = world.begin_copy(copy_of(world, "s2"), expires=LATER)
    root, data, extra = (pool.find(export) for export in begun.exports)
    assert root.policy == data.policy == extra.policy == DiskPolicy("inline", None)
    assert (root.size_bytes, data.size_bytes, extra.size_bytes) == (2 * MEBIBYTE, 4096, 8192)
    assert root.read(0, 512)[:1] == pool.find("web/root@s2").read(0, 512)[:1] == b"B"
    root.write(MEBIBYTE, b"new" + bytes(509))
    made = world.finish_copy(begun)
    assert (made.vm, made.name, made.origin, made.created) == ("web", "far", "import", "2026-11-20T12:00:00.000Z")
    assert (made.consistency, made.asked, made.frozen_ms, made.expires, made.config) == ("vm", "vm", 12, LATER, "<far/>")
    assert pool.find("web/root@far").read(0, 512)[:1] == b"B" and pool.find("web/root@far").read(MEBIBYTE, 512)[:3] == b"new"
    after = world.show_vm("web")
    assert after.disks == before.disks and world.get_config("web") == "<web>3</web>"
    assert [one.name for one in world.list_snapshots("web")] == ["s1", "s2", "far"]
    assert not [name for name in names(pool) if "~" in str(name)]


def test_a_snapshot_without_a_base_makes_a_VM(world: VMs, pool: Pool) -> None:
    copy = copy_of(world, None)
    begun = world.begin_copy(copy)
    pool.find(begun.exports[0]).write(0, b"r" * 4096)
    assert "far-away" not in [vm.name for vm in world.list_vms()]
    made = world.finish_copy(begun)
    vm = world.show_vm("far-away")
    assert (vm.uuid, made.uuid, made.origin) == (copy.vm_uuid, copy.uuid, "import")
    assert pool.find("far-away/root").read(0, 512)[:1] == pool.find("far-away/root@far").read(0, 512)[:1] == b"r"
    assert world.get_config("far-away") == "<far/>"
    second = world.finish_copy(world.begin_copy(copy, vm="other", name="s"))
    assert second.uuid == copy.uuid and world.show_vm("other").uuid != copy.vm_uuid


def test_a_disk_of_the_base_that_is_not_built_on_may_be_missing(world: VMs, pool: Pool, client: EngineClient) -> None:
    client.delete([pool.find("web/old@s1").id])
    world.reconcile()
    world.finish_copy(world.begin_copy(copy_of(world, "s1")))
    assert pool.find("web/root@far").read(0, 512)[:1] == b"A"


def test_a_VM_that_comes_twice_at_once_is_two_VMs(world: VMs, pool: Pool, catalog: Catalog, client: EngineClient) -> None:
    copy = copy_of(world, None)
    first, second = world.begin_copy(copy, vm="one"), world.begin_copy(copy, vm="two")
    world.finish_copy(first)
    world.finish_copy(second)
    assert world.show_vm("one").uuid == copy.vm_uuid != world.show_vm("two").uuid
    check_agreed(world, catalog, client)


def test_an_agreement_in_between_lets_it_go_on(world: VMs, pool: Pool, catalog: Catalog, client: EngineClient) -> None:
    begun = world.begin_copy(copy_of(world, "s2"))
    assert world.reconcile().dropped == []
    pool.find(begun.exports[0]).write(0, b"z" * 512)
    world.finish_copy(begun)
    assert pool.find("web/root@far").read(0, 512)[:1] == b"z"
    check_agreed(world, catalog, client)


def test_what_a_dead_control_plane_began_goes(world: VMs, pool: Pool, catalog: Catalog, client: EngineClient) -> None:
    before = names(pool)
    world.begin_copy(copy_of(world, "s2"))
    world.begin_copy(copy_of(world, None))
    after = VMs(catalog, client)
    assert len(after.reconcile().dropped) == 6
    assert names(pool) == before


def test_an_engine_that_was_restarted_ends_it(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient, server: EngineServer, socket_path: str
) -> None:
    """What was written to it may not have been durable."""
    begun = world.begin_copy(copy_of(world, "s2"))
    server.stop()
    another = EngineServer(pool, Attachments(), socket_path)
    another.start()
    with pytest.raises(NotFound, match="the engine was restarted"):
        world.finish_copy(begun)
    world.abort_copy(begun)
    check_agreed(world, catalog, client)
    assert [one.name for one in world.list_snapshots("web")] == ["s1", "s2"]
    another.stop()


def test_giving_up_after_it_was_finished_takes_nothing_away(world: VMs, pool: Pool) -> None:
    """As whoever wrote it does when the answer to the last step was lost and the next agreement found it done."""
    begun = world.begin_copy(copy_of(world, None))
    world.finish_copy(begun)
    before = names(pool)
    world.abort_copy(begun)
    assert names(pool) == before


@pytest.mark.parametrize("is_done", [False, True])
def test_giving_up_when_an_answer_was_lost_agrees_first(
    world: VMs, pool: Pool, catalog: Catalog, client: EngineClient, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    begun = world.begin_copy(copy_of(world, None))
    relabel = client.relabel

    def lose(*arguments: object, **named: object) -> None:
        monkeypatch.undo()
        if is_done:
            relabel(*arguments, **named)  # type: ignore[arg-type]
        raise AnswerLost("the answer is lost")

    monkeypatch.setattr(client, "relabel", lose)
    with pytest.raises(AnswerLost):
        world.finish_copy(begun)
    world.abort_copy(begun)
    assert catalog.intents() == [] and not [name for name in names(pool) if "~" in str(name)]
    assert ("far-away" in [vm.name for vm in world.list_vms()]) == is_done
    check_agreed(world, catalog, client)


def test_what_was_taken_meanwhile_refuses_it(world: VMs, pool: Pool) -> None:
    on_base, whole = world.begin_copy(copy_of(world, "s2")), world.begin_copy(copy_of(world, None))
    world.create_snapshot("web", "far")
    world.create_vm("far-away", [])
    for begun, words in ((on_base, "--name"), (whole, "--vm")):
        with pytest.raises(AlreadyExists, match=words):
            world.finish_copy(begun)
        world.abort_copy(begun)
    assert not [name for name in names(pool) if "~" in str(name)]


def test_a_VM_that_is_deleted_meanwhile_ends_it(world: VMs, pool: Pool) -> None:
    begun = world.begin_copy(copy_of(world, "s2"))
    world.delete_vm("web")
    with pytest.raises(NotFound, match="was deleted"):
        world.finish_copy(begun)
    world.abort_copy(begun)
    assert not [name for name in names(pool) if str(name).startswith("web")]


def test_refusals_make_nothing(world: VMs, pool: Pool) -> None:
    world.finish_copy(world.begin_copy(copy_of(world, "s2")))
    before = names(pool)
    copy = copy_of(world, "s2")
    other = "aaaaaaaa-2222-4333-8444-555555555555"
    lacking = copy._replace(uuid=other, disks=[copy.disks[0]._replace(name="no")])
    refusals: list[tuple[object, str | None, str | None, type[BlockdevError], str]] = [
        (copy, None, None, AlreadyExists, "it is web@far"),
        (copy._replace(uuid=other), None, None, AlreadyExists, "--name"),
        (copy._replace(base_uuid=other), None, None, NotFound, f"far-away@s2 .uuid {other}., which no VM here has"),
        (copy._replace(uuid=other), "db", "x", NotFound, "VM db does not have"),
        (lacking, None, "x", NotFound, "has no disk no"),
        (copy_of(world, None), "web", None, AlreadyExists, "--vm"),
        (copy_of(world, None), "a/b", None, InvalidArgument, "VM name"),
        (copy._replace(uuid=other), None, "a/b", InvalidArgument, "snapshot name"),
    ]
    for wanted, vm, name, error, words in refusals:
        with pytest.raises(error, match=words):
            world.begin_copy(wanted, vm, name)  # type: ignore[arg-type]
    assert names(pool) == before


def test_a_lost_catalog_finds_the_uuid_of_a_copy_again(
    world: VMs, pool: Pool, client: EngineClient, tmp_path: object
) -> None:
    """When its VM came with it: a uuid is made of what the pool knows."""
    write(pool, "db/root", b"d")
    taken = world.create_snapshot("db", "gone")
    vm_uuid = world.show_vm("db").uuid
    world.delete_vm("db")
    copy = copy_of(world, None)._replace(uuid=taken.uuid, name="gone", created=taken.created, vm_uuid=vm_uuid, vm_name="db")
    world.finish_copy(world.begin_copy(copy))
    catalog = Catalog(f"{tmp_path}/another.db")
    found = VMs(catalog, client)
    found.reconcile()
    again = found.show_snapshot("db", "gone")
    assert (again.uuid, again.created, again.origin) == (taken.uuid, taken.created, "import")
    catalog.close()
