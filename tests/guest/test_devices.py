"""Block devices on a real kernel: limits, discard, resize, the engine's death under fio, what others do by hand."""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any

import pytest

from tests.lab.guest import run
from tests.lab.uml import UserModeMachine

MEBIBYTE = 1 << 20
TIME_LIMIT_S = 840
pytestmark = pytest.mark.timeout(TIME_LIMIT_S + 60)
BLOCKS = 64 * MEBIBYTE // 4096


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What one guest saw."""
    seed = os.environ.get("BLOCKDEV_SEED") or str(random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed}; again: BLOCKDEV_SEED={seed} .venv/bin/python -m pytest tests/guest/test_devices.py")
    done = run([sys.executable, "-m", "tests.guest.devices_guest", seed], UserModeMachine(memory_mib=1536, time_limit_s=TIME_LIMIT_S))
    assert done.status == 0, done.describe()
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_the_module_is_loaded_when_it_is_needed_and_devices_are_made(facts: dict[str, Any]) -> None:
    assert not facts["loaded_before"] and facts["missing"] is None
    assert facts["paths"] == ["key-disk", "key-small", "key-snapshot"]
    assert facts["troubles"] == {"key-bad": "there is no export vm/none"}


def test_attachments_say_that_the_client_is_a_block_device(facts: dict[str, Any]) -> None:
    assert [name for name, _client in facts["attachments"]] == ["vm/disk", "vm/small", "vm/small@s"]
    assert {client for _name, client in facts["attachments"]} == {f"block device /dev/nbd{n}" for n in range(3)}


def test_queue_limits_fit_a_disk_of_ours(facts: dict[str, Any]) -> None:
    limits = facts["limits"]
    assert int(limits.pop("discard_max_bytes")) >= 1 << 30
    assert limits.pop("scheduler").startswith("[none]") and int(limits.pop("read_ahead_kb")) >= 128
    assert limits == {
        "logical_block_size": "512",
        "minimum_io_size": "4096",
        "max_sectors_kb": "1024",
        "rotational": "0",
        "write_cache": "write back",
        "fua": "1",
        "io_timeout": "2000",
    }


def test_a_snapshot_is_a_read_only_device(facts: dict[str, Any]) -> None:
    assert facts["snapshot"] == ["frozen!!", "1"]


def test_a_discard_reaches_the_pool(facts: dict[str, Any]) -> None:
    assert facts["discard"] == [8 * MEBIBYTE, 4 * MEBIBYTE]


def test_a_resize_reaches_an_open_device_over_the_same_link(facts: dict[str, Any]) -> None:
    assert facts["resize"] == {"size_bytes": 32 * MEBIBYTE, "end": "new end!", "same": True}


def test_an_engine_that_is_killed_under_fio_fails_no_request_and_loses_no_write(facts: dict[str, Any]) -> None:
    assert facts["kills"] == {"status": 0, "error": 0, "written": BLOCKS, "read": BLOCKS}


def test_another_control_plane_takes_devices_over_and_nobody_notices(facts: dict[str, Any]) -> None:
    assert facts["new_keeper"] == {"kept": True, "present": True, "same": True}


def test_a_device_that_was_disconnected_by_hand_is_back_and_an_open_one_elsewhere(facts: dict[str, Any]) -> None:
    found = facts["disconnects"]
    assert found["closed"] and found["opened"] and found["present"]
    assert found["readable"] == "new end!"
    assert found["left"] is None


def test_a_device_that_a_dead_control_plane_had_not_finished_is_finished(facts: dict[str, Any]) -> None:
    assert facts["half_made"] == {"path": "/dev/nbd30", "logical_block_size": "512", "max_sectors_kb": "1024"}


def test_devices_of_others_are_not_touched(facts: dict[str, Any]) -> None:
    assert facts["foreign"] == {"left": {"40": "blockdev:ffffffff:key-disk", "41": "somebody's"}, "present": []}
