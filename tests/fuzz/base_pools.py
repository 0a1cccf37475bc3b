"""The pools that are damaged: real ones, small, with each kind of record, entry and node in them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from blockdev import Pool
from tests.engine.content import distinct_blocks

MEBIBYTE = 1 << 20
BLOCK = 4096
SMALL = {"map_cache_bytes": 1 << 16, "dedup_bytes": 1 << 20, "background": False}

Files = dict[str, bytearray]  # content by path in the pool's directory


def make() -> dict[str, Files]:
    """By name: `closed` has a checkpoint at its end; `killed` has a log behind it, in an open segment; `compacted` is."""
    with tempfile.TemporaryDirectory(prefix="base-pool-") as directory:
        path, copy = Path(directory, "pool"), Path(directory, "killed")
        Pool.create(path, 64 * MEBIBYTE, segment_bytes=MEBIBYTE).close()
        pool = Pool.open(path, **SMALL)
        _before_the_checkpoint(pool)
        pool.close()
        pool = Pool.open(path, **SMALL)  # which begins another segment
        _behind_the_checkpoint(pool)
        shutil.copytree(path, copy)
        pool.close()
        files = _read(path)
        files["findings"] = _findings(path)
        return {"killed": _read(copy), "closed": files, "compacted": _compacted(copy)}


def _before_the_checkpoint(pool: Pool) -> None:
    root, data = pool.create_vdisks([(4 * MEBIBYTE, "web/root", b"tag"), (3 * BLOCK + 512, "web/data", b"")])
    wide = pool.create_vdisk(1 << 40, "web/wide")
    gone = pool.create_vdisk(MEBIBYTE, "gone")
    root.write(0, distinct_blocks(0, 24))
    data.write(0, distinct_blocks(100, 3) + bytes(range(256)) * 2)
    for offset in (0, 1 << 30, (1 << 40) - BLOCK):
        wide.write(offset, distinct_blocks(offset >> 12, 1))
    pool.snapshot([root, data], ["web/root@s", "web/data@s"], [b"s", b"s"])
    root.write(8 * BLOCK, distinct_blocks(4, 8))  # known blocks: references
    gone.write(0, distinct_blocks(200, 2))
    for _ in range(3):  # nodes retire and become free
        root.write(0, distinct_blocks(300, 2))
        pool.checkpoint()
    pool.delete([gone])
    pool.clone(pool.find("web/root@s"), "copy/root")


def _behind_the_checkpoint(pool: Pool) -> None:
    root, snapshot = pool.find("web/root"), pool.find("web/root@s")
    root.write(0, distinct_blocks(1000, 2))
    root.write(MEBIBYTE, distinct_blocks(0, 4))
    root.write(BLOCK + 512, b"x" * 512)
    root.discard(16 * BLOCK, 4 * BLOCK)
    pool.flush()
    late = pool.create_vdisk(MEBIBYTE, "late", b"t")
    pool.clone(snapshot, None)
    pool.resize(late, 2 * MEBIBYTE)
    pool.relabel([(late, "later", b"")])
    pool.snapshot([root], ["web/root@t"])
    pool.restore([(root, snapshot)])
    pool.delete([pool.find("web/root@t")])
    late.write(0, distinct_blocks(2000, 2))
    pool.flush()


def _compacted(path: Path) -> Files:
    """With frames of both kinds.  Changes the pool."""
    pool = Pool.open(path, **SMALL)
    pool.find("web/root").write(2 * MEBIBYTE, b"".join(bytes([number]) * BLOCK for number in range(1, 30)))
    pool.find("later").write(0, distinct_blocks(3000, 12))
    pool.compact()
    pool.close()
    return _read(path)


def _findings(path: Path) -> bytearray:
    """What a scrub keeps of a pool with a block that does not verify.  Damages the pool."""
    with open(path / "segments" / "00000001.0", "r+b") as file:
        file.seek(14 * BLOCK)  # of the first disk
        file.write(b"damage")
    pool = Pool.open(path, **SMALL)
    assert pool.scrub()
    pool.close()
    return bytearray((path / "findings").read_bytes())


def write(files: Files, path: Path) -> None:
    """A pool's directory with these files."""
    for directory in ("segments", "map"):
        (path / directory).mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)


def _read(path: Path) -> Files:
    return {
        str(file.relative_to(path)): bytearray(file.read_bytes())
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "LOCK"
    }
