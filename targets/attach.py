"""How to attach an export, in the words of the program that will: a URI, QEMU, libvirt, nbd-client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from blockdev.addresses import bracketed
from blockdev.errors import InvalidArgument
from blockdev.home import Home

FORMATS = ("uri", "qemu", "libvirt", "nbd-client")
NBD_PORT = 10809

Format = Literal["uri", "qemu", "libvirt", "nbd-client"]
Tls = Literal["none", "psk", "certificates"]


@dataclass(frozen=True)
class Address:
    """Where the engine listens: a Unix socket, or a host and port.  The names in <> are for the person to fill in."""

    socket: Path | None = None
    host: str | None = None
    port: int = NBD_PORT
    tls: Tls = "none"


def describe(format: str, address: Address, export: str, *, read_only: bool = False) -> str:
    """The text to paste.  `read_only`: the export is a snapshot.  Raises InvalidArgument for an unknown format."""
    if (address.socket is None) == (address.host is None):
        raise InvalidArgument("an address is a Unix socket or a host, one of them")
    writers = {"uri": _uri, "qemu": _qemu, "libvirt": _libvirt, "nbd-client": _nbd_client}
    if format not in writers:
        raise InvalidArgument(f"cannot attach as {format!r}: it is one of {', '.join(FORMATS)}")
    return writers[format](address, export, read_only)


def nbd_uri(export: str, home: Home) -> str:
    """The URI of an export on the Unix socket of a home, as qemu-img, nbdcopy and nbdinfo take it."""
    return _uri(Address(socket=home.nbd_socket), export, False)


def _uri(address: Address, export: str, read_only: bool) -> str:
    """https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md, with libnbd's TLS parameters."""
    path = quote(export, safe="/@")
    if address.socket is not None:
        return f"nbd+unix:///{path}?socket={quote(str(address.socket), safe='/')}"
    host = bracketed(str(address.host))
    port = "" if address.port == NBD_PORT else f":{address.port}"
    if address.tls == "psk":
        return f"nbds://<user>@{host}{port}/{path}?tls-psk-file=<keys.psk>"
    if address.tls == "certificates":
        return f"nbds://{host}{port}/{path}?tls-certificates=<directory>"
    return f"nbd://{host}{port}/{path}"


def _qemu(address: Address, export: str, read_only: bool) -> str:
    """Arguments of qemu-system-*: a block device node, and a virtio disk on it."""
    node: dict[str, object] = {
        "driver": "nbd",
        "node-name": "disk0",
        "server": _qemu_server(address),
        "export": export,
        "discard": "unmap",
    }
    if read_only:
        node |= {"read-only": True}
    tls = _qemu_tls(address)
    if tls:
        node |= {"tls-creds": "tls0"}
    return f"{tls}-blockdev {_shell(json.dumps(node))} \\\n-device virtio-blk-pci,drive=disk0"


def _qemu_server(address: Address) -> dict[str, str]:
    if address.socket is not None:
        return {"type": "unix", "path": str(address.socket)}
    return {"type": "inet", "host": str(address.host), "port": str(address.port)}


def _qemu_tls(address: Address) -> str:
    if address.tls == "psk":
        return (
            "-object tls-creds-psk,id=tls0,endpoint=client,dir=<directory of keys.psk>,username=<user> \\\n"
        )
    if address.tls == "certificates":
        return "-object tls-creds-x509,id=tls0,endpoint=client,dir=<directory> \\\n"
    return ""


def _libvirt(address: Address, export: str, read_only: bool) -> str:
    """A <disk> element for `virsh attach-device` or a domain's <devices>."""
    tls = " tls='yes'" if address.tls != "none" else ""
    if address.socket is not None:
        host = f"<host transport='unix' socket={quoteattr(str(address.socket))}/>"
    else:
        host = f"<host name={quoteattr(str(address.host))} port='{address.port}'/>"
    lines = [
        "<disk type='network' device='disk'>",
        "  <driver name='qemu' type='raw' discard='unmap'/>",
        f"  <source protocol='nbd' name={quoteattr(export)}{tls}>",
        f"    {host}",
        "  </source>",
        "  <target dev='vda' bus='virtio'/>",
        *(["  <readonly/>"] if read_only else []),
        "</disk>",
    ]
    return "\n".join(lines)


def _nbd_client(address: Address, export: str, read_only: bool) -> str:
    """A command that makes /dev/nbd0; the kernel refuses TLS with a pre-shared key, so that has none.

    No -block-size: it would set the sector size, and partition tables and small file systems count in 512 bytes.
    """
    if address.tls == "psk":
        raise InvalidArgument(
            "nbd-client speaks TLS with certificates only; serve with certificates, or attach as qemu"
        )
    place = f"-unix {_shell(str(address.socket))}" if address.socket else f"{address.host} {address.port}"
    tls = ""
    if address.tls == "certificates":
        tls = " -cacertfile <ca-cert.pem> -certfile <client-cert.pem> -keyfile <client-key.pem>"
    access = " -readonly" if read_only else ""
    return f"nbd-client {place} /dev/nbd0 -name {_shell(export)}{tls}{access}"


def _shell(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
