"""A VM under load replicates each of its snapshots, in order and bit by bit (bench/replication/endurance.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.replication import endurance, guest
from bench.workloads import MIB

SECONDS, EVERY_SECONDS = 15, 2


def test_each_snapshot_of_a_vm_under_load_arrives_and_its_clone_mounts_clean(tmp_path: Path, seed: int) -> None:
    if guest.missing() is not None:
        pytest.skip("mounting a file system needs root")
    found = endurance.run(tmp_path, SECONDS, EVERY_SECONDS, 64 * MIB, seed)
    assert found.taken == found.compared >= 3
    assert all(found.files_in_clones)
    assert found.fio["write_bytes"] > MIB
