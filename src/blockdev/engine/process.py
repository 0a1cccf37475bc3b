"""The engine process behind either nbdkit plugin: opens the pool, answers the engine socket, looks exports up.

All of this is cold: it runs when nbdkit starts, stops, or when a client connects, always with the GIL.  Requests for
data never come here; the native plugin sends them straight to _pool, the Python plugin to the vdisk it got from attach.

Order of calls, which is nbdkit's: open (before a possible fork, so that errors reach the person), start (after it, because
threads do not survive a fork), then attach / detach / exports from any connection's thread, then close.
Durable: whatever was replied to a flush; close checkpoints, so that the next start has nothing to replay.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from blockdev import Pool, VDiskSnapshot
from blockdev.engine.attachments import Attachments
from blockdev.engine.server import EngineServer
from blockdev.engine.termination import Termination
from blockdev.errors import BlockdevError, InvalidArgument, NotFound
from blockdev.home import Home

EXPORTS_LISTED_MAX = 10_000  # nbdkit refuses a longer list as a whole; exports beyond it still open by name
PARAMETERS = {"home", "python", "ready_fd", "tcp_tls", "map_cache_bytes", "dedup_bytes"}
PARAMETER_HELP = """\
home=DIR              (required) the blockdev home; DIR/pool is opened, DIR/run/engine.sock is listened on
python=FILE           the interpreter whose packages are used (default: the virtual environment that holds blockdev)
tcp_tls=require|off   refuse clients that come over TCP without TLS (default off; Unix sockets are never asked)
map_cache_bytes=N     memory for map nodes
dedup_bytes=N         memory for the fingerprint index
ready_fd=N            write one line to this file descriptor when serving, or when starting failed"""


class Export(NamedTuple):
    """One line of the export list."""

    name: str
    description: str


class EngineProcess:
    """An open pool, its attachments and its engine socket.  Made by open()."""

    def __init__(self, parameters: dict[str, str], plugin: str) -> None:
        unknown = sorted(set(parameters) - PARAMETERS)
        if unknown:
            raise InvalidArgument(
                f"unknown parameter {unknown[0]!r}; there are {', '.join(sorted(PARAMETERS))}"
            )
        if not parameters.get("home"):
            raise InvalidArgument("which home? give home=DIR (blockdevctl init makes one)")
        if parameters.get("tcp_tls", "off") not in ("off", "require"):
            raise InvalidArgument(f"tcp_tls={parameters['tcp_tls']}: it is off or require")
        self.home = Home.at(parameters["home"])
        self.attachments = Attachments()
        self._plugin = plugin
        self._tcp_needs_tls = parameters.get("tcp_tls") == "require"
        self._ready_fd = _number(parameters, "ready_fd")
        if self._ready_fd is not None:
            os.set_inheritable(self._ready_fd, False)
        self._budgets = {name: _number(parameters, name) for name in ("map_cache_bytes", "dedup_bytes")}
        self._pool: Pool | None = None
        self._server: EngineServer | None = None
        self._termination: Termination | None = None

    @classmethod
    def open(cls, parameters: dict[str, str], plugin: str) -> EngineProcess:
        """Opens the pool.  Starts no thread: nbdkit may fork after this.

        Raises InvalidArgument, NotFound, Busy (another engine has the pool), UnknownFormat or Corrupt.
        """
        engine = cls(parameters, plugin)
        try:
            engine.home.require_initialised()
            engine._pool = Pool.open(str(engine.home.pool), background=False, **engine._budgets)
        except BlockdevError as error:
            engine._report(f"error {error.code} {error.message}")
            raise
        return engine

    @property
    def pool(self) -> Pool:
        assert self._pool is not None
        return self._pool

    def start(self, request_quit: Callable[[], None]) -> None:
        """Starts the background work and the engine socket, in the process that will serve; main thread only.

        `request_quit` is nbdkit_shutdown.  Raises Busy when another engine answers on the engine socket.
        """
        try:
            self.pool.move_here()  # nbdkit may have forked since it was opened
            self.home.make_directories()
            engine_socket = str(self.home.engine_socket)
            self._server = EngineServer(self.pool, self.attachments, engine_socket, plugin=self._plugin)
            self._server.start()
            self._termination = Termination(request_quit, engine_socket)
            self._termination.start()
            self.pool.start_background()
        except (BlockdevError, OSError) as error:
            code = error.code if isinstance(error, BlockdevError) else BlockdevError.code
            self._report(f"error {code} {error}")
            raise
        self._report("ready")

    def close(self) -> None:
        """Stops the engine socket, then checkpoints and closes the pool; main thread only.  Every client is gone."""
        if self._termination is not None:
            self._termination.stop()
            self._termination = None
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def admit(self, over_tcp: bool, over_tls: bool) -> None:
        """Raises InvalidArgument for a client that must use TLS and does not."""
        if over_tcp and self._tcp_needs_tls and not over_tls:
            raise InvalidArgument("a client came over TCP without TLS and was refused; use an nbds:// URI")

    def attach(self, name: str, client: str) -> tuple[Any, int]:
        """The vdisk or snapshot exported as `name`, and the token of the attachment recorded for `client`."""
        if not name:
            raise NotFound(
                "a client named no export and the pool has more or less than one; name one as VM/DISK"
            )
        thing = self.pool.find(name)
        return thing, self.attachments.attach(thing, client)

    def detach(self, token: int) -> None:
        self.attachments.detach(token)

    def exports(self) -> list[Export]:
        """Every vdisk and snapshot that users know of, by name, at most EXPORTS_LISTED_MAX of them."""
        things = sorted(self._known(), key=lambda thing: thing.name)
        return [Export(thing.name, describe(thing)) for thing in things[:EXPORTS_LISTED_MAX]]

    def default_export(self) -> str:
        """What the empty export name means: the only export there is, else nothing ("")."""
        things = self._known()
        return things[0].name if len(things) == 1 else ""

    def _known(self) -> list[Any]:
        everything = (*self.pool.vdisks(), *self.pool.snapshots())
        return [thing for thing in everything if thing.name and not tag_fields(thing.tag).get("temporary")]

    def _report(self, line: str) -> None:
        """Tells the process that started nbdkit how it went, once.  A reader that is gone does not matter."""
        if self._ready_fd is None:
            return
        descriptor, self._ready_fd = self._ready_fd, None
        try:
            os.write(descriptor, line.replace("\n", " ").encode() + b"\n")
            os.close(descriptor)
        except OSError:
            return


def describe(thing: Any) -> str:
    """One line for people: whose disk, how large, from when."""
    vm, _, disk = thing.name.partition("/")
    disk, _, snapshot = disk.partition("@")
    text = f"disk {disk} of VM {vm}, {size_text(thing.size_bytes)}" if disk else size_text(thing.size_bytes)
    if not is_snapshot(thing):
        return text
    created = tag_fields(thing.tag).get("created")
    return f"{text}, read-only, snapshot {snapshot}" + (f" of {created}" if isinstance(created, str) else "")


def is_snapshot(thing: Any) -> bool:
    return isinstance(thing, VDiskSnapshot)


def tag_fields(tag: bytes) -> dict[str, Any]:
    """The fields of a tag if it is the control plane's JSON, else none: to the pool, tags are any bytes."""
    try:
        fields = json.loads(tag)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def size_text(size_bytes: int) -> str:
    """20G, 1.5T, 512: the largest unit that leaves at most one decimal, exact or rounded."""
    size = float(size_bytes)
    for unit in ("", "K", "M", "G", "T"):
        if size < 1024 or unit == "T":
            break
        size /= 1024
    return f"{size:.1f}".removesuffix(".0") + unit


def _number(parameters: dict[str, str], name: str) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit():
        raise InvalidArgument(f"{name}={value}: a whole number is needed")
    return int(value)
