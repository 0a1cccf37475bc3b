"""What dedup and compression save on VM-like images, and what reading cold blocks costs.

`python -m bench.savings [--scratch DIR]` makes three ext4 images out of this machine's own files, as three versions of one
system have them: the second has more files than the first, the third other ones in places.  They are written to a pool,
which is compacted.  Beside it stands what exact dedup of 4 KiB blocks and `zstd -3` over frames of 32 KiB would leave.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash
import zstandard

from bench.__main__ import DEFAULT_FOLDER
from bench.workloads import GIB, MIB
from blockdev import Pool, VDisk

BLOCK = 4096
FRAME_BLOCKS = 8
LEVEL = 3
READS = 20_000
# what a system's versions have in common, and what each has of its own
COMMON = ("/usr/bin", "/usr/lib/python3", "/usr/lib/python3.11", "/usr/share/perl")
VERSIONS = ((), ("/usr/sbin", "/etc"), ("/etc", "/usr/include", "/usr/lib/systemd"))
TREE_BYTES_MAX = 400 * MIB  # of one directory: what is more is left out


class Savings(NamedTuple):
    """Bytes of all images together."""

    written: int  # that are not zeros
    unique: int  # after exact dedup
    reference: int  # of these, after zstd over frames
    hot: int  # in the pool's segments before compaction
    cold: int  # and after

    def share(self) -> float:
        """Of the reference's saving, how much the pool reaches."""
        return (self.written - self.cold) / (self.written - self.reference)


def images(folder: Path) -> Iterator[Path]:
    for number, own in enumerate(VERSIONS):
        tree = folder / f"tree-{number}"
        for name in (*COMMON, *own):
            _copy(Path(name), tree / name.lstrip("/"))
        image = folder / f"version-{number}.raw"
        with image.open("wb") as file:
            file.truncate(2 * GIB)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image)], check=True)
        shutil.rmtree(tree)
        yield image


def _copy(source: Path, target: Path) -> None:
    copied = 0
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink() and copied < TREE_BYTES_MAX:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            copied += path.stat().st_size


def blocks_of(image: Path) -> Iterator[bytes]:
    """Those that are not zeros."""
    zeros = bytes(BLOCK)
    with image.open("rb") as file:
        while piece := file.read(MIB):
            for at in range(0, len(piece), BLOCK):
                if piece[at : at + BLOCK] != zeros:
                    yield piece[at : at + BLOCK]


class Reference:
    """Exact dedup, then zstd over frames of blocks in the order of their first appearance."""

    def __init__(self) -> None:
        self.written = self.unique = self.stored = 0
        self._known: set[bytes] = set()
        self._frame: list[bytes] = []
        self._zstd = zstandard.ZstdCompressor(level=LEVEL)

    def take(self, image: Path) -> None:
        for block in blocks_of(image):
            self.written += BLOCK
            fingerprint = xxhash.xxh3_128_digest(block)
            if fingerprint not in self._known:
                self._known.add(fingerprint)
                self.unique += BLOCK
                self._frame.append(block)
                if len(self._frame) == FRAME_BLOCKS:
                    self.end_frame()

    def end_frame(self) -> None:
        plain = b"".join(self._frame)
        self.stored += min(len(self._zstd.compress(plain)), len(plain))
        self._frame = []


def load(vdisk: VDisk, image: Path) -> None:
    with image.open("rb") as file:
        offset = 0
        while piece := file.read(MIB):
            vdisk.write(offset, piece)
            offset += len(piece)


def latencies(vdisk: VDisk) -> list[float]:
    """Microseconds of reads of one block that is data, anywhere, by way of the page cache; sorted."""
    chosen = random.Random(1)
    places = [(e.offset, e.length) for e in vdisk.extents() if e.state == "data"]
    picked = chosen.choices(places, [length for _offset, length in places], k=READS)
    taken = []
    for offset, length in picked:
        at = offset + chosen.randrange(length // BLOCK) * BLOCK
        before = time.perf_counter_ns()
        vdisk.read(at, BLOCK)
        taken.append((time.perf_counter_ns() - before) / 1000)
    return sorted(taken)


def _tell_latencies(state: str, taken: list[float]) -> None:
    p99 = taken[len(taken) * 99 // 100]
    print(f"reading one block, {state}: median {statistics.median(taken):.1f} us, p99 {p99:.1f} us")


def measure(folder: Path) -> Savings:
    reference = Reference()
    with Pool.create(folder / "pool", 32 * GIB) as pool:
        for number, image in enumerate(images(folder)):
            reference.take(image)
            load(pool.create_vdisk(image.stat().st_size, f"version-{number}"), image)
            image.unlink()
        reference.end_frame()
        pool.flush()
        disk = pool.find("version-0")
        assert isinstance(disk, VDisk)
        hot = pool.stats()["segment_bytes"]
        latencies(disk)
        _tell_latencies("hot", latencies(disk))
        began = time.monotonic()
        report = pool.compact()
        seconds = time.monotonic() - began
        print(f"compaction: {report.copied_bytes / MIB / seconds:,.0f} MiB of live data a second")
        cold = pool.stats()["segment_bytes"]
        latencies(disk)
        _tell_latencies("cold", latencies(disk))
    return Savings(reference.written, reference.unique, reference.stored, hot, cold)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.savings", description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, default=DEFAULT_FOLDER, metavar="DIR")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="savings-", dir=arguments.scratch) as folder:
        found = measure(Path(folder))
    for name, value in found._asdict().items():
        print(f"{name:>10} {value / MIB:10,.1f} MiB")
    print(f"the pool saves {found.share():.1%} of what the reference saves (asked: at least 95 %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
