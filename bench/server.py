"""A peer's server process: started on a Unix socket and stopped by its own id; and what any process used.

Use is read from outside, through /proc, so every peer is metered alike.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import TICKS_PER_SECOND

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 60.0
POLL_SECONDS = 0.01


class ServerFailed(RuntimeError):
    """A server that did not come up; the message ends with what it said."""


@dataclass(frozen=True)
class Usage:
    """What a process and its finished threads used since it began."""

    cpu_seconds: float
    written_bytes: int  # handed to write(2) and its kin; sockets go through send(2), which is not counted
    resident_bytes: int  # now


def usage_of(process_id: int) -> Usage:
    folder = Path(f"/proc/{process_id}")
    after_name = (folder / "stat").read_text().rpartition(")")[2].split()
    cpu_ticks = int(after_name[11]) + int(after_name[12])
    counters = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
    pages = int((folder / "statm").read_text().split()[1])
    return Usage(cpu_ticks / TICKS_PER_SECOND, int(counters["wchar"]), pages * os.sysconf("SC_PAGE_SIZE"))


class Server:
    """A running server.  `stop` must be called; it removes the socket."""

    def __init__(
        self,
        command: Sequence[str],
        socket_path: Path,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = command[0]
        self.socket_path = socket_path
        self.log_path = log_path
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                # As blockdev's own server: the kernel shares CPUs among sessions first, and fio is of ours.
                start_new_session=True,
            )
        try:
            self._wait_until_it_accepts()
        except BaseException:
            self.stop()
            raise

    def _wait_until_it_accepts(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket_path))
                return
            time.sleep(POLL_SECONDS)
        said = self.log_path.read_text(errors="replace").strip()[-500:]
        raise ServerFailed(f"{self.name} did not start: {said or 'no message'}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.socket_path.unlink(missing_ok=True)
