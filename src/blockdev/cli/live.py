"""Statistics live in a terminal; loaded only when they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from blockdev.cli.figures import HEADERS, headline, iops, top_cells, vm_fields
from blockdev.written import show_count

Row = dict[str, Any]
HEADER_LINES = 5  # of a terminal, that are no VM's
SPACE = 2  # between columns
DROPPED = ("QUEUE", "P99 READ", "P99 WRITE", "GROWTH/DAY", "LATENCY")  # the first ones first, where a terminal is narrow
SORTED_BY = {"latency": "LATENCY", "growth": "GROWTH/DAY"}


def watch(rounds: Iterable[Row], shown: str) -> None:
    """Each round in the place of the one before."""
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for found in rounds:
            live.update(PANELS[shown](found, console.width, console.height), refresh=True)


def _vm_panel(found: Row, _width: int, _height: int) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for name, value in vm_fields(found):
        table.add_row(Text(name, style="bold"), value)
    return Group(_headline(found), "", table)


def _top_panel(found: Row, width: int, height: int) -> RenderableType:
    rows = found["rows"][: max(height - HEADER_LINES, 1)]
    cells = [top_cells(row) for row in rows]
    columns = _fitting(cells, width, SORTED_BY.get(found["by"], ""))
    table = Table(box=None, pad_edge=False, padding=(0, SPACE, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(HEADERS[column], justify="right" if column else "left", no_wrap=True)
    for row, texts in zip(rows, cells, strict=True):
        table.add_row(*(texts[column] for column in columns), style=None if iops(row) else "dim")
    return Group(_headline(found["pool"] | found).append(f", {show_count(len(found['rows']), 'VM')} by {found['by']}"), "", table)


def _fitting(cells: list[list[str]], width: int, kept: str) -> list[int]:
    """The columns that there is room for; `kept` is one that must stay."""
    columns = list(range(len(HEADERS)))
    widths = [max(map(len, texts)) for texts in zip(HEADERS, *cells, strict=True)]
    for header in DROPPED:
        if sum(widths[column] + SPACE for column in columns) - SPACE <= width:
            break
        if header != kept:
            columns.remove(HEADERS.index(header))
    return columns


def _headline(found: Row) -> Text:
    return Text(headline(found), style="bold" if found["engine_running"] and found["away_since"] is None else "bold red")


PANELS: dict[str, Callable[[Row, int, int], RenderableType]] = {"vm": _vm_panel, "top": _top_panel}
