"""A home that is served in the lab guest, its targets, and the kernel that both sides of them are in.  Runs in the guest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.cli.served import Home
from tests.targets import facts, initiator
from tests.targets.initiator import BUSY_S, OURS, run, until

DIRECTORY = Path("/srv")
PORTALS = ("127.0.0.1:3260", "127.0.0.1:3261")
MEBIBYTE = 1 << 20
KERNEL_ERRORS = ("I/O error", "rejecting I/O", "Buffer I/O", "blk_update_request", "BUG:", "Oops", "WARNING:")


class World:
    """A served home and the initiator's side; `directory` is where the home is."""

    rest: httpx.Client

    def __init__(self, directory: Path) -> None:
        self.home = Home()
        self.home.path = directory / "home"
        self.notes: dict[str, Any] = {}  # what a fact leaves for later ones

    def begin(self, capacity: str) -> None:
        """Make the home if it is not there, serve it, and start open-iscsi."""
        assert "LAB_SHARE" in os.environ, "this is for the lab guest: scripts/guest-run --uml"
        if not self.home.path.exists():
            self.home.init(capacity)
        self._serve()
        self.rest = self.home.rest()
        self.rest.timeout = httpx.Timeout(BUSY_S)
        initiator.start()

    def _serve(self) -> None:
        try:
            self.home.serve()
        except AssertionError:  # one processor for all, on a busy machine: the second time the files are in memory
            self.home.serve()

    def play(self, story: Any, capacity: str) -> None:
        """Begin, try the facts of a story (those that the command line names, or all), and end."""
        self.begin(capacity)
        facts.play(story, self, sys.argv[1:])
        self.end()

    def end(self) -> None:
        # a session would wait for its disks, and the guest's last sync for the session
        subprocess.run(["iscsiadm", "-m", "node", "--logoutall=all"], capture_output=True)
        self.rest.close()
        self.home.stop()

    def describe_failure(self, name: str) -> None:
        """What helps to understand it, to stderr."""
        kernel = subprocess.run(["dmesg"], capture_output=True, text=True).stdout
        print(f"--- {name}: the kernel's last words\n{kernel[-2500:]}", file=sys.stderr, flush=True)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The API's answer, which must be one of success."""
        answer = self.rest.request(method, path, json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def make_vm(self, name: str, **sizes_mib: int) -> None:
        disks = [{"name": disk, "size_bytes": size * MEBIBYTE} for disk, size in sizes_mib.items()]
        self.ask("POST", "/vms", {"name": name, "disks": disks})

    def offer(self, vm: str, initiators: tuple[str, ...] = (OURS,), **fields: Any) -> Any:
        """Add a target by the API; what the API says of it."""
        body = {"initiators": list(initiators), "portals": list(PORTALS), **fields}
        return self.ask("POST", f"/vms/{vm}/target", body)

    def target(self, vm: str) -> Any:
        return self.ask("GET", f"/vms/{vm}/target")

    def snapshot(self, vm: str, name: str) -> None:
        self.ask("POST", f"/vms/{vm}/snapshots", {"name": name})

    def compact(self) -> int:
        """What the pool takes after a compaction, in bytes."""
        self.home("pool", "compact")
        used: int = self.ask("GET", "/status")["engine"]["stats"]["used_bytes"]
        return used

    def engine_pid(self) -> int:
        """0 while there is none."""
        answer = self.rest.get("/status")
        return int(answer.json()["engine"].get("pid", 0)) if answer.is_success else 0

    def kill_engine(self) -> None:
        """As by the kernel for want of memory; returns when there is another one."""
        old = self.engine_pid()
        assert old, "there is no engine to kill"
        os.kill(old, signal.SIGKILL)
        until(lambda: self.engine_pid() not in (0, old), "another engine")

    def kill_control(self) -> None:
        """Kill the control plane; returns when another one answers."""
        old = self.home.control_pid()
        os.kill(old, signal.SIGKILL)
        until(lambda: self.home.control_pid() not in (0, old) and self._answers(), "another control plane")

    def _answers(self) -> bool:
        try:
            return self.rest.get("/status").is_success
        except httpx.TransportError:
            return False


def mount_first_disk(directory: Path) -> None:
    """Where what is written outlives the guest; if there is one. The first guest makes the file system."""
    disk = Path("/dev/ubda")
    if disk.exists():
        if subprocess.run(["blkid", disk], capture_output=True).returncode != 0:
            run("mke2fs", "-q", "-t", "ext4", disk)
        run("mount", disk, directory)


@contextmanager
def mounted(device: Path, *options: str) -> Iterator[Path]:
    """A file system of the guest, while the `with` block lasts."""
    point = Path(tempfile.mkdtemp(prefix="mounted-"))
    run("mount", *options, device, point)
    try:
        yield point
    finally:
        run("umount", point)
        point.rmdir()


@contextmanager
def no_kernel_error() -> Iterator[None]:
    """The kernel says of no I/O error meanwhile."""
    before = run("dmesg")
    yield
    said = run("dmesg").removeprefix(before)
    found = [line for line in said.splitlines() if any(word in line for word in KERNEL_ERRORS)]
    assert not found, "\n".join(found)
