"""libiscsi's tools and QEMU's own iSCSI driver on this machine, against targets in a QEMU guest on the other side of TCP."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.guest import Guest
from tests.lab.qemu import Machine
from tests.ports import free_port
from tests.targets import outside_guest
from tests.targets.outside_guest import DISK_BYTES, INITIATOR, SECRET, USER

TIME_LIMIT_S = 800


@dataclass
class Target:
    port: int
    iqn: str
    serial: str

    def url(self, user: str = USER, secret: str = SECRET) -> str:
        return f"iscsi://{user}%{secret}@127.0.0.1:{self.port}/{self.iqn}/0"

    def qemu_options(self) -> str:
        return (
            f"driver=iscsi,transport=tcp,portal=127.0.0.1:{self.port},target={self.iqn},lun=0,"
            f"initiator-name={INITIATOR},user={USER},password-secret=chap"
        )


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    port = free_port()
    machine = Machine(forwards=[(port, 3260)], memory_mib=1024, time_limit_s=TIME_LIMIT_S)
    with Guest([sys.executable, "-m", outside_guest.__name__], machine) as guest:
        ready = json.loads(guest.await_file("ready").read_text())
        assert ready["state"] == "up", ready
        yield Target(port, ready["iqn"], ready["serial"])
        (guest.share / "end").touch()
        result = guest.wait()
        assert result.status == 0, result.describe()


def tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)


@pytest.mark.timeout(TIME_LIMIT_S + 60)
def test_libiscsi_sees_size_serial_and_thin_provisioning_from_another_machine(target: Target) -> None:
    name = ("--initiator-name", INITIATOR)
    capacity = tool("iscsi-readcapacity16", *name, target.url())
    assert str(DISK_BYTES) in capacity.stdout, capacity
    serial = tool("iscsi-inq", *name, "--evpd", "1", "--pagecode", "128", target.url())
    assert target.serial in serial.stdout, serial
    thin = tool("iscsi-inq", *name, "--evpd", "1", "--pagecode", "178", target.url())
    assert "lbpu:1" in thin.stdout.replace(" ", ""), thin


@pytest.mark.timeout(TIME_LIMIT_S + 60)
def test_qemus_own_driver_writes_what_it_reads_back(target: Target, tmp_path: Path, seed: int) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes(random.Random(seed).randbytes(2 << 20))
    os.truncate(image, DISK_BYTES)
    secret = f"secret,id=chap,data={SECRET}"
    written = tool("qemu-img", "convert", "-n", "--object", secret, "--target-image-opts", "-f", "raw", image, target.qemu_options())
    assert written.returncode == 0, written
    read = tool("qemu-img", "convert", "--object", secret, "--image-opts", target.qemu_options(), "-O", "raw", copy)
    assert read.returncode == 0, read
    assert copy.read_bytes() == image.read_bytes()


@pytest.mark.timeout(TIME_LIMIT_S + 60)
@pytest.mark.parametrize(
    ("initiator", "secret"), [(INITIATOR, "wrong-secret-of-16"), ("iqn.2026-11.org.example:unknown", SECRET)]
)
def test_a_wrong_secret_and_an_unknown_initiator_get_nothing(target: Target, initiator: str, secret: str) -> None:
    asked = tool("iscsi-inq", "--initiator-name", initiator, target.url(secret=secret))
    assert asked.returncode != 0 and "BLOCKDEV" not in asked.stdout, asked
    known = tool("iscsi-inq", "--initiator-name", INITIATOR, target.url())
    assert known.returncode == 0 and "BLOCKDEV" in known.stdout, known
