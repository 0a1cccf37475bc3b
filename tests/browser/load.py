"""What a guest does meanwhile: fio and qemu-io on a disk of a served home."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.served import SECONDS_MAX, TIED_TO_US, Home, run_tool

BLOCK = 4096


@contextmanager
def fio(home: Home, export: str, iops: int = 400, kind: str = "randrw", seed: int = 1) -> Iterator[None]:
    """4 KiB requests at a steady rate, of data that neither dedup nor zstd makes smaller, until it is left."""
    command = [
        *TIED_TO_US,
        *("fio", "--name=guest", "--ioengine=nbd", "--thread", f"--uri={home.uri(export)}", f"--rw={kind}", "--bs=4k"),
        *("--iodepth=4", f"--rate_iops={iops // 2},{iops // 2}" if kind == "randrw" else f"--rate_iops={iops}", "--time_based"),
        *("--runtime=300", "--refill_buffers", "--randrepeat=0", f"--randseed={seed}", "--output-format=terse"),
    ]
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield
        assert running.poll() is None, running.communicate()[0]
    finally:
        running.terminate()
        running.communicate(timeout=SECONDS_MAX)


def write(home: Home, export: str, pattern: int, offset: int = 0, length: int = 1 << 20) -> None:
    run_tool("qemu-io", "-f", "raw", "-c", f"write -P {pattern} {offset} {length}", "-c", "flush", home.uri(export))


def must_hold(home: Home, export: str, pattern: int, offset: int = 0, length: int = 1 << 20) -> None:
    """All of those bytes are the pattern's: qemu-io fails at the first that is another."""
    run_tool("qemu-io", "-r", "-f", "raw", "-c", f"read -P {pattern} {offset} {length}", home.uri(export))
