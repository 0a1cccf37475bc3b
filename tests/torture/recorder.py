"""The hook of a torture build that writes down every change of the medium below one directory, with its bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from tests.torture.file_system import (
    ROOT,
    Create,
    Operation,
    Remove,
    Rename,
    Sync,
    SyncDirectory,
    Tree,
    Truncate,
    Write,
    change_entry,
    numbered,
)

Verdict = tuple[int, bool, int]
CHANGES_NOTHING = {"open", "read"}


class Recorder:
    """Call it as the hook.  `operations` is in the order of the calls; `unknown` must stay empty."""

    def __init__(self, root: str, tree: Tree, operations: Iterable[Operation] = ()) -> None:
        """operations: what was done to `tree` already, and is there, but may not be durable."""
        self.root = root
        self.operations: list[Operation] = []  # with those that were before
        self.unknown: list[str] = []  # an exception in a hook would be lost
        self.no_room = False  # the file system cannot reserve any
        self._unreadable: set[int] = set()  # files, until they are written
        self._entries: dict[int, dict[str, int]] = {ROOT: {}}
        self._node_count = len(tree) + 1
        self._open_files: dict[int, int] = {}
        self._creating: str | None = None
        for path, number in numbered(tree):
            directory, name = self._place(f"{root}/{path}")
            self._entries[directory][name] = number
            if tree[path] is None:
                self._entries[number] = {}
        for operation in operations:
            self._repeat(operation)

    def __call__(
        self, operation: str, fd: int, path: str | None, other: str | None, data: bytes | None, offset: int
    ) -> Verdict | None:
        if operation == "allocate":  # room beyond the end of a file cannot be seen
            return (errno.ENOSPC, False, 0) if self.no_room else None
        if operation == "read" and self._open_files.get(fd) in self._unreadable:
            return (errno.EIO, False, 0)
        if operation == "open":
            self._creating = None  # what was to be created was there already
        if operation not in CHANGES_NOTHING:
            handler = getattr(self, f"_{operation}", None)
            if handler is None:
                self.unknown.append(operation)
            else:
                handler(fd, path, other, data, offset)
        return None

    def cannot_read(self, path: str) -> None:
        """Until it is written: what cannot be read once may be there the next time."""
        directory, name = self._place(f"{self.root}/{path}")
        self._unreadable.add(self._entries[directory][name])

    def _repeat(self, operation: Operation) -> None:
        if isinstance(operation, Create | Rename | Remove):
            self._change_entry(operation)
        else:
            self.operations.append(operation)

    def _directory(self, path: str) -> int:
        below = os.path.relpath(path, self.root)
        number = ROOT
        for name in [] if below == "." else below.split("/"):
            number = self._entries[number][name]
        return number

    def _place(self, path: str) -> tuple[int, str]:
        above, _, name = path.rpartition("/")
        return self._directory(above), name

    def _change_entry(self, change: Create | Rename | Remove) -> None:
        if isinstance(change, Create):
            self._node_count = change.node + 1
            if change.is_directory:
                self._entries[change.node] = {}
        change_entry(self._entries[change.directory], change)
        self.operations.append(change)

    def _make(self, path: str, is_directory: bool) -> int:
        number = self._node_count
        self._change_entry(Create(*self._place(path), number, is_directory))
        return number

    def _create(self, _fd: int, path: str, *_rest: object) -> None:
        self._creating = path

    def _opened(self, fd: int, path: str, *_rest: object) -> None:
        if path == self._creating:
            self._open_files[fd] = self._make(path, False)
        else:
            directory, name = self._place(path)
            self._open_files[fd] = self._entries[directory][name]
        self._creating = None

    def _close(self, fd: int, *_rest: object) -> None:
        self._open_files.pop(fd, None)

    def _write(self, fd: int, _path: None, _other: None, data: bytes, offset: int) -> None:
        self._unreadable.discard(self._open_files[fd])
        self.operations.append(Write(self._open_files[fd], offset, data))

    def _truncate(self, fd: int, _path: None, _other: None, _data: None, offset: int) -> None:
        self.operations.append(Truncate(self._open_files[fd], offset))

    def _sync(self, fd: int, *_rest: object) -> None:
        self.operations.append(Sync(self._open_files[fd]))

    def _sync_directory(self, _fd: int, path: str, *_rest: object) -> None:
        self.operations.append(SyncDirectory(self._directory(path)))

    def _make_directory(self, _fd: int, path: str, *_rest: object) -> None:
        self._make(path, True)

    def _rename(self, _fd: int, path: str, other: str, *_rest: object) -> None:
        directory, name = self._place(path)
        other_directory, new_name = self._place(other)
        if directory != other_directory:
            self.unknown.append(f"rename to another directory: {path} {other}")
            return
        self._change_entry(Rename(directory, name, new_name, self._entries[directory][name]))

    def _unlink(self, _fd: int, path: str, *_rest: object) -> None:
        directory, name = self._place(path)
        node = self._entries[directory].get(name)
        if node is not None:
            self._change_entry(Remove(directory, name, node))
