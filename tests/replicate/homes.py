"""A whole home in this process, without sockets: a real pool and engine operations, a real catalog, the operations on VMs.

Either plane can be ended at any moment, as by `kill -9` or a power cut, and started again on what is left:
- the engine: on a copy of the pool's files as they are, or as they were when something was last acknowledged as durable;
- the control plane: on the catalog's file; what it had in memory is gone.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from blockdev import Pool
from blockdev.engine import protocol
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.operations import Operations, Session
from blockdev.engine.room import make_room
from blockdev.errors import PoolFull, Unavailable
from blockdev.replicate.holding import Hold, Holds
from blockdev.replicate.space import PeerSpace
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.reserve import ReserveSize
from blockdev.vmmap.service import VMs

CAPACITY_BYTES = 256 << 20
SMALL_RESERVE = ReserveSize(64 << 10, 12)
MEMORY: dict[str, Any] = {"map_cache_bytes": 1 << 16, "dedup_bytes": 1 << 20, "background": False}
DURABLE = protocol.CHANGES | {"flush", "checkpoint"}
WRITES = ("put", "take")


class ControlKilled(BaseException):
    """The control plane of a home ended in the middle of something."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home


class EngineProcess:
    """One life of an engine."""

    def __init__(self, directory: str, keeps_durable: bool) -> None:
        """keeps_durable: a copy of what is durable, for a power cut."""
        self.directory = directory
        self.pool = Pool.open(directory, **MEMORY)
        self.pool.load_dedup()
        self.operations = Operations(self.pool, Attachments())
        self.is_dead = False
        self.dies_in: int | None = None  # so many requests from now,
        self.dies_after = False  # and whether that request is done
        self.durable = f"{directory}-durable" if keeps_durable else None
        self._copied: dict[str, tuple[int, int]] = {}
        self._copy_durable()

    def perform(self, session: Session, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """ConnectionResetError: it has died, before or after."""
        dies = self._counts_down()
        if self.is_dead or (dies and not self.dies_after):
            self.is_dead = True
            raise ConnectionResetError("the engine is dead")
        plain = {name: bytes(value) if isinstance(value, memoryview) else value for name, value in arguments.items()}
        answer = self.operations.perform(session, protocol.check_request({"op": operation, **plain}))
        if operation in DURABLE:
            self._copy_durable()
        if dies:
            self.is_dead = True
            raise ConnectionResetError("the engine died before it answered")
        return answer

    def _counts_down(self) -> bool:
        if self.dies_in is not None:
            self.dies_in -= 1
        return self.dies_in == 0

    def _copy_durable(self) -> None:
        if self.durable is not None:
            follow(self.directory, self.durable, self._copied)


def follow(directory: str, copy: str, known: dict[str, tuple[int, int]]) -> None:
    """Make `copy` what `directory` is.  known: of each file its size and time when it was copied."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            status = os.stat(f"{folder}/{name}")
            found[f"{folder}/{name}"[len(directory) :]] = status.st_size, status.st_mtime_ns
    for path, state in found.items():
        if known.get(path) != state:
            os.makedirs(os.path.dirname(copy + path), exist_ok=True)
            shutil.copyfile(directory + path, copy + path)
    for path in known.keys() - found.keys():
        os.unlink(copy + path)
    known.clear()
    known.update(found)


class _Connection:
    """As client._Connection, with a call in the place of a socket."""

    def __init__(self, process: EngineProcess, session: bytes) -> None:
        self.session = session
        self.instance = b""
        self._process = process
        self._engine_session = Session()
        self._room: mmap.mmap | None = None

    @property
    def room(self) -> mmap.mmap:
        if self._room is None:
            self._room, descriptor = make_room()
            self._engine_session.offer(descriptor)
            self.ask("share", {}, None)
        return self._room

    def ask(self, operation: str, arguments: dict[str, Any], _timeout_s: float | None) -> dict[str, Any]:
        return self._process.perform(self._engine_session, operation, arguments)

    def is_alive(self) -> bool:
        return not self._process.is_dead

    def close(self) -> None:
        if self._engine_session.id and not self._process.is_dead:
            self._process.operations.forget(self._engine_session)
            self._engine_session.close()
            self._engine_session.id = b""


class DirectEngine(EngineClient):
    """The engine of one home, as its control plane sees it."""

    def __init__(self, home: Home) -> None:
        super().__init__(home.path)
        self._home = home

    def _connect(self, seconds: float = 0.0) -> tuple[Any, dict[str, Any]]:
        process = self._home.process
        if process is None or process.is_dead:
            raise Unavailable("the engine is not running")
        connection = _Connection(process, self._session)
        try:
            answer = connection.ask("hello", {"session": self._session, "client": self._client}, None)
        except ConnectionError as error:
            raise Unavailable("the engine is not running") from error
        connection.instance = answer["instance"]
        return connection, answer

    def put(self, id: int, offers: bytes, data: bytes | memoryview) -> None:
        if self._home.is_full:  # in the middle of it
            half = len(offers) // protocol.OFFER_BYTES // 2
            if half:
                super().put(id, offers[: half * protocol.OFFER_BYTES], bytes(data[: half * 4096]))
            raise PoolFull("the pool has no room")
        super().put(id, offers, data)


class Clock:
    """Wall time of one home; it may jump."""

    def __init__(self) -> None:
        self.seconds = 1_795_348_800.0

    def __call__(self) -> float:
        self.seconds += 0.001
        return self.seconds


class LateHolds(Holds):
    """Between that a channel has looked at a receipt and that it takes it others may do something, as threads may."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self._home = home

    def take(self, receipt_id: int) -> Hold:
        self._home.meanwhile()
        return super().take(receipt_id)


class Home:
    """Both planes of one home at `path`, a directory that is not there yet."""

    def __init__(self, path: str, keeps_durable: bool = False) -> None:
        self.path = path
        self.is_full = False
        self.clock = Clock()
        self.process: EngineProcess | None = None
        self.killed_in: int | None = None  # the control plane, so many of its steps from now
        self.meanwhile: Callable[[], None] = lambda: None  # what others do before a channel takes a receipt
        self._keeps_durable = keeps_durable
        self._lives = 0
        os.mkdir(path)
        Pool.create(f"{path}/pool-0", CAPACITY_BYTES, segment_bytes=1 << 20).close()
        self.process = EngineProcess(f"{path}/pool-0", keeps_durable)
        self._start_control()

    @property
    def pool(self) -> Pool:
        assert self.process is not None
        return self.process.pool

    def _start_control(self) -> None:
        self.engine = DirectEngine(self)
        self.catalog = Catalog(f"{self.path}/catalog.db", SMALL_RESERVE)
        self.vms = VMs(self.catalog, self.engine, clock=self.clock, at_step=self._at_step)
        self.space = PeerSpace(self.vms.peer_bytes)
        self.holds = LateHolds(self)

    def _at_step(self, _step: str) -> None:
        if self.killed_in is not None:
            self.killed_in -= 1
            if self.killed_in <= 0:
                self.killed_in = None
                raise ControlKilled(self)

    def restart_control(self) -> None:
        """As after `kill -9`."""
        self.killed_in = None
        self.catalog.close()
        self.engine.close()
        self._start_control()

    def kill_engine(self, loses_unsynced: bool) -> None:
        """loses_unsynced: as in a power cut."""
        process, self.process = self.process, None
        assert process is not None
        process.is_dead = True
        self._lives += 1
        directory = f"{self.path}/pool-{self._lives}"
        source = process.durable if loses_unsynced and process.durable else process.directory
        shutil.copytree(source, directory)
        process.pool.close()
        for old in (process.directory, process.durable):
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
        self.engine.close()

    def start_engine(self) -> None:
        self.process = EngineProcess(f"{self.path}/pool-{self._lives}", self._keeps_durable)

    def stop(self) -> None:
        with suppress(Exception):
            self.catalog.close()
        if self.process is not None:
            self.process.pool.close()
        shutil.rmtree(self.path, ignore_errors=True)
