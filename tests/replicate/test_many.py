"""Several homes send to one and it to them at once, over delay and loss, in namespaces of their own (bench/replication/many.py)."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from bench.replication import fabric, many

SOURCES = 2


def test_all_arrives_both_ways_over_delay_and_loss(tmp_path: Path, seed: int) -> None:
    if fabric.missing() is not None:
        pytest.skip("network namespaces need root")
    given = Namespace(sources=SOURCES, size=4, rate=10.0, delay=20.0)
    phases, switch = many.measure(tmp_path, given, seed, loss=0.01, alone=False)
    assert [phase.transfers for phase in phases] == [2 * SOURCES]
    assert switch["lost"] > 0
