"""Pool operations that meet odd arguments, odd moments and odd files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool, errors

MEBIBYTE = 1 << 20


def crashed(pool: Any) -> Any:
    """A pool as a restart after kill -9 finds it now."""
    copy = f"{pool.path}-crashed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(pool.path, copy)
    return Pool.open(copy, background=False)


@pytest.fixture
def quiet(pool_path: str) -> Any:
    """An open pool that does nothing by itself, with a vdisk "a" and its snapshot "a@s"."""
    Pool.create(pool_path, 256 * MEBIBYTE, segment_bytes=4 * MEBIBYTE).close()
    pool = Pool.open(pool_path, background=False)
    pool.snapshot([pool.create_vdisk(MEBIBYTE, "a")], ["a@s"])
    yield pool
    pool.close()


def test_one_thing_twice_in_a_delete_is_refused_and_the_log_can_be_replayed(quiet: Any) -> None:
    vdisk = quiet.find("a")
    with pytest.raises(errors.InvalidArgument):
        quiet.delete([vdisk, vdisk])
    quiet.flush()
    after = crashed(quiet)
    assert [thing.name for thing in after.vdisks()] == ["a"]
    after.close()


def test_one_thing_twice_in_a_relabel_is_refused_and_leaves_no_name_behind(quiet: Any) -> None:
    vdisk = quiet.find("a")
    with pytest.raises(errors.InvalidArgument):
        quiet.relabel([(vdisk, "b", b""), (vdisk, "c", b"")])
    assert quiet.find("a") is vdisk
    quiet.create_vdisk(512, "b")
