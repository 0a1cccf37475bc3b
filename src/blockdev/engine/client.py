"""The control plane's end of the engine socket: synchronous, for any number of threads.

Each request has a connection for itself while it runs; idle ones are kept for the next.  A request that only reads is
sent again when its connection turns out to be dead; a change never is: AnswerLost says that it may have been done.
Locks: `_lock` guards the idle connections and the lead; nothing blocks under it.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from blockdev.accounting import Group, Usage
from blockdev.compaction import CompactionReport
from blockdev.constants import CHUNK_EXTENTS_MAX
from blockdev.engine import protocol
from blockdev.engine.exchange import ExchangeClient
from blockdev.engine.protocol import HEADER_BYTES, EngineInspection, EngineObject, Header, Kind, ProtocolError
from blockdev.engine.room import make_room
from blockdev.engine.statistics import EngineStatistics, check_statistics
from blockdev.engine.stream import receive, send
from blockdev.errors import BlockdevError, InvalidArgument, Unavailable
from blockdev.findings import InspectionKind
from blockdev.policies import DiskPolicy, PoolPolicy
from blockdev.runner import Outcome
from blockdev.types import Extent

CONNECT_SECONDS_MAX = 5.0
HELLO_SECONDS_MAX = 10.0
IDLE_MAX = 8
UNTIMED = frozenset(
    {"flush", "checkpoint", "changes", "count_changes", "offers", "digest", "fetch", "prove", "take", "put", "clear"}
)
READ_SECONDS_MAX = 10.0  # for answers that need no long work

T = TypeVar("T")


class AnswerLost(Unavailable):
    """The engine went away after a change was sent: it may have been done or not."""


class EngineRestarted(Unavailable):
    """Another engine process answers than the one this client leads; the change was not sent."""


class Led(NamedTuple):
    """The engine process that this client leads."""

    instance: bytes  # differs from one engine process to the next
    pool_uuid: str


class _Connection:
    """One connected socket, after its hello."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.instance = b""  # of the engine process
        self.session = b""
        self._request_id = 0
        self._room: mmap.mmap | None = None

    @property
    def room(self) -> mmap.mmap:
        """The memory that this end shares with the other one.  As `ask`."""
        if self._room is None:
            room, descriptor = make_room()
            try:
                self.ask("share", {}, READ_SECONDS_MAX, descriptor)
            finally:
                os.close(descriptor)
            self._room = room
        return self._room

    def ask(
        self, operation: str, arguments: dict[str, Any], timeout_s: float | None, descriptor: int | None = None
    ) -> dict[str, Any]:
        """The answer's body.  OSError when the connection broke; the error that the engine tells of."""
        self._request_id += 1
        self.stream.settimeout(timeout_s)
        body = {"op": operation, **arguments}
        send(self.stream, protocol.encode(Kind.REQUEST, self._request_id, body), descriptor)
        header = protocol.decode_header(self._receive(HEADER_BYTES))
        answer = protocol.decode_body(self._receive(header.body_bytes))
        return self._check_answer(header, answer)

    def _check_answer(self, header: Header, answer: dict[str, Any]) -> dict[str, Any]:
        if header.request_id not in (self._request_id, 0) or header.kind is Kind.REQUEST:
            raise ProtocolError("the engine answered another request than the one it was asked")
        if header.kind is Kind.ERROR:
            raise protocol.check_error(answer)
        return answer

    def _receive(self, byte_count: int) -> bytearray:
        data = receive(self.stream, byte_count)
        if data is None:
            raise ConnectionResetError("the engine closed the connection")
        return data

    def is_alive(self) -> bool:
        """False when the engine has closed it: an idle connection has nothing to read."""
        poller = select.poll()
        poller.register(self.stream, select.POLLIN)
        return not poller.poll(0)

    def close(self) -> None:
        with suppress(OSError):
            self.stream.close()


class EngineClient(ExchangeClient):
    """What the engine at one socket path can be asked.  Every method raises Unavailable when no engine answers."""

    def __init__(self, socket_path: str | os.PathLike[str], client: str | None = None) -> None:
        """`client` names this process in the engine's messages.  Nothing is connected yet."""
        self._path = os.fspath(socket_path)
        self._client = (client or f"pid {os.getpid()}")[: protocol.CLIENT_CHARACTERS_MAX]
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._session = os.urandom(protocol.SESSION_BYTES)
        self._led_instance: bytes | None = None  # the engine process that `lead` was said to

    def close(self) -> None:
        """End the idle connections; the client may be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def lead(self) -> Led:
        """Become the one client that changes the pool; changes that others had sent are done when this returns.

        From here on a change raises EngineRestarted, unsent, when another engine process answers.
        """
        self.close()
        with self._lock:
            self._session = os.urandom(protocol.SESSION_BYTES)
            self._led_instance = None

        def ask(connection: _Connection) -> Led:
            answer = connection.ask("lead", {}, None)
            with self._lock:
                self._led_instance = connection.instance
            return Led(connection.instance, protocol.check_field(answer, "uuid", str))

        return self._read(ask)

    # reading

    def hello(self) -> dict[str, Any]:
        """Who answers: `instance`, `uuid` of the pool, `pid`; by a connection of its own."""
        connection, answer = self._connect()
        connection.close()
        return answer

    def answers(self, seconds: float) -> bool:
        """Whether an engine says who it is within so long, by a connection of its own: one that works on something does."""
        try:
            connection, _ = self._connect(seconds)
        except Unavailable:
            return False
        except BlockdevError:  # it has too many connections, but does answer
            return True
        connection.close()
        return True

    def status(self) -> dict[str, Any]:
        """version, protocol, pid, plugin, path, uuid, capacity_bytes, attachment_count, policy, compaction, the pool's stats."""
        return self._ask("status")

    def policy(self) -> PoolPolicy:
        """What holds for all disks that say nothing else."""
        return protocol.check_policy(self.status())

    def attachments(self) -> list[tuple[int, str, str]]:
        """(object id, its name, client) of every client connection."""
        rows = protocol.check_field(self._ask("attachments"), "attachments", list)
        if not all(isinstance(row, list) and list(map(type, row)) == [int, str, str] for row in rows):
            raise ProtocolError("the engine told of an attachment that is none")
        return [tuple(row) for row in rows]

    def objects(self) -> list[EngineObject]:
        """Every vdisk and snapshot, as they were at one moment."""
        return [protocol.check_object(row) for row in self._ask_pages("objects", "objects")]

    def get(self, id: int) -> EngineObject:
        """NotFound."""
        return protocol.check_object(self._ask("get", id=id).get("object"))

    def find(self, name: str) -> EngineObject:
        """NotFound."""
        return protocol.check_object(self._ask("find", name=name).get("object"))

    def diff(self, older: int | None, newer: int) -> Iterator[Extent]:
        """What changed from one snapshot (None: from nothing) to another, a page at a time; time goes with the change."""
        rest: int | None = 0
        while rest is not None:
            extents, rest = self.changes(older, newer, rest, CHUNK_EXTENTS_MAX)
            yield from extents

    def changes(self, older: int | None, newer: int, offset: int, count: int) -> tuple[list[Extent], int | None]:
        """The first `count` extents of diff from `offset` on, and the offset of the rest; None: there is none."""
        answer = self._ask("changes", older=older, newer=newer, offset=offset, count=count)
        rows = protocol.check_field(answer, "extents", list)
        return [protocol.check_extent(row) for row in rows], protocol.check_rest(answer.get("rest"), offset)

    def count_changes(self, older: int | None, newer: int) -> tuple[int, int]:
        """How many bytes and extents diff tells of; time goes with the change."""
        answer = self._ask("count_changes", older=older, newer=newer)
        return protocol.check_field(answer, "bytes", int), protocol.check_field(answer, "extents", int)

    def extents(self, id: int, offset: int, length: int) -> list[Extent]:
        """What is data and what a hole in a range of bytes."""
        rows = self._ask_pages("extents", "extents", id=id, offset=offset, length=length)
        return [protocol.check_extent(row) for row in rows]

    def account(self, groups: Sequence[Group]) -> Usage:
        """What takes the pool's space.  It takes seconds on a large pool.

        What is not there counts as nothing.  InvalidArgument: too many ids at once, or one of them twice.
        """
        asked = [[g.vdisk_ids, [[list(pair) for pair in disks] for disks in g.snapshots]] for g in groups]
        if protocol.are_too_many(asked):
            raise InvalidArgument("there are too many disks and snapshots to account for at once: ask for one VM")
        answer, rows = self._ask_paged("account", "rows", groups=asked)
        return protocol.check_usage(answer, rows, groups)

    def statistics(self, ids: Sequence[int] | None = None) -> EngineStatistics:
        """What was counted since the engine started, of vdisks (None: all; what is not there is left out), in the order of ids."""
        asked = None if ids is None else list(ids)

        def ask(connection: _Connection) -> EngineStatistics:
            pages, first = [], 0
            while True:
                pages.append(connection.ask("statistics", {"ids": asked, "first": first}, READ_SECONDS_MAX))
                rest = pages[-1].get("rest")
                if rest is None:
                    return check_statistics(pages)
                if not protocol.is_id(rest) or rest <= first:
                    raise ProtocolError("the engine told of a rest of its statistics that begins nowhere")
                first = rest

        return self._read(ask)

    def inspect(self, kind: InspectionKind, rate_bytes: int | None = None) -> int:
        """Begin a check or scrub, or join the one that runs; returns its number.  Busy: one of the other kind runs."""
        return self._begin("inspect", kind=kind, rate_bytes=rate_bytes)

    def inspection(self, run: int, wait_s: float = 0.0) -> Outcome[EngineInspection]:
        """How it stands; the answer comes at its end, or after `wait_s` (at most a second)."""
        return protocol.check_inspection(self._ask("inspection", run=run, wait_ms=_wait_ms(wait_s)))

    def cancel_inspection(self, run: int) -> None:
        """Let it end soon; it changed nothing."""
        self._ask("cancel_inspection", run=run)

    def findings(self) -> dict[str, Any]:
        """running, check, scrub, findings (EngineFinding each), dropped: see docs/format/engine-socket.md."""
        answer = self._ask("findings")
        rows = protocol.check_field(answer, "findings", list)
        return {**answer, "findings": [protocol.check_finding(row) for row in rows]}

    def compact(self, rate_bytes: int | None = None) -> int:
        """Begin a compaction, or join the one that runs; returns its number."""
        return self._begin("compact", rate_bytes=rate_bytes)

    def compaction(self, run: int, wait_s: float = 0.0) -> Outcome[CompactionReport]:
        """How it stands; as `inspection`."""
        return protocol.check_compaction(self._ask("compaction", run=run, wait_ms=_wait_ms(wait_s)))

    def cancel_compaction(self, run: int) -> None:
        """Let it end soon; what it gave back stays so."""
        self._ask("cancel_compaction", run=run)

    def flush(self) -> None:
        self._ask("flush")

    def checkpoint(self) -> None:
        self._ask("checkpoint")

    # changes: durable and done as a whole when they return

    def create(self, disks: Sequence[tuple[int, str | None, bytes]]) -> list[EngineObject]:
        """New vdisks of (size in bytes, name, tag)."""
        labels = [(name, tag) for _, name, tag in disks]
        return self._make("create", labels, disks=[list(disk) for disk in disks])

    def snapshot(
        self, ids: Sequence[int], names: Sequence[str | None], tags: Sequence[bytes]
    ) -> list[EngineObject]:
        """Snapshots of vdisks, all at one LSN."""
        labels = list(zip(names, tags, strict=True))
        return self._make("snapshot", labels, ids=list(ids), names=list(names), tags=list(tags))

    def clone(self, clones: Sequence[tuple[int, str | None, bytes]]) -> list[EngineObject]:
        """New vdisks of (snapshot id, name, tag)."""
        labels = [(name, tag) for _, name, tag in clones]
        return self._make("clone", labels, clones=[list(clone) for clone in clones])

    def restore(self, pairs: Sequence[tuple[int, int]], force: bool = False) -> None:
        """(vdisk id, snapshot id): the vdisk's head becomes the snapshot's map.  Busy: attached."""
        self._ask("restore", pairs=[list(pair) for pair in pairs], force=force)

    def relabel(self, changes: Sequence[tuple[int, str | None, bytes]], force: bool = False) -> None:
        """(id, new name, new tag).  Busy: an object whose name changes is attached."""
        self._ask("relabel", changes=[list(change) for change in changes], force=force)

    def delete(self, ids: Sequence[int], force: bool = False, missing_ok: bool = False) -> None:
        """Busy: attached; forced, clients of what is deleted get errors."""
        self._ask("delete", ids=list(ids), force=force, missing_ok=missing_ok)

    def resize(self, id: int, size_bytes: int, shrink: bool = False) -> None:
        """InvalidArgument: smaller, without `shrink`; Busy: smaller, and attached."""
        self._ask("resize", id=id, size_bytes=size_bytes, shrink=shrink)

    def set_capacity(self, capacity_bytes: int) -> None:
        """How much the pool may hold.  InvalidArgument: it holds more already."""
        self._ask("set_capacity", capacity_bytes=capacity_bytes)

    def set_policy(self, policy: PoolPolicy) -> None:
        """What holds for all disks that say nothing else."""
        self._ask("set_policy", **policy._asdict())

    def set_disk_policies(self, policies: Sequence[tuple[int, DiskPolicy]]) -> None:
        """(vdisk id, what holds for it), all or none."""
        self._ask("set_disk_policies", policies=[[id, *policy] for id, policy in policies])

    # connections

    def _begin(self, operation: str, **arguments: Any) -> int:
        run: int = protocol.check_field(self._ask(operation, **arguments), "run", int)
        return run

    def _make(
        self, operation: str, labels: list[tuple[str | None, bytes]], **arguments: Any
    ) -> list[EngineObject]:
        rows = protocol.check_field(self._ask(operation, **arguments), "made", list)
        if len(rows) != len(labels) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
            raise ProtocolError(f"the engine did not say what {operation} made")
        return [
            protocol.check_object([id, vdisk_id, name, tag, size_bytes, lsn, None, None])
            for (id, vdisk_id, size_bytes, lsn), (name, tag) in zip(rows, labels, strict=True)
        ]

    def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        if operation in protocol.CHANGES:
            return self._change(operation, arguments)
        timeout_s = None if operation in UNTIMED else READ_SECONDS_MAX
        return self._read(lambda connection: connection.ask(operation, arguments, timeout_s))

    def _ask_in_room(
        self, operation: str, arguments: dict[str, Any], data: bytes | memoryview, use: Callable[[memoryview], T]
    ) -> T:
        def ask(connection: _Connection) -> T:
            with memoryview(connection.room) as room:
                room[: len(data)] = data
                connection.ask(operation, arguments, None)
                return use(room)

        return self._read(ask)

    def _ask_pages(self, operation: str, field: str, **arguments: Any) -> list[Any]:
        return self._ask_paged(operation, field, **arguments)[1]

    def _ask_paged(self, operation: str, field: str, **arguments: Any) -> tuple[dict[str, Any], list[Any]]:
        """An answer, and the rows of all its pages; they wait in the engine, so one connection asks for them all."""

        def ask(connection: _Connection) -> tuple[dict[str, Any], list[Any]]:
            first = answer = connection.ask(operation, arguments, None)
            rows: list[Any] = list(protocol.check_field(answer, field, list))
            while answer.get("cursor") is not None:
                answer = connection.ask("more", {"cursor": answer["cursor"]}, READ_SECONDS_MAX)
                rows += protocol.check_field(answer, field, list)
            return first, rows

        return self._read(ask)

    def _change(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with self._connected() as connection:
            self._refuse_other_engine(connection)
            try:
                return connection.ask(operation, arguments, None)
            except (OSError, ProtocolError) as error:
                raise AnswerLost(f"the engine went away during {operation}: {error}") from error

    def _read(self, ask: Callable[[_Connection], T]) -> T:
        try:
            with self._connected() as connection:
                return ask(connection)
        except ConnectionError:  # it was idle while the engine was restarted
            pass
        except OSError as error:
            raise self._unavailable(error) from error
        try:
            with self._connected() as connection:
                return ask(connection)
        except OSError as error:
            raise self._unavailable(error) from error

    def _refuse_other_engine(self, connection: _Connection) -> None:
        with self._lock:
            led = self._led_instance
        if led is not None and led != connection.instance:
            raise EngineRestarted(f"the engine at {self._path} was restarted; run the command again")

    @contextmanager
    def _connected(self) -> Iterator[_Connection]:
        """A connection for one request; kept for the next one unless it broke."""
        connection = self._take_idle() or self._connect()[0]
        keep = False
        try:
            yield connection
            keep = True
        except (ProtocolError, Unavailable):
            raise
        except BlockdevError:  # told by the engine, in a frame like any other
            keep = True
            raise
        finally:
            if keep:
                self._keep(connection)
            else:
                connection.close()

    def _take_idle(self) -> _Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
                current = connection.session == self._session
            if current and connection.is_alive():
                return connection
            connection.close()

    def _keep(self, connection: _Connection) -> None:
        with self._lock:
            if len(self._idle) < IDLE_MAX and connection.session == self._session:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self, seconds: float = HELLO_SECONDS_MAX) -> tuple[_Connection, dict[str, Any]]:
        """seconds: for the answer."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(min(seconds, CONNECT_SECONDS_MAX))
        connection = _Connection(stream)
        try:
            stream.connect(self._path)
            with self._lock:
                connection.session = self._session
            arguments = {"session": connection.session, "client": self._client}
            answer = connection.ask("hello", arguments, seconds)
            connection.instance = protocol.check_field(answer, "instance", bytes)
        except OSError as error:
            connection.close()
            raise self._unavailable(error) from error
        except BaseException:
            connection.close()
            raise
        return connection, answer

    def _unavailable(self, error: OSError) -> Unavailable:
        if isinstance(error, TimeoutError):
            return Unavailable(f"the engine at {self._path} does not answer")
        if isinstance(error, FileNotFoundError | ConnectionError):
            return Unavailable(f"the engine is not running at {self._path}: start it with blockdevctl serve")
        return Unavailable(f"the engine at {self._path} cannot be reached: {error.strerror or error}")


def _wait_ms(wait_s: float) -> int:
    return min(int(wait_s * 1000), protocol.WAIT_MS_MAX)
