"""A catalog on a file system without a byte left: what a delete needs was kept for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockdev.errors import MediumError
from blockdev.vmmap.catalog import Catalog
from tests.nbd.file_system import mounted, take_all_room
from tests.vmmap.test_catalog import NOW

SNAPSHOTS = 300


def make(path: Path) -> Catalog:
    catalog = Catalog(path)
    with catalog.transaction():
        vm = catalog.insert_vm("u", "web", NOW)
    for number in range(SNAPSHOTS):
        with catalog.transaction():
            snapshot = catalog.insert_snapshot(vm, f"s{number}", NOW, number)
            catalog.put_snapshot_disk(snapshot, "root", number + 1, 512)
    return catalog


def delete(catalog: Catalog, count: int) -> None:
    """As the control plane does it: an intent, then what it stands for."""
    for snapshot in catalog.snapshots()[:count]:
        with catalog.transaction():
            intent = catalog.insert_intent(
                "delete_snapshot", {"snapshot": snapshot.name, "objects": [1] * 1000}
            )
        with catalog.transaction():
            catalog.delete_snapshot(snapshot.id)
            catalog.delete_intent(intent)


def test_deletes_go_on_without_any_room_and_after_reopening() -> None:
    with mounted("ext4", 96 << 20) as directory:
        catalog = make(directory / "catalog.db")
        take_all_room(directory / "foreign")
        delete(catalog, SNAPSHOTS // 2)
        catalog.close()
        take_all_room(directory / "foreign")
        again = Catalog(directory / "catalog.db")
        delete(again, SNAPSHOTS // 2)
        with pytest.raises(MediumError, match="cannot be written"), again.transaction():
            again.insert_vm("v", "large", NOW, config="x" * (16 << 20))
        os.unlink(directory / "foreign")
        with again.transaction():
            again.insert_vm("v", "large", NOW, config="x" * (16 << 20))
        assert again.snapshots() == []
        again.close()
