"""`python -m bench` runs, against real peers, and its result has the shape that bench/README.md tells of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from bench.fio import connections
from bench.peers import PEERS, BlockdevNative, NbdkitFile, NbdkitMemory
from bench.rounds import Run, cells, turns
from bench.workloads import MIB, NATIVE, QCOW2, RATIOS, REFLINK, WORKLOADS, Ratio, for_the_bars

from bench import kernels, plot, report

ROOT = Path(__file__).parents[2]
# what a killed run has mounted goes with it
OWN_MOUNTS = ("unshare", "--mount", "--") if os.geteuid() == 0 else ()


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
        series=None,
    )


# Together they have every peer, clones, checkpoints and a speed over time.
MEASURED = ("random-read", "sustained-write", "overwrite-checkpoints", "boot-storm")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("bench")
    command = [*OWN_MOUNTS, sys.executable, "-m", "bench", "--quick", "--rounds=1", "--runtime=0.3", "--filled-mib=32"]
    command += ["--sustained-mib=64", f"--scratch={folder}", f"--json={folder / 'result.json'}"]
    command += [f"--workload={name}" for name in MEASURED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    assert "random-read: 4 KiB random read" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["result", "result.json", "result.txt"]
    drawn = {path.stem for path in (folder / "result").glob("*.png")}
    assert drawn == {name for name, _ in plot.charts(json.loads((folder / "result.json").read_text()))}
    return json.loads((folder / "result.json").read_text())


def test_every_peer_runs_and_none_is_left_out(result: dict) -> None:
    unable = {} if os.geteuid() == 0 else {REFLINK: "mounting a file system needs root"}
    assert result["left_out"] == unable
    assert result["failures"] == []
    assert {run["peer"] for run in result["runs"]} == set(PEERS) - set(unable)


def test_charts_have_the_bars_and_speed_and_latency_of_each_group(result: dict) -> None:
    names = [name for name, _ in plot.charts(result)]
    assert len(set(names)) == len(names)
    groups = ("read", "sustained", "overwrite", "boot-storm")
    assert set(names) == {"bars", "series-sustained"} | {f"{kind}-{g}" for kind in ("speed", "latency") for g in groups}


def test_chart_of_snapshots_shows_the_speed_at_each_depth() -> None:
    deep = [workload for workload in WORKLOADS if workload.group == "snapshots deep, read"]
    runs = [_run(w.name, 0, NATIVE, 1000.0 + w.snapshots) for w in deep]
    drawn = dict(plot.charts(report.result({"workloads": [asdict(workload) for workload in deep]}, runs)))
    assert list(drawn) == ["bars", "snapshots-deep-read"]
    axes = drawn["snapshots-deep-read"].axes[0]
    assert list(axes.lines[0].get_ydata()) == [1000, 1001, 1010, 1100, 2000]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "10", "100", "1,000"]


def test_every_peer_has_a_colour_of_its_own() -> None:
    assert set(plot.COLOURS) == set(PEERS)
    assert len(set(plot.COLOURS.values())) == len(PEERS)


def test_result_tells_what_was_measured_and_on_what(result: dict) -> None:
    assert result["format"] == report.RESULT_FORMAT
    assert result["quick"] is True
    assert result["plan"]["rounds"] == 1
    assert isinstance(result["plan"]["seed"], int)
    assert {"cpu", "kernel", "file_system", "versions"} <= result["machine"].keys()
    assert {"nbdkit", "qemu-nbd", "fio", "blockdev"} == result["machine"]["versions"].keys()
    assert [workload["name"] for workload in result["workloads"]] == list(MEASURED)


def test_every_run_did_work_and_was_metered(result: dict) -> None:
    for run in result["runs"]:
        assert run["iops"] > 0
        assert run["bytes_done"] > 0
        assert list(run["latency_us"]) == ["50", "99", "99.9"]
        assert 0 < run["latency_us"]["50"] <= run["latency_us"]["99.9"]
        assert run["resident_bytes"] > 0


def test_a_plain_file_is_written_once_for_each_byte(result: dict) -> None:
    rows = [row for row in result["summary"] if row["workload"] == "sustained-write"]
    written = {row["peer"]: row["written_bytes_per_byte"] for row in rows}
    assert written["nbdkit-memory"] < 0.01
    assert written["nbdkit-file"] == pytest.approx(1.0, abs=0.01)


def test_reads_have_no_bytes_written_for_each_byte(result: dict) -> None:
    rows = [row for row in result["summary"] if row["workload"] == "random-read"]
    assert {row["written_bytes_per_byte"] for row in rows} == {None}


def test_sustained_write_writes_the_whole_disk_and_keeps_its_speed_over_time(result: dict) -> None:
    runs = [run for run in result["runs"] if run["workload"] == "sustained-write"]
    assert {run["bytes_done"] for run in runs} == {64 * MIB}
    for run in runs:
        assert all(seconds > 0 and iops > 0 for seconds, iops in run["series"])
    assert all(run["series"] is None for run in result["runs"] if run["workload"] != "sustained-write")


def test_checkpoints_are_written_during_the_run(result: dict) -> None:
    run = next(run for run in result["runs"] if run["workload"] == "overwrite-checkpoints")
    assert run["details"]["stats"]["checkpoints"] >= 1


def test_ratios_name_their_bar_and_whether_it_was_met(result: dict) -> None:
    ratio = next(r for r in result["ratios"] if r["workload"] == "sustained-write" and r["other_peer"] == QCOW2)
    assert ratio["bar"] == 3.0
    assert ratio["bar_met"] == (ratio["median"] >= 3.0)


def test_a_bar_for_latency_is_met_from_below() -> None:
    run = _run("sustained-write", 0, NATIVE)  # its p99.9 is 1.5 times its p99
    for bar, met in ((1.4, False), (1.6, True)):
        ratio = Ratio("sustained-write", NATIVE, "sustained-write", NATIVE, bar, value="p99.9", other_value="p99")
        compared = report.compare([run], ratio)
        assert compared is not None
        assert compared["median"] == 1.5
        assert compared["bar_met"] is met


def test_every_ratio_is_between_workloads_and_peers_that_exist() -> None:
    names = {workload.name for workload in WORKLOADS}
    for ratio in RATIOS:
        assert {ratio.workload, ratio.other_workload} <= names
        assert {ratio.peer, ratio.other_peer} <= set(PEERS)


def test_every_ratio_is_of_cells_that_run_in_turns_with_each_other() -> None:
    of = {workload.name: workload for workload in WORKLOADS}
    for ratio in RATIOS:
        ours, others = of[ratio.workload], of[ratio.other_workload]
        assert ours.group == others.group
        assert ratio.peer in ours.peers
        assert ratio.other_peer in others.peers


def test_a_quick_run_has_all_that_the_bars_ask_for_and_little_else() -> None:
    quick = cells(WORKLOADS, list(PEERS.values()), only_for_the_bars=True)
    assert {(workload.name, peer.name) for workload, peer in quick} == for_the_bars()
    for ratio in RATIOS:
        if ratio.bar is not None:
            assert (ratio.workload, ratio.peer) in for_the_bars()
            assert (ratio.other_workload, ratio.other_peer) in for_the_bars()
    assert len(quick) < 40 < len(cells(WORKLOADS, list(PEERS.values())))


def test_workloads_have_names_of_their_own_and_each_group_runs_once() -> None:
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)
    groups = [workload.group for workload in WORKLOADS]
    assert sum(one != next for one, next in pairwise(groups)) == len(set(groups)) - 1


def test_connections_write_to_parts_of_the_disk_that_do_not_overlap() -> None:
    workload = next(workload for workload in WORKLOADS if workload.name == "random-write-connections4")
    parts = connections(workload, ["nbd://"], 10 * MIB + 4096)
    assert len(parts) == 4
    for one, following in pairwise(parts):
        assert one.offset + one.size_bytes <= following.offset
    assert parts[-1].offset + parts[-1].size_bytes <= 10 * MIB + 4096


def test_ratio_is_the_median_of_the_rounds_ratios_and_not_of_the_speeds() -> None:
    ours = [_run("random-write", i, BlockdevNative.name, iops) for i, iops in enumerate((100.0, 800.0, 90.0))]
    others = [_run("random-write", i, "qemu-nbd-qcow2", iops) for i, iops in enumerate((50.0, 100.0, 30.0))]
    pair = Ratio("random-write", BlockdevNative.name, "random-write", "qemu-nbd-qcow2", bar=2.0)
    compared = report.compare([*ours, *others], pair)
    assert compared is not None
    assert (compared["median"], compared["min"], compared["max"]) == (3.0, 2.0, 8.0)
    assert compared["bar_met"] is True


def test_ratio_without_its_other_side_is_left_out() -> None:
    assert report.compare([_run("random-read", 0)], RATIOS[0]) is None


def test_snapshots_are_asked_of_peers_that_have_them_only() -> None:
    after_snapshot = [workload for workload in WORKLOADS if workload.snapshots]
    assert {peer.can_snapshot for _, peer in cells(after_snapshot, list(PEERS.values()))} == {True}


def test_the_page_cache_is_emptied_for_peers_that_keep_files_only() -> None:
    cold = [workload for workload in WORKLOADS if workload.state == "cold"]
    assert {peer.keeps_memory_only for _, peer in cells(cold, list(PEERS.values()))} == {False}


def test_evicted_files_are_in_the_page_cache_no_more(tmp_path: Path) -> None:
    def cached_bytes() -> int:
        command = ["fincore", "--bytes", "--noheadings", "--output=RES", str(tmp_path / "disk.raw")]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    (tmp_path / "disk.raw").write_bytes(os.urandom(MIB))
    assert cached_bytes() == MIB
    NbdkitFile(tmp_path, MIB).evict()
    assert cached_bytes() == 0


def test_a_run_that_is_stopped_keeps_what_was_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--rounds=50", "--runtime=0.2", "--filled-mib=16", "--peer=nbdkit-memory"]
    command += ["--workload=random-read", f"--scratch={tmp_path}", f"--json={tmp_path / 'result.json'}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for _ in range(2):
            assert "IOPS" in running.stderr.readline()
        running.terminate()
        assert running.wait(timeout=300) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["stopped"] == "Terminated"
    assert 2 <= len(result["runs"]) < 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result", "result.json", "result.txt"]


def test_turns_give_each_cell_other_neighbours_and_leave_none_out() -> None:
    all_cells = cells(WORKLOADS[:1], list(PEERS.values()))
    orders = [turns(all_cells, round) for round in range(4)]
    assert all(sorted(map(str, order)) == sorted(map(str, all_cells)) for order in orders)
    assert len({str(order) for order in orders}) == 4
    assert len({str(order[0]) for order in orders}) == 4


def test_memory_of_maps_is_measured_and_their_budget_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    # a process of its own: one that did other things before has memory to spare, which would not count
    command = [sys.executable, "-m", "bench.memory", "--mapped-gib=4", f"--scratch={tmp_path}", f"--json={target}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    measured = json.loads(target.read_text())
    assert 1.9 < measured["maps"]["gib_per_mapped_tib"] < 3.0  # a node of 4 KiB for 2 MiB, and what stands around it
    assert measured["eviction"]["nodes_faulted"] > 0
    assert measured["eviction"]["within_budget"] is True
    assert measured["dedup_index"]["entry_bytes"] > measured["dedup_index"]["budget_bytes"] / 2
    assert measured["dedup_index"]["within_budget"] is True


def test_every_kernel_can_be_called_and_timed(tmp_path: Path) -> None:
    timed = {name: kernels.measure(name, tmp_path, calls=2000) for name in kernels.KERNELS}
    assert all(each.nanoseconds_low <= each.nanoseconds <= each.nanoseconds_high for each in timed.values())
    assert timed["map-update-copy"].nanoseconds > timed["map-update"].nanoseconds
    assert timed["map-lookup-256"].nanoseconds > timed["map-lookup"].nanoseconds
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_whose_arguments_changed_is_refused() -> None:
    with pytest.raises(TypeError):
        kernels.Function("_cow", "map_update")(0, 0)


CALLGRIND = """
fn=(1) __pyx_f_8blockdev_4_cow_map_update
12 30
+2 10
cfn=(2) __pyx_f_8blockdev_4_cow_map_place
calls=4 20
* 400
fn=(3) main
7 5
cfn=(1)
calls=2 12
-1 440
fn=(2)
20 400
totals: 445
"""


def test_instructions_are_counted_with_and_without_those_of_callees() -> None:
    place, update = kernels.read_counts(CALLGRIND)
    assert place == kernels.Count("_cow.map_place", calls=4, instructions=100, instructions_own=100)
    assert update == kernels.Count("_cow.map_update", calls=2, instructions=220, instructions_own=20)


def test_answers_of_a_process_are_timed_alone_and_beside_others() -> None:
    told = subprocess.run([sys.executable, "-m", "bench.wakeups", "--rounds", "1", "--answers", "20"], check=True, capture_output=True, text=True)
    rows = [line.split() for line in told.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["alone", "beside", "the"]
    assert all(0 < float(row[-3]) <= float(row[-1]) for row in rows)
