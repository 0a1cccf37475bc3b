"""Watching a job to its end: a rich bar on a terminal, plain lines elsewhere, nothing with --json; Ctrl-C cancels it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click

from blockdev.cli.client import Client
from blockdev.clock import monotonic_seconds
from blockdev.errors import from_code
from blockdev.written import show_duration, show_size

POLL_SECONDS = 10  # the server answers earlier when something changed
LINE_SECONDS = 5
FINISHED = ("done", "failed", "cancelled", "interrupted")


class Display(Protocol):
    def show(self, job: dict[str, Any]) -> None: ...


class Silence:
    def show(self, job: dict[str, Any]) -> None:
        pass


class Lines:
    """A line now and then."""

    def __init__(self, title: str, now: Callable[[], float] = monotonic_seconds) -> None:
        self._title = title
        self._now = now
        self._began = now()
        self._next = self._began + LINE_SECONDS

    def show(self, job: dict[str, Any]) -> None:
        if job["state"] != "done" and (job["state"] in FINISHED or self._now() < self._next):
            return
        self._next = self._now() + LINE_SECONDS
        click.echo(f"{self._title}: {job['fraction']:.0%}{self._measured(job)}", err=True)

    def _measured(self, job: dict[str, Any]) -> str:
        done, total = job["done_bytes"], job["total_bytes"]
        if not total:
            return ""
        rate = done / max(self._now() - self._began, 0.001)
        text = f"{show_size(done)} of {show_size(total)}, {show_size(int(rate))}/s"
        left = f", {show_duration((total - done) / rate)} left" if done and job["state"] != "done" else ""
        return f" ({text}{left})"


@contextmanager
def display(title: str, quiet: bool) -> Iterator[Display]:
    if quiet:
        yield Silence()
    elif not sys.stderr.isatty():
        yield Lines(title)
    else:
        from blockdev.cli.bar import bar  # rich takes long to load, and most commands show no bar

        with bar(title) as shown:
            yield shown


def follow(
    client: Client,
    job: dict[str, Any],
    title: str,
    if_cancelled: str,
    quiet: bool,
    cancels: bool = True,
    tell_cancelled: Callable[[Any], object] | None = None,
) -> Any:
    """The result of `job` when it is done.  Raises its error; Ctrl-C cancels the job, if it `cancels`, and waits for its end.

    tell_cancelled: is given the result of a cancelled job that says what was done until then.
    """
    interrupt: KeyboardInterrupt | None = None
    try:
        with display(title, quiet) as shown:
            while job["state"] not in FINISHED:
                job = client.get(f"/jobs/{job['id']}", after=job["version"], wait_seconds=POLL_SECONDS)
                shown.show(job)
    except KeyboardInterrupt as pressed:
        if not cancels:
            raise
        interrupt, job = pressed, _cancel(client, job)
    if job["state"] == "done":
        return job["result"]
    if job["state"] == "cancelled":
        if tell_cancelled is not None and job["result"] is not None:
            tell_cancelled(job["result"])
        raise interrupt or from_code("error", f"{title}: cancelled, {if_cancelled}")
    raise from_code(job["error"]["code"], job["error"]["message"])


def _cancel(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    job = client.delete(f"/jobs/{job['id']}")
    while job["state"] not in FINISHED:
        job = client.get(f"/jobs/{job['id']}", after=job["version"], wait_seconds=POLL_SECONDS)
    return job
