"""Two pools: what is sent is in `pool`, and goes to `other`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockdev import Pool
from tests.replicate.pools import MEBIBYTE


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Pool]:
    with Pool.create(str(tmp_path / "other"), 1024 * MEBIBYTE, segment_bytes=4 * MEBIBYTE) as opened:
        yield opened
