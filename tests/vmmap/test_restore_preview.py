"""What a restore is said to change is what it changes: counted from the snapshot to the disks as they are, nothing taken for it."""

from __future__ import annotations

import pytest

from blockdev import Pool
from blockdev.errors import NotFound
from blockdev.vmmap.model import DiskRestore
from blockdev.vmmap.service import VMs
from tests.vmmap.world import MEBIBYTE

BLOCK = 4096


@pytest.fixture
def web(vms: VMs, pool: Pool) -> VMs:
    """One block of each disk written, then snapshot s1."""
    vms.create_vm("web", [("root", MEBIBYTE), ("data", MEBIBYTE)], "<domain/>")
    for disk in ("root", "data"):
        pool.find(f"web/{disk}").write(0, disk[:1].encode() * BLOCK)
    vms.create_snapshot("web", "s1")
    return vms


def test_an_untouched_vm_changes_nothing(web: VMs) -> None:
    found = web.preview_restore("web", "s1")
    assert (found.changed_bytes, found.kept_disks, found.config_changes, found.newer_snapshot_count) == (0, [], False, 0)
    assert [one.disk for one in found.disks] == ["root", "data"]


def test_what_was_written_and_discarded_since_is_counted_without_a_new_snapshot(web: VMs, pool: Pool) -> None:
    pool.find("web/root").write(5 * BLOCK, b"x" * 2 * BLOCK)
    pool.find("web/root").discard(0, BLOCK)
    found = web.preview_restore("web", "s1")
    assert found.disks[0] == DiskRestore("root", MEBIBYTE, MEBIBYTE, 3 * BLOCK, 2, [])
    assert found.changed_bytes == 3 * BLOCK and len(web.list_snapshots("web")) == 1
    web.restore("web", "s1")
    assert web.preview_restore("web", "s1").changed_bytes == 0


def test_disks_that_come_back_and_that_stay_are_named(web: VMs, pool: Pool) -> None:
    web.remove_disk("web", "data")
    web.add_disk("web", "new", MEBIBYTE)
    web.resize_disk("web", "root", 2 * MEBIBYTE)
    found = web.preview_restore("web", "s1")
    assert found.disks == [DiskRestore("root", MEBIBYTE, 2 * MEBIBYTE, 0, 0, []), DiskRestore("data", MEBIBYTE, None, BLOCK, 1, [])]
    assert found.kept_disks == ["new"]
    assert [one.disk for one in web.preview_restore("web", "s1", "data").disks] == ["data"]
    assert web.preview_restore("web", "s1", "data").kept_disks == []


def test_another_configuration_and_newer_snapshots_are_told(web: VMs) -> None:
    web.set_config("web", "<domain>other</domain>")
    web.create_snapshot("web", "s2")
    found = web.preview_restore("web", "s1")
    assert found.config_changes and found.newer_snapshot_count == 1
    assert not web.preview_restore("web", "s1", "root").config_changes, "a disk alone has no configuration"


def test_what_is_not_there_has_no_preview(web: VMs) -> None:
    for wrong in (("none", "s1", None), ("web", "none", None), ("web", "s1", "none")):
        with pytest.raises(NotFound):
            web.preview_restore(*wrong)
