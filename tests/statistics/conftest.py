"""A served home with VMs, and guests' loads on their disks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.served import Home, run_tool, served_home

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Tests make VMs of their own in it and expect nothing of others'."""
    with served_home() as made:
        yield made


@pytest.fixture(scope="module")
def rest(home: Home) -> Iterator[httpx.Client]:
    with home.rest() as client:
        yield client


@pytest.fixture
def own() -> Iterator[Home]:
    """A served home of this test alone."""
    with served_home() as made:
        yield made


def scrape(home: Home) -> Samples:
    """Every sample of /metrics, read by Prometheus' own parser."""
    with home.rest() as client:
        answer = client.get("http://blockdev/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def of(samples: Samples, metric: str, /, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    wanted = set(labels.items())
    found = [value for (one, having), value in samples.items() if one == metric and wanted <= set(having)]
    assert found, (metric, labels)
    return sum(found)


def counters(samples: Samples) -> Samples:
    """Those that may never go backwards."""
    endings = ("_total", "_bucket", "_sum", "_count")
    mine = {key: value for key, value in samples.items() if key[0].endswith(endings) and key[0].startswith("blockdev_")}
    # these are the engine's of now, since it was started
    return {key: value for key, value in mine.items() if not key[0].startswith("blockdev_pool_")}


def fio(home: Home, export: str, *options: str) -> dict[str, Any]:
    """A load on an export; fio's own account of it."""
    fixed = ("--name=load", "--ioengine=nbd", f"--uri={home.uri(export)}", "--bs=4k", "--iodepth=8", "--output-format=json")
    told = run_tool("fio", *fixed, *options)
    report: dict[str, Any] = json.loads(told[told.index("{") :])["jobs"][0]  # behind a line of its engine's
    return report
