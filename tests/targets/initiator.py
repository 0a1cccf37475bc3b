"""open-iscsi in the guest: its daemon, sessions, and the SCSI devices that a session brings."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.cli import served

OURS = "iqn.2026-11.org.example:initiator"
BUSY_S = 240  # of a guest with one processor, on a busy machine
T = TypeVar("T")
# the longest path from a dead portal to an error is 122 s with open-iscsi's defaults
SETTINGS = {
    "node.session.initial_login_retry_max": "1",
    "node.conn[0].timeo.login_timeout": "10",
}


class Refused(Exception):
    """iscsiadm could not log in."""


def run(*command: str | Path, typed: str | None = None) -> str:
    """The output of a program that must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, input=typed, stdin=None if typed else subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode} {done.stdout} {done.stderr}"
    return done.stdout


def until(found: Callable[[], T], what: str, seconds: float = BUSY_S) -> T:
    """Each look takes from the guest's one processor, so there are few."""
    return served.until(found, what, seconds, pause=0.2)


@dataclass(frozen=True)
class Chap:
    user: str
    secret: str


def start() -> None:
    """The modules, the daemon, and our own name."""
    run("modprobe", "-a", "iscsi_tcp", "sd_mod", "sg", "crc32c")
    Path("/run/lock/iscsi").mkdir(parents=True, exist_ok=True)
    Path("/etc/iscsi/initiatorname.iscsi").write_text(f"InitiatorName={OURS}\n")
    run("iscsid")


class Session:
    """A login of one initiator at one portal of a target."""

    def __init__(self, iqn: str, portal: str, interface: str) -> None:
        self.iqn, self.portal, self.interface = iqn, portal, interface

    def devices(self) -> dict[int, str]:
        """LUN -> the name of its disk, such as sda."""
        return {
            int(block.parts[-3].split(":")[-1]): block.name
            for session in self._sessions()
            for block in session.glob("device/target*/*:*:*:*/block/*")
        }

    def _sessions(self) -> Iterator[Path]:
        """In sysfs."""
        for session in Path("/sys/class/iscsi_session").glob("session*"):
            if (session / "targetname").read_text().strip() != self.iqn:
                continue
            for connection in session.glob("device/connection*/iscsi_connection/connection*"):
                address, port = (
                    (connection / f"persistent_{part}").read_text().strip() for part in ("address", "port")
                )
                if f"{address}:{port}" == self.portal:
                    yield session

    def is_there(self) -> bool:
        return any(session for session in self._sessions())

    def disks(self, count: int) -> list[Path]:
        """The devices by LUN, once there are `count`."""
        found = until(
            lambda: self.devices() if len(self.devices()) >= count else None,
            f"{count} disks of {self.iqn}",
        )
        assert found is not None and len(found) == count, found
        return [Path("/dev") / found[lun] for lun in sorted(found)]

    def rescan(self) -> None:
        run("iscsiadm", *_node(self.iqn, self.portal, self.interface), "--rescan")

    def logout(self) -> None:
        run("iscsiadm", *_node(self.iqn, self.portal, self.interface), "--logout")


def discover(portal: str) -> set[str]:
    """The IQNs that a portal tells of."""
    said = run("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", portal)
    return {line.split()[1] for line in said.splitlines()}


def login(
    iqn: str, portal: str = "127.0.0.1:3260", chap: Chap | None = None, mutual: Chap | None = None,
    initiator: str | None = None,
) -> Session:  # fmt: skip
    """Raises Refused."""
    interface = _interface(initiator) if initiator else "default"
    node = _node(iqn, portal, interface)
    subprocess.run(["iscsiadm", *node, "-o", "delete"], capture_output=True)
    run("iscsiadm", *node, "-o", "new")
    settings = dict(SETTINGS)
    if chap:
        settings |= {"authmethod": "CHAP", "username": chap.user, "password": chap.secret}
    if mutual:
        settings |= {"username_in": mutual.user, "password_in": mutual.secret}
    for name, value in settings.items():
        full = name if "." in name else f"node.session.auth.{name}"
        run("iscsiadm", *node, "-o", "update", "-n", full, "-v", value)
    done = subprocess.run(["iscsiadm", *node, "--login"], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stderr.strip())
    return Session(iqn, portal, interface)


def _node(iqn: str, portal: str, interface: str) -> list[str]:
    return ["-m", "node", "-T", iqn, "-p", portal, "-I", interface]


def _interface(initiator: str) -> str:
    """An interface of open-iscsi by which we log in under another name."""
    name = re.sub(r"\W", "-", initiator)
    if not (Path("/etc/iscsi/ifaces") / name).exists():
        run("iscsiadm", "-m", "iface", "-I", name, "-o", "new")
        run("iscsiadm", "-m", "iface", "-I", name, "-o", "update", "-n", "iface.initiatorname", "-v", initiator)
    return name


def sizes(disk: Path) -> dict[str, Any]:
    """lsblk's numbers of a disk, in bytes."""
    columns = "SIZE,LOG-SEC,PHY-SEC,ROTA,RO,DISC-GRAN,DISC-MAX,VENDOR,MODEL"
    shown = run("lsblk", "--json", "--bytes", "--nodeps", "--output", columns, disk)
    found: dict[str, Any] = json.loads(shown)["blockdevices"][0]
    return found


def wwid(disk: Path) -> str:
    """By which multipath knows that two paths lead to one LUN."""
    return Path(f"/sys/block/{disk.name}/device/wwid").read_text().strip()


def vital_page(disk: Path, page: str) -> str:
    """What sg_vpd says, e.g. of sn (serial), di (device id), lbpv (thin provisioning), bl (block limits)."""
    return run("sg_vpd", f"--page={page}", disk)
