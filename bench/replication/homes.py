"""Served homes that replicate to each other over real SSH, as a person sets them up: by blockdevctl, paired with a code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from tests.ports import free_port

from bench.replication.proxy import Proxy
from bench.workloads import GIB
from blockdev.transfer.nbd import Export

CONTROL = str(Path(sys.executable).with_name("blockdevctl"))
SECONDS_MAX = 600
T = TypeVar("T")


def until(found: Callable[[], T], what: str, seconds: float = SECONDS_MAX, pause: float = 0.05) -> T:
    """What `found` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)
    return value


class Home:
    """One home, served until it is closed; what its processes say is in `log`."""

    def __init__(self, folder: Path, name: str, capacity_bytes: int = 64 * GIB, inside: Sequence[str] = ()) -> None:
        """`inside`: a command that runs another one elsewhere, such as in a network namespace."""
        self.name = name
        self.path = folder / name
        self.log = folder / f"{name}.log"
        self._inside = tuple(inside)
        self.serving: subprocess.Popen[str] | None = None
        self("init", "--capacity", str(capacity_bytes), "--no-schedules")
        self.rest = httpx.Client(
            base_url="http://blockdev/api/v1", transport=httpx.HTTPTransport(uds=str(self.path / "run/api.sock"), retries=3), timeout=60
        )

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [CONTROL, "--home", str(self.path), *map(str, arguments)]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS_MAX)

    def __call__(self, *arguments: str | Path) -> str:
        done = self.run(*arguments)
        if done.returncode:
            raise RuntimeError(f"{self.name}: blockdevctl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self(*arguments, "--json"))

    def serve(self, *options: str) -> None:
        """Returns when both processes answer."""
        command = [*self._inside, "setpriv", "--pdeathsig", "TERM", "--", CONTROL, "--home", str(self.path), "serve", *options]
        with self.log.open("a") as log:
            self.serving = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0
            )
        assert self.serving.stdout is not None
        while not (line := self.serving.stdout.readline()).startswith("serving the API"):
            if not line:
                raise RuntimeError(f"{self.name} ended with {self.serving.wait()}: {self.log.read_text()[-1000:]}")

    def stop(self) -> None:
        if self.serving is not None:
            self.serving.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.serving.communicate(timeout=180)
            self.serving = None

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.socket}"

    @property
    def socket(self) -> Path:
        return self.path / "run/nbd.sock"

    def children(self) -> dict[str, int]:
        """Process ids: `engine` and `control`, those that live at this moment."""
        assert self.serving is not None
        found = {}
        listed = Path(f"/proc/{self.serving.pid}/task/{self.serving.pid}/children").read_text().split()
        for pid in map(int, listed):
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"blockdev.web.daemon" in line:
                    found["control"] = pid
                elif b"nbdkit" in line:
                    found["engine"] = pid
        return found

    def get(self, path: str) -> Any:
        """An answer of the API; {} while it does not answer, or has no such thing."""
        try:
            answer = self.rest.get(path)
        except httpx.TransportError:
            return {}
        return answer.json() if answer.status_code == 200 else {}

    def snapshots(self, vm: str) -> dict[str, dict[str, Any]]:
        """By name, oldest first."""
        return {one["name"]: one for one in self.get(f"/vms/{vm}/snapshots").get("snapshots", [])}

    def until_received(self, vm: str, snapshot: str, seconds: float = SECONDS_MAX, pause: float = 0.1) -> float:
        """Seconds that it took from now; to ask costs the home a few ms."""
        begun = time.perf_counter()
        until(lambda: snapshot in self.snapshots(vm), f"{vm}@{snapshot} at {self.name}", seconds, pause)
        return time.perf_counter() - begun

    def protect(self, vm: str, path: str) -> None:
        """As `replicate protect`, which takes longer to start than a small VM to be sent."""
        answer = self.rest.put(f"/vms/{vm}/protections/{path}", json={})
        if answer.status_code >= 300:
            raise RuntimeError(f"{self.name}: protecting {vm}: {answer.text}")

    def cpu_seconds(self) -> float:
        """That both processes used so far."""
        total = 0.0
        for pid in self.children().values():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def close(self) -> None:
        self.rest.close()
        self.stop()
        shutil.rmtree(self.path, ignore_errors=True)


class Pair:
    """Two homes and a path `there` from `source` to `target`, through a proxy that counts; served until it is left."""

    def __init__(self, folder: Path, capacity_bytes: int = 64 * GIB, level: int | None = None, through_proxy: bool = True) -> None:
        """through_proxy: what goes over the path is counted, and may be cut; it takes some of this machine's time."""
        self.source = Home(folder, "a", capacity_bytes)
        self.target = Home(folder, "b", capacity_bytes)
        self.port = free_port()
        self.proxy = Proxy(self.port)
        try:
            self.target.serve("--replicate", f"127.0.0.1:{self.port}")
            self.source.serve()
            port = self.proxy.port if through_proxy else self.port
            pair(self.source, self.target, f"127.0.0.1:{port}", level=level)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.source.close()
        self.target.close()
        self.proxy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def pair(source: Home, target: Home, address: str, vms: str = "*", level: int | None = None) -> None:
    """From then on `source` has the path `to-NAME` to `target`, which takes VMs with names like `vms`."""
    code = target.json("replicate", "peer", "invite", source.name, "--vm", vms)["code"]
    levels = [] if level is None else ["--level", str(level)]
    source("replicate", "path", "add", f"to-{target.name}", address, "--code", code, *levels)


def same_disk(one: Home, first: str, other: Home, second: str) -> bool:
    """Whether two exports read the same, by `qemu-img compare` over NBD."""
    command = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", one.uri(first), other.uri(second)]
    return subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 0


def write(home: Home, export: str, pieces: Sequence[tuple[int, bytes]] | Any) -> int:
    """Write (offset, bytes) pairs; how many bytes."""
    total = 0
    with Export(home.socket, export) as disk:
        for offset, data in pieces:
            disk.write(offset, data)
            total += len(data)
        disk.flush()
    return total
