"""What a person types as an argument, turned into values: sizes, durations, names of VMs, disks and snapshots."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import click

from blockdev.constants import SECTOR_BYTES, VDISK_BYTES_MAX
from blockdev.errors import InvalidArgument
from blockdev.vmmap.names import check_name

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
DURATION_TEXT = re.compile(r"([0-9]{1,10})\s*([smhdw])", re.IGNORECASE)
DURATION_SECONDS_MAX = 100 * 366 * 86400
FOREVER = SAME = 0  # as a duration
NO_LIMIT = 0  # as a rate
MB = 10**6
RATE_TEXT = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(?:MB(?:/s)?)?", re.IGNORECASE)
ENDPOINT = re.compile(r"\[([\w:.%-]+)\](?::(\d{1,5}))?|([^:\s\[\]]+)(?::(\d{1,5}))?|([0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[\w.%:-]*)")
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:iB|B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of `20G`, `1.5 TiB`, `512`: units are binary.  Raises InvalidArgument."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{text!r} is not a size: write it like 20G, 512M or 1.5T")
    size_bytes = Fraction(match[1]) * UNITS[match[2].upper()]
    if size_bytes.denominator != 1:
        raise InvalidArgument(f"{text!r} is not a whole number of bytes")
    return int(size_bytes)


def parse_rate(text: str) -> int:
    """Bytes in a second; 0 of `auto`.  Raises InvalidArgument."""
    if text.strip().lower() == "auto":
        return 0
    rate_bytes = parse_size(text)
    if rate_bytes == 0:
        raise InvalidArgument("a rate of 0 is none: write auto to let the pool choose, or a size like 100M")
    return rate_bytes


def parse_link_rate(text: str) -> int:
    """Bytes in a second of `20` or `2.5 MB/s`, decimal as networks are; 0 of `none`.  Raises InvalidArgument."""
    match = RATE_TEXT.fullmatch(text.strip())
    if text.strip().lower() == "none":
        return NO_LIMIT
    rate_bytes = 0 if match is None else int(Fraction(match[1]) * MB)
    if rate_bytes == 0:
        raise InvalidArgument(f"{text!r} is no rate: write MB in a second, like 20 or 2.5, or none for no limit")
    return rate_bytes


def parse_window(text: str) -> tuple[str, int]:
    """When, and the rate then, of `mon-fri 08:00-18:00=20`; the service reads the first.  Raises InvalidArgument."""
    at, equals, rate = text.rpartition("=")
    if not (equals and at.strip()):
        raise InvalidArgument(f"{text!r} is no window: write it like 'mon-fri 08:00-18:00=20', in MB/s, or =none")
    return at.strip(), parse_link_rate(rate)


class Endpoint(NamedTuple):
    """Where another home listens."""

    host: str
    port: int | None  # None: the usual one


def parse_endpoint(text: str) -> Endpoint:
    """`b.example.org`, `192.0.2.7:10811`, `[2001:db8::7]:10811`.  Raises InvalidArgument."""
    match = ENDPOINT.fullmatch(text.strip())
    port = None if match is None else match[2] or match[4]
    if match is None or (port is not None and not 0 < int(port) < 65536):
        raise InvalidArgument(f"{text!r} is no place to reach: write HOST or HOST:PORT, like 192.0.2.7:10810 or [2001:db8::7]:10810")
    return Endpoint(match[1] or match[3] or match[5], None if port is None else int(port))


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `30m`, `12h`, `3d`, `2w`.  Raises InvalidArgument."""
    match = DURATION_TEXT.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise InvalidArgument(f"{text!r} is not a duration: write it like 90s, 30m, 12h, 3d or 2w")
    seconds = int(match[1]) * SECONDS_OF[match[2].lower()]
    if seconds > DURATION_SECONDS_MAX:
        raise InvalidArgument(f"{text} is longer than a hundred years")
    return seconds


def parse_duration_or_forever(text: str) -> int:
    """Seconds; 0 of `forever`.  Raises InvalidArgument."""
    return FOREVER if text.strip().lower() == "forever" else parse_duration(text)


def parse_duration_or_none(text: str) -> int:
    """Seconds; 0 of `none`.  Raises InvalidArgument."""
    return 0 if text.strip().lower() == "none" else parse_duration(text)


def parse_duration_or_same(text: str) -> int:
    """Seconds; 0 of `same`.  Raises InvalidArgument."""
    return SAME if text.strip().lower() == "same" else parse_duration(text)


def parse_disk_size(text: str) -> int:
    """A size that a disk can have.  Raises InvalidArgument."""
    size_bytes = parse_size(text)
    if size_bytes % SECTOR_BYTES:
        down = size_bytes - size_bytes % SECTOR_BYTES
        near = f"{down} or {down + SECTOR_BYTES}" if down else f"{SECTOR_BYTES}"
        raise InvalidArgument(
            f"disk size {text} is {size_bytes} bytes, not a multiple of {SECTOR_BYTES}: use {near}"
        )
    if not 0 < size_bytes <= VDISK_BYTES_MAX:
        raise InvalidArgument(f"disk size {text} must be from {SECTOR_BYTES} bytes to {VDISK_BYTES_MAX >> 40}T")
    return size_bytes


class Ref(NamedTuple):
    """VM, VM/DISK, VM@SNAPSHOT or VM/DISK@SNAPSHOT."""

    vm: str
    disk: str | None
    snapshot: str | None

    def __str__(self) -> str:
        disk = f"/{self.disk}" if self.disk else ""
        return f"{self.vm}{disk}" + (f"@{self.snapshot}" if self.snapshot else "")


def parse_ref(text: str) -> Ref:
    """Raises InvalidArgument when a part is empty, appears twice, or cannot be a name."""
    rest, at, snapshot = text.partition("@")
    vm, slash, disk = rest.partition("/")
    if not vm or (slash and not disk) or (at and not snapshot) or "@" in snapshot or "/" in disk + snapshot:
        raise InvalidArgument(f"{text!r} does not name anything: write VM, VM/DISK, VM@SNAPSHOT or VM/DISK@SNAPSHOT")
    for kind, name in (("VM", vm), ("disk", disk), ("snapshot", snapshot)):
        if name:
            check_name(kind, name)
    return Ref(vm, disk or None, snapshot or None)


def parse_vm(text: str) -> str:
    return _parts(text, "VM").vm


def parse_vm_disk(text: str) -> Ref:
    return _parts(text, "VM/DISK", disk=True)


def parse_vm_disk_snapshot(text: str) -> Ref:
    return _parts(text, "VM/DISK[@SNAPSHOT]", disk=True, snapshot=None)


def parse_vm_snapshot(text: str) -> Ref:
    return _parts(text, "VM@SNAPSHOT", snapshot=True)


def parse_vm_maybe_snapshot(text: str) -> Ref:
    return _parts(text, "VM[@SNAPSHOT]", snapshot=None)


def _parts(text: str, form: str, disk: bool | None = False, snapshot: bool | None = False) -> Ref:
    """A Ref whose parts are there (True), are not (False), or may be (None)."""
    ref = parse_ref(text)
    for wanted, part in ((disk, ref.disk), (snapshot, ref.snapshot)):
        if wanted is not None and wanted != (part is not None):
            raise InvalidArgument(f"{text!r} does not fit here: write {form}")
    return ref


def parse_pair(text: str, form: str) -> tuple[str, str]:
    """NAME=VALUE; `form` is shown in the error."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InvalidArgument(f"{text!r} is not understood: write {form}")
    return name, value


def parse_named_size(text: str) -> tuple[str, int]:
    name, size = parse_pair(text, "NAME=SIZE, like root=20G")
    return name, parse_disk_size(size)


def parse_named_file(text: str) -> tuple[str, str]:
    name, path = parse_pair(text, "NAME=FILE, like root=debian.qcow2")
    return name, parse_path(path)


def parse_path(text: str) -> str:
    """Absolute, because the daemon that opens it has another current directory."""
    return str(Path(text).expanduser().absolute())


class Value(click.ParamType):
    """A click type made of one of the functions above."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._parse(value) if isinstance(value, str) else value


SIZE_VALUE = Value("size", parse_size)
RATE = Value("rate", parse_rate)
DISK_SIZE = Value("size", parse_disk_size)
DURATION = Value("duration", parse_duration)
DURATION_OR_FOREVER = Value("duration|forever", parse_duration_or_forever)
DURATION_OR_SAME = Value("duration|same", parse_duration_or_same)
DURATION_OR_NONE = Value("duration|none", parse_duration_or_none)
LINK_RATE = Value("rate", parse_link_rate)
WINDOW = Value("window", parse_window)
ENDPOINT_VALUE = Value("host[:port]", parse_endpoint)
PATH = Value("file", parse_path)
VM = Value("vm", parse_vm)
REF = Value("vm[/disk][@snapshot]", parse_ref)
VM_DISK = Value("vm/disk", parse_vm_disk)
VM_DISK_SNAPSHOT = Value("vm/disk[@snapshot]", parse_vm_disk_snapshot)
VM_SNAPSHOT = Value("vm@snapshot", parse_vm_snapshot)
VM_MAYBE_SNAPSHOT = Value("vm[@snapshot]", parse_vm_maybe_snapshot)
NAMED_SIZE = Value("name=size", parse_named_size)
NAMED_FILE = Value("name=file", parse_named_file)
