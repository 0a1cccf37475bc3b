"""What changed since the snapshot before is counted afterwards, the newest first, and stays when that one goes."""

from __future__ import annotations

import pytest

from blockdev import Pool
from blockdev.engine.client import EngineClient
from blockdev.errors import Unavailable
from blockdev.vmmap import changed_bytes
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.changed_bytes import ChangeCounter
from blockdev.vmmap.service import VMs
from tests.vmmap.world import MEBIBYTE

BLOCK = 4096


@pytest.fixture
def counter(catalog: Catalog, client: EngineClient) -> ChangeCounter:
    return ChangeCounter(catalog, client)


@pytest.fixture
def web(vms: VMs, pool: Pool) -> VMs:
    """Snapshots a, b and c; at each of them more was written."""
    vms.create_vm("web", [("root", MEBIBYTE), ("data", MEBIBYTE)])
    for number, name in enumerate("abc", 1):
        for block in range(number):
            pool.find("web/root").write(block * BLOCK, bytes([number, block, 1]) + bytes(BLOCK - 3))
        pool.find("web/data").write(number * BLOCK, bytes([number]) * BLOCK)
        vms.create_snapshot("web", name)
    return vms


def counted(vms: VMs, vm: str = "web") -> dict[str, int | None]:
    return {one.name: one.changed_bytes for one in vms.list_snapshots(vm)}


def test_a_snapshot_counts_what_changed_and_the_first_one_what_it_holds(web: VMs, counter: ChangeCounter) -> None:
    assert counted(web) == {"a": None, "b": None, "c": None}
    assert counter.count_some() == 3
    assert counted(web) == {"a": 2 * BLOCK, "b": 3 * BLOCK, "c": 4 * BLOCK}
    assert web.show_snapshot("web", "b").changed_bytes == web.diff("web", "a", "b").changed_bytes
    assert counter.count_some() == 0 and counter.newest_uncounted() is None


def test_discards_count_and_new_disks_in_full(web: VMs, pool: Pool, counter: ChangeCounter) -> None:
    pool.find("web/root").discard(0, 2 * BLOCK)
    web.add_disk("web", "more", MEBIBYTE)
    pool.find("web/more").write(0, b"m" * 3 * BLOCK)
    web.remove_disk("web", "data")
    web.create_snapshot("web", "d")
    counter.count_some()
    assert counted(web)["d"] == 5 * BLOCK


def test_a_count_stays_when_the_snapshot_before_goes(web: VMs, counter: ChangeCounter) -> None:
    counter.count_some()
    web.delete_snapshot("web", "b")
    assert counter.count_some() == 0
    assert counted(web) == {"a": 2 * BLOCK, "c": 4 * BLOCK}


def test_when_it_has_gone_before_the_count_the_next_older_one_is_taken(web: VMs, counter: ChangeCounter) -> None:
    web.delete_snapshot("web", "b")
    counter.count_some()
    assert counted(web) == {"a": 2 * BLOCK, "c": web.diff("web", "a", "c").changed_bytes}
    assert web.diff("web", "a", "c").changed_bytes == 5 * BLOCK


def test_the_newest_are_counted_first_and_few_at_once(
    web: VMs, counter: ChangeCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changed_bytes, "COUNTED_AT_ONCE", 1)
    assert counter.count_some() == 1
    assert counted(web) == {"a": None, "b": None, "c": 4 * BLOCK}
    assert counter.count_some(lambda: True) == 0
    while counter.count_some():
        pass
    assert None not in counted(web).values()


def test_what_the_pool_lacks_cannot_be_counted_and_is_not_tried_again(
    web: VMs, pool: Pool, catalog: Catalog, client: EngineClient, counter: ChangeCounter
) -> None:
    pool.delete(pool.find("web/root@b"))
    VMs(catalog, client).reconcile()
    assert counter.count_some() == 1  # b lacks a disk itself, c has nothing to be compared with
    assert counted(web) == {"a": 2 * BLOCK, "b": None, "c": None}
    assert counter.newest_uncounted() is None


def test_an_engine_that_is_away_is_told_of_and_tried_again(web: VMs, counter: ChangeCounter, server: object) -> None:
    server.stop()  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        counter.count_some()
    assert counter.newest_uncounted() is not None
