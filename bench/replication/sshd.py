"""An SSH server for the peers: OpenSSH on a port of loopback, with a configuration and keys of its own, and nothing kept.

It runs as who runs it, takes one key, and ends with the `with` block.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ports import free_port

SECONDS_MAX = 10
CONFIGURATION = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


def missing() -> str | None:
    """Why it cannot run here."""
    absent = [name for name in ("sshd", "ssh", "ssh-keygen", "ssh-agent", "rsync", "zstd") if _program(name) is None]
    return f"{', '.join(absent)} not installed (apt-get install openssh-server openssh-client rsync zstd)" if absent else None


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Sshd:
    """Where `ssh` gets in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        folder.mkdir(mode=0o700)
        for name in ("host", "client"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        (folder / "config").write_text(CONFIGURATION.format(port=self.port, folder=folder))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it has its unprivileged half live
        command = [str(_program("sshd")), "-D", "-f", str(folder / "config"), "-E", str(folder / "log")]
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.agent_socket = folder / "agent"
        self._agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(self.agent_socket)], stdout=subprocess.DEVNULL)
        self._wait()
        subprocess.run(["ssh-add", "-q", str(folder / "client")], check=True, env=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """For clients that know of keys from an agent only."""
        return {**os.environ, "SSH_AUTH_SOCK": str(self.agent_socket)}

    def options(self, port: int) -> list[str]:
        """Of `ssh`, to get in by `port`."""
        return [
            *("-F", "none", "-p", str(port), "-i", str(self.folder / "client")),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
        ]

    @property
    def address(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1"

    def command(self, port: int, *options: str) -> str:
        """`ssh` as far as the command that runs there, for a shell."""
        return shlex.join(["ssh", *self.options(port), *options, self.address])

    def _wait(self) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                if self.agent_socket.exists():
                    return
            except OSError:
                pass
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"sshd does not listen: {(self.folder / 'log').read_text()[-500:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        for process in (self._server, self._agent):
            process.terminate()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
