"""The domain of a VM that was cloned: its origin's configuration with an identity and disks of its own.

What two domains cannot both have is replaced or left for libvirt to choose (what virt-clone changes, and the sockets and files that a
domain listens on or writes to).  What would let two VMs write to one foreign disk is refused.  Nothing is asked of anybody.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from blockdev.errors import InvalidArgument
from blockdev.hypervisor.disks import ARGUMENTS, MEDIA, NBD_URI, QEMU, describe, drive_file, nbd_name
from blockdev.vmmap.clones import SEED
from blockdev.vmmap.machine import domain_of, mac_address
from blockdev.vmmap.names import object_name, parse_object_name

PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"}
CHARACTER_DEVICES = ("serial", "parallel", "console", "channel", "smartcard", "redirdev", "rng/backend")
AGENT_CHANNEL = "org.qemu.guest_agent.0"
EXPORT_OPTION = re.compile(r'("export"\s*:\s*"|(?:^|[,.])export=|:exportname=)([^",]+)')  # of -blockdev and -drive
MAC_OPTION = re.compile(r'((?:^|,)mac(?:addr)?=|"mac"\s*:\s*")[0-9A-Fa-f:]{17}')  # of -device and -nic
OWN_PATH = re.compile(r"(?:(?<=path=)|(?<=^unix:)|(?<=^file:))/[^,]+")  # of -chardev, -qmp, -serial
GENERATED = (("openvswitch", "interfaceid"), ("802.1Qbg", "instanceid"))  # of ports: where libvirt makes one that is not said
ElementTree.register_namespace("qemu", QEMU)


def own_domain(config: str, vm: str, vm_uuid: str, disks: Collection[str]) -> str:
    """The XML of VM `vm`, made of a configuration that may be that of the VM it was cloned from.

    disks: the VM's, by their short names.  InvalidArgument: the configuration is no libvirt domain, or has disks that cannot be the VM's.
    """
    domain = domain_of(config)
    if domain is None:
        raise InvalidArgument(
            f"VM {vm} has no configuration that libvirt could define: give it one with blockdevctl vm config {vm} --set FILE, "
            "or discover the domain of the VM that it is a clone of"
        )
    _name(domain, vm, vm_uuid)
    _number_interfaces(domain, vm, vm_uuid)
    _point_disks(domain, vm, vm_uuid, disks)
    _refuse_memory(domain, vm)
    _release_graphics(domain)
    for kind in CHARACTER_DEVICES:
        for device in domain.findall(f"./devices/{kind}"):
            _separate_character_device(device, vm)
    for vsock in domain.findall("./devices/vsock/cid"):
        vsock.attrib.pop("address", None)
        vsock.set("auto", "yes")
    try:
        return ElementTree.tostring(domain, encoding="unicode")
    except RecursionError:
        raise InvalidArgument(f"the configuration of VM {vm} has elements in elements in elements, too deep for a domain") from None


def _name(domain: Element, vm: str, vm_uuid: str) -> None:
    domain.attrib.pop("id", None)
    _set_text(domain, "name", vm)
    _set_text(domain, "uuid", vm_uuid)
    for element in domain.findall("./title"):
        domain.remove(element)
    genid = domain.find("genid")
    if genid is not None:
        genid.text = None  # libvirt makes one
    for entry in domain.findall("./sysinfo/system/entry"):
        if entry.get("name") == "uuid":
            entry.text = vm_uuid
    for system in domain.findall("./sysinfo/system"):
        for entry in system.findall("entry[@name='serial']"):
            system.remove(entry)
    for nvram in domain.findall("./os/nvram"):
        nvram.text = None
        nvram.attrib.pop("type", None)
        for child in list(nvram):
            nvram.remove(child)
        if "template" not in nvram.attrib:
            domain.findall("./os")[0].remove(nvram)  # libvirt knows one for the loader


def _set_text(domain: Element, tag: str, text: str) -> None:
    element = domain.find(tag)
    if element is None:
        element = Element(tag)
        domain.insert(0, element)
    element.text = text


def _number_interfaces(domain: Element, vm: str, vm_uuid: str) -> None:
    for number, interface in enumerate(domain.findall("./devices/interface")):
        mac = interface.find("mac")
        if mac is None:
            mac = Element("mac")
            interface.insert(0, mac)
        mac.set("address", mac_address(vm_uuid, number))
        for name in ("target", "guest"):  # names of devices on the host and in it
            for element in interface.findall(name):
                element.attrib.pop("dev", None)
                if not element.attrib:
                    interface.remove(element)
        for port in interface.findall("virtualport"):
            for parameters in port.findall("parameters"):
                for kind, name in GENERATED:
                    if port.get("type") == kind:
                        parameters.attrib.pop(name, None)
        for source in interface.findall("source[@mode='server']"):  # of vhostuser
            source.set("path", own_path(source.get("path", ""), vm))


def _release_graphics(domain: Element) -> None:
    for graphics in domain.findall("./devices/graphics"):
        for name in ("port", "tlsPort", "websocket", "socket"):
            graphics.attrib.pop(name, None)
        if graphics.get("type") in ("vnc", "spice", "rdp"):
            graphics.set("autoport", "yes")
        for listen in graphics.findall("listen"):
            listen.attrib.pop("socket", None)


def _separate_character_device(device: Element, vm: str) -> None:
    """What it listens on or writes to is its VM's own."""
    source, kind = device.find("source"), device.get("type")
    if source is not None and kind == "pty":
        device.remove(source)
    elif source is not None and kind in ("unix", "file", "dev", "pipe") and source.get("mode") != "connect":
        target = device.find("target")
        if kind == "unix" and target is not None and target.get("name") == AGENT_CHANNEL:
            source.attrib.pop("path", None)  # libvirt makes one
        elif kind != "dev" and source.get("path"):
            source.set("path", own_path(source.get("path", ""), vm))
    elif source is not None and kind in ("tcp", "udp", "telnet") and source.get("mode") == "bind":
        device.set("type", "pty")  # a fixed port of the host
        for child in [*device.findall("source"), *device.findall("protocol")]:
            device.remove(child)
    for log in device.findall("log"):
        log.set("file", own_path(log.get("file", ""), vm))


def own_path(path: str, vm: str) -> str:
    """Beside the origin's: /run/vm/agent.sock -> /run/vm/agent-web-2.sock."""
    old = PurePosixPath(path)
    if not old.name:
        return path  # nothing that could be opened
    return str(old.with_name(f"{old.stem}-{vm}{old.suffix}"))


class _Exports:
    """The exports in a configuration, each made the VM's own."""

    def __init__(self, vm: str, disks: Collection[str]) -> None:
        self._vm = vm
        self._disks = disks
        self._origins: set[str] = set()
        self.present: set[str] = set()

    def own(self, name: str | None) -> str | None:
        """The VM's export in the place of `name`; None: that is no disk of a VM, or a snapshot's, which nobody writes to."""
        export = parse_object_name(name)
        if export is None or export.snapshot is not None:
            return None
        if export.disk not in self._disks:
            raise InvalidArgument(
                f"the configuration of VM {self._vm} has a disk {object_name(export.vm, export.disk)}, "
                f"and the VM has no disk {export.disk}"
            )
        self._origins.add(export.vm)
        if len(self._origins) > 1:
            raise InvalidArgument(
                f"the configuration of VM {self._vm} has disks of several VMs: {', '.join(sorted(self._origins))}"
            )
        self.present.add(export.disk)
        return object_name(self._vm, export.disk)


def _point_disks(domain: Element, vm: str, vm_uuid: str, disks: Collection[str]) -> None:
    """Exports of the origin become those of the same names of this VM; what the XML lacks is added."""
    exports = _Exports(vm, disks)
    model: Element | None = None
    for disk in domain.findall("./devices/disk"):
        name, source = exports.own(nbd_name(disk)), disk.find("source")
        if name is None or source is None:
            _refuse_shared(disk, vm)
            continue
        source.set("name", name)
        source.attrib.pop("index", None)
        if model is None and disk.get("device", "disk") not in MEDIA:
            model = disk
    _point_arguments(domain, vm, vm_uuid, exports)
    lacking = [name for name in disks if name not in exports.present]
    if lacking and model is None:
        raise InvalidArgument(
            f"the configuration of VM {vm} has no disk on NBD that would say where {', '.join(lacking)} is to be"
        )
    for name in lacking:
        assert model is not None
        _add_disk(domain, model, vm, name)


def _refuse_shared(disk: Element, vm: str) -> None:
    """A foreign disk that two VMs would write to."""
    is_safe = disk.find("source") is None or disk.get("device") in MEDIA
    if not is_safe and disk.find("readonly") is None and disk.find("shareable") is None:
        raise InvalidArgument(
            f"the configuration of VM {vm} has a disk that is not blockdev's, {describe(disk)}, and two VMs must not write to it: "
            f"take it out of the configuration (blockdevctl vm config {vm} --set FILE)"
        )


def _refuse_memory(domain: Element, vm: str) -> None:
    """A file that is a guest's memory is a disk by another name."""
    for memory in domain.findall("./devices/memory"):
        path = memory.findtext("source/path")
        if path is not None and memory.get("model") in ("nvdimm", "virtio-pmem") and memory.find("target/readonly") is None:
            raise InvalidArgument(
                f"the configuration of VM {vm} has {path} as {memory.get('model')}, and two VMs must not write to it: "
                f"take it out of the configuration (blockdevctl vm config {vm} --set FILE)"
            )


def _point_arguments(domain: Element, vm: str, vm_uuid: str, exports: _Exports) -> None:
    """What QEMU is given behind libvirt's back: exports by their names, MAC addresses, and sockets and files that it makes."""
    cards = len(domain.findall("./devices/interface"))

    def own_uri(match: re.Match[str]) -> str:
        try:
            parts = urlsplit(match[0])
        except ValueError:
            return match[0]
        name = exports.own(unquote(parts.path).removeprefix("/"))
        return match[0] if name is None else match[0].replace(parts.path, f"/{name}", 1)

    def own_option(match: re.Match[str]) -> str:
        name = exports.own(match[2].replace("\\/", "/"))
        return match[0] if name is None else f"{match[1]}{name}"

    def own_card(match: re.Match[str]) -> str:
        nonlocal cards
        cards += 1
        return f"{match[1]}{mac_address(vm_uuid, cards - 1)}"

    option = ""
    for argument in domain.findall(ARGUMENTS):
        value = argument.get("value", "")
        _refuse_shared_file(option, value, vm)
        option = value
        is_listening = value.startswith(("socket,", "unix:")) and "server" in value and "server=off" not in value
        if is_listening or value.startswith(("file,", "file:")):
            value = OWN_PATH.sub(lambda match: own_path(match[0], vm), value)
        value = EXPORT_OPTION.sub(own_option, NBD_URI.sub(own_uri, value))
        argument.set("value", MAC_OPTION.sub(own_card, value))


def _refuse_shared_file(option: str, value: str, vm: str) -> None:
    """As _refuse_shared; option: the argument before."""
    file = drive_file(option, value)
    if file is not None:
        raise InvalidArgument(
            f"the configuration of VM {vm} gives QEMU a disk that is not blockdev's, file {file}, and two VMs must not write "
            f"to it: take it out of the configuration (blockdevctl vm config {vm} --set FILE)"
        )


def _add_disk(domain: Element, model: Element, vm: str, name: str) -> None:
    """Beside `model`, on the same kind of bus, from the same server."""
    devices, target, source = domain.find("devices"), model.find("target"), model.find("source")
    assert devices is not None and source is not None
    bus = "virtio" if target is None else target.get("bus", "virtio")
    added = Element("disk", {"type": "network", "device": "disk"})
    SubElement(added, "driver", {"name": "qemu", "type": "raw"})
    own_source = SubElement(added, "source", {**source.attrib, "name": object_name(vm, name)})
    own_source.extend(source.findall("host"))
    SubElement(added, "target", {"dev": _free_target(domain, PREFIXES.get(bus, "vd")), "bus": bus})
    if name == SEED:  # a guest only reads it
        SubElement(added, "readonly")
    devices.insert(list(devices).index(model) + 1, added)


def _free_target(domain: Element, prefix: str) -> str:
    taken = {target.get("dev") for target in domain.findall("./devices/disk/target")}
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [prefix + a for a in letters] + [prefix + a + b for a in letters for b in letters]
    return next(name for name in names if name not in taken)
