"""Statistics live in a terminal; loaded only when they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from blockdev.cli.figures import HEADERS, headline, iops, top_cells, vm_fields

Row = dict[str, Any]
HEADER_LINES = 5  # of a terminal, that are no VM's


def watch(rounds: Iterable[Row], shown: str) -> None:
    """Each round in the place of the one before."""
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for found in rounds:
            live.update(PANELS[shown](found, console.height), refresh=True)


def _vm_panel(found: Row, _height: int) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for name, value in vm_fields(found):
        table.add_row(Text(name, style="bold"), value)
    return Group(_headline(found), "", table)


def _top_panel(found: Row, height: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in HEADERS:
        table.add_column(header, justify="left" if header == HEADERS[0] else "right", no_wrap=True)
    for row in found["rows"][: max(height - HEADER_LINES, 1)]:
        table.add_row(*top_cells(row), style=None if iops(row) else "dim")
    return Group(_headline(found["pool"] | found).append(f", {len(found['rows'])} VMs by {found['by']}"), "", table)


def _headline(found: Row) -> Text:
    return Text(headline(found), style="bold" if found["engine_running"] else "bold red")


PANELS: dict[str, Callable[[Row, int], RenderableType]] = {"vm": _vm_panel, "top": _top_panel}
