"""What is protected, and what is sent of it, whatever happens at the same time or to the pool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from blockdev.errors import Busy
from tests.replicate.two_homes import World, a_key, world

__all__ = ["world"]


def before_it_is_written(world: World, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Have something happen once, when `protect` is about to write down what it has looked at."""
    begin, due = world.here.catalog.transaction, [happens]

    def transaction(*arguments: Any, **named: Any) -> AbstractContextManager[None]:
        if named.get("grows") and due:
            due.pop()()
        return begin(*arguments, **named)

    monkeypatch.setattr(world.here.catalog, "transaction", transaction)


def test_a_vm_that_is_unprotected_while_it_is_protected_again_begins_with_its_newest_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    newest = [world.here.vms.create_snapshot("web", name) for name in ("s2", "s3")][-1]
    world.wait()
    before_it_is_written(world, monkeypatch, lambda: world.here.service.unprotect("web"))
    world.here.service.protect("web", "far", rpo_seconds=60)
    vm = world.here.catalog.vm("web")
    assert vm is not None
    [row] = world.here.catalog.protections(vm.id)
    assert (row.from_lsn, row.rpo_seconds) == (newest.lsn, 60)


def test_a_vm_that_becomes_received_while_it_is_protected_is_not_protected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.here.service.add_peer("third", a_key(9), ["web"])
    before_it_is_written(world, monkeypatch, lambda: world.here.service.receive("web", "third"))
    with pytest.raises(Busy, match="is received from third"):
        world.here.service.protect("web", "far")
    vm = world.here.catalog.vm("web")
    assert vm is not None and world.here.catalog.protections(vm.id) == []


def test_a_snapshot_that_the_pool_has_lost_a_disk_of_holds_up_no_later_one(world: World) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    world.here.service.pause("web")
    lost, _ = (world.here.vms.create_snapshot("web", name) for name in ("s2", "s3"))
    vm = world.here.catalog.vm("web")
    assert vm is not None
    with world.here.catalog.transaction():
        [damaged] = [one for one in world.here.catalog.snapshots(vm.id) if one.name == lost.name]
        world.here.catalog.lose_snapshot_disk(world.here.catalog.snapshot_disks(damaged.id)[0].id)
    world.here.service.resume("web")
    assert world.wait().newest == "s3"
    assert [one.name for one in world.there.vms.list_snapshots("web")] == ["s1", "s3"]
    assert [one for one in world.here.events() if "lacks a disk" in one and one.startswith("error web:") and one.endswith(": s2")]
    world.here.vms.delete_snapshot("web", "s2")
