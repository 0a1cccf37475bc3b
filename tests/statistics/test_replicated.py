"""Replication is seen at both ends, and a received VM has a history of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.served import Home, run_tool, until
from tests.replicate.test_cli import Sites, new_site, pair
from tests.statistics.conftest import of, scrape

MEBIBYTE = 1 << 20


@pytest.fixture
def sites() -> Iterator[Sites]:
    a, b = new_site(), new_site()
    try:
        pair(a, b)
        yield Sites(a, b)
    finally:
        a.home.close()
        b.home.close()


def now(home: Home) -> dict[str, Any]:
    with home.rest() as rest:
        found: dict[str, Any] = rest.get("/vms/web/statistics/now", params={"watch": True}).json()
    return found


def test_what_replication_moves_is_counted_at_source_and_destination(sites: Sites, seed: int, tmp_path: Any) -> None:
    a, b = sites.a.home, sites.b.home
    a("vm", "create", "web", "--disk", "root=16M")
    image = tmp_path / "image"
    image.write_bytes(random.Random(seed).randbytes(8 * MEBIBYTE))
    run_tool("nbdcopy", image, a.uri("web/root"))
    assert now(a)["replication_lag_seconds"] is None
    a("replicate", "protect", "web", "--path", "b", "--rpo", "1h")
    a("snapshot", "create", "web", "--name", "s1")
    until(lambda: "web" in b("vm", "list"), "the VM to arrive")
    until(lambda: now(a).get("replication_lag_seconds") == 0, "all to be there")
    time.sleep(1.1)
    until(lambda: now(b).get("replication_lag_seconds") is not None, "the other end to know it")
    time.sleep(1.1)
    uuids = {}
    for home, direction, way in ((a, "sent", "b"), (b, "received", "a")):
        found, samples = now(home), scrape(home)
        uuids[direction] = found["uuid"]
        labels = {"vm": found["uuid"], "direction": direction, "way": way}
        assert of(samples, "blockdev_replication_logical_bytes_total", **labels) >= 8 * MEBIBYTE, direction
        assert of(samples, "blockdev_replication_network_bytes_total", **labels) >= 8 * MEBIBYTE, "random bytes do not shrink"
        assert of(samples, "blockdev_replication_rpo_seconds", **labels) == 3600
        assert of(samples, "blockdev_replication_lag_seconds", **labels) < 600
        with home.rest() as rest:
            graph = rest.get("/vms/web/statistics", params={"since": -300, "points": 2000}).json()
        moved = sum(value or 0 for value in graph["replication_logical_bytes_per_second"]) * graph["step_seconds"]
        assert moved >= 0.95 * 8 * MEBIBYTE, (direction, graph["replication_logical_bytes_per_second"])
    assert now(a)["totals"]["write"]["operations"] > 0 == now(b)["totals"]["write"]["operations"], "nobody wrote to the copy"
    file = b.path / f"statistics/{uuids['received']}.ring"
    until(file.exists, "a history of its own")
