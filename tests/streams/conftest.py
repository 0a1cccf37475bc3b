"""Two served homes: one that snapshots leave, one that they come to."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.served import Home
from tests.streams.vm_chain import Api, Chain


@pytest.fixture(scope="module")
def source() -> Iterator[Api]:
    yield from _served("2G")


@pytest.fixture(scope="module")
def target() -> Iterator[Api]:
    yield from _served("2G")


@pytest.fixture
def small() -> Iterator[Api]:
    """A home whose pool has no room for a chain."""
    yield from _served("32M")


def _served(capacity: str) -> Iterator[Api]:
    home = Home()
    try:
        home.init(capacity)
        home.serve()
        api = Api(home)
        yield api
        api.close()
    finally:
        home.close()


@pytest.fixture(scope="module")
def files() -> Iterator[Path]:
    """A directory for stream files."""
    directory = Path(tempfile.mkdtemp(prefix="blockdev-streams-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def chain(source: Api, files: Path) -> Chain:
    seed = int(os.environ.get("BLOCKDEV_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed}; again: BLOCKDEV_SEED={seed}")
    return Chain(source, files, "web", seed)
