"""blockdevctl vm stats and top: what VMs do now and did before, live in a terminal, as lines elsewhere, or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import click

from blockdev.cli import values
from blockdev.cli.figures import (
    HEADERS,
    SORTS,
    Row,
    count,
    headline,
    microseconds,
    rows_of,
    speed,
    top_cells,
    vm_fields,
)
from blockdev.cli.output import print_columns, print_fields
from blockdev.cli.session import Session, Verb, pass_session
from blockdev.clock import monotonic_seconds, now_seconds
from blockdev.errors import InvalidArgument, Unavailable
from blockdev.written import show_period

WATCH_SECONDS = 1.0
STEPS = 24  # of the table of some time
JSON_STEPS = 600
count_option = click.option("--count", type=click.IntRange(min=1), help="End after so many rounds (default: with Ctrl-C).")


@click.command(cls=Verb, name="stats")
@click.argument("name", type=values.VM)
@click.option("--watch", is_flag=True, help="Show it anew each second.")
@click.option("--since", "seconds", type=values.DURATION, metavar="DURATION", help="A table of so long until now, such as 1d.")
@count_option
@pass_session
def vm_stats(session: Session, name: str, watch: bool, seconds: int | None, count: int | None) -> None:
    """Show what a VM does: requests, throughput, latency by cause, space and what it did in all.

    Latencies are from a request's arrival in the engine to its answer.  WAITS says what they were spent on.
    --watch says when blockdevd is away, and goes on when it is back.
    """
    if count is not None and not watch:
        raise InvalidArgument("--count says when --watch ends: say that, too")
    if seconds is not None:
        if watch:
            raise InvalidArgument("--since shows what was, --watch what is: give one of them")
        points = JSON_STEPS if session.json else STEPS
        graph = session.client.get(f"/vms/{name}/statistics", since=-seconds, points=points)
        session.show(graph, lambda: _tell_graph(graph))
        return
    path = f"/vms/{name}/statistics/now"
    if watch:
        _watch(session, lambda: session.client.get(path, watch="true"), "vm", count)
        return
    found = session.client.get(path, watch="true")
    session.show(found, lambda: print_fields(vm_fields(found)))


@click.command(cls=Verb)
@click.option("--sort", type=click.Choice(tuple(SORTS)), default="iops", show_default=True, help="The most of it first.")
@count_option
@pass_session
def top(session: Session, sort: str, count: int | None) -> None:
    """Show the busiest VMs, anew each second in a terminal.

    Elsewhere, and with --json, once: what the last seconds were.
    """

    def look() -> Row:
        found: Row = session.client.get("/statistics", watch="true")
        return found | {"by": sort, "rows": sorted(rows_of(found["vms"]), key=SORTS[sort], reverse=True)}

    if not session.json and sys.stdout.isatty():
        _watch(session, look, "top", count)
        return
    for found in _rounds(session, look, count or 1):
        if found["away_since"] is not None:
            _tell_away(session, found)
            continue
        document = {"time": found["time"], "seconds": found["seconds"], "pool": found["pool"], "vms": found["rows"]}
        session.show(document, lambda rows=found["rows"]: _tell_top(rows))  # type: ignore[misc]


def _watch(session: Session, look: Callable[[], Row], shown: str, count: int | None) -> None:
    """Until Ctrl-C, or so many times.  shown: what of `live` it is for a person at a terminal."""
    rounds = _rounds(session, look, count)
    try:
        if session.json or not sys.stdout.isatty():
            _print_rounds(session, rounds)
            return
        from blockdev.cli.live import watch  # rich takes long to load, and most commands show nothing live

        watch(rounds, shown)
    except KeyboardInterrupt:
        pass


def _print_rounds(session: Session, rounds: Iterator[Row]) -> None:
    """A line for each; one only for all the time that blockdevd is away."""
    told = None
    for found in rounds:
        away, before = found["away_since"], told
        told = away
        if away is None:
            click.echo(json.dumps(_document(found)) if session.json else _vm_line(found))
        elif before is None:
            _tell_away(session, found)


def _rounds(session: Session, look: Callable[[], Row], count: int | None) -> Iterator[Row]:
    """What each look finds; `away_since` is since when there is no answer, and the rest what was found before.

    Unavailable: there is none at the first look.
    """
    last: Row | None = None
    away: float | None = None
    done = 0
    while count is None or done < count:
        began = monotonic_seconds()
        try:
            last, away = look(), None
        except Unavailable:
            if last is None:
                raise
            away = away or now_seconds()
        session.client.restart_seconds_max = 0  # we ask again ourselves, and say meanwhile what is the matter
        yield last | {"away_since": away}
        done += 1
        if done != count:
            time.sleep(max(WATCH_SECONDS - (monotonic_seconds() - began), 0))


def _document(found: Row) -> Row:
    return {name: value for name, value in found.items() if name != "away_since"}


def _tell_away(session: Session, found: Row) -> None:
    click.echo(json.dumps({"away_since": found["away_since"]}) if session.json else headline(found))


# of one VM


def _vm_line(found: Row) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(found["time"]))
    return f"{clock}  " + "  ".join(f"{name} {value}" for name, value in vm_fields(found)[1:4])


def _tell_graph(graph: Row) -> None:
    rows = []
    for one in rows_of({name: graph[name] for name in graph if isinstance(graph[name], list)}):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["t"]))
        if one["read_iops"] is None:
            rows.append([when, *["-"] * 7])
            continue
        rates = [count(one["read_iops"]), count(one["write_iops"])]
        speeds = [speed(one["read_bytes_per_second"]), speed(one["write_bytes_per_second"])]
        latencies = [microseconds(one["latency_us_mean"]), microseconds(one["read_latency_us_p99"]), microseconds(one["write_latency_us_p99"])]
        rows.append([when, *rates, *speeds, *latencies])
    click.echo(f"VM {graph['vm']}, in steps of {show_period(graph['step_seconds'])}; - is not known, or nothing to measure")
    print_columns(["FROM", *HEADERS[1:8]], rows, right=range(1, 8))


# of all VMs


def _tell_top(rows: list[Row]) -> None:
    print_columns(HEADERS, [top_cells(row) for row in rows], right=range(1, len(HEADERS)))
    if not rows:
        click.echo("no VMs")


