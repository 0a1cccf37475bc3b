"""blockdevctl init: make a home.  Works on the files themselves, because nothing serves them yet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from blockdev import Pool
from blockdev.cli import values
from blockdev.cli.output import warn_of_room
from blockdev.cli.session import Session, Verb, pass_session
from blockdev.errors import AlreadyExists, InvalidArgument, PoolFull, medium_failure
from blockdev.home import Home
from blockdev.pool import CAPACITY_BYTES_MIN
from blockdev.written import show_size

FREE_SHARE = 0.9  # of the file system's free space, when no capacity is given


@click.command(cls=Verb)
@click.option(
    "--capacity", type=values.SIZE_VALUE, help="How much the pool may take (default: 90% of the free space)."
)
@click.option("--no-schedules", is_flag=True, help="Take no snapshots but those that somebody asks for.")
@pass_session
def init(session: Session, capacity: int | None, no_schedules: bool) -> None:
    """Make a home directory with an empty pool.

    Snapshots will be taken of each VM, hourly, daily and weekly: see schedule default.
    """
    home = session.home
    if home.pool.exists():
        raise AlreadyExists(f"{home.path} is a blockdev home already: choose another --home")
    room_bytes = _room(home)
    capacity_bytes = int(room_bytes * FREE_SHARE) >> 20 << 20 if capacity is None else capacity
    if capacity is None and capacity_bytes < CAPACITY_BYTES_MIN:
        raise PoolFull(f"the file system at {home.path} has room for {show_size(room_bytes)} only: make room there, or choose another --home")
    made = _to_make(home)
    try:
        home.make_directories()
        if no_schedules or home.catalog.exists():  # before the pool, which makes it a home: nobody can serve it before that is said
            _say_whether_schedules_come(home, not no_schedules)
        Pool.create(str(home.pool), capacity_bytes).close()
    except BaseException as error:
        for path in made:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise medium_failure(error.filename or str(home.path), error.errno or 0) from None
        raise
    warn_of_room(capacity_bytes, room_bytes)
    document = {"home": str(home.path), "capacity_bytes": capacity_bytes}
    session.say(
        document,
        f"made {home.path} with an empty pool of {show_size(capacity_bytes)}; "
        f"serve it with blockdevctl --home {home.path} serve",
    )


def _say_whether_schedules_come(home: Home, wanted: bool) -> None:
    """In the catalog, which the first control plane makes else, with the default schedules.

    One that is there and has met no pool was left by an init that was killed, and may say otherwise; any other one is left alone.
    """
    # they take long to load, and most commands do without
    from blockdev.clock import now_seconds
    from blockdev.schedule.service import Schedules
    from blockdev.vmmap.catalog import Catalog
    from blockdev.vmmap.reserve import DEFAULT_RESERVE

    catalog = Catalog(home.catalog, DEFAULT_RESERVE)
    try:
        if catalog.pool_uuid() is None:
            Schedules(catalog, now_seconds).ship_anew(wanted)
    finally:
        catalog.close()


def _to_make(home: Home) -> list[Path]:
    """What is to be removed again if making the home fails, the outermost only."""
    catalog = [home.catalog.with_name(f"{home.catalog.name}{ending}") for ending in ("", "-wal", "-reserve")]
    missing = [path for path in (home.pool, home.keys, home.run, *catalog) if not path.exists()]
    outermost = home.path
    if outermost.exists():
        return missing
    while not outermost.parent.exists():
        outermost = outermost.parent
    return [outermost]


def _room(home: Home) -> int:
    """Bytes that are free where the home is to be."""
    there = home.path
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise InvalidArgument(f"{there} is not a directory: choose another --home")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidArgument(f"{there} cannot be written to: choose another --home, or become another user")
    return shutil.disk_usage(there).free
