"""The texts that say how to attach: each is given to the program that it is for."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from blockdev.targets.attach import FORMATS, Address, describe

from blockdev.errors import InvalidArgument
from tests.nbd.conftest import DISK, DISK_BYTES, Server

SNAPSHOT = f"{DISK}@monday"
TCP = Address(host="192.0.2.7", port=10810)


def test_the_uri_is_one_that_libnbd_and_qemu_img_open(server: Server, run) -> None:
    uri = describe("uri", Address(socket=server.home.nbd_socket), DISK)
    assert run("nbdinfo", "--size", uri).strip() == str(DISK_BYTES)
    assert str(DISK_BYTES) in run("qemu-img", "info", uri)


def test_uris_over_tcp() -> None:
    assert describe("uri", TCP, SNAPSHOT) == "nbd://192.0.2.7:10810/demo/root@monday"
    assert describe("uri", Address(host="::1"), DISK) == "nbd://[::1]/demo/root"
    assert describe("uri", Address(host="h", tls="psk"), DISK).startswith(
        "nbds://<user>@h/demo/root?tls-psk-file="
    )
    assert describe("uri", Address(socket=Path("/a b/s")), "x y") == "nbd+unix:///x%20y?socket=/a%20b/s"


def test_qemu_starts_with_the_arguments(server: Server) -> None:
    text = describe("qemu", Address(socket=server.home.nbd_socket), DISK)
    machine = "qemu-system-x86_64 -nodefaults -S -display none -machine pc,accel=tcg -monitor stdio"
    done = subprocess.run(
        ["sh", "-c", f"exec {machine} {text}"],
        input="info block\nquit\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "disk0: nbd" in done.stdout and "(raw)" not in done.stderr


def test_qemu_attaches_a_snapshot_read_only_and_knows_tls() -> None:
    text = describe("qemu", Address(host="h", tls="psk"), SNAPSHOT, read_only=True)
    assert '"read-only": true' in text and '"tls-creds": "tls0"' in text
    assert text.startswith("-object tls-creds-psk,id=tls0,endpoint=client,")


def test_libvirt_is_given_well_formed_xml() -> None:
    odd = Address(socket=Path("/srv/it's <here>/nbd.sock"))
    disk = ElementTree.fromstring(describe("libvirt", odd, SNAPSHOT, read_only=True))
    source = disk.find("source")
    assert disk.attrib == {"type": "network", "device": "disk"} and disk.find("readonly") is not None
    assert source is not None and source.attrib == {"protocol": "nbd", "name": SNAPSHOT}
    assert source[0].attrib == {"transport": "unix", "socket": str(odd.socket)}
    over_tcp = ElementTree.fromstring(describe("libvirt", TCP, DISK)).find("source/host")
    assert over_tcp is not None and over_tcp.attrib == {"name": "192.0.2.7", "port": "10810"}


def test_nbd_client_words_are_quoted_for_the_shell() -> None:
    words = shlex.split(
        describe("nbd-client", Address(socket=Path("/a b/nbd.sock")), SNAPSHOT, read_only=True)
    )
    assert words[:4] == ["nbd-client", "-unix", "/a b/nbd.sock", "/dev/nbd0"]
    assert words[4:] == ["-name", SNAPSHOT, "-readonly"]
    assert describe("nbd-client", TCP, DISK).startswith("nbd-client 192.0.2.7 10810 /dev/nbd0 -name ")


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="uri, qemu, libvirt, nbd-client"):
        describe("floppy", TCP, DISK)
    with pytest.raises(InvalidArgument, match="certificates"):
        describe("nbd-client", Address(host="h", tls="psk"), DISK)
    for address in (Address(), Address(socket=Path("/s"), host="h")):
        for name in FORMATS:
            with pytest.raises(InvalidArgument):
                describe(name, address, DISK)
