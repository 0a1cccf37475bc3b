"""A thousand VMs: how much their history takes, how fast a graph, a look and a scrape are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockdev.api import statistics_views
from blockdev.statistics import figures, layout
from blockdev.statistics.figures import GAUGES, QUANTILES, SUMS, Span
from blockdev.statistics.history import History
from blockdev.statistics.layout import FILE_BYTES, RINGS
from blockdev.statistics.ring_files import POOL
from tests.cli.served import Home, served_home, until
from tests.statistics.conftest import counters, of, scrape
from tests.statistics.load import BEGIN, nothing, uuids

VMS = 1000
GIBIBYTE = 1 << 30
TOTALS_BYTES_MAX = 12 << 20  # for 1,000 VMs of two disks, with SQLite's log


def fastest(do: Callable[[], Any], clock: Callable[[], float] = time.thread_time, rounds: int = 7) -> float:
    """Seconds of processor time, so that it does not matter who else uses this machine; the best of some."""
    found, elapsed = [], []
    for _round in range(rounds):
        began, wall = clock(), time.perf_counter()
        do()
        found.append(clock() - began)
        elapsed.append(time.perf_counter() - wall)
    print(f"processor seconds {min(found):.4f}, elapsed {min(elapsed):.4f}, the best of {rounds}")
    return min(found)


def used_by(pid: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def random_span(generator: np.random.Generator, count: int, seconds: float) -> Span:
    sums = generator.integers(0, 1 << 31, (count, len(SUMS))).astype(np.float64)
    p99 = generator.uniform(1e4, 1e8, (count, len(QUANTILES)))
    return Span(np.full(count, seconds), sums, p99, generator.uniform(0, 1e12, (count, len(GAUGES))))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[History, str]:
    """A VM's file, all slots of which are full."""
    [vm], generator = uuids(1), np.random.default_rng(1)
    history = History(tmp_path_factory.mktemp("full"))
    history.arrange([vm])
    history.files.write(RINGS[0], 1, [vm], layout.encode(RINGS[0], 1, random_span(generator, 1, 10)))
    path = history.files.path(vm)
    with path.open("r+b") as file:
        for ring in RINGS:
            newest = int(BEGIN) // ring.seconds
            lap_begins = newest - newest % ring.slot_count
            for first, last in ((newest - ring.slot_count + 1, lap_begins - 1), (lap_begins, newest)):
                slots = layout.encode(ring, first, random_span(generator, last - first + 1, ring.seconds))
                file.seek(layout.place(ring, first)[0])
                file.write(slots.tobytes())
    return history, vm


def test_a_thousand_vms_take_less_than_two_gibibytes_for_two_years(full: tuple[History, str]) -> None:
    history, vm = full
    status = os.stat(history.files.path(vm))
    allocated = status.st_blocks * 512
    assert status.st_size == FILE_BYTES <= allocated, "nothing of it is a hole"
    assert (VMS + 1) * allocated + TOTALS_BYTES_MAX < 2 * GIBIBYTE


@pytest.mark.parametrize("days", [1, 31, 730])
def test_a_graph_of_a_month_of_one_vm_takes_less_than_50_ms(full: tuple[History, str], days: int) -> None:
    history, vm = full

    def draw() -> dict[str, Any]:
        found = history.graph(vm, int(BEGIN) - days * 86400, int(BEGIN), 600, BEGIN)
        return statistics_views.graph(found, None)

    document = draw()
    known = [value for value in document["read_iops"] if value is not None]
    assert len(known) >= 0.98 * len(document["t"]) > 100 and set(figures.COLUMNS) <= set(document)
    assert fastest(draw) < 0.05


def test_a_look_at_a_thousand_vms_is_added_and_written_in_a_part_of_its_time(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.files.make_directory()
    history.arrange(uuids(VMS))
    seen = nothing(VMS)
    seen.sums[:] = 1000
    seen.histograms[:, :, 50] = 1000
    now = [BEGIN]

    def look() -> None:
        history.add(now[0], now[0] + 10, seen)
        now[0] += 10

    look()
    look()  # makes the files
    assert fastest(look) < 0.5


@pytest.fixture(scope="module")
def crowded() -> Iterator[Home]:
    with served_home() as home:
        with home.rest() as rest:
            disks = [{"name": name, "size_bytes": 1 << 20} for name in ("root", "data")]
            assert rest.post("/vms", json={"name": "base", "disks": disks}).status_code == 201
            assert rest.post("/vms/base/snapshots", json={"name": "s"}).status_code == 201
            for prefix in ("a", "b"):
                answer = rest.post("/vms/base/clones", json={"snapshot": "s", "count": 500, "prefix": prefix})
                assert answer.status_code == 201, answer.text
            until(lambda: len(rest.get("/statistics", params={"watch": True}).json()["vms"]["name"]) == VMS + 1, "all to be seen")
        yield home


def test_a_scrape_of_a_thousand_vms_takes_less_than_200_ms(crowded: Home) -> None:
    with crowded.rest() as rest:
        pid = crowded.control_pid()
        assert fastest(lambda: rest.get("http://blockdev/metrics").raise_for_status(), lambda: used_by(pid)) < 0.2
        text = rest.get("http://blockdev/metrics").text
    assert text.count("\n") > 60 * VMS
    samples = scrape(crowded)
    assert of(samples, "blockdev_vm_info") == VMS + 1 and len(counters(samples)) > 50 * VMS


def test_what_a_thousand_vms_do_now_is_one_answer(crowded: Home) -> None:
    with crowded.rest() as rest:
        answer = rest.get("/statistics")
        assert len(answer.content) < 600_000
        assert len(answer.json()["vms"]["read_iops"]) == VMS + 1
        assert fastest(lambda: rest.get("/statistics"), lambda: used_by(crowded.control_pid())) < 0.2
    assert len(crowded.json("top")["vms"]) == VMS + 1


def test_the_control_plane_of_a_thousand_vms_has_less_than_300_mib(crowded: Home) -> None:
    status = Path(f"/proc/{crowded.control_pid()}/status").read_text()
    most_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    print(f"{most_kib >> 10} MiB at the most")
    assert most_kib < 300 << 10


def test_files_of_a_thousand_vms_come_with_the_first_slot_that_ends(crowded: Home) -> None:
    directory = crowded.path / "statistics"
    until(lambda: len(list(directory.glob("*.ring"))) == VMS + 2, "a slot of each VM and of all")
    assert (directory / f"{POOL}.ring").exists()
    assert sum(path.stat().st_size for path in directory.glob("totals.db*")) < TOTALS_BYTES_MAX
