"""What a person types as an argument, turned into values: sizes, durations, names of VMs, disks and snapshots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from blockdev.addresses import Endpoint, parse_endpoint
from blockdev.errors import InvalidArgument
from blockdev.vmmap.names import check_name
from blockdev.written import (
    FOREVER,
    SAME,
    parse_disk_size,
    parse_duration,
    parse_duration_or_forever,
    parse_duration_or_none,
    parse_keep,
    parse_keep_or_same,
    parse_link_rate,
    parse_rate,
    parse_read_rate,
    parse_size,
    parse_window,
)

__all__ = ["FOREVER", "SAME", "Endpoint"]  # and what is below


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


def parse_hypervisor(text: str) -> str:
    return check_name("hypervisor", text)


def parse_host(text: str) -> str:
    """A host's name or address.  Raises InvalidArgument."""
    endpoint = parse_endpoint(text)
    if endpoint.port is not None:
        raise InvalidArgument(f"{text!r} is more than a host: write it like 192.0.2.7, and the port as --port {endpoint.port}")
    return endpoint.host


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
READ_RATE = Value("size", parse_read_rate)
DISK_SIZE = Value("size", parse_disk_size)
DURATION = Value("duration", parse_duration)
DURATION_OR_FOREVER = Value("duration|forever", parse_duration_or_forever)
KEEP = Value("duration", parse_keep)
KEEP_OR_SAME = Value("duration|same", parse_keep_or_same)
DURATION_OR_NONE = Value("duration|none", parse_duration_or_none)
LINK_RATE = Value("rate", parse_link_rate)
WINDOW = Value("window", parse_window)
ENDPOINT_VALUE = Value("host[:port]", parse_endpoint)
PATH = Value("file", parse_path)
HOST = Value("host", parse_host)
HYPERVISOR = Value("name", parse_hypervisor)
VM = Value("vm", parse_vm)
REF = Value("vm[/disk][@snapshot]", parse_ref)
VM_DISK = Value("vm/disk", parse_vm_disk)
VM_DISK_SNAPSHOT = Value("vm/disk[@snapshot]", parse_vm_disk_snapshot)
VM_SNAPSHOT = Value("vm@snapshot", parse_vm_snapshot)
VM_MAYBE_SNAPSHOT = Value("vm[@snapshot]", parse_vm_maybe_snapshot)
NAMED_SIZE = Value("name=size", parse_named_size)
NAMED_FILE = Value("name=file", parse_named_file)
