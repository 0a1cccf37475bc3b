"""The disks of a domain, read from its XML: which of them are exports of this home.

The XML is libvirt's, but what is in it is others': whatever is not understood counts as foreign.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from blockdev.hypervisor.place import Place, is_loopback, socket_of
from blockdev.vmmap.names import ObjectName, parse_object_name

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ARGUMENTS = f"{{{QEMU}}}commandline/{{{QEMU}}}arg"
NBD_URI = re.compile(r"nbds?(?:\+(?:unix|tcp))?://[^\s,\"']+")
DRIVES = ("-drive", "-blockdev", "-hda", "-hdb", "-hdc", "-hdd")
DRIVE_FILE = re.compile(r'(?:^|(?:^|[,.])file(?:name)?=|"filename"\s*:\s*")(/[^",]+)')
READ_ONLY = re.compile(r'read-?only"?\s*[=:]\s*"?(?:on|true)|media=cdrom')
BY_PATH = re.compile(r"/dev/disk/by-path/.*-iscsi-(.+)-lun-(\d+)")  # of open-iscsi
MEDIA = ("cdrom", "floppy")  # what is put in and taken out is no disk of a VM


class DomainDisk(NamedTuple):
    target: str  # vda; of a disk behind libvirt's back "qemu:arg"
    source: str  # for a person
    export: ObjectName | None  # of this home; None: foreign
    device: str = "disk"

    @property
    def is_foreign(self) -> bool:
        return self.export is None and self.device not in MEDIA


def disks_of(domain: Element, place: Place, remote: bool, luns: Mapping[str, ObjectName]) -> list[DomainDisk]:
    """remote: the domain's hypervisor is another machine.  luns: what this home's targets offer, by IQN/NUMBER."""
    found = []
    for disk in domain.findall("./devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is None:
            continue  # a drive without a medium
        name = "?" if target is None else target.get("dev", "?")
        export = luns.get(_lun_name(source)) or _export(disk, place, remote)
        found.append(DomainDisk(name, describe(disk), export, disk.get("device", "disk")))
    found.extend(_disks_of_arguments(domain, place, remote))
    return found


def names_vm(domain: Element, vm: str, luns: Mapping[str, ObjectName]) -> bool:
    """Whether one of its disks may be the VM's, by its name; nobody is asked where the disk is."""
    for disk in domain.findall("./devices/disk"):
        source = disk.find("source")
        export = parse_object_name(nbd_name(disk)) or (None if source is None else luns.get(_lun_name(source)))
        if export is not None and export.vm == vm:
            return True
    return any(f"{vm}/" in argument.get("value", "").replace("\\", "") for argument in domain.findall(ARGUMENTS))


def _lun_name(source: Element) -> str:
    """IQN/NUMBER of a disk on iSCSI, by QEMU itself or the host's open-iscsi; else nothing that a target has."""
    if source.get("protocol") == "iscsi":
        iqn, _, number = source.get("name", "").partition("/")
        return f"{iqn}/{number or 0}"
    found = BY_PATH.fullmatch(source.get("dev", ""))
    return "" if found is None else f"{found[1]}/{found[2]}"


def nbd_name(disk: Element) -> str | None:
    """The export name of a <disk> that is on NBD, wherever; None: it is on something else."""
    source = disk.find("source")
    if source is None or source.get("protocol") != "nbd":
        return None
    return source.get("name", "").removeprefix("/")


def describe(disk: Element) -> str:
    """What a <disk> is on: `file /images/web.qcow2`, `nbd web/root at /run/nbd.sock`."""
    source = disk.find("source")
    if source is None:
        return "nothing"
    kind = disk.get("type", "?")
    if kind == "network":
        hosts = [host.get("socket") or f"{host.get('name')}:{host.get('port', '')}".rstrip(":") for host in source.findall("host")]
        return f"{source.get('protocol', '?')} {source.get('name', '')}" + (f" at {', '.join(hosts)}" if hosts else "")
    words = [source.get(name) for name in ("file", "dev", "pool", "volume", "dir", "path")]
    return f"{kind} {'/'.join(word for word in words if word)}"


def _export(disk: Element, place: Place, remote: bool) -> ObjectName | None:
    name, source = nbd_name(disk), disk.find("source")
    if name is None or source is None:
        return None
    hosts = source.findall("host")
    is_ours = len(hosts) == 1 and _is_ours(hosts[0].get("socket", ""), hosts[0].get("name", ""), hosts[0].get("port", ""), place, remote)
    return parse_object_name(name) if is_ours else None


def _is_ours(path: str, host: str, port: str, place: Place, remote: bool) -> bool:
    if path:
        return not remote and place.has_socket(path)
    return bool(host) and not (remote and is_loopback(host)) and place.has_host(host, port)


def _disks_of_arguments(domain: Element, place: Place, remote: bool) -> Iterator[DomainDisk]:
    """Those that QEMU is given by <qemu:arg>."""
    option = ""
    for argument in domain.findall(ARGUMENTS):
        value = argument.get("value", "")
        for uri in NBD_URI.findall(value):
            yield DomainDisk("qemu:arg", uri, _export_of_uri(uri, place, remote))
        file = drive_file(option, value)
        if file is not None:
            yield DomainDisk("qemu:arg", f"file {file}", None)
        option = value


def drive_file(option: str, value: str) -> str | None:
    """The file that is given to QEMU as a disk to write to, by a value and the option before it."""
    found = DRIVE_FILE.search(value) if option in DRIVES and not READ_ONLY.search(value) else None
    return None if found is None else found[1]


def _export_of_uri(uri: str, place: Place, remote: bool) -> ObjectName | None:
    try:
        parts = urlsplit(uri)
        port = str(parts.port or "")
    except ValueError:
        return None
    if not _is_ours(socket_of(uri), parts.hostname or "", port, place, remote):
        return None
    return parse_object_name(unquote(parts.path).removeprefix("/"))
