"""What lies between a pool and its disk: which bytes have reached the disk, and what a failed sync does to the others.

The files of a directory are the page cache: the engine reads what it wrote.  Beside them this keeps what the disk below
holds.  A sync takes the ranges written since the last one to the disk; a sync that failed leaves them clean in the cache
and absent from the disk for ever (what Linux does), until they are written again.  Names and sizes are durable at once:
their loss is the power-cut harness's subject.
"""

from __future__ import annotations

import copy
import os
import shutil


class PageCache:
    def __init__(self, directory: str) -> None:
        """All that `directory` holds now is on the disk."""
        self.directory = directory
        self.disk: dict[str, bytearray] = {}  # by path below `directory`
        self.dirty: dict[str, list[tuple[int, int]]] = {}  # ranges: first byte, end
        self.paths: dict[int, str] = {}  # by file descriptor
        for folder, _folders, names in os.walk(directory):
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    self.disk[self.below(path)] = bytearray(file.read())

    def below(self, path: str) -> str:
        return os.path.relpath(path, self.directory)

    def path_of(self, fd: int) -> str:
        return self.paths.get(fd, "")

    def observe(self, operation: str, fd: int, path: str, other: str, length: int, offset: int) -> None:
        """A call that is about to happen, and to succeed or to move a part of its bytes."""
        if operation == "opened":
            self.paths[fd] = self.below(path)
            self.disk.setdefault(self.below(path), bytearray())
        elif operation == "close":
            self.paths.pop(fd, None)
        elif operation == "write":
            self.dirty.setdefault(self.path_of(fd), []).append((offset, offset + length))
        elif operation == "sync":
            self._write_back(fd)
        elif operation == "truncate":
            on_disk = self.disk[self.path_of(fd)]
            on_disk[offset:] = bytes(max(offset - len(on_disk), 0))
        elif operation == "rename":
            self._rename(self.below(path), self.below(other))
        elif operation == "unlink":
            self.disk.pop(self.below(path), None)
            self.dirty.pop(self.below(path), None)

    def observe_hook(
        self, operation: str, fd: int, path: str | None, other: str | None, data: bytes | None, offset: int
    ) -> None:
        """As the hook of the medium: nothing fails."""
        self.observe(operation, fd, path or "", other or "", len(data or b""), offset)

    def _write_back(self, fd: int) -> None:
        on_disk = self.disk.get(self.path_of(fd), bytearray())  # unlinked while it is open: nobody will look
        for first, end in self.dirty.pop(self.path_of(fd), []):
            data = os.pread(fd, end - first, first)  # after a write that failed there may be less
            on_disk.extend(bytes(max(first - len(on_disk), 0)))
            on_disk[first : first + len(data)] = data

    def _rename(self, source: str, destination: str) -> None:
        """Of a file, or of a directory with all that is in it."""
        for held in (self.disk, self.dirty):
            for path in list(held):
                if path == source or path.startswith(source + "/"):
                    held[destination + path[len(source) :]] = held.pop(path)  # type: ignore[attr-defined]
        for fd, path in self.paths.items():
            if path == source or path.startswith(source + "/"):
                self.paths[fd] = destination + path[len(source) :]

    def lose(self, fd: int, evicted: bool) -> None:
        """A sync of this file failed.  evicted: from now on the engine reads what the disk has."""
        lost = self.dirty.pop(self.path_of(fd), [])
        on_disk = self.disk.get(self.path_of(fd), bytearray())
        for first, end in lost if evicted else []:
            os.pwrite(fd, bytes(on_disk[first:end]).ljust(end - first, b"\0"), first)

    def all_durable(self) -> bool:
        return not self.dirty

    def copy_to(self, directory: str) -> PageCache:
        """A copy of the files, and of what is known of them: what a kill leaves."""
        shutil.copytree(self.directory, directory)
        twin = copy.copy(self)
        twin.directory = directory
        twin.disk = copy.deepcopy(self.disk)
        twin.dirty = copy.deepcopy(self.dirty)
        twin.paths = {}
        return twin

    def cut_to(self, directory: str) -> PageCache:
        """The files as the disk has them: what a power cut leaves."""
        shutil.copytree(self.directory, directory)
        for path, content in self.disk.items():
            copied = os.path.join(directory, path)
            if os.path.exists(copied):  # what was removed by hand leaves its entry behind
                with open(copied, "wb") as file:
                    file.write(content)
        return PageCache(directory)
