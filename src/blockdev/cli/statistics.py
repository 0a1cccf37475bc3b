"""blockdevctl vm stats and top: what VMs do now and did before, live in a terminal, as lines elsewhere, or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

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
from blockdev.cli.session import Session, Verb, pass_session, until_interrupted
from blockdev.clock import monotonic_seconds, now_seconds
from blockdev.errors import InvalidArgument, Unavailable
from blockdev.written import show_period

WATCH_SECONDS = 1.0
WATCH_ANSWER_SECONDS_MAX = 8.0  # a blockdevd that hangs is told of after so long; a thousand VMs are answered for in a fraction of a second
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
    --watch says when blockdevd does not answer, and goes on when it is back.
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

    is_live = not session.json and sys.stdout.isatty()
    _watch(session, look, "top", count if is_live or count else 1)


def _watch(session: Session, look: Callable[[], Row], shown: str, count: int | None) -> None:
    """Until Ctrl-C, which is no failure, or so many times.  shown: what of `live`, or of TELLING, it is for a person."""
    rounds = _rounds(session, look, count)
    with until_interrupted() if count is None else nullcontext():  # what ends by itself is interrupted by it
        if session.json or not sys.stdout.isatty():
            _print_rounds(session, rounds, TELLING[shown])
            return
        from blockdev.cli.live import watch  # rich takes long to load, and most commands show nothing live

        watch(rounds, shown)


def _print_rounds(session: Session, rounds: Iterator[Row], telling: Telling) -> None:
    """Each of them; one line only for all the time that blockdevd is away."""
    is_told = False
    for found in rounds:
        away = found["away_since"]
        if away is None and session.json:
            click.echo(json.dumps(telling.document(found)))
        elif away is None:
            telling.tell(found)
        elif not is_told:
            click.echo(json.dumps({"away_since": away}) if session.json else headline(found))
        is_told = away is not None


def _rounds(session: Session, look: Callable[[], Row], count: int | None) -> Iterator[Row]:
    """What each look finds; `away_since` is since when there is no answer, and the rest what was found before.

    Unavailable: there is none at the first look.
    """
    last: Row | None = None
    away: float | None = None
    done = 0
    session.client.answer_seconds_max = WATCH_ANSWER_SECONDS_MAX
    while count is None or done < count:
        began, asked = monotonic_seconds(), now_seconds()
        try:
            last, away = look(), None
        except Unavailable:
            if last is None:
                raise
            away = away or asked
        session.client.restart_seconds_max = 0  # we ask again ourselves, and say meanwhile what is the matter
        yield last | {"away_since": away}
        done += 1
        if done != count:
            time.sleep(max(WATCH_SECONDS - (monotonic_seconds() - began), 0))


# of one VM


def _tell_vm(found: Row) -> None:
    clock = time.strftime("%H:%M:%S", time.localtime(found["time"]))
    click.echo(f"{clock}  " + "  ".join(f"{name} {value}" for name, value in vm_fields(found)[1:4]))


def _vm_document(found: Row) -> Row:
    return {name: value for name, value in found.items() if name != "away_since"}


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


def _tell_top(found: Row) -> None:
    print_columns(HEADERS, [top_cells(row) for row in found["rows"]], right=range(1, len(HEADERS)))
    if not found["rows"]:
        click.echo("no VMs")


def _top_document(found: Row) -> Row:
    return {"time": found["time"], "seconds": found["seconds"], "pool": found["pool"], "vms": found["rows"]}


class Telling(NamedTuple):
    """How a round is told where there is no terminal, or to a script."""

    tell: Callable[[Row], None]
    document: Callable[[Row], Row]


TELLING = {"vm": Telling(_tell_vm, _vm_document), "top": Telling(_tell_top, _top_document)}
