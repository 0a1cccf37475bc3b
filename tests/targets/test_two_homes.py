"""Targets of a VM that two homes have, by turns: which disks are LUNs, as the catalogs decide; the kernel follows them (lio_story.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockdev.targets import model
from blockdev.targets.service import Targets, Wish

from blockdev.clock import now_seconds
from blockdev.errors import NotFound
from blockdev.home import Home
from blockdev.vmmap.clock import to_text
from tests.cli.served import until
from tests.replicate.two_homes import Site, World, world

__all__ = ["world"]
INITIATOR = "iqn.1993-08.org.debian:01:a1b2c3"


@pytest.fixture
def here(world: World, tmp_path: Path) -> Targets:
    return targets_of(world.here, tmp_path / "here")


@pytest.fixture
def there(world: World, tmp_path: Path) -> Targets:
    return targets_of(world.there, tmp_path / "there")


def targets_of(site: Site, path: Path) -> Targets:
    site.vms.reconcile()
    return Targets(Home(path), site.vms, site.catalog, site.engine, now_seconds)


def want_target(site: Site, targets: Targets, vm: str) -> None:
    """As `target add` writes it down; this machine's kernel need not have LIO."""
    with site.catalog.transaction():
        row = site.catalog.vm(vm)
        assert row is not None
        site.catalog.insert_target(row.id, model.target_iqn("0" * 8, row.name, row.uuid), False, model.DEPTH, to_text(now_seconds()))
    targets.change(vm, Wish(initiators=[INITIATOR], portals=[model.LOOPBACK]))


def exports(targets: Targets, vm: str = "web") -> list[str]:
    return [lun.export for lun in targets.show(vm).luns]


def test_a_received_vm_has_no_luns_but_of_snapshots_and_its_disks_are_luns_when_it_is_promoted(world: World, there: Targets) -> None:
    world.here.service.protect("web", "far")
    world.wait()
    want_target(world.there, there, "web")
    assert exports(there) == [], "nobody here writes to a VM that is received"
    there.change("web", Wish(snapshots=["s1"]))
    luns = there.show("web").luns
    assert [(lun.export, lun.snapshot) for lun in luns] == [("web/root@s1", "s1"), ("web/data@s1", "s1")]
    world.there.service.promote("web")
    there.change("web", Wish(depth=8))
    shown = there.show("web").luns
    assert shown[:2] == luns, "what was a LUN keeps its number and serial"
    assert {lun.export for lun in shown[2:]} == {"web/root", "web/data"}
    world.there.write("web/root", 0, b"written by an initiator")


def test_the_former_source_has_no_disks_to_write_to_after_a_reverse(world: World, here: Targets, there: Targets) -> None:
    want_target(world.here, here, "web")
    here.change("web", Wish(snapshots=["s1"]))
    before = here.show("web").luns
    assert [lun.export for lun in before] == ["web/root", "web/data", "web/root@s1", "web/data@s1"]
    world.here.service.protect("web", "far")
    world.wait()
    world.there.service.promote("web")
    assert exports(here)[:2] == ["web/root", "web/data"], "until it is told, the source goes on: its peer cannot know better"
    world.there.service.add_path("back", "here.example", key=world.here.key)
    world.here.service.reverse("web")
    assert here.show("web").luns == before[2:], "snapshots can still be read"
    for disk in ("root", "data"):
        with pytest.raises(NotFound):
            world.here.engine.find(f"web/{disk}")
    want_target(world.there, there, "web")
    assert exports(there) == ["web/root", "web/data"]
    world.there.write("web/root", 3, b"by the new source")
    until(lambda: world.there.status("web").state == "up to date", "it to come back")
    world.here.service.promote("web")
    here.change("web", Wish(depth=8))
    again = here.show("web").luns
    assert again[:2] == before[2:] and {lun.export for lun in again[2:]} == {"web/root", "web/data"}
    assert not {lun.serial for lun in again[2:]} & {lun.serial for lun in before}, "an initiator must not take them for the disks before"
