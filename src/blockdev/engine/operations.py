"""What the operations of the engine socket do to the pool (docs/format/engine-socket.md).

Invariants: changes run one at a time; a change from a session that another has taken the lead from is refused; an
object with attached clients is not renamed, deleted, restored or shrunk unless the request says force.
Locks: `_change_lock` before any lock of the pool; long operations (diff, inspections, compactions) do not take it.
Durable: a change, before it is answered.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any

from blockdev import Pool, VDisk, VDiskSnapshot
from blockdev._statistics import ROW_BYTES, now_ns, pack_statistics
from blockdev.accounting import Group, GroupUsage
from blockdev.compaction import COMPACT
from blockdev.constants import CHUNK_EXTENTS_MAX
from blockdev.engine import protocol
from blockdev.engine.attachments import Attachments
from blockdev.engine.exchange import ExchangeOperations
from blockdev.engine.protocol import (
    OBJECTS_PAGE_MAX,
    STATISTICS_BYTES_MAX,
    USAGE_PAGE_MAX,
    ProtocolError,
    Request,
)
from blockdev.engine.room import map_room
from blockdev.errors import Busy, InvalidArgument, NotFound
from blockdev.findings import Finding, InspectionKind
from blockdev.inspection import Report
from blockdev.policies import DiskPolicy, PoolPolicy
from blockdev.runner import Outcome, Runner

NAMED_IN_MESSAGE_MAX = 5
Answer = dict[str, Any]


class Session:
    """One connection: who speaks, and the answer it is still taking page by page."""

    def __init__(self) -> None:
        self.id = b""  # of the client; all its connections say the same one
        self.client = ""
        self._rest: list[list[Any]] = []
        self._field = ""
        self._page_items = 0
        self._cursor = 0
        self._descriptor: int | None = None  # that came with the request that is being answered
        self._room: mmap.mmap | None = None

    def offer(self, descriptor: int | None) -> None:
        """What came with the next request; `share` takes it, otherwise it is closed when the next one comes."""
        self._drop_descriptor()
        self._descriptor = descriptor

    def share(self) -> Answer:
        """The client hands over the memory that is this connection's room from now on."""
        if self._descriptor is None:
            raise ProtocolError("share needs a descriptor")
        self._room = map_room(self._descriptor)
        self._drop_descriptor()
        return {}

    @property
    def room(self) -> mmap.mmap:
        if self._room is None:
            raise ProtocolError("there is no room on this connection: share one first")
        return self._room

    def close(self) -> None:
        """The connection has ended."""
        self._drop_descriptor()
        self._room = None

    def _drop_descriptor(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def page(self, field: str, rows: list[list[Any]], page_items: int) -> Answer:
        """The first page of `rows`; the others wait here until the client asks for more, or for other rows."""
        self._field, self._rest, self._page_items = field, rows, page_items
        return self._next_page()

    def more(self, cursor: int) -> Answer:
        if cursor != self._cursor or not self._rest:
            raise ProtocolError("there is no more of that answer on this connection")
        return self._next_page()

    def _next_page(self) -> Answer:
        page, self._rest = self._rest[: self._page_items], self._rest[self._page_items :]
        self._cursor += 1
        return {self._field: page, "cursor": self._cursor if self._rest else None}


class Operations:
    """One pool's operations, for all connections of one engine socket."""

    def __init__(
        self,
        pool: Pool,
        attachments: Attachments,
        plugin: str = "",
        at_step: Callable[[str], None] | None = None,
    ) -> None:
        """`at_step` is called with `OP:before` and `OP:after` around each change (crash tests)."""
        self._pool = pool
        self._attachments = attachments
        self._plugin = plugin
        self._at_step = at_step or (lambda step: None)
        self._instance = os.urandom(16)
        self._change_lock = threading.Lock()
        self._leader: Session | None = None  # under _change_lock, as is what follows
        self._connections: dict[bytes, int] = {}  # connections of each session that said hello
        exchange = ExchangeOperations(pool)
        self._of_session: dict[str, Callable[..., Answer]] = {
            "lead": self._lead,
            "more": Session.more,
            "objects": self._objects,
            "extents": self._extents,
            "account": self._account,
            "share": Session.share,
            "fetch": lambda session, **arguments: exchange.fetch(session.room, **arguments),
            "put": lambda session, **arguments: exchange.put(session.room, **arguments),
        }
        self._of_pool: dict[str, Callable[..., Answer]] = {
            "status": self._status,
            "attachments": self._list_attachments,
            "get": self._get,
            "find": self._find,
            "changes": self._changes,
            "count_changes": self._count_changes,
            "statistics": self._statistics,
            "flush": self._flush,
            "checkpoint": self._checkpoint,
            "inspect": self._inspect,
            "inspection": self._inspection,
            "cancel_inspection": self._cancel_inspection,
            "findings": self._findings,
            "compact": self._compact,
            "compaction": self._compaction,
            "cancel_compaction": self._cancel_compaction,
            "create": self._create,
            "snapshot": self._snapshot,
            "clone": self._clone,
            "restore": self._restore,
            "relabel": self._relabel,
            "delete": self._delete,
            "resize": self._resize,
            "set_capacity": self._set_capacity,
            "set_policy": self._set_policy,
            "set_disk_policies": self._set_disk_policies,
            **exchange.by_name(),
        }

    def perform(self, session: Session, request: Request) -> Answer:
        """The answer to one request; raises the errors that are to be told to the client."""
        if request.operation == "hello":
            return self._hello(session, request.arguments["session"], request.arguments["client"])
        if not session.id:
            raise ProtocolError("the first request of a connection is hello")
        if request.operation in protocol.CHANGES:
            return self._change(session, request)
        if request.operation in self._of_session:
            return self._of_session[request.operation](session, **request.arguments)
        return self._of_pool[request.operation](**request.arguments)

    def forget(self, session: Session) -> None:
        """The connection has ended.  With its last one a session loses the lead: all it sent has been answered."""
        if not session.id:
            return
        with self._change_lock:
            self._connections[session.id] -= 1
            if self._connections[session.id] == 0:
                del self._connections[session.id]
                if self._leader is not None and self._leader.id == session.id:
                    self._leader = None

    def _hello(self, session: Session, id: bytes, client: str) -> Answer:
        if session.id:
            raise ProtocolError("hello was said already on this connection")
        session.client = client
        with self._change_lock:
            session.id = id
            self._connections[id] = self._connections.get(id, 0) + 1
        return {"instance": self._instance, "uuid": str(self._pool.uuid), "pid": os.getpid()}

    def _lead(self, session: Session) -> Answer:
        """From here on only this session changes the pool; what others had sent is done or will be refused."""
        with self._change_lock:
            self._leader = session
        return {"uuid": str(self._pool.uuid)}

    def _change(self, session: Session, request: Request) -> Answer:
        with self._change_lock:
            if self._leader is not None and self._leader.id != session.id:
                raise Busy(f"{self._leader.client} has taken over the engine; stop one of the two")
            self._at_step(f"{request.operation}:before")
            answer = self._of_pool[request.operation](**request.arguments)
            self._at_step(f"{request.operation}:after")
            return answer

    # reading

    def _status(self) -> Answer:
        return {
            "version": _version(),
            "protocol": protocol.VERSION,
            "pid": os.getpid(),
            "plugin": self._plugin,
            "path": str(self._pool.path),
            "uuid": str(self._pool.uuid),
            "capacity_bytes": self._pool.capacity_bytes,
            "attachment_count": len(self._attachments.all()),
            "policy": self._pool.policy._asdict(),
            "compaction": _progress_fields(self._pool.compactor),
            "stats": self._pool.stats(),
        }

    def _list_attachments(self) -> Answer:
        return {"attachments": [[a.object_id, a.name, a.client] for a in self._attachments.all()]}

    def _objects(self, session: Session) -> Answer:
        with self._change_lock:
            rows = [_vdisk_row(vdisk) for vdisk in self._pool.vdisks()]
            rows += [_snapshot_row(snapshot) for snapshot in self._pool.snapshots()]
        return session.page("objects", rows, OBJECTS_PAGE_MAX)

    def _get(self, id: int) -> Answer:
        return {"object": _row(self._pool.get(id))}

    def _find(self, name: str) -> Answer:
        return {"object": _row(self._pool.find(name))}

    def _changes(self, older: int | None, newer: int, offset: int, count: int) -> Answer:
        extents, rest = self._pool.changes(*self._two(older, newer), offset, count)
        return {"extents": _extent_rows(extents), "rest": rest}

    def _count_changes(self, older: int | None, newer: int) -> Answer:
        byte_count, extent_count = self._pool.count_changes(*self._two(older, newer))
        return {"bytes": byte_count, "extents": extent_count}

    def _two(self, older: int | None, newer: int) -> tuple[Any, Any]:
        return None if older is None else self._pool.get(older), self._pool.get(newer)

    def _extents(self, session: Session, id: int, offset: int, length: int) -> Answer:
        extents = self._pool.get(id).extents(offset, length)
        return session.page("extents", _extent_rows(extents), CHUNK_EXTENTS_MAX)

    def _account(self, session: Session, groups: list[list[Any]]) -> Answer:
        asked = [
            Group(vdisk_ids, [[(id, before) for id, before in disks] for disks in snapshots])
            for vdisk_ids, snapshots in groups
        ]
        usage = self._pool.account(asked)
        page = session.page("rows", _usage_rows(usage.groups), USAGE_PAGE_MAX)
        return {"pool": usage.pool._asdict(), **page}

    def _statistics(self, ids: list[int] | None, first: int) -> Answer:
        """What was counted for vdisks (nil: all), from the one with the id `first` on."""
        disks = self._pool.statistics(ids, first)
        rows, cells, waits, count = pack_statistics(disks, STATISTICS_BYTES_MAX)
        return {
            "instance": self._instance,
            "monotonic_ns": now_ns(),
            "row_bytes": ROW_BYTES,
            "rows": rows,
            "cells": cells,
            "waits": waits,
            "rest": disks[count].id if count < len(disks) else None,
        }

    def _flush(self) -> Answer:
        self._pool.flush()
        return {}

    def _checkpoint(self) -> Answer:
        self._pool.checkpoint()
        return {}

    def _inspect(self, kind: InspectionKind, rate_bytes: int | None) -> Answer:
        """Begin a check or scrub, which goes on whether or not the client stays; or join the one that runs."""
        return {"run": self._pool.inspector.start(kind, rate_bytes)}

    def _inspection(self, run: int, wait_ms: int) -> Answer:
        outcome = self._pool.inspector.outcome(run, wait_ms / 1000)
        return {**_outcome_fields(outcome), **_inspection_fields(outcome.report)}

    def _cancel_inspection(self, run: int) -> Answer:
        self._pool.inspector.cancel(run)
        return {}

    def _findings(self) -> Answer:
        """What the last check and scrub found and is still there, and how far the one is that runs."""
        known = self._pool.inspector.known()
        return {
            "running": _progress_fields(self._pool.inspector),
            "check": known.check and known.check._asdict(),
            "scrub": known.scrub and known.scrub._asdict(),
            "findings": _finding_rows(known.findings),
            "dropped": known.dropped,
        }

    def _compact(self, rate_bytes: int | None) -> Answer:
        """Begin a compaction, which goes on whether or not the client stays; or join the one that runs."""
        return {"run": self._pool.compactor.start(COMPACT, rate_bytes)}

    def _compaction(self, run: int, wait_ms: int) -> Answer:
        outcome = self._pool.compactor.outcome(run, wait_ms / 1000)
        return {**_outcome_fields(outcome), "report": outcome.report and outcome.report._asdict()}

    def _cancel_compaction(self, run: int) -> Answer:
        self._pool.compactor.cancel(run)
        return {}

    # changes, each under _change_lock

    def _create(self, disks: list[list[Any]]) -> Answer:
        made = self._pool.create_vdisks([tuple(disk) for disk in disks])
        return {"made": [_made(vdisk) for vdisk in made]}

    def _snapshot(self, ids: list[int], names: list[str | None], tags: list[bytes]) -> Answer:
        if not len(ids) == len(names) == len(tags):
            raise ProtocolError("snapshot needs as many names and tags as ids")
        made = self._pool.snapshot([self._vdisk(id) for id in ids], names, tags)
        return {"made": [_made(snapshot) for snapshot in made]}

    def _clone(self, clones: list[list[Any]]) -> Answer:
        made = self._pool.clone_many([(self._snapshot_disk(id), name, tag) for id, name, tag in clones])
        return {"made": [_made(vdisk) for vdisk in made]}

    def _restore(self, pairs: list[list[int]], force: bool) -> Answer:
        things = [(self._vdisk(vdisk), self._snapshot_disk(snapshot)) for vdisk, snapshot in pairs]
        if not force:
            self._refuse_attached([vdisk for vdisk, _ in things])
        self._pool.restore(things)
        return {}

    def _relabel(self, changes: list[list[Any]], force: bool) -> Answer:
        things = [(self._pool.get(id), name, tag) for id, name, tag in changes]
        if not force:
            self._refuse_attached([thing for thing, name, _ in things if thing.name != name])
        self._pool.relabel(things)
        return {}

    def _delete(self, ids: list[int], force: bool, missing_ok: bool) -> Answer:
        things = self._things(ids, missing_ok)
        if not force:
            self._refuse_attached(things)
        if things:
            self._pool.delete(things)
        return {}

    def _resize(self, id: int, size_bytes: int, shrink: bool) -> Answer:
        vdisk = self._vdisk(id)
        if size_bytes < vdisk.size_bytes:
            if not shrink:
                raise InvalidArgument(
                    f"{vdisk.name} has {vdisk.size_bytes} bytes; making it {size_bytes} would cut off its end"
                )
            self._refuse_attached([vdisk], "detach them first: a guest would lose the end of a disk in use")
        vdisk.resize(size_bytes)
        return {}

    def _set_capacity(self, capacity_bytes: int) -> Answer:
        self._pool.set_capacity(capacity_bytes)
        return {}

    def _set_policy(self, **policy: Any) -> Answer:
        self._pool.set_policy(PoolPolicy(**policy))
        return {}

    def _set_disk_policies(self, policies: list[list[Any]]) -> Answer:
        self._pool.set_disk_policies(
            [(self._vdisk(id), DiskPolicy(compression, dedup)) for id, compression, dedup in policies]
        )
        return {}

    def _vdisk(self, id: int) -> VDisk:
        thing = self._pool.get(id)
        if not isinstance(thing, VDisk):
            raise InvalidArgument(f"{thing.name} is a snapshot")
        return thing

    def _snapshot_disk(self, id: int) -> VDiskSnapshot:
        thing = self._pool.get(id)
        if not isinstance(thing, VDiskSnapshot):
            raise InvalidArgument(f"{thing.name} is not a snapshot")
        return thing

    def _things(self, ids: Iterable[int], missing_ok: bool = False) -> list[Any]:
        things = []
        for id in ids:
            try:
                things.append(self._pool.get(id))
            except NotFound:
                if not missing_ok:
                    raise
        return things

    def _refuse_attached(
        self, things: Sequence[Any], advice: str = "detach them first, or use force"
    ) -> None:
        """Busy, naming the clients, when one of `things` has any."""
        clients: dict[int, list[str]] = {}
        for attachment in self._attachments.all():
            clients.setdefault(attachment.object_id, []).append(attachment.client)
        busy = [
            f"{thing.name} is attached by {_listed(clients[thing.id])}"
            for thing in things
            if thing.id in clients
        ]
        if busy:
            raise Busy(f"{_listed(busy, '; ')}: {advice}")


def _version() -> str:
    try:
        return metadata.version("blockdev")
    except metadata.PackageNotFoundError:  # imported from a source tree
        return "unknown"


def _listed(items: list[str], separator: str = ", ") -> str:
    """The first items as text, and how many more there are."""
    shown = separator.join(items[:NAMED_IN_MESSAGE_MAX])
    more = len(items) - NAMED_IN_MESSAGE_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def _vdisk_row(vdisk: Any) -> list[Any]:
    return [vdisk.id, None, vdisk.name, vdisk.tag, vdisk.size_bytes, None, *vdisk.policy]


def _snapshot_row(snapshot: Any) -> list[Any]:
    row = [snapshot.id, snapshot.vdisk_id, snapshot.name, snapshot.tag, snapshot.size_bytes, snapshot.lsn]
    return [*row, None, None]


def _row(thing: Any) -> list[Any]:
    return _snapshot_row(thing) if isinstance(thing, VDiskSnapshot) else _vdisk_row(thing)


def _made(thing: Any) -> list[Any]:
    """What the client does not know of an object it asked for."""
    row = _row(thing)
    return [row[0], row[1], row[4], row[5]]


def _extent_rows(extents: Iterable[Any]) -> list[list[Any]]:
    return [[offset, length, state == "data"] for offset, length, state in extents]


def _usage_rows(groups: Iterable[GroupUsage]) -> list[list[Any]]:
    """Each group's numbers, and behind them those of each of its snapshots."""
    rows: list[list[Any]] = []
    for *counts, snapshots in groups:
        rows += [counts, *(list(snapshot) for snapshot in snapshots)]
    return rows


def _finding_rows(findings: Iterable[Finding]) -> list[list[Any]]:
    return [[f.object_id, f.name, f.offset, f.length, f.what] for f in findings]


def _progress_fields(runner: Runner[Any]) -> Answer | None:
    """How far the work is that runs."""
    progress = runner.progress()
    return None if progress is None else progress._asdict()


def _outcome_fields(outcome: Outcome[Any]) -> Answer:
    """What is told of every work."""
    error = outcome.error
    return {
        **outcome.progress._asdict(),
        "state": outcome.state,
        "error": {"code": error.code, "message": error.message} if error else None,
    }


def _inspection_fields(report: Report | None) -> Answer:
    return {
        "findings": _finding_rows(report.findings) if report else [],
        "dropped": report.dropped if report else 0,
        "healed": list(report.healed) if report else [],
    }
