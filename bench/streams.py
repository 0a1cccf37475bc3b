"""How fast a snapshot goes into a stream file and comes from there, beside qemu-img convert of the same disk.

`python -m bench.streams [--scratch DIR] [--size MIB] [--rounds N]` serves a home, fills one disk with random bytes and one
with text that compresses, and in turns exports each by `snapshot export` and by `qemu-img convert` (raw, and compressed
qcow2), then imports what it exported the same ways.  Medians, with all rounds printed; MB are 10^6 plain bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.__main__ import DEFAULT_FOLDER
from bench.replication.homes import Home
from bench.workloads import MIB
from blockdev.transfer.nbd import Export

CONTROL = str(Path(sys.executable).with_name("blockdevctl"))
TEXT_BYTES = 64  # of a line; lines differ in a few digits


def fill(home: Home, vm: str, size_bytes: int) -> None:
    """Random bytes, or lines of text of which no two blocks are equal."""
    chosen = random.Random(1)
    with Export(home.socket, f"{vm}/root") as disk:
        for offset in range(0, size_bytes, MIB):
            if vm == "random":
                content = os.urandom(MIB)
            else:
                lines = (f"{chosen.randrange(10**9):012d} GET /index.html HTTP/1.1 200 ok from web{offset:>12d}" for _ in range(MIB // TEXT_BYTES))
                content = "".join(f"{line[: TEXT_BYTES - 1]:<{TEXT_BYTES - 1}}\n" for line in lines).encode()
            disk.write(offset, content)
        disk.flush()


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def convert(*arguments: str) -> None:
    subprocess.run(["qemu-img", "convert", *arguments], check=True)


def ways(home: Home, vm: str, folder: Path) -> dict[str, Callable[[], object]]:
    """In the order of one round; what an export wrote is imported by the next."""
    stream, raw, packed = (str(folder / f"{vm}.{kind}") for kind in ("bds", "raw", "qcow2"))
    source, target = home.uri(f"{vm}/root@s"), home.uri("target/root")
    write = ["-n", "--target-is-zero", "-t", "writeback", "-S", "4k"]
    return {
        "export: stream": lambda: home("snapshot", "export", f"{vm}@s", stream, "--overwrite", "--yes"),
        "export: stream, level 0": lambda: home("snapshot", "export", f"{vm}@s", f"{stream}0", "--level", "0", "--overwrite", "--yes"),
        "export: qemu-img raw": lambda: convert("-t", "writeback", "-f", "raw", "-O", "raw", source, raw),
        "export: qemu-img qcow2 -c zstd": lambda: convert(
            "-t", "writeback", "-c", "-o", "compression_type=zstd", "-f", "raw", "-O", "qcow2", source, packed
        ),
        "import: stream": lambda: home("snapshot", "import", stream, "--vm", "back"),
        "import: stream, level 0": lambda: home("snapshot", "import", f"{stream}0", "--vm", "back0"),
        "import: qemu-img raw": lambda: convert(*write, "-f", "raw", "-O", "raw", raw, target),
        "inspect: stream": lambda: home("snapshot", "inspect", stream),
    }


def run(home: Home, vm: str, size_bytes: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each way, in each round."""
    home("vm", "create", vm, "--disk", f"root={size_bytes}")
    fill(home, vm, size_bytes)
    home("snapshot", "create", vm, "--name", "s")
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        home("vm", "create", "target", "--disk", f"root={size_bytes}")
        for name, work in ways(home, vm, folder).items():
            seconds.setdefault(name, []).append(timed(work))
        for made in ("target", "back", "back0"):
            home("vm", "delete", made, "--yes")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--scratch", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--size", type=int, default=512, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="streams-", dir=given.scratch))
    home = Home(folder, "home", 16 * given.size * MIB)
    try:
        home.serve()
        for vm in ("random", "text"):
            found = run(home, vm, given.size * MIB, given.rounds, folder)
            sizes = {file.suffix: file.stat().st_size for file in folder.glob(f"{vm}.*")}
            print(f"{vm}: {given.size} MiB, load {os.getloadavg()[0]:.1f}, files {json.dumps(sizes)}")
            for name, seconds in found.items():
                rate = given.size * MIB / statistics.median(seconds) / 1e6
                print(f"  {name:32} {rate:6.0f} MB/s  ({', '.join(f'{one:.2f} s' for one in seconds)})")
    finally:
        home.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
