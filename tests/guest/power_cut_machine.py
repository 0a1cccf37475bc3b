"""A machine that serves a blockdev home and can lose its power: a QEMU guest on a disk with a volatile write cache.

`with disk.powered(seed), boot(disk) as machine:` is one life of it.  Leaving the block is the power cut: QEMU is killed first,
then the disk resolves what is in its cache.
"""

from __future__ import annotations

import compileall
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nbd
from tests.lab.guest import Guest
from tests.lab.qemu import Drive, Machine
from tests.ports import free_ports

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
DISK_MEBIBYTES = 512
MAKE_FILE_SYSTEM = {"ext4": ["mke2fs", "-q", "-t", "ext4"], "xfs": ["mkfs.xfs", "-q", "-f"]}
DISK_START_LIMIT_S = 60
DISK_END_LIMIT_S = 60
FREEZE_LIMIT_S = 3
DIAL_LIMIT_S = 60
GUEST_LIMIT_S = 400
NBD_PORT, CONTROL_PORT = 10809, 10810  # in the guest, as power_cut_guest.py has them
READ_BYTES = 1 << 20


class VolatileDisk:
    """An image file behind a volatile cache (volatile_disk.py), with a file system made on it."""

    def __init__(self, directory: Path, file_system: str) -> None:
        self.directory = directory
        self.file_system = file_system
        self.image = directory / "disk.img"
        self.found = directory / "found.img"
        self.report: dict[str, int] = {}  # of the last power cut
        self._state = directory / "state"
        with open(self.image, "wb") as image:
            image.truncate(DISK_MEBIBYTES << 20)
        subprocess.run([*MAKE_FILE_SYSTEM[file_system], self.image], check=True)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self._state}/socket"

    def swallow_flushes(self) -> None:
        """From now on a flush is acknowledged, and that is all."""
        (self._state / "deaf").touch()

    def freeze(self, at_flush: bool) -> None:
        """The power begins to fail: nothing is answered from now on, or from the next flush on.

        Returns when something waits for its answer, or nothing has been asked for a while.
        """
        (self._state / "freeze-").write_text("flush" if at_flush else "now")
        (self._state / "freeze-").rename(self._state / "freeze")
        exists_within(FREEZE_LIMIT_S, self._state / "frozen")

    @contextmanager
    def powered(self, seed: int, keep: float | None = None) -> Iterator[None]:
        """The disk serves at `uri`; its power fails in the end, as `seed` (and `keep`, see the plugin) decide."""
        shutil.rmtree(self._state, ignore_errors=True)
        self._state.mkdir()
        pid_file = self._state / "pid"
        command = ["nbdkit", "--exit-with-parent", "--foreground", "-P", pid_file, "-U", self._state / "socket"]
        command += ["python", HERE / "volatile_disk.py"]
        command += [f"file={self.image}", f"seed={seed}", f"state={self._state}"]
        command += [] if keep is None else [f"keep={keep}"]
        log = self._state / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            assert exists_within(DISK_START_LIMIT_S, pid_file), log.read_text()
            yield
        finally:
            (self._state / "off").touch()
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(DISK_END_LIMIT_S)
            finally:
                process.kill()
        assert status == 0, f"the volatile disk ended with {status}: {log.read_text()}"
        self.report = json.loads((self._state / "report").read_text())

    def copy_found(self) -> Path:
        """A copy of what the last power cut left, to look into if it turns out to be wrong."""
        subprocess.run(["cp", "--sparse=always", self.image, self.found], check=True)
        return self.found


class Refused(Exception):
    """The control plane answered with an error."""


class Control:
    """A connection to power_cut_guest.py.  ConnectionError when the machine is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rwb")

    def call(self, name: str, *arguments: Any) -> Any:
        self._stream.write(json.dumps({"call": name, "arguments": arguments}).encode() + b"\n")
        self._stream.flush()
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the machine is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(f"{name}{arguments}: {answer['error']}")
        return answer["value"]


@dataclass
class ServerMachine:
    """A machine that serves."""

    guest: Guest
    nbd_port: int
    control_port: int
    started: dict[str, Any] = field(default_factory=dict)  # what power_cut_guest.py tells when it is ready
    _connections: list[socket.socket] = field(default_factory=list)

    def await_ready(self) -> None:
        self.started = json.loads(self.guest.await_file("ready").read_text())

    def control(self) -> Control:
        return Control(self._dial(self.control_port))

    def connect(self, export: str) -> nbd.NBD:
        disk = nbd.NBD()
        disk.set_export_name(export)
        disk.connect_socket(self._dial(self.nbd_port).detach())
        return disk

    def read(self, export: str) -> bytes:
        """All of an export."""
        disk = self.connect(export)
        size_bytes = disk.get_size()
        parts = [
            bytes(disk.pread(min(READ_BYTES, size_bytes - at), at)) for at in range(0, size_bytes, READ_BYTES)
        ]
        disk.shutdown()
        return b"".join(parts)


    def _dial(self, port: int) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port), DIAL_LIMIT_S)
        connection.settimeout(None)
        self._connections.append(connection.dup())
        return connection

    def hang_up(self) -> None:
        """End all connections: one that QEMU had not accepted when it was killed may last for ever."""
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@contextmanager
def boot(disk: VolatileDisk, planted_bug: int | None = None) -> Iterator[ServerMachine]:
    """A machine that begins to boot.  `planted_bug`: its engine is the torture build, with that bug."""
    compile_once()
    ports = free_ports(2)
    machine = Machine(
        drives=[Drive(disk.uri)],
        forwards=[(ports[0], NBD_PORT), (ports[1], CONTROL_PORT)],
        memory_mib=1024,
        cpu_count=1,  # under TCG, a second one makes the machine slower
        time_limit_s=GUEST_LIMIT_S,
    )
    command = ["sh", str(HERE / "power_cut_guest.sh"), str(PYTHON), disk.file_system]
    if planted_bug is not None:
        torture = ROOT / "build" / "torture" / "blockdev"
        command += [str(ROOT / "src" / "blockdev"), str(torture), str(int(planted_bug))]
    guest = Guest(command, machine)
    server = ServerMachine(guest, *ports)
    try:
        with guest:
            yield server
    finally:
        server.hang_up()


@cache
def compile_once() -> None:
    """The guest forgets what it compiles."""
    for tree in (ROOT / "src" / "blockdev", ROOT / "targets", HERE):
        assert compileall.compile_dir(tree, quiet=1)


def exists_within(limit_s: float, path: Path) -> bool:
    """Wait until a file exists, or that long."""
    deadline = time.monotonic() + limit_s
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    return path.exists()
