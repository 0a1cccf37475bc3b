"""`python -m bench.plot RESULT.json`: the charts of a result, one PNG each; `python -m bench` makes them too."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no window, no state, Agg
from matplotlib.ticker import NullFormatter

from bench.report import RESULT_FORMAT, title_of
from bench.workloads import (
    FILE,
    MEMORY,
    NATIVE,
    PYTHON,
    QCOW2,
    QCOW2_SNAPSHOTS,
    REFLINK,
    STORAGE_DAEMON,
    UNCHECKED,
    UNCOUNTED,
)

DOTS_PER_INCH = 90
WIDTH_INCHES = 9.0
COLOURS = {
    NATIVE: "#1b6ca8",
    PYTHON: "#7fb3d5",
    UNCHECKED: "#b8d4e6",
    UNCOUNTED: "#d6e6f0",
    MEMORY: "#555555",
    FILE: "#d98324",
    REFLINK: "#eec08c",
    QCOW2: "#a23b3b",
    QCOW2_SNAPSHOTS: "#d9a0a0",
    STORAGE_DAEMON: "#c96f9b",
}
MET, MISSED = "#2e8b57", "#c0392b"
WHOLE, SHORT = "{x:,.0f}", "{x:g}"  # how numbers stand at an axis
MINOR_LABELS_SPAN = 40  # from here on numbers between powers of ten would not fit
MARKERS = {"50": "|", "99": "o", "99.9": "D"}


def charts(result: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """(name, chart) of everything the result has."""
    asked = [ratio for ratio in result["ratios"] if ratio["bar"] is not None]
    if asked:
        yield "bars", _bars(asked)
    for group in dict.fromkeys(workload["group"] for workload in result["workloads"]):
        workloads = [w for w in result["workloads"] if w["group"] == group and _rows(result, w)]
        if not workloads:
            continue
        name = group.replace(",", "").replace(" ", "-")
        if any(workload["snapshots"] > 1 for workload in workloads):
            yield name, _depth(result, group, workloads)
            continue
        yield f"speed-{name}", _speed(result, workloads)
        yield f"latency-{name}", _latency(result, workloads)
        if any(workload["sustained"] for workload in workloads):
            yield f"series-{name}", _series(result, workloads)


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write them all into `folder`, which is made; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in charts(result):
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=DOTS_PER_INCH)
        paths.append(path)
    return paths


def _rows(result: dict[str, Any], workload: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the summary, the slowest first: a bar chart begins at the bottom."""
    rows = [row for row in result["summary"] if row["workload"] == workload["name"]]
    return sorted(rows, key=lambda row: row[_speed_field(workload)])


def _speed_field(workload: dict[str, Any]) -> str:
    return "iops" if workload["unit"] == "IOPS" else "megabytes_per_second"


def _figure(height_inches: float) -> Figure:
    return Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")


def _panels(result: dict[str, Any], workloads: Sequence[dict[str, Any]]) -> tuple[Figure, list[Axes]]:
    """One below the other, each as high as it has peers."""
    heights = [len(_rows(result, workload)) + 2 for workload in workloads]
    figure = _figure(0.3 * sum(heights))
    axes = figure.subplots(len(workloads), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, [row[0] for row in axes]


def _titled(axes: Axes, workload: dict[str, Any]) -> None:
    axes.set_title(workload["title"], fontsize=9, loc="left")
    axes.tick_params(labelsize=8)


def _speed(result: dict[str, Any], workloads: Sequence[dict[str, Any]]) -> Figure:
    figure, panels = _panels(result, workloads)
    for axes, workload in zip(panels, workloads, strict=True):
        rows, field = _rows(result, workload), _speed_field(workload)
        peers, values = [row["peer"] for row in rows], [row[field] for row in rows]
        shown = axes.barh(peers, values, color=[COLOURS[peer] for peer in peers])
        axes.bar_label(shown, [f" {value:,.0f}" for value in values], fontsize=8)
        axes.margins(x=0.12)
        axes.xaxis.set_major_formatter(WHOLE)
        axes.set_xlabel(workload["unit"], fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        _titled(axes, workload)
    return figure


def _latency(result: dict[str, Any], workloads: Sequence[dict[str, Any]]) -> Figure:
    figure, panels = _panels(result, workloads)
    for axes, workload in zip(panels, workloads, strict=True):
        rows = _rows(result, workload)
        for percentile, marker in MARKERS.items():
            # Where each write is followed by a flush, that is what the client waits for.
            values = [(row["flush_latency_us"] or row["latency_us"])[percentile] for row in rows]
            peers = [row["peer"] for row in rows]
            colours = [COLOURS[peer] for peer in peers]
            axes.scatter(values, peers, c=colours, marker=marker, s=40, label=f"p{percentile}")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(WHOLE)
        first, last = axes.get_xlim()
        axes.xaxis.set_minor_formatter(NullFormatter() if last > MINOR_LABELS_SPAN * first else WHOLE)
        axes.tick_params(axis="x", which="minor", labelsize=7)
        axes.grid(axis="x", which="both", alpha=0.3)
        axes.margins(y=0.2)
        axes.set_xlabel("µs, of the flushes" if rows[0]["flush_latency_us"] else "µs", fontsize=8)
        _titled(axes, workload)
    panels[0].legend(fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def _bars(ratios: Sequence[dict[str, Any]]) -> Figure:
    """How far each ratio is from what was asked: right of 1 it is met."""
    figure = _figure(0.4 * len(ratios) + 1)
    axes = figure.subplots()
    titles = []
    for place, ratio in enumerate(reversed(ratios)):
        ends = [_above_bar(ratio, ratio[key]) for key in ("min", "median", "max")]
        colour = MET if ratio["bar_met"] else MISSED
        axes.plot([ends[0], ends[2]], [place, place], color=colour, alpha=0.4, linewidth=5)
        axes.plot([ends[1]], [place], "o", color=colour)
        axes.annotate(f"{ratio['median']:.2f}", (ends[1], place), (0, 6), textcoords="offset points", fontsize=7)
        sign = "≥" if ratio["value"] == "speed" else "≤"
        titles.append(f"{title_of(ratio)}  {sign} {ratio['bar']:g}")
    axes.set_yticks(range(len(titles)), titles, fontsize=8)
    axes.set_xscale("log")
    for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatted(SHORT)
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.margins(x=0.08)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times what was asked, median and span of the rounds; right of 1: met", fontsize=8)
    return figure


def _above_bar(ratio: dict[str, Any], value: float) -> float:
    return value / ratio["bar"] if ratio["value"] == "speed" else ratio["bar"] / value


def _series(result: dict[str, Any], workloads: Sequence[dict[str, Any]]) -> Figure:
    """Of each peer the run whose speed is the median."""
    figure = _figure(3.5 * len(workloads))
    panels = figure.subplots(len(workloads), 1, squeeze=False)[:, 0]
    for axes, workload in zip(panels, workloads, strict=True):
        for peer in sorted({row["peer"] for row in _rows(result, workload)}):
            runs = [r for r in result["runs"] if r["workload"] == workload["name"] and r["peer"] == peer]
            middle = statistics.median_low(run["iops"] for run in runs)
            series = next(run["series"] for run in runs if run["iops"] == middle)
            axes.plot(*zip(*series, strict=True), color=COLOURS[peer], label=peer, linewidth=1.2)
        axes.set_xlabel("seconds since the start", fontsize=8)
        axes.set_ylabel("IOPS", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(WHOLE)
        axes.legend(fontsize=8)
        _titled(axes, workload)
    return figure


def _depth(result: dict[str, Any], group: str, workloads: Sequence[dict[str, Any]]) -> Figure:
    """Speed over the number of snapshots below the disk."""
    figure = _figure(3.5)
    axes = figure.subplots()
    places = {workload["name"]: place for place, workload in enumerate(workloads)}
    rows = [row for workload in workloads for row in _rows(result, workload)]
    for peer in dict.fromkeys(row["peer"] for row in rows):
        points = sorted((places[row["workload"]], row["iops"]) for row in rows if row["peer"] == peer)
        axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[peer], label=peer)
    axes.set_xticks(range(len(workloads)), [f"{workload['snapshots']:,}" for workload in workloads])
    axes.set_xlabel("snapshots", fontsize=8)
    axes.set_ylabel("IOPS", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(WHOLE)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title(f"{group}: 4 KiB random, depth {workloads[0]['depth']}", fontsize=9, loc="left")
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.plot", description="the charts of a result, one PNG each")
    parser.add_argument("result", type=Path, metavar="RESULT.json")
    parser.add_argument("--folder", type=Path, help="where they go (default: beside it, named after it)")
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text())
    if result["format"] != RESULT_FORMAT:
        print(f"bench: {arguments.result} has format {result['format']}, not {RESULT_FORMAT}", file=sys.stderr)
        return 1
    for path in draw(result, arguments.folder or arguments.result.with_suffix("")):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
