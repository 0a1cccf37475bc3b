"""The Python script plugin: `nbdkit python nbdkit_python.py home=DIR python=FILE`.

The same contract as the native plugin (src/blockdev/_nbdkit.pyx) over the Python face of the engine, for machines without
nbdkit's header.  Every callback holds the GIL and vdisk I/O drops it, so this is the slower of the two; one thread a
connection (--threads 1) is its fastest setting, because more only contend for the GIL.

nbdkit runs this file as __main__ of an interpreter that knows nothing of the virtual environment: `config` finds it, and
blockdev is imported when the configuration is complete.  nbdkit 1.32 has no Python names for a connection's peer and TLS
state; its C functions are called through ctypes, which finds them in the process.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import site
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any, NamedTuple

import nbdkit

API_VERSION = 2
SECTOR_BYTES = 512
BLOCK_BYTES = 4096
REQUEST_BYTES_MAX = 32 << 20
EXTENTS_REPLY_MAX = 65536
ERRORS_LOGGED_MAX = 100
SOCKADDR_BYTES = 128  # sizeof(struct sockaddr_storage)
SUN_PATH = 2  # where the address is in a sockaddr_un
ENDLESS_BYTES = 1 << 62  # as in blockdev.engine.clients

_script = os.path.realpath(sys._getframe().f_code.co_filename)  # nbdkit 1.32 sets no __file__
_nbdkit_c = ctypes.CDLL(None)
_nbdkit_c.nbdkit_peer_pid.restype = ctypes.c_int64
_parameters: dict[str, str] = {}
_engine: Any = None
_opened_in_pid = 0


class Handle:
    """One client connection."""

    def __init__(self, thing: Any, token: int, read_only: bool, request: Any) -> None:
        """`request`: what was asked for beside a disk (blockdev.engine.clients)."""
        self.thing = thing
        self.token = token
        self.read_only = read_only
        self.keeps = request.keeps and not read_only
        self.endless = request.endless
        self.transfers = request.transfers
        self.errors_logged = 0


class Peer(NamedTuple):
    """Where a connection comes from."""

    client: str
    over_tcp: bool
    over_tls: bool


# ---- Starting and stopping


def thread_model() -> int:
    """Several threads a connection only where nbdkit survives the loss of one; see _nbdkit_guard."""
    if "blockdev" not in sys.modules:  # --dump-plugin: nothing is served
        return nbdkit.THREAD_MODEL_PARALLEL
    unguarded = importlib.import_module("blockdev._nbdkit_guard").guard_connections()
    return nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS if unguarded else nbdkit.THREAD_MODEL_PARALLEL


def config(key: str, value: str) -> None:
    _parameters[key] = value


def config_complete() -> None:
    _find_packages(_parameters.get("python"))
    _checked(importlib.import_module, "blockdev._pool")


def get_ready() -> None:
    """Opens the pool while the person who started nbdkit still sees the errors."""
    global _engine, _opened_in_pid
    process = importlib.import_module("blockdev.engine.process")
    _engine = _checked(process.EngineProcess.open, _parameters, "python")
    _opened_in_pid = os.getpid()


def after_fork() -> None:
    if os.getpid() != _opened_in_pid:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    _checked(_engine.start, nbdkit.shutdown)


def cleanup() -> None:
    _engine.close()


def _find_packages(python: str | None) -> None:
    """Puts the packages of the virtual environment of `python` (default: the .venv beside this tree) before the system's."""
    root = os.path.dirname(os.path.dirname(_script))
    environment = os.path.dirname(os.path.dirname(python)) if python else os.path.join(root, ".venv")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = os.path.join(environment, "lib", f"python{version}", "site-packages")
    if not os.path.isdir(packages):
        if python is None or os.path.exists(os.path.join(environment, "pyvenv.cfg")):
            _fail(
                f"nbdkit's Python plugin runs Python {version}, and {packages} is not there: "
                f"build blockdev with that Python (make build) and name it with python=FILE"
            )
        return
    before = list(sys.path)
    site.addsitedir(packages)
    sys.path[:] = [path for path in sys.path if path not in before] + before


def _fail(message: str) -> None:
    """One line in nbdkit's log, and the end: nbdkit itself would print the whole traceback of an exception."""
    with suppress(OSError):  # the log may be on a file system that is full
        print(f"nbdkit: error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _checked(function: Any, *arguments: Any) -> Any:
    """`function(*arguments)`; an error ends nbdkit with one line, and a bug with its trace before that line."""
    try:
        return function(*arguments)
    except Exception as error:
        if not hasattr(error, "exit_status") and not isinstance(error, OSError | ImportError):
            traceback.print_exc()
        return _fail(str(error) or repr(error))


# ---- Connections


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    peer = _peer()
    _engine.admit(peer.over_tcp, is_tls)
    return [tuple(export) for export in _engine.exports()]


def default_export(readonly: bool, is_tls: bool) -> str:
    _engine.admit(_peer().over_tcp, is_tls)
    return _engine.default_export()


def open(readonly: bool) -> Handle:
    process = importlib.import_module("blockdev.engine.process")
    peer = _peer()
    try:
        _engine.admit(peer.over_tcp, peer.over_tls)
        request = importlib.import_module("blockdev.engine.clients").parse_request(nbdkit.export_name())
        thing, token = _engine.attach(request.name, peer.client)
    except Exception as error:
        nbdkit.set_error(getattr(error, "errno", errno.EIO))
        raise
    return Handle(thing, token, readonly or process.is_snapshot(thing), request)


def close(handle: Handle) -> None:
    _engine.detach(handle.token)


def export_description(handle: Handle) -> str:
    return importlib.import_module("blockdev.engine.process").describe(handle.thing)


def _peer() -> Peer:
    clients = importlib.import_module("blockdev.engine.clients")
    address = ctypes.create_string_buffer(SOCKADDR_BYTES)
    length = ctypes.c_uint32(SOCKADDR_BYTES)
    over_tls = _nbdkit_c.nbdkit_is_tls() == 1
    if _nbdkit_c.nbdkit_peer_name(address, ctypes.byref(length)) == -1:
        return Peer("unknown", True, over_tls)
    family = int.from_bytes(address.raw[:2], sys.byteorder)
    if family == socket.AF_UNIX:
        bound_to = address.raw[SUN_PATH : length.value]
        return Peer(clients.client_of_socket(bound_to, _nbdkit_c.nbdkit_peer_pid()), False, over_tls)
    return Peer(_internet_client(family, address.raw), True, over_tls)


def _internet_client(family: int, address: bytes) -> str:
    """sockaddr_in has its address at byte 4, sockaddr_in6 at byte 8; both have the port at byte 2."""
    port = int.from_bytes(address[2:4], "big")
    if family == socket.AF_INET:
        return f"{socket.inet_ntop(family, address[4:8])}:{port}"
    if family == socket.AF_INET6:
        return f"[{socket.inet_ntop(family, address[8:24])}]:{port}"
    return "unknown"


# ---- What an export is and can


def get_size(handle: Handle) -> int:
    return ENDLESS_BYTES if handle.endless else handle.thing.size_bytes


def block_size(handle: Handle) -> tuple[int, int, int]:
    return SECTOR_BYTES, BLOCK_BYTES, REQUEST_BYTES_MAX


def can_write(handle: Handle) -> bool:
    return not handle.read_only


def _yes(handle: Handle) -> bool:
    return True


can_flush = can_trim = can_zero = can_fast_zero = can_extents = can_multi_conn = _yes


def is_rotational(handle: Handle) -> bool:
    return False


def can_fua(handle: Handle) -> int:
    return nbdkit.FUA_NATIVE


def can_cache(handle: Handle) -> int:
    return nbdkit.CACHE_NATIVE


# ---- Data: the wall (range, alignment, flags), then the vdisk


class Refused(Exception):
    """A request that the wall turns away."""

    def __init__(self, error_number: int) -> None:
        super().__init__(os.strerror(error_number))
        self.errno = error_number


def pread(handle: Handle, buffer: bytearray, offset: int, flags: int) -> None:
    # a kernel asks for a part of a sector when an initiator expects no more of it
    before, after = (offset % SECTOR_BYTES, -(offset + len(buffer)) % SECTOR_BYTES) if handle.endless else (0, 0)
    with _Request(handle, "read", before + len(buffer) + after, offset - before) as request:
        request.require(flags == 0 and len(buffer) <= REQUEST_BYTES_MAX)
        if before or after:
            whole = handle.thing.read(offset - before, before + len(buffer) + after)
            buffer[:] = whole[before : before + len(buffer)]
        else:
            handle.thing.read_into(offset, buffer, handle.transfers)


def pwrite(handle: Handle, buffer: bytes, offset: int, flags: int) -> None:
    with _Request(handle, "write", len(buffer), offset, writes=True) as request:
        request.require(not flags & ~nbdkit.FLAG_FUA and len(buffer) <= REQUEST_BYTES_MAX)
        handle.thing.write(offset, buffer, bool(flags & nbdkit.FLAG_FUA), handle.keeps, handle.transfers)


def flush(handle: Handle, flags: int) -> None:
    with _Request(handle, "flush", 0, 0):
        if not handle.read_only:  # a snapshot is durable from its first moment
            handle.thing.flush(handle.transfers)


def zero(handle: Handle, count: int, offset: int, flags: int) -> None:
    """Trim and write-zeroes alike: holes, whether the client would like space set aside or not (see _nbdkit.pyx)."""
    with _Request(handle, "zero", count, offset, writes=True):
        handle.thing.write_zeroes(offset, count, bool(flags & nbdkit.FLAG_FUA), handle.keeps, handle.transfers)


def trim(handle: Handle, count: int, offset: int, flags: int) -> None:
    """As zero."""
    with _Request(handle, "zero", count, offset, writes=True):
        handle.thing.discard(offset, count, bool(flags & nbdkit.FLAG_FUA), handle.keeps, handle.transfers)


def extents(handle: Handle, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """Looked up piece by piece, so that a client that wants one extent, or a few, does not pay for four gigabytes."""
    found: list[tuple[int, int, int]] = []
    with _Request(handle, "block status", count, offset):
        position, end = offset, offset + count
        while position < end and len(found) < EXTENTS_REPLY_MAX:
            length = min(REQUEST_BYTES_MAX, end - position)
            found += [_extent(*extent) for extent in handle.thing.extents(position, length)]
            position += length
            if flags & nbdkit.FLAG_REQ_ONE:
                return found[:1]
    return found


def cache(handle: Handle, count: int, offset: int, flags: int) -> None:
    with _Request(handle, "cache", count, offset) as request:
        request.require(flags == 0)
        for position in range(offset, offset + count, 1 << 20):
            handle.thing.read(position, min(1 << 20, offset + count - position))


def _extent(offset: int, length: int, state: str) -> tuple[int, int, int]:
    return offset, length, nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO if state == "hole" else 0


class _Request:
    """Checks one request on the way in; gives nbdkit an errno, and the log a line, when it fails."""

    def __init__(self, handle: Handle, what: str, count: int, offset: int, writes: bool = False) -> None:
        self._handle = handle
        self._what = what
        self._count = count
        self._offset = offset
        self._writes = writes

    def __enter__(self) -> _Request:
        if self._writes and self._handle.read_only:
            nbdkit.set_error(errno.EPERM)
            raise Refused(errno.EPERM)
        # The end may have come closer since the client connected: nbdkit checked against the size of that time.
        self.require(
            (self._count | self._offset) % SECTOR_BYTES == 0
            and self._offset + self._count <= self._handle.thing.size_bytes
        )
        return self

    def require(self, holds: bool) -> None:
        if not holds:
            nbdkit.set_error(errno.EINVAL)
            raise Refused(errno.EINVAL)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            nbdkit.set_error(getattr(error, "errno", None) or errno.EIO)
