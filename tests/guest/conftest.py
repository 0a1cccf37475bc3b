"""A served blockdev home, used as a person would: through blockdevctl and NBD."""

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.served import TIED_TO_US

BLOCKDEVCTL = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "blockdevctl"
START_LIMIT_S = 120
STOP_LIMIT_S = 60


class ServedHome:
    """A home with a running `blockdevctl serve`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nbd_socket = directory / "run" / "nbd.sock"

    def ctl(self, *arguments: str) -> str:
        """Run blockdevctl; its stdout, or an AssertionError with what it said."""
        done = self._ctl(*arguments)
        assert done.returncode == 0, f"blockdevctl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def _ctl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(BLOCKDEVCTL), "--home", str(self.directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.nbd_socket}"

    def qemu_arguments(self, export: str) -> list[str]:
        """What `attach --as qemu` tells a person to paste, as their shell would split it."""
        return shlex.split(self.ctl("attach", export, "--as", "qemu").replace("\\\n", " "))

    def copy(self, export: str, destination: Path) -> Path:
        """A raw copy of an export's present content."""
        subprocess.run(["nbdcopy", self.uri(export), destination], check=True)
        return destination

    @contextmanager
    def serving(self) -> Iterator[None]:
        log = self.directory / "serve.log"
        with open(log, "wb") as output:
            server = subprocess.Popen(
                [*TIED_TO_US, BLOCKDEVCTL, "--home", self.directory, "serve"], stdout=output, stderr=output
            )
        try:
            deadline = time.monotonic() + START_LIMIT_S
            while self._ctl("vm", "list").returncode != 0:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            try:
                server.wait(STOP_LIMIT_S)
            finally:
                server.kill()


@pytest.fixture(scope="package")
def served_home() -> Iterator[ServedHome]:
    directory = Path(tempfile.mkdtemp(prefix="blockdev-guest-"))
    home = ServedHome(directory)
    try:
        home.ctl("init", "--capacity", "4G", "--no-schedules")
        with home.serving():
            yield home
            home.ctl("pool", "check")
    finally:
        shutil.rmtree(directory)
