"""Totals never go backwards: engines and control planes come and go, disks and VMs, and files that are damaged."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from blockdev.statistics.counters import COUNT
from blockdev.statistics.totals import DiskKey, FlowKey, Moved, Totals

VM, OTHER = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"


def counted(*values: int) -> np.ndarray:
    """The counters of some disks, all of each the same."""
    return np.array([[value] * COUNT for value in values], np.int64).reshape(len(values), COUNT)


def test_totals_never_go_backwards_whatever_is_restarted(tmp_path: Path, seed: int) -> None:
    """The engine counts from 0 after its restart; the control plane forgets all that it had not written."""
    random_ = random.Random(seed)
    totals, engine = Totals(tmp_path / "t"), 0
    keys = {id: DiskKey(VM, f"d{id}") for id in (1, 2, 3)}
    now, taken = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
    seen = dict.fromkeys(keys, 0)
    for step in range(600):
        what = random_.random()
        if what < 0.1:
            engine, now, seen = engine + 1, dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
        elif what < 0.2:  # killed: no word is said
            totals = Totals(tmp_path / "t")
        before = {id: totals.total(id)[0] for id in keys}
        for id in keys:
            now[id] += random_.randrange(1000)
        moved, _flows = totals.take(f"engine {engine}", 1000.0 + step, list(keys), counted(*now.values()), keys, {})
        for row, id in enumerate(keys):
            taken[id] += now[id] - seen[id]
            assert moved[row, 0] == now[id] - seen[id], "what happened since it was looked at last, and by whom"
            assert totals.total(id)[0] == taken[id] >= before[id]
        seen = dict(now)
    assert Totals(tmp_path / "t").total(2)[0] == taken[2]
    assert (Totals(tmp_path / "t").looked, Totals(tmp_path / "t").instance) == (1599.0, f"engine {engine}")


def test_what_a_disk_counted_stays_the_vms_when_it_is_removed_and_goes_with_the_vm(tmp_path: Path) -> None:
    totals = Totals(tmp_path / "t")
    keys = {1: DiskKey(VM, "root"), 2: DiskKey(VM, "data"), 3: DiskKey(OTHER, "root")}
    totals.take("a", 1.0, [1, 2, 3], counted(10, 20, 30), keys, {})
    del keys[2]
    totals.take("b", 2.0, [1, 3], counted(5, 5), keys, {})
    for known in (totals, Totals(tmp_path / "t")):
        assert (known.total(1)[0], known.total(3)[0], known.gone(VM)[0], known.gone(OTHER)[0]) == (15, 35, 20, 0)
        assert known.vms() == {VM, OTHER} and known.disks == keys
    totals.forget_vms([VM])
    for known in (totals, Totals(tmp_path / "t")):
        assert known.vms() == {OTHER} and not known.gone(VM).any() and not known.total(1).any()


def test_a_disk_of_another_name_goes_on(tmp_path: Path) -> None:
    totals = Totals(tmp_path / "t")
    totals.take("a", 1.0, [1], counted(10), {1: DiskKey(VM, "root")}, {})
    totals.take("a", 2.0, [1], counted(12), {1: DiskKey(VM, "boot")}, {})
    assert Totals(tmp_path / "t").disks == {1: DiskKey(VM, "boot")} and Totals(tmp_path / "t").total(1)[0] == 12


def test_what_replication_moved_adds_up_over_restarts_of_the_process_that_counts_it(tmp_path: Path) -> None:
    way, nothing = FlowKey(VM, "north", "sent"), counted()
    totals = Totals(tmp_path / "t")
    for logical, more in ((100, 100), (150, 50), (20, 20)):  # the last: its flow began anew
        _moved, flows = totals.take("a", 1.0, [], nothing, {}, {way: Moved(logical, logical * 2)})
        assert flows == {way: Moved(more, more * 2)}
    assert totals.moved() == {way: Moved(170, 340)}
    again = Totals(tmp_path / "t")
    again.take("a", 2.0, [], nothing, {}, {way: Moved(7, 8)})
    assert again.moved() == Totals(tmp_path / "t").moved() == {way: Moved(177, 348)}


@pytest.mark.parametrize("content", [b"", b"not a database" * 100, None])
def test_a_damaged_file_is_begun_anew_and_told_of(tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t"
    first = Totals(path)
    first.take("a", 1.0, [1], counted(10), {1: DiskKey(VM, "root")}, {})
    first.close()
    if content is None:
        data = bytearray(path.read_bytes())
        data[100:] = bytes(len(data) - 100)
        content = bytes(data)
    path.write_bytes(content)
    totals = Totals(path)
    assert totals.disks == {} and ("begin anew" in caplog.text) == bool(content)
    totals.take("a", 1.0, [1], counted(10), {1: DiskKey(VM, "root")}, {})
    assert Totals(path).total(1)[0] == 10
