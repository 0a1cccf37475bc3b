"""A served home for the whole session, and a disk image with a real file system."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.served import Home, fresh_home, run_tool, served_home


@pytest.fixture(scope="session")
def home() -> Iterator[Home]:
    """Served by the native plugin.  Tests make VMs of their own in it and expect nothing of others'."""
    with served_home() as made:
        yield made


@pytest.fixture
def fresh() -> Iterator[Home]:
    """A home of this test alone: initialised, not served."""
    with fresh_home() as made:
        yield made


_numbers = itertools.count(1)


@pytest.fixture
def name() -> str:
    """A VM name that no other test has."""
    return f"vm-{next(_numbers)}"


@pytest.fixture(scope="session")
def images() -> Iterator[Path]:
    """A directory with fs.raw and fs.qcow2: ext4 with the files of Python's library."""
    directory = Path(tempfile.mkdtemp(prefix="blockdev-images-"))
    try:
        run_tool("truncate", "-s", "256M", directory / "fs.raw")
        run_tool("mke2fs", "-q", "-t", "ext4", "-d", Path(shutil.__file__).parent, directory / "fs.raw")
        run_tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", directory / "fs.raw", directory / "fs.qcow2")
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for what this test exports."""
    directory = Path(tempfile.mkdtemp(prefix="blockdev-scratch-"))
    yield directory
    shutil.rmtree(directory)


