"""Domains as a person defines them, for exports of a served home."""

from __future__ import annotations

from pathlib import Path

import libvirt

DISK = """\
<disk type='network' device='disk'>
  <driver name='qemu' type='raw' discard='unmap'/>
  <source protocol='nbd' name='{export}'><host transport='unix' socket='{socket}'/></source>
  <target dev='{target}' bus='virtio'/>{rest}
</disk>
"""
FILE = """\
<disk type='file' device='disk'>
  <driver name='qemu' type='raw'/><source file='{path}'/><target dev='{target}' bus='virtio'/>
</disk>
"""
DOMAIN = """\
<domain type='qemu'{namespace}>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {devices}
  </devices>{rest}
</domain>
"""


def disk(export: str, socket: Path | str, target: str = "vda", rest: str = "") -> str:
    return DISK.format(export=export, socket=socket, target=target, rest=rest)


def file_disk(path: str, target: str = "vdb") -> str:
    return FILE.format(path=path, target=target)


def domain(name: str, *devices: str, rest: str = "", namespace: str = "") -> str:
    return DOMAIN.format(name=name, devices="".join(devices), rest=rest, namespace=namespace)


def define(connection: libvirt.virConnect, xml: str) -> str:
    """Its uuid."""
    return connection.defineXML(xml).UUIDString()


def undefine_all(connection: libvirt.virConnect) -> None:
    for one in connection.listAllDomains():
        if one.isActive():
            one.destroy()
        if one.isPersistent():
            one.undefine()
