"""A libvirtd of the test's own: its directories are in a mount namespace of its own, over those that libvirt knows by heart.

So nothing of the machine's libvirt is read or changed, and several daemons can run at once.  The user that Debian's libvirt wants
for its guests (libvirt-qemu) is in this namespace's /etc/passwd; guests run as root, because the homes of tests are root's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

START_SECONDS_MAX = 60.0  # it asks each QEMU what it can do: 8 s on a busy machine
TIED_TO_US = ("setpriv", "--pdeathsig", "TERM", "--")
LIBVIRTD = "/usr/sbin/libvirtd"
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
DAEMON_CONF = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
ACCOUNTS = {
    "passwd": "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n",
    "group": "libvirt-qemu:x:64055:\nkvm:x:64056:\n",
}
ENTER = """\
set -e
for pair in etc:/etc/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt run:/run/libvirt; do
    mkdir -p "$1/${pair%%:*}" "${pair#*:}"
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
for file in passwd group; do mount --bind "$1/$file" "/etc/$file"; done
cp "$1/qemu.conf" /etc/libvirt/qemu.conf
exec "$2" -f "$1/libvirtd.conf" -p "$1/libvirtd.pid"
"""


class LibvirtDaemon:
    """Started; close it to end it and its domains."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bd-libvirt-"))
        (self.directory / "qemu.conf").write_text(QEMU_CONF)
        (self.directory / "libvirtd.conf").write_text(DAEMON_CONF)
        for name, lines in ACCOUNTS.items():
            known = Path("/etc", name).read_text()
            missing = [line for line in lines.splitlines(True) if f"\n{line.split(':')[0]}:" not in known]
            (self.directory / name).write_text(known + "".join(missing))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.directory}/run/libvirt-sock"

    def start(self) -> None:
        log = open(self.directory / "daemon.log", "ab")  # noqa: SIM115 (the daemon's)
        with log:
            self.process = subprocess.Popen(
                [*TIED_TO_US, "unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", self.directory, LIBVIRTD],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                libvirt.open(self.uri).close()
                return
            except libvirt.libvirtError:
                said = (self.directory / "daemon.log").read_text()
                assert self.process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Its domains run on."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)
        self.process = None

    def connect(self) -> libvirt.virConnect:
        return libvirt.open(self.uri)

    def close(self) -> None:
        if self.process is None:
            self.start()
        connection = self.connect()
        for domain in connection.listAllDomains():
            if domain.isActive():
                domain.destroy()
        connection.close()
        self.stop()
        shutil.rmtree(self.directory)


@contextmanager
def libvirt_daemon() -> Iterator[LibvirtDaemon]:
    """One for tests, which are skipped where there can be none."""
    if not is_usable():
        pytest.skip("mounting a file system needs root")
    silence()
    made = LibvirtDaemon()
    yield made
    made.close()


def silence() -> None:
    """libvirt's errors are exceptions; it prints them, too."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


def is_usable() -> bool:
    return os.geteuid() == 0
