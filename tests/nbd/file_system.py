"""A small file system of its own in a loop-mounted file, and a file that takes all of its room."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.served import run_tool

MAKERS = {"ext4": ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0"], "xfs": ["mkfs.xfs", "-q"]}
PIECE = 1 << 20


@contextmanager
def mounted(kind: str, size_bytes: int) -> Iterator[Path]:
    """Where it is mounted; all of its room is for everybody."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    directory = Path(tempfile.mkdtemp(prefix="blockdev-fs-"))
    image, point = directory / "image", directory / "mnt"
    try:
        point.mkdir()
        with image.open("wb") as file:
            file.truncate(size_bytes)
        run_tool(*MAKERS[kind], image)
        run_tool("mount", "-o", "loop", image, point)
        try:
            yield point
        finally:
            unmount(point)
    finally:
        shutil.rmtree(directory)


def unmount(point: Path) -> None:
    """Also when a test that failed left something open there: then when that is closed."""
    if subprocess.run(["umount", str(point)], timeout=300).returncode:
        run_tool("umount", "--lazy", point)


def take_all_room(path: Path) -> None:
    """A foreign file that grows until nothing is left, not even a block."""
    with path.open("ab", buffering=0) as file:
        piece = PIECE
        while piece >= 512:
            try:
                os.posix_fallocate(file.fileno(), file.tell(), piece)
                file.seek(piece, os.SEEK_CUR)
            except OSError:
                piece //= 2
