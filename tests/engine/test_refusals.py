"""What the pool refuses, with which error, and that a refusal changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import xxhash

from blockdev import Pool, errors
from blockdev._exchange import known_blocks, put_blocks, take_blocks
from blockdev.constants import NAME_BYTES_MAX, TAG_BYTES_MAX, VDISK_BYTES_MAX
from tests.child import Child

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1 << 20
OPEN_ELSEWHERE = """
import sys
from blockdev import Pool, errors
from blockdev._exchange import known_blocks, put_blocks, take_blocks
try:
    Pool.open(sys.argv[1])
except errors.BlockdevError as error:
    print(error.code, error.message)
"""


def picture(pool: Any) -> list[tuple[Any, ...]]:
    """All that can be seen of a pool's objects."""
    return [
        (
            disk.id,
            disk.name,
            disk.tag,
            disk.size_bytes,
            getattr(disk, "epoch", None),
            disk.read(0, min(disk.size_bytes, 1 << 16)),
        )
        for disk in (*pool.vdisks(), *pool.snapshots())
    ]


@pytest.fixture
def furnished(pool: Any) -> Any:
    """Two vdisks with data and one snapshot."""
    for name in ("vm/root", "vm/data"):
        pool.create_vdisk(MEBIBYTE, name, b"tag").write(4096, name.encode() * 512)
    pool.snapshot([pool.find("vm/root")], ["vm/root@s"], [b"snap"])
    return pool


def one(pool: Any) -> Any:
    return pool.find("vm/root")


def snap(pool: Any) -> Any:
    return pool.find("vm/root@s")


REFUSED: dict[str, tuple[type[Exception], Callable[[Any], object]]] = {
    "vdisk size not a multiple of 512": (errors.InvalidArgument, lambda p: p.create_vdisk(1000)),
    "vdisk size 0": (errors.InvalidArgument, lambda p: p.create_vdisk(0)),
    "vdisk size negative": (errors.InvalidArgument, lambda p: p.create_vdisk(-512)),
    "vdisk too large": (errors.InvalidArgument, lambda p: p.create_vdisk(VDISK_BYTES_MAX + 512)),
    "name taken by a vdisk": (errors.AlreadyExists, lambda p: p.create_vdisk(512, "vm/data")),
    "name taken by a snapshot": (errors.AlreadyExists, lambda p: p.create_vdisk(512, "vm/root@s")),
    "one name twice in one call": (
        errors.AlreadyExists,
        lambda p: p.create_vdisks([(512, "new", b""), (512, "new", b"")]),
    ),
    "second of two taken": (
        errors.AlreadyExists,
        lambda p: p.create_vdisks([(512, "new", b""), (512, "vm/data", b"")]),
    ),
    "second of two of bad size": (
        errors.InvalidArgument,
        lambda p: p.create_vdisks([(512, "new", b""), (5, "b", b"")]),
    ),
    "empty name": (errors.InvalidArgument, lambda p: p.create_vdisk(512, "")),
    "name too long": (errors.InvalidArgument, lambda p: p.create_vdisk(512, "n" * (NAME_BYTES_MAX + 1))),
    "name too long in UTF-8": (errors.InvalidArgument, lambda p: p.create_vdisk(512, "ü" * 128)),
    "name with NUL": (errors.InvalidArgument, lambda p: p.create_vdisk(512, "a\0b")),
    "tag too long": (
        errors.InvalidArgument,
        lambda p: p.create_vdisk(512, "new", b"t" * (TAG_BYTES_MAX + 1)),
    ),
    "snapshot name taken": (errors.AlreadyExists, lambda p: p.snapshot([one(p)], ["vm/root@s"])),
    "snapshot of a snapshot": (
        (errors.InvalidArgument, errors.ReadOnly, TypeError),
        lambda p: p.snapshot([snap(p)]),
    ),
    "snapshot of one vdisk twice": (errors.InvalidArgument, lambda p: p.snapshot([one(p), one(p)])),
    "clone of a vdisk": ((errors.InvalidArgument, TypeError), lambda p: p.clone(one(p))),
    "clone name taken": (errors.AlreadyExists, lambda p: p.clone(snap(p), "vm/data")),
    "second clone name taken": (
        errors.AlreadyExists,
        lambda p: p.clone_many([(snap(p), "new", b""), (snap(p), "vm/data", b"")]),
    ),
    "relabel to a taken name": (errors.AlreadyExists, lambda p: p.relabel([(one(p), "vm/data", b"")])),
    "second relabel taken": (
        errors.AlreadyExists,
        lambda p: p.relabel([(one(p), "new", b""), (snap(p), "vm/data", b"")]),
    ),
    "unknown name": (errors.NotFound, lambda p: p.find("vm/none")),
    "unknown id": (errors.NotFound, lambda p: p.get(1 << 30)),
    "read beyond the end": (errors.InvalidArgument, lambda p: one(p).read(MEBIBYTE - 512, 1024)),
    "read from beyond the end": (errors.InvalidArgument, lambda p: one(p).read(1 << 62, 512)),
    "read with negative offset": (errors.InvalidArgument, lambda p: one(p).read(-512, 512)),
    "read with negative length": (errors.InvalidArgument, lambda p: one(p).read(0, -512)),
    "read at an odd offset": (errors.InvalidArgument, lambda p: one(p).read(100, 512)),
    "read of an odd length": (errors.InvalidArgument, lambda p: one(p).read(0, 100)),
    "read into a read-only buffer": (
        (BufferError, TypeError, ValueError),
        lambda p: one(p).read_into(0, bytes(512)),
    ),
    "write beyond the end": (errors.InvalidArgument, lambda p: one(p).write(MEBIBYTE - 512, bytes(1024))),
    "write at an odd offset": (errors.InvalidArgument, lambda p: one(p).write(1, bytes(512))),
    "write of an odd length": (errors.InvalidArgument, lambda p: one(p).write(0, bytes(513))),
    "write at an offset that wraps": (
        errors.InvalidArgument,
        lambda p: one(p).write((1 << 64) - 512, bytes(1024)),
    ),
    "discard beyond the end": (errors.InvalidArgument, lambda p: one(p).discard(0, MEBIBYTE + 512)),
    "discard at an odd offset": (errors.InvalidArgument, lambda p: one(p).discard(5, 512)),
    "zeroes that wrap": (errors.InvalidArgument, lambda p: one(p).write_zeroes(512, (1 << 64) - 512)),
    "extents beyond the end": (errors.InvalidArgument, lambda p: one(p).extents(0, MEBIBYTE + 512)),
    "resize to an odd size": (errors.InvalidArgument, lambda p: one(p).resize(MEBIBYTE + 1)),
    "resize to 0": (errors.InvalidArgument, lambda p: one(p).resize(0)),
    "resize beyond the limit": (errors.InvalidArgument, lambda p: one(p).resize(VDISK_BYTES_MAX + 512)),
    "write to a snapshot": ((errors.ReadOnly, AttributeError), lambda p: snap(p).write(0, bytes(512))),
    "discard on a snapshot": ((errors.ReadOnly, AttributeError), lambda p: snap(p).discard(0, 512)),
    "resize of a snapshot": ((errors.ReadOnly, AttributeError), lambda p: snap(p).resize(512)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_has_its_error_and_changes_nothing(furnished: Any, pool_path: str, case: str) -> None:
    expected, act = REFUSED[case]
    before = picture(furnished)
    with pytest.raises(expected) as caught:
        act(furnished)
    assert str(caught.value) and "\n" not in str(caught.value)
    assert picture(furnished) == before
    furnished.close()
    reopened = Pool.open(pool_path)
    try:
        assert picture(reopened) == before
        assert reopened.check() == []
    finally:
        reopened.close()


def test_a_deleted_disk_is_gone_for_those_who_hold_it(furnished: Any) -> None:
    held, held_snapshot = one(furnished), snap(furnished)
    furnished.delete([held, held_snapshot])
    for disk in (held, held_snapshot):
        with pytest.raises(errors.Gone):
            disk.read(0, 512)
        with pytest.raises((errors.Gone, errors.NotFound)):
            furnished.delete(disk)
    with pytest.raises(errors.Gone):
        held.write(0, bytes(512))
    with pytest.raises(errors.Gone):
        held.flush()
    with pytest.raises((errors.Gone, errors.NotFound)):
        furnished.snapshot([held])
    with pytest.raises((errors.Gone, errors.NotFound)):
        furnished.clone(held_snapshot)
    assert one_name(furnished) == ["vm/data"]


def one_name(pool: Any) -> list[str]:
    return [vdisk.name for vdisk in pool.vdisks()]


def test_delete_of_a_list_with_a_deleted_thing_deletes_nothing(furnished: Any) -> None:
    gone = furnished.create_vdisk(512, "gone")
    furnished.delete(gone)
    before = picture(furnished)
    with pytest.raises((errors.Gone, errors.NotFound)):
        furnished.delete([one(furnished), gone])
    assert picture(furnished) == before


def test_snapshot_outlives_its_vdisk(furnished: Any) -> None:
    content = snap(furnished).read(0, MEBIBYTE)
    furnished.delete(one(furnished))
    assert snap(furnished).read(0, MEBIBYTE) == content
    clone = furnished.clone(snap(furnished), "again")
    assert clone.read(0, MEBIBYTE) == content


def test_a_closed_pool_refuses_everything(furnished: Any) -> None:
    vdisk = one(furnished)
    furnished.close()
    for act in (
        lambda: vdisk.read(0, 512),
        lambda: vdisk.write(0, bytes(512)),
        lambda: vdisk.flush(),
        lambda: furnished.create_vdisk(512),
        lambda: furnished.snapshot([vdisk]),
        lambda: furnished.check(),
    ):
        with pytest.raises(errors.BlockdevError):
            act()
    furnished.close()  # twice is fine


def test_create_where_something_is(furnished: Any, pool_path: str) -> None:
    before = picture(furnished)
    with pytest.raises(errors.AlreadyExists):
        Pool.create(pool_path, MEBIBYTE << 4)
    assert picture(furnished) == before


@pytest.mark.parametrize("capacity", [0, -1, 1000])
def test_create_with_an_unusable_capacity(pool_path: str, capacity: int) -> None:
    with pytest.raises(errors.InvalidArgument):
        Pool.create(pool_path, capacity)
    assert not os.path.exists(pool_path)


def test_open_what_is_not_there(pool_path: str) -> None:
    with pytest.raises(errors.NotFound) as caught:
        Pool.open(pool_path)
    assert pool_path in str(caught.value)


def test_open_a_directory_that_is_no_pool(pool_path: str) -> None:
    os.mkdir(pool_path)
    with pytest.raises(errors.NotFound):
        Pool.open(pool_path)
    assert os.listdir(pool_path) == []


def test_second_open_in_one_process_is_busy(furnished: Any, pool_path: str) -> None:
    before = picture(furnished)
    with pytest.raises(errors.Busy):
        Pool.open(pool_path)
    with pytest.raises(errors.Busy):
        Pool.open(os.path.join(pool_path, "..", "pool", "."))
    one(furnished).write(0, bytes(512))
    assert [row[0] for row in picture(furnished)] == [row[0] for row in before]


def in_a_fork(work: Callable[[], None]) -> None:
    with closing(Child(lambda _say: work())) as fork:
        assert fork.wait() == 0


def test_a_fork_cannot_use_the_pool_and_writes_nothing_at_its_end(furnished: Any, pool_path: str) -> None:
    one(furnished).write(0, b"before" + bytes(506))
    furnished.flush()
    before = tree(pool_path)

    def work() -> None:
        create, delete = lambda: furnished.create_vdisk(512), lambda: furnished.delete(one(furnished))
        for refused in (furnished.things, furnished.flush, furnished.checkpoint, create, delete):
            with pytest.raises(errors.Busy, match=f"open in process {os.getppid()}, of which this one is a fork"):
                refused()
        furnished.close()
        furnished.__del__()

    in_a_fork(work)
    assert tree(pool_path) == before
    with pytest.raises(errors.Busy, match="open in this process already: close that Pool first"):
        Pool.open(pool_path)
    furnished.create_vdisk(512, "later")
    assert furnished.check() == []


def test_a_fork_cannot_use_the_disks_that_it_holds(furnished: Any) -> None:
    """By the lock of the pool alone it could: what it wrote would go where the other process writes, too."""
    disk = one(furnished)
    disk.write(0, b"before" + bytes(506))
    [snapshot] = furnished.snapshot([disk])
    before = picture(furnished)

    def work() -> None:
        uses: list[Callable[[], object]] = [
            *(lambda: disk.write(0, bytes(512)), lambda: disk.write(0, bytes(512), fua=True), disk.flush, disk.keep),
            *(lambda: disk.discard(0, 512), lambda: disk.write_zeroes(0, 512), lambda: disk.clear(0, 512), disk.clear_tail),
            *(lambda: disk.resize(512), lambda: disk.read(0, 512), lambda: disk.read_into(0, bytearray(512)), disk.extents),
            *(lambda: snapshot.read(0, 512), lambda: disk.count_changed(snapshot), lambda: disk.changed_since(None)),
            *(lambda: put_blocks(disk, b"", b""), lambda: take_blocks(disk, b"", b""), lambda: known_blocks(disk, b"")),
        ]
        for use in uses:
            with pytest.raises(errors.Busy, match=f"open in process {os.getppid()}, of which this one is a fork"):
                use()

    in_a_fork(work)
    assert picture(furnished) == before
    disk.write(0, b"after" + bytes(507))
    assert disk.read(0, 512)[:5] == b"after"


def test_a_fork_that_takes_the_pool_over_uses_it(furnished: Any) -> None:
    """As nbdkit does when it goes into the background."""

    def work() -> None:
        furnished.move_here()
        one(furnished).write(0, b"by the fork" + bytes(501))
        furnished.create_vdisk(512, "made by the fork")
        furnished.close()

    in_a_fork(work)
    furnished.core.process_id = 0  # it is not this process's any more
    furnished.close()
    with Pool.open(furnished.path) as again:
        assert again.find("made by the fork").size_bytes == 512
        assert one(again).read(0, 512)[:11] == b"by the fork"


def open_elsewhere(path: str) -> str:
    command = [sys.executable, "-c", OPEN_ELSEWHERE, path]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout


def test_open_in_a_second_process_is_busy(furnished: Any, pool_path: str) -> None:
    said = open_elsewhere(pool_path)
    assert said.startswith("busy ") and pool_path in said
    one(furnished).write(0, b"\x01" * 512)
    furnished.close()
    assert open_elsewhere(pool_path) == ""
    Pool.open(pool_path).close()


def superblock(path: str, number: int) -> Path:
    return Path(path) / f"superblock-{number}"


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", ["truncated", "removed", "zeroed", "half"])
def test_one_lost_superblock_is_survived(furnished: Any, pool_path: str, lost: int, how: str) -> None:
    """The other one may be one checkpoint older: the log behind it is replayed."""
    before = picture(furnished)
    furnished.close()
    damage(superblock(pool_path, lost), how)
    reopened = Pool.open(pool_path)
    try:
        assert picture(reopened) == before
        reopened.find("vm/root").write(0, b"\x09" * 512)
        reopened.checkpoint()
        reopened.checkpoint()
    finally:
        reopened.close()
    damage(superblock(pool_path, 1 - lost), how)
    again = Pool.open(pool_path)
    try:
        assert again.find("vm/root").read(0, 512) == b"\x09" * 512
        assert again.check() == []
    finally:
        again.close()


def damage(path: Path, how: str) -> None:
    if how == "removed":
        path.unlink()
        return
    size = path.stat().st_size
    with open(path, "r+b") as file:
        if how == "zeroed":
            file.write(bytes(size))
        else:
            file.truncate(0 if how == "truncated" else size // 2)


@pytest.mark.parametrize("how", ["truncated", "zeroed", "half"])
def test_both_superblocks_lost_is_corrupt(furnished: Any, pool_path: str, how: str) -> None:
    furnished.close()
    for number in (0, 1):
        damage(superblock(pool_path, number), how)
    kept = tree(pool_path)
    with pytest.raises(errors.Corrupt) as caught:
        Pool.open(pool_path)
    assert pool_path in str(caught.value)
    assert tree(pool_path) == kept


def tree(path: str) -> dict[str, bytes]:
    files = [file for file in Path(path).rglob("*") if file.is_file() and file.name != "LOCK"]
    return {str(file): file.read_bytes() for file in files}


def test_pool_moved_to_another_place_opens(furnished: Any, pool_path: str) -> None:
    before, identity = picture(furnished), furnished.uuid
    furnished.close()
    moved = f"{pool_path}-moved"
    shutil.move(pool_path, moved)
    reopened = Pool.open(moved)
    try:
        assert (picture(reopened), reopened.uuid, reopened.path) == (before, identity, moved)
    finally:
        reopened.close()


def rewrite_superblock(path: Path, at: int, value: bytes, sign: bool) -> None:
    """Change bytes of a superblock; `sign` makes its checksum right again (docs/format/pool.md)."""
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    if sign:
        content[8:16] = xxhash.xxh3_64_intdigest(bytes(content[16:])).to_bytes(8, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("sign", [True, False], ids=["signed", "with another checksum"])
@pytest.mark.parametrize("at, what", [(16, "version"), (20, "feature")])
def test_pool_of_an_unknown_version_or_feature_is_not_touched(
    furnished: Any, pool_path: str, at: int, what: str, sign: bool
) -> None:
    furnished.close()
    for number in (0, 1):
        rewrite_superblock(superblock(pool_path, number), at, (77).to_bytes(4, "little"), sign)
    kept = tree(pool_path)
    with pytest.raises((errors.UnknownFormat, errors.Corrupt)) as caught:
        Pool.open(pool_path)
    if sign or what == "version":  # a version that signs its superblock in another way is still named
        assert isinstance(caught.value, errors.UnknownFormat)
        assert ("77" if what == "version" else "0x4d") in str(caught.value)
    assert tree(pool_path) == kept
