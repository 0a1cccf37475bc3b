"""A served home and a person's hands: `blockdevctl` and both processes, for real, in a directory of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

BLOCKDEVCTL = str(Path(sys.executable).with_name("blockdevctl"))
TIED_TO_US = ("setpriv", "--pdeathsig", "TERM", "--")  # a killed test run leaves no server behind
SECONDS_MAX = 120  # before something is said to hang, on a machine that does much else
STEP_SECONDS_MAX = 5  # that count of the time between two looks: processes may be stopped, and machines suspended
T = TypeVar("T")


def until(found: Callable[[], T], what: str, seconds: float = SECONDS_MAX, pause: float = 0.02) -> T:
    """What `found` returns once it is true.  A machine that stood still meanwhile (STEP_SECONDS_MAX) has its time all the same."""
    waited, last = 0.0, time.monotonic()
    while True:
        value = found()
        if value:
            return value
        assert waited < seconds, f"waited {seconds} s for {what}"
        time.sleep(pause)
        now = time.monotonic()
        waited, last = waited + min(now - last, STEP_SECONDS_MAX), now


@dataclass
class Result:
    """How one command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line that a failure has."""
        assert self.status != 0, self
        lines = [line for line in self.stderr.splitlines() if line]
        assert len(lines) == 1 and lines[0].startswith("error: "), self
        assert not self.stdout, self
        return lines[0].removeprefix("error: ")


class Home:
    """One home directory, perhaps served.  Close it to stop what was started."""

    def __init__(self) -> None:
        self.above = Path(tempfile.mkdtemp(prefix="blockdev-test-"))  # short: a socket's path has 107 bytes
        self.path = self.above / "home"
        self.serving: subprocess.Popen[str] | None = None

    def init(self, capacity: str = "4G") -> None:
        """No snapshots come by themselves in between."""
        self("init", "--capacity", capacity, "--no-schedules")

    def run(
        self, *arguments: str | Path, stdin: str | None = None, environment: dict[str, str] | None = None
    ) -> Result:
        """One command, however it ends; without `stdin` it has none.  environment: what is other than ours."""
        done = subprocess.run(
            [BLOCKDEVCTL, "--home", str(self.path), *map(str, arguments)],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **(environment or {})},
            timeout=SECONDS_MAX,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start_command(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*TIED_TO_US, BLOCKDEVCTL, "--home", str(self.path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str | Path) -> str:
        """The output of a command that must succeed."""
        result = self.run(*arguments)
        assert result.status == 0, result
        return result.stdout

    def json(self, *arguments: str | Path) -> Any:
        result = self.run(*arguments, "--json")
        assert result.status == 0 and not result.stderr, result
        return json.loads(result.stdout)

    def serve(self, *options: str) -> None:
        """Start serving; returns when both processes answer."""
        self.serving = self.start_serving(*options)
        lines = read_until(self.serving, "serving the API")
        assert any(line.startswith("serving NBD") for line in lines), lines

    def start_serving(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*TIED_TO_US, BLOCKDEVCTL, "--home", str(self.path), "serve", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            process_group=0,
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """End serving; returns what it printed meanwhile."""
        assert self.serving is not None
        serving, self.serving = self.serving, None
        serving.send_signal(number)
        output, _ = serving.communicate(timeout=SECONDS_MAX)
        assert serving.returncode == 0, f"serve ended with {serving.returncode}: {output}"
        return output

    def close(self) -> None:
        if self.serving is not None:
            self.stop()
        shutil.rmtree(self.above)

    def rest(self) -> httpx.Client:
        # a connection for each request: one that was idle may be closed by the server in the moment in which it is used again
        transport = httpx.HTTPTransport(uds=str(self.path / "run/api.sock"), limits=httpx.Limits(max_keepalive_connections=0))
        return httpx.Client(base_url="http://blockdev/api/v1", transport=transport, timeout=SECONDS_MAX)

    def trust(self) -> ssl.SSLContext:
        """Who trusts the home's certificate, and no other."""
        return ssl.create_default_context(cafile=str(self.path / "keys/api/cert.pem"))

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.path}/run/nbd.sock"

    def engine_pid(self) -> int:
        return int(self.json("pool", "status")["engine"]["pid"])

    def control_pid(self) -> int:
        """blockdevd is the child of serve that holds the API socket."""
        assert self.serving is not None
        children = Path(f"/proc/{self.serving.pid}/task/{self.serving.pid}/children").read_text().split()
        for pid in map(int, children):
            if b"blockdev.web.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return 0

    def hold_transfer(self) -> None:
        """Stop the program that copies for the control plane: what is under way does not end before it is disturbed."""
        held = 0
        for children in Path(f"/proc/{self.control_pid()}/task").glob("*/children"):
            for pid in map(int, children.read_text().split()):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "qemu-img":
                    os.kill(pid, signal.SIGSTOP)
                    held += 1
        assert held, "nothing is under way"

    def state(self) -> Any:
        """All that a person can see, to tell that nothing changed."""
        with self.rest() as rest:
            vms = rest.get("/vms").json()["vms"]
            snapshots = {vm["name"]: rest.get(f"/vms/{vm['name']}/snapshots").json() for vm in vms}
            status = rest.get("/status").json()
        for listed in snapshots.values():
            for one in listed["snapshots"]:
                del one["changed_bytes"]  # it comes by itself, some time later
        return vms, snapshots, status["foreign"], status["missing"], status["imports"]


@contextmanager
def served_home(*options: str) -> Iterator[Home]:
    """A home that is initialised and served with these options, until it is left."""
    made = Home()
    try:
        made.init()
        made.serve(*options)
        yield made
    finally:
        made.close()


@contextmanager
def fresh_home() -> Iterator[Home]:
    """A home that is initialised and not served."""
    made = Home()
    try:
        made.init()
        yield made
    finally:
        made.close()


def read_until(process: subprocess.Popen[str], beginning: str) -> list[str]:
    """The lines that `process` prints up to one that begins so."""
    assert process.stdout is not None
    lines: list[str] = []
    while not (lines and lines[-1].startswith(beginning)):
        line = process.stdout.readline()
        assert line, f"it ended with {process.wait()}: {lines}"
        lines.append(line)
    return lines


def run_tool(*arguments: str | Path) -> str:
    """An outside program that must succeed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(
        [str(part) for part in arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": path},
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout
