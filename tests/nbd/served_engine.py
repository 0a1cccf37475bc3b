"""The engine that a real `blockdevctl serve` starts, and starts again when it was killed."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import httpx

from tests.cli.served import Home, until

DEATHS_MAX = 4  # in one life of serve: at 5 in a minute it gives up


class ServedEngine:
    def __init__(self, home: Home) -> None:
        self.home = home
        self._deaths = 0

    def pid(self) -> int:
        """The child of serve that is nbdkit or becomes it; 0 while there is none."""
        assert self.home.serving is not None and self.home.serving.poll() is None, "serve has ended"
        serving = self.home.serving.pid
        for pid in Path(f"/proc/{serving}/task/{serving}/children").read_text().split():
            try:
                if b"nbdkit" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
            except OSError:  # it ended meanwhile
                continue
        return 0

    def kill(self) -> int:
        """kill -9, at once; returns the pid."""
        pid = until(self.pid, "an engine")
        os.kill(pid, signal.SIGKILL)
        self._deaths += 1
        return pid

    def wait_for_another(self, dead: int) -> int:
        """The pid of the process that serve starts in the place of `dead`; it may still be starting."""
        return until(lambda: pid if (pid := self.pid()) != dead else 0, "another engine process")

    def wait_until_back(self, dead: int, rest: httpx.Client) -> None:
        """Another engine than `dead` serves, and the control plane knows it.

        The engine's own socket answers a moment before nbd.sock gets its name: until then the dead one's is there.
        """

        def serves() -> bool:
            status = rest.get("/status").json()
            return status["engine_running"] and status["engine"]["pid"] != dead and self._accepts()

        until(serves, "the engine")

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.home.path / "run/nbd.sock")) == 0

    def keep_serve_patient(self, kills: int) -> None:
        """Before `kills` more: ends serve and starts it again when that would be too many for it."""
        if self._deaths + kills > DEATHS_MAX:
            self.home.stop()
            self.home.serve()
            self._deaths = 0
