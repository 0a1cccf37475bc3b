"""`python -m bench` runs, against real peers, and its result has the shape that bench/README.md tells of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.peers import PEERS, BlockdevNative, NbdkitMemory
from bench.rounds import Run, cells, turns
from bench.workloads import RATIOS, WORKLOADS, Ratio

from bench import report

ROOT = Path(__file__).parents[2]


def _run(workload: str, round: int, peer: str = NbdkitMemory.name, iops: float = 1000.0) -> Run:
    return Run(
        workload=workload,
        peer=peer,
        round=round,
        position=0,
        seed=1,
        iops=iops,
        megabytes_per_second=iops * 4096 / 1e6,
        latency_us={"50": 1.0, "99": 2.0, "99.9": 3.0},
        flush_latency_us=None,
        bytes_done=1 << 20,
        server_cpu_seconds_per_gib=1.0,
        client_cpu_seconds_per_gib=1.0,
        written_bytes_per_byte=1.0,
        resident_bytes=1 << 20,
        other_cpu_share=0.0,
        details={},
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "bench", "--quick", "--rounds=1", "--runtime=0.5", "--fresh-mib=64"]
    command += ["--workload=random-write", f"--scratch={folder}", f"--json={folder / 'result.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "random-write: 4 KiB random write" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "result.txt"]
    return json.loads((folder / "result.json").read_text())


def test_every_peer_runs_and_none_is_left_out(result: dict) -> None:
    assert result["left_out"] == {}
    assert result["failures"] == []
    assert {run["peer"] for run in result["runs"]} == set(PEERS)


def test_result_tells_what_was_measured_and_on_what(result: dict) -> None:
    assert result["format"] == report.RESULT_FORMAT
    assert result["quick"] is True
    assert result["plan"]["rounds"] == 1
    assert isinstance(result["plan"]["seed"], int)
    assert {"cpu", "kernel", "file_system", "versions"} <= result["machine"].keys()
    assert {"nbdkit", "qemu-nbd", "fio", "blockdev"} == result["machine"]["versions"].keys()
    assert [workload["name"] for workload in result["workloads"]] == ["random-write"]


def test_every_run_did_work_and_was_metered(result: dict) -> None:
    for run in result["runs"]:
        assert run["iops"] > 0
        assert run["bytes_done"] > 0
        assert list(run["latency_us"]) == ["50", "99", "99.9"]
        assert 0 < run["latency_us"]["50"] <= run["latency_us"]["99.9"]
        assert run["resident_bytes"] > 0


def test_a_plain_file_is_written_once_for_each_byte(result: dict) -> None:
    written = {row["peer"]: row["written_bytes_per_byte"] for row in result["summary"]}
    assert written["nbdkit-memory"] < 0.01
    assert written["nbdkit-file"] == pytest.approx(1.0, abs=0.01)


def test_ratios_name_their_bar_and_whether_it_was_met(result: dict) -> None:
    ratio = next(r for r in result["ratios"] if r["other_peer"] == "qemu-nbd-qcow2")
    assert ratio["workload"] == ratio["other_workload"] == "random-write"
    assert ratio["bar"] == 2.0
    assert ratio["bar_met"] == (ratio["median"] >= 2.0)


def test_every_ratio_is_between_workloads_and_peers_that_exist() -> None:
    names = {workload.name for workload in WORKLOADS}
    for ratio in RATIOS:
        assert {ratio.workload, ratio.other_workload} <= names
        assert {ratio.peer, ratio.other_peer} <= set(PEERS)


def test_ratio_is_the_median_of_the_rounds_ratios_and_not_of_the_speeds() -> None:
    ours = [_run("random-write", i, BlockdevNative.name, iops) for i, iops in enumerate((100.0, 800.0, 90.0))]
    others = [_run("random-write", i, "qemu-nbd-qcow2", iops) for i, iops in enumerate((50.0, 100.0, 30.0))]
    pair = Ratio("random-write", BlockdevNative.name, "random-write", "qemu-nbd-qcow2", bar=2.0)
    compared = report.compare([*ours, *others], pair)
    assert compared is not None
    assert (compared["median"], compared["min"], compared["max"]) == (3.0, 2.0, 8.0)
    assert compared["bar_met"] is True
    assert compared["goal_met"] is None


def test_ratio_without_its_other_side_is_left_out() -> None:
    assert report.compare([_run("random-read", 0)], RATIOS[0]) is None


def test_peers_without_snapshots_do_not_run_after_one() -> None:
    after_snapshot = [w for w in WORKLOADS if w.state == "snapshot"]
    assert {peer.can_snapshot for _, peer in cells(after_snapshot, list(PEERS.values()))} == {True}


def test_turns_give_each_cell_other_neighbours_and_leave_none_out() -> None:
    all_cells = cells(WORKLOADS[:1], list(PEERS.values()))
    orders = [turns(all_cells, round) for round in range(4)]
    assert all(sorted(map(str, order)) == sorted(map(str, all_cells)) for order in orders)
    assert len({str(order) for order in orders}) == 4
    assert len({str(order[0]) for order in orders}) == 4
