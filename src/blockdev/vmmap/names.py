"""The rules for names and sizes, and how a VM's parts are named in the pool.

`VM/DISK` is a disk, `VM/DISK@SNAPSHOT` a disk of a snapshot; a `~` marks an object that no user was told of.
None of `/`, `@` and `~` can be in a name, so that an object's name reads only one way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from blockdev.constants import SECTOR_BYTES, VDISK_BYTES_MAX
from blockdev.errors import InvalidArgument

NAME_CHARACTERS_MAX = 63
SHOWN_CHARACTERS_MAX = 80  # of a name that cannot be used
_PATTERN = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_CHARACTERS_MAX - 1}}}"
_NAME = re.compile(_PATTERN)
_OBJECT_NAME = re.compile(f"({_PATTERN})/({_PATTERN})(?:@({_PATTERN}))?")

CONFIG_BYTES_MAX = 1 << 20
DESCRIPTION_BYTES_MAX = 4096
UNFINISHED = "~unfinished"  # a description that begins so marks what goes unless the job that makes it ends well


class ObjectName(NamedTuple):
    """The parts of a pool object's name."""

    vm: str
    disk: str
    snapshot: str | None = None


def object_name(vm: str, disk: str, snapshot: str | None = None) -> str:
    """The pool's name, and so the export name, of a disk or of a snapshot's disk."""
    return f"{vm}/{disk}" if snapshot is None else f"{vm}/{disk}@{snapshot}"


def parse_object_name(name: str | None) -> ObjectName | None:
    """The parts of a pool object's name; None if it is not the name of a VM's disk or snapshot."""
    match = _OBJECT_NAME.fullmatch(name or "")
    return ObjectName(*match.groups()) if match else None


def is_unfinished(description: str) -> bool:
    """Whether what it describes goes when its job ends: no user was told that it exists."""
    return description.startswith(UNFINISHED)


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def free_name(name: str, is_taken: Callable[[str], bool]) -> str:
    """`name`, or when it is taken NAME-2, NAME-3, ..., as short as a name must be."""
    number, candidate = 1, name
    while is_taken(candidate):
        number += 1
        ending = f"-{number}"
        candidate = name[: NAME_CHARACTERS_MAX - len(ending)] + ending
    return candidate


def shown_name(name: object) -> str:
    """What somebody gave as a name, in quotes, as far as it is worth showing; and how long it is, when it is too long."""
    text = str(name)
    shown = repr(name) if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]!r}…"
    return shown if len(text) <= NAME_CHARACTERS_MAX else f"{shown} of {len(text)} characters"


def check_name(kind: str, name: str) -> str:
    """`name` if it can name a `kind` (VM, disk, snapshot); InvalidArgument otherwise."""
    if not isinstance(name, str) or not is_name(name):
        raise InvalidArgument(
            f"{kind} name {shown_name(name)} cannot be used: take 1 to 63 letters, digits, '.', '_' and '-', "
            "the first a letter or digit"
        )
    return name


def check_size(what: str, size_bytes: int) -> int:
    """`size_bytes` if a vdisk can have it; InvalidArgument, naming the nearest good size, otherwise."""
    if isinstance(size_bytes, bool) or not isinstance(size_bytes, int):
        raise InvalidArgument(f"size of {what} must be a whole number of bytes, not {size_bytes!r}")
    nearest = min(max(_round(size_bytes), SECTOR_BYTES), VDISK_BYTES_MAX)
    if nearest != size_bytes:
        raise InvalidArgument(
            f"size of {what}, {size_bytes} bytes, cannot be used: it must be a multiple of {SECTOR_BYTES} "
            f"between {SECTOR_BYTES} and {VDISK_BYTES_MAX}; the nearest good size is {nearest}"
        )
    return size_bytes


def _round(size_bytes: int) -> int:
    """The nearest multiple of a sector; the larger one when in the middle."""
    return (size_bytes + SECTOR_BYTES // 2) // SECTOR_BYTES * SECTOR_BYTES


def check_text(what: str, text: str, bytes_max: int) -> str:
    """`text` if it can be kept; InvalidArgument otherwise."""
    if not isinstance(text, str) or "\0" in text:
        raise InvalidArgument(f"{what} must be text without NUL characters")
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} must be text that UTF-8 can hold") from error
    if length > bytes_max:
        raise InvalidArgument(f"{what} is {length} bytes long; at most {bytes_max} are kept")
    return text
