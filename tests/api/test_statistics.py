"""Statistics by REST: who may ask, and what cannot be asked."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from blockdev.statistics import figures

ADDRESSES = ("/statistics", "/pool/statistics", "/vms/counted/statistics", "/vms/counted/statistics/now")


@pytest.fixture(scope="module", autouse=True)
def vm(rest: httpx.Client) -> None:
    assert rest.post("/vms", json={"name": "counted", "disks": [{"name": "root", "size_bytes": 1 << 20}]}).status_code == 201


def test_a_scraper_may_scrape_and_nothing_else(
    callers: dict[str, httpx.Client], over_tcp: Callable[[str | None], httpx.Client], api_address: str
) -> None:
    metrics = f"https://{api_address}/metrics"
    for role, client in callers.items():
        answer = client.get(metrics)
        assert answer.status_code == 200 and "blockdev_engine_up 1.0" in answer.text, role
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        for address in ADDRESSES:
            assert client.get(address).status_code == (403 if role == "scraper" else 200), (role, address)
    assert callers["scraper"].get("/vms").status_code == callers["scraper"].get("/status").status_code == 403
    assert callers["scraper"].post("/vms", json={"name": "x", "disks": []}).status_code == 403
    for token in (None, "bdv_nothing"):
        assert over_tcp(token).get(metrics).status_code == 401


def test_a_graph_has_all_columns_of_one_length(rest: httpx.Client) -> None:
    graph = rest.get("/vms/counted/statistics", params={"since": -600, "points": 10}).json()
    assert {len(graph[name]) for name in (*figures.COLUMNS, "t")} == {len(graph["t"])} and 1 <= len(graph["t"]) <= 10
    assert graph["until"] - graph["since"] == 600
    steps = {after - before for before, after in zip(graph["t"], graph["t"][1:], strict=False)}
    assert steps <= {graph["step_seconds"]}
    exact = rest.get("/pool/statistics", params={"since": graph["since"], "until": graph["until"], "points": 10}).json()
    assert (exact["since"], exact["until"], exact["t"]) == (graph["since"], graph["until"], graph["t"])


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"since": 0}, 400),
        ({"since": -10, "until": -20}, 400),
        ({"since": 1}, 400),
        ({"since": -(1 << 40), "until": 0}, 400),
        ({"since": 1 << 40, "until": (1 << 40) - 1}, 400),
        ({"since": "yesterday"}, 422),
        ({"points": 0}, 422),
        ({"points": 2001}, 422),
        ({"since": 1 << 50}, 422),
        ({"since": (1 << 40) - 3600, "until": 1 << 40}, 200),
        ({"since": 1000, "until": 5000}, 200),
    ],
)
def test_times_that_no_graph_has_are_refused(rest: httpx.Client, query: dict[str, int], status: int) -> None:
    answer = rest.get("/vms/counted/statistics", params=query)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert set(answer.json()["read_iops"]) == {None}


def test_of_a_vm_that_is_none_nothing_is_told(rest: httpx.Client) -> None:
    for address in ("/vms/nobody/statistics", "/vms/nobody/statistics/now"):
        assert rest.get(address).json()["error"]["code"] == "not_found"
