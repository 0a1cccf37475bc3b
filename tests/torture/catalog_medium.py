"""SQLite's calls to its files, told to the same hook as the engine's (blockdev._medium.intercept).

SQLite lets a process put a layer between itself and its files (a VFS).  Ours is a copy of the default one that tells the
hook before each call and then lets the default one do it.  What a call of SQLite's looks like to the hook:
  - "create" and "opened" for an open, with numbers for files that are no file descriptors (FIRST_NUMBER and up);
  - "write", "truncate", "sync", "close" with that number; "unlink" with the path;
  - "sync_directory" when SQLite really syncs a directory, which it does at the first sync of a new journal or log.
The shared memory file (-shm) is not told of: it means nothing after a power cut.
The hook's answer counts as it does in the engine: with an errno the call fails, a write after as many bytes as it says.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from typing import Any, NamedTuple

Verdict = tuple[int, bool, int]  # errno or 0, whether to do nothing, bytes that a write moves at most
Hook = Callable[[str, int, str | None, str | None, bytes | None, int], Verdict | None]
FIRST_NUMBER = 1 << 20
SQLITE_OK = 0
SQLITE_IOERR = 10
SQLITE_FULL = 13
IO_ERRORS = {"write": 3, "sync": 4, "sync_directory": 5, "truncate": 6, "unlink": 10}  # in the second byte of the code
SQLITE_OPEN_CREATE = 0x4

_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))  # the name must outlive the file
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_Close = CFUNCTYPE(c_int, c_void_p)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)
_OpenDirectory = CFUNCTYPE(c_int, c_char_p, POINTER(c_int))
_SetSystemCall = CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)
_GetSystemCall = CFUNCTYPE(c_void_p, c_void_p, c_char_p)


class _VFS(Structure):
    """sqlite3_vfs of version 3 (https://sqlite.org/c3ref/vfs.html)."""

    _fields_ = [
        ("version", c_int),
        ("file_bytes", c_int),
        ("path_bytes_max", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        *((name, c_void_p) for name in ("access", "full_path", "dl_open", "dl_error", "dl_symbol", "dl_close")),
        *((name, c_void_p) for name in ("randomness", "sleep", "current_time", "last_error", "current_time_64")),
        ("set_system_call", c_void_p),
        ("get_system_call", c_void_p),
        ("next_system_call", c_void_p),
    ]


class _Methods(Structure):
    """sqlite3_io_methods of version 3 (https://sqlite.org/c3ref/io_methods.html)."""

    _fields_ = [
        ("version", c_int),
        *((name, c_void_p) for name in ("close", "read", "write", "truncate", "sync", "rest_0", "rest_1")),
        *((f"rest_{number}", c_void_p) for number in range(2, 13)),
    ]


class _File(Structure):
    """sqlite3_file: what follows belongs to the VFS."""

    _fields_ = [("methods", c_void_p)]


class Failure(NamedTuple):
    """What a call is to answer."""

    status: int
    limit_bytes: int  # that a write moves before


class RecordingVFS:
    """The layer; it stays registered for the life of the process, and passes calls through while nobody listens."""

    def __init__(self) -> None:
        self.hook: Hook | None = None
        self._library = ctypes.CDLL("libsqlite3.so.0")
        self._library.sqlite3_vfs_find.restype = c_void_p
        self._default_at = self._library.sqlite3_vfs_find(None)
        self._default = _VFS.from_address(self._default_at)
        self._methods: dict[int, _Methods] = {}  # ours, by the address of the default one's
        self._originals: dict[int, _Methods] = {}  # the default one's, by sqlite3_file
        self._numbers: dict[int, int] = {}  # by sqlite3_file
        self._next_number = FIRST_NUMBER
        self._kept: list[Any] = []  # what C code points to
        self._library.sqlite3_vfs_register.argtypes = [c_void_p, c_int]
        self._vfs = _VFS.from_buffer_copy(self._default)
        self._vfs.name = b"recording"
        self._vfs.open = self._keep(_Open(self._open))
        self._vfs.delete = self._keep(_Delete(self._delete))
        self._watch_directories()
        assert self._library.sqlite3_vfs_register(ctypes.addressof(self._vfs), 1) == SQLITE_OK

    def _keep(self, function: Any) -> int:
        self._kept.append(function)
        return int(ctypes.cast(function, c_void_p).value or 0)

    def _tell(
        self, operation: str, number: int = -1, path: str | None = None, data: bytes | None = None, offset: int = 0
    ) -> Failure | None:
        if self.hook is None:
            return None
        verdict = self.hook(operation, number, path, None, data, offset)
        if verdict is None or not verdict[0]:
            return None
        full = verdict[0] == errno.ENOSPC and operation == "write"
        return Failure(SQLITE_FULL if full else SQLITE_IOERR | IO_ERRORS[operation] << 8, verdict[2])

    def _watch_directories(self) -> None:
        get = _GetSystemCall(self._default.get_system_call)
        original = _OpenDirectory(get(self._default_at, b"openDirectory"))

        def open_directory(path: bytes, fd: Any) -> int:
            failure = self._tell("sync_directory", path=os.path.dirname(os.fsdecode(path)))
            return int(original(path, fd)) if failure is None else failure.status

        replacement = self._keep(_OpenDirectory(open_directory))
        _SetSystemCall(self._default.set_system_call)(self._default_at, b"openDirectory", replacement)

    def _open(self, _vfs: int, name: int | None, file: int, flags: int, out_flags: Any) -> int:
        path = None if name is None else os.fsdecode(ctypes.string_at(name))
        is_new = path is not None and bool(flags & SQLITE_OPEN_CREATE) and not os.path.exists(path)
        if is_new:
            self._tell("create", path=path)
        status = int(_Open(self._default.open)(self._default_at, name, file, flags, out_flags))
        if status == SQLITE_OK and path is not None:
            self._numbers[file] = self._next_number
            self._next_number += 1
            self._tell("opened", self._numbers[file], path)
            self._replace_methods(file)
        return status

    def _replace_methods(self, file: int) -> None:
        header = _File.from_address(file)
        found = int(header.methods or 0)
        if found not in self._methods:
            ours = _Methods.from_buffer_copy(_Methods.from_address(found))
            ours.close = self._keep(_Close(self._close))
            ours.write = self._keep(_Write(self._write))
            ours.truncate = self._keep(_Truncate(self._truncate))
            ours.sync = self._keep(_Sync(self._sync))
            self._methods[found] = ours
        self._originals[file] = _Methods.from_address(found)
        header.methods = ctypes.addressof(self._methods[found])

    def _delete(self, _vfs: int, name: bytes, sync_directory: int) -> int:
        failure = self._tell("unlink", path=os.fsdecode(name))
        if failure is not None:
            return failure.status
        return int(_Delete(self._default.delete)(self._default_at, name, sync_directory))

    def _close(self, file: int) -> int:
        self._tell("close", self._numbers.pop(file))
        return int(_Close(self._originals.pop(file).close)(file))

    def _write(self, file: int, data: int, count: int, offset: int) -> int:
        failure = self._tell("write", self._numbers[file], data=ctypes.string_at(data, count), offset=offset)
        if failure is not None:
            count = min(count, failure.limit_bytes)
        status = int(_Write(self._originals[file].write)(file, data, count, offset)) if count else SQLITE_OK
        return status if failure is None else failure.status

    def _truncate(self, file: int, size_bytes: int) -> int:
        failure = self._tell("truncate", self._numbers[file], offset=size_bytes)
        if failure is not None:
            return failure.status
        return int(_Truncate(self._originals[file].truncate)(file, size_bytes))

    def _sync(self, file: int, flags: int) -> int:
        failure = self._tell("sync", self._numbers[file])
        return int(_Sync(self._originals[file].sync)(file, flags)) if failure is None else failure.status


_layer: list[RecordingVFS] = []


@contextmanager
def listening(hook: Hook) -> Iterator[None]:
    """Tell `hook` of what SQLite does to its files, from connections that are opened from now on."""
    if not _layer:
        _layer.append(RecordingVFS())
    _layer[0].hook = hook
    yield
    _layer[0].hook = None
