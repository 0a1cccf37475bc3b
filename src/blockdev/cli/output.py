"""What a person or a script sees: one JSON document on standard output, or words and aligned columns."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from blockdev.errors import BlockdevError, InvalidArgument
from blockdev.written import show_size


def show_time(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def warn_of_room(capacity_bytes: int, room_bytes: int) -> None:
    """One line on standard error when a pool of that capacity cannot become so large where it is."""
    if room_bytes < capacity_bytes:
        click.echo(
            f"warning: capacity {show_size(capacity_bytes)}, but the file system has room for {show_size(room_bytes)}: "
            "the pool is full when the file system is",
            err=True,
        )


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_columns(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Aligned columns; those whose numbers are in `right` are flushed right.  Without rows nothing is printed."""
    if not rows:
        return
    table = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    for row in table:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """`name: value` lines, aligned."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        click.echo(f"{name + ':':{width + 1}}  {value}")


def ask(loss: str, yes: bool) -> None:
    """Go on only when the person, or --yes, agrees to `loss` ("delete VM web with ...")."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidArgument(f"this would {loss}; say --yes to do it without being asked")
    if not click.confirm(f"This will {loss}. Go on?", err=True):
        raise BlockdevError("not done: nothing was changed")
