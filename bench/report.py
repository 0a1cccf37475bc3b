"""Medians and ratios of a benchmark's runs, as JSON and as text; ratios come first."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from bench.rounds import Run
from bench.workloads import RATIOS, WORKLOADS, Ratio, Value, Workload

RESULT_FORMAT = 2
NOISE_SHARE_MAX = 0.10  # of all cores; runs beside more than this are named in the text


def _of(runs: Iterable[Run], workload: str, peer: str) -> dict[int, Run]:
    return {run.round: run for run in runs if run.workload == workload and run.peer == peer}


def _value(run: Run, value: Value) -> float:
    if value != "speed":
        return run.latency_us[value.removeprefix("p")]
    unit = next(w.unit for w in WORKLOADS if w.name == run.workload)
    return run.iops if unit == "IOPS" else run.megabytes_per_second


def compare(runs: Sequence[Run], ratio: Ratio) -> dict[str, Any] | None:
    """The median of the rounds' ratios with its span, None when one side did not run."""
    ours = _of(runs, ratio.workload, ratio.peer)
    others = _of(runs, ratio.other_workload, ratio.other_peer)
    values = [
        _value(ours[round], ratio.value) / _value(others[round], ratio.other_value)
        for round in sorted(ours.keys() & others.keys())
    ]
    if not values:
        return None
    median = statistics.median(values)
    met = None
    if ratio.bar is not None:
        met = median >= ratio.bar if ratio.value == "speed" else median <= ratio.bar
    return {**asdict(ratio), "median": median, "min": min(values), "max": max(values), "bar_met": met}


def _median_of(runs: Sequence[Run], field: str) -> Any:
    values = [getattr(run, field) for run in runs]
    if any(value is None for value in values):
        return None
    if isinstance(values[0], dict):
        return {key: statistics.median(value[key] for value in values) for key in values[0]}
    return statistics.median(values)


MEDIAN_FIELDS = (
    "iops",
    "megabytes_per_second",
    "latency_us",
    "flush_latency_us",
    "server_cpu_seconds_per_gib",
    "client_cpu_seconds_per_gib",
    "written_bytes_per_byte",
    "resident_bytes",
    "other_cpu_share",
)


def summarise(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per workload and peer, with the medians over the rounds."""
    rows = []
    for workload, peer in dict.fromkeys((run.workload, run.peer) for run in runs):
        of_both = list(_of(runs, workload, peer).values())
        medians = {field: _median_of(of_both, field) for field in MEDIAN_FIELDS}
        rows.append({"workload": workload, "peer": peer, "rounds": len(of_both), **medians})
    return rows


def result(head: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """The whole result as it goes to JSON; `head` tells of the machine, the plan and what was skipped."""
    ratios = [compared for ratio in RATIOS if (compared := compare(runs, ratio)) is not None]
    return {
        "format": RESULT_FORMAT,
        **head,
        "ratios": ratios,
        "summary": summarise(runs),
        "runs": [asdict(run) for run in runs],
    }


def text(result: dict[str, Any]) -> str:
    lines = [*_head_lines(result), "", *_ratio_lines(result["ratios"])]
    for workload in WORKLOADS:
        rows = [row for row in result["summary"] if row["workload"] == workload.name]
        if rows:
            lines += ["", f"{workload.name}: {workload.title}", *_workload_lines(workload, rows)]
    return "\n".join([*lines, *_noise_lines(result["runs"])]) + "\n"


def _head_lines(result: dict[str, Any]) -> list[str]:
    machine, plan, sizes = result["machine"], result["plan"], result["plan"]["sizes"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"blockdev benchmark of {result['started']}",
        f"{machine['cpu_count']} x {machine['cpu']}, {machine['memory_bytes'] >> 30} GiB, {machine['kernel']}, "
        f"{machine['file_system']}",
        versions,
        f"{plan['rounds']} rounds of {plan['runtime_seconds']} s, seed {plan['seed']}, disks of "
        f"{sizes['filled_bytes'] >> 20} MiB filled, {sizes['fresh_bytes'] >> 20} MiB fresh, "
        f"{sizes['sustained_bytes'] >> 20} MiB for sustained writes",
    ]
    if result["stopped"]:
        lines.append(f"STOPPED EARLY, by {result['stopped']}")
    lines += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    return lines + [
        f"FAILED: {each['workload']} on {each['peer']}: {each['message']}" for each in result["failures"]
    ]


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    ]


def _ratio_lines(ratios: list[dict[str, Any]]) -> list[str]:
    if not ratios:
        return ["no ratios: no two peers to compare did run"]
    rows = [["ratio", "median", "min", "max", "bar", ""]]
    for ratio in ratios:
        span = [f"{ratio[key]:.2f}" for key in ("median", "min", "max")]
        rows.append([title_of(ratio), *span, *_verdict(ratio)])
    return _table(rows)


def title_of(ratio: dict[str, Any]) -> str:
    """In words: what over what."""
    values = "" if ratio["value"] == "speed" else f", {ratio['value']} / {ratio['other_value']}"
    sides = (ratio["workload"], ratio["peer"]), (ratio["other_workload"], ratio["other_peer"])
    if sides[0] == sides[1]:
        return f"{ratio['workload']}: {ratio['peer']}{values}"
    if ratio["workload"] == ratio["other_workload"]:
        return f"{ratio['workload']}: {ratio['peer']} / {ratio['other_peer']}{values}"
    other = "" if ratio["peer"] == ratio["other_peer"] else f" of {ratio['other_peer']}"
    return f"{ratio['workload']} / {ratio['other_workload']}{other}: {ratio['peer']}{values}"


def _verdict(ratio: dict[str, Any]) -> list[str]:
    if ratio["bar"] is None:
        return ["", ""]
    sign = ">=" if ratio["value"] == "speed" else "<="
    return [f"{sign} {ratio['bar']:.2f}", "met" if ratio["bar_met"] else "MISSED"]


def _workload_lines(workload: Workload, rows: list[dict[str, Any]]) -> list[str]:
    reads, flushes = workload.reads_only, rows[0]["flush_latency_us"] is not None
    table = [
        [
            "peer",
            workload.unit,
            "p50 us",
            "p99 us",
            "p99.9 us",
            *(["flush p50", "flush p99"] if flushes else []),
            "CPU s/GiB",
            *([] if reads else ["written/byte"]),
            "resident MiB",
        ]
    ]
    speed = "iops" if workload.unit == "IOPS" else "megabytes_per_second"
    for row in sorted(rows, key=lambda row: -row[speed]):
        cells = [
            row["peer"],
            f"{row[speed]:,.0f}",
            *(f"{value:,.0f}" for value in row["latency_us"].values()),
        ]
        if flushes:
            cells += [f"{row['flush_latency_us'][key]:,.0f}" for key in ("50", "99")]
        cells.append(f"{row['server_cpu_seconds_per_gib']:.2f}")
        if not reads:
            cells.append(f"{row['written_bytes_per_byte']:.2f}")
        table.append([*cells, f"{row['resident_bytes'] / (1 << 20):,.0f}"])
    return _table(table)


def _noise_lines(runs: list[dict[str, Any]]) -> list[str]:
    noisy = [run for run in runs if run["other_cpu_share"] > NOISE_SHARE_MAX]
    if not noisy:
        return []
    worst = max(noisy, key=lambda run: run["other_cpu_share"])
    return [
        "",
        f"{len(noisy)} of {len(runs)} runs had more than {NOISE_SHARE_MAX:.0%} of the CPUs taken by others "
        f"(writeback by the kernel included); worst {worst['other_cpu_share']:.0%}: {worst['workload']} on "
        f"{worst['peer']}, round {worst['round'] + 1}",
    ]
