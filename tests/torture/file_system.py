"""What a file system may hold after a power cut: files and directories, what of them is durable, and what is not yet.

The rules, which are those of POSIX and no kinder than any journaling file system of Linux with its default options:
  - fdatasync of a file makes everything durable that was written to it before, with its size; nothing else does.
    It says nothing of the file's name: a file that was synced may vanish when its directory was not.
  - Of what was written and not synced, each sector of 512 bytes holds any of the versions it had since the last sync,
    whatever happened to its neighbours and to what was written before or after.  A sector is never a mix.
  - A size is any of those the file had since its last sync.  What no write that survived has filled reads as zeros.
    A truncation is part of the size: it is lost with it, and then what it had cut is back.  Space that is allocated
    beyond the end of a file (fallocate with KEEP_SIZE) cannot be seen.
  - fsync of a directory makes the creations, renames and removals in it durable.  Of those that are not, any subset
    survives: each is atomic (of a rename never one half), and none waits for another, nor for the data of its file.
Not modelled: blocks that show what another file held (ext4 with data=writeback), and media that lose what they synced.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple, TypeAlias

SECTOR = 512
ROOT = 0

Tree: TypeAlias = dict[str, bytes | None]  # path below the root -> content; None: a directory.  Parents come first
_NUMBERS = count(1)  # of trees on a disk


class Create(NamedTuple):
    """A new file or directory."""

    directory: int
    name: str
    node: int
    is_directory: bool


class Rename(NamedTuple):
    directory: int
    name: str
    new_name: str
    node: int


class Remove(NamedTuple):
    directory: int
    name: str
    node: int


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    file: int
    size: int


class Sync(NamedTuple):
    file: int


class SyncDirectory(NamedTuple):
    directory: int


EntryChange: TypeAlias = Create | Rename | Remove
Operation: TypeAlias = EntryChange | Write | Truncate | Sync | SyncDirectory
Mask: TypeAlias = bool | Sequence[bool]  # what survives of a write: all, nothing, or these of its sectors


def sector_count(write: Write) -> int:
    return -(-(write.offset + len(write.data)) // SECTOR) - write.offset // SECTOR


def numbered(tree: Tree) -> Iterator[tuple[str, int]]:
    """Each path with the number of its node; the root is 0 and not among them."""
    return zip(tree, range(ROOT + 1, len(tree) + 1), strict=True)


class File:
    def __init__(self, content: bytes) -> None:
        self.durable = bytearray(content)
        self.pending: dict[int, Write | Truncate] = {}  # by place in the order of all operations

    def sync(self) -> None:
        self.durable = self.surviving(dict.fromkeys(self.pending, True), len(self.sizes()) - 1)
        self.pending.clear()

    def sizes(self) -> list[tuple[int, int]]:
        """Every size since the last sync, with the place of the change that gave it."""
        found = [(len(self.durable), -1)]
        for place, change in self.pending.items():
            size = found[-1][0]
            new = change.size if isinstance(change, Truncate) else max(size, change.offset + len(change.data))
            if new != size:
                found.append((new, place))
        return found

    def surviving(self, masks: Mapping[int, Mask], size_index: int) -> bytearray:
        """The content when of each pending write survives what its mask says, and that one of the sizes."""
        size, size_place = self.sizes()[size_index]
        content = bytearray(self.durable)
        for place, change in self.pending.items():
            if isinstance(change, Write):
                _overlay(content, change, masks[place])
            elif place <= size_place:
                del content[change.size :]
        del content[size:]
        content.extend(bytes(size - len(content)))
        return content


def _overlay(content: bytearray, write: Write, mask: Mask) -> None:
    if mask is False:
        return
    end = write.offset + len(write.data)
    content.extend(bytes(max(0, end - len(content))))
    if mask is True:
        content[write.offset : end] = write.data
        return
    first = write.offset // SECTOR * SECTOR
    for number, kept in enumerate(mask):
        if kept:
            low, high = max(write.offset, first + number * SECTOR), min(end, first + (number + 1) * SECTOR)
            content[low:high] = write.data[low - write.offset : high - write.offset]


class Directory:
    def __init__(self) -> None:
        self.durable: dict[str, int] = {}
        self.pending: dict[int, EntryChange] = {}  # by place in the order of all operations

    def sync(self) -> None:
        self.durable = self.surviving(self.pending)
        self.pending.clear()

    def surviving(self, kept: Container[int]) -> dict[str, int]:
        entries = dict(self.durable)
        for place, change in self.pending.items():
            if place in kept:
                change_entry(entries, change)
        return entries


def change_entry(entries: dict[str, int], change: EntryChange) -> None:
    """Let one change take effect; what it needs may not have survived, then the file itself still does."""
    if not isinstance(change, Create) and entries.get(change.name) == change.node:
        del entries[change.name]
    if isinstance(change, Create):
        entries[change.name] = change.node
    elif isinstance(change, Rename):
        entries[change.new_name] = change.node


class FileSystem:
    """A tree, and what was done to it since all of it was durable."""

    def __init__(self, tree: Tree) -> None:
        self.operation_count = 0
        self.nodes: dict[int, File | Directory] = {ROOT: Directory()}
        number_of = {"": ROOT}
        for path, number in numbered(tree):
            content = tree[path]
            self.nodes[number] = Directory() if content is None else File(content)
            number_of[path] = number
            above, _, name = path.rpartition("/")
            self.directory(number_of[above]).durable[name] = number

    def directory(self, number: int) -> Directory:
        found = self.nodes[number]
        assert isinstance(found, Directory)
        return found

    def file(self, number: int) -> File:
        found = self.nodes[number]
        assert isinstance(found, File)
        return found

    def files(self) -> dict[int, File]:
        return {number: node for number, node in self.nodes.items() if isinstance(node, File)}

    def directories(self) -> dict[int, Directory]:
        return {number: node for number, node in self.nodes.items() if isinstance(node, Directory)}

    def settled(self, path: str) -> bytes | None:
        """The content of a file, empty if there is none; None if a power cut now could change it."""
        number = ROOT
        for name in path.split("/"):
            directory = self.directory(number)
            if any(name in change for change in directory.pending.values()):
                return None
            if name not in directory.durable:
                return b""
            number = directory.durable[name]
        file = self.file(number)
        return None if file.pending else bytes(file.durable)

    def apply(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            place = self.operation_count
            self.operation_count += 1
            if isinstance(operation, Write | Truncate):
                self.file(operation.file).pending[place] = operation
            elif isinstance(operation, Sync):
                self.file(operation.file).sync()
            elif isinstance(operation, SyncDirectory):
                self.directory(operation.directory).sync()
            else:
                if isinstance(operation, Create):
                    self.nodes[operation.node] = Directory() if operation.is_directory else File(b"")
                self.directory(operation.directory).pending[place] = operation


class Ground(NamedTuple):
    """What a process finds: `visible` is `durable` with all the operations, which may still be lost."""

    visible: Tree
    durable: Tree
    operations: Sequence[Operation] = ()


def all_durable(tree: Tree) -> Ground:
    return Ground(tree, tree)


def read_tree(root: str) -> Tree:
    """The files and directories below `root`, without the pool's lock file."""
    tree: Tree = {}
    for path, directories, names in os.walk(root):
        directories.sort()
        below = os.path.relpath(path, root)
        if below != ".":
            tree[below] = None
        for name in sorted(names):
            if name != "LOCK":
                with open(os.path.join(path, name), "rb") as file:
                    tree[os.path.normpath(os.path.join(below, name))] = file.read()
    return tree


def write_tree(tree: Tree, root: str) -> None:
    os.mkdir(root)
    for path, content in tree.items():
        place = f"{root}/{path}"
        if content is None:
            os.mkdir(place, 0o700)
        else:
            with open(place, "wb", buffering=0) as file:
                file.write(content)


@contextmanager
def planted(tree: Tree, directory: str) -> Iterator[str]:
    """The tree under a new name in a directory, gone afterwards."""
    root = f"{directory}/{os.getpid()}-{next(_NUMBERS)}"
    write_tree(tree, root)
    try:
        yield root
    finally:
        shutil.rmtree(root)
