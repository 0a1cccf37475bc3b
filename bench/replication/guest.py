"""What stands for a guest: an ext4 file system on a disk of a VM, mounted here, and a program that writes files to it.

The kernel's ext4 runs on a loop device over the file that nbdfuse shows of an export, so what a snapshot cuts through is
a real journal.  Needs root.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from bench.replication.homes import Home, until

FILE_BYTES_MAX = 256 << 10
FILES_MAX = 400  # then the oldest one is written anew, under the next number


def missing() -> str | None:
    """Why it cannot run here."""
    return None if os.geteuid() == 0 else "mounting a file system needs root"


def _run(*command: str | Path, status_max: int = 0) -> str:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run([*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode > status_max:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout


class Shown:
    """An export as a block device, while the `with` block lasts: the file itself takes whole sectors only."""

    def __init__(self, home: Home, export: str, folder: Path) -> None:
        self._point = folder / f"{home.name}-{export.replace('/', '-').replace('@', '-')}"
        self._point.mkdir(parents=True)
        file = self._point / "nbd"
        self._process = subprocess.Popen(["nbdfuse", str(self._point), home.uri(export)], stdin=subprocess.DEVNULL)
        until(lambda: file.exists() or self._process.poll() is not None, f"nbdfuse of {export}", 30)
        if self._process.poll() is not None:
            raise RuntimeError(f"nbdfuse of {export} ended with {self._process.returncode}")
        try:
            self.device = Path(_run("losetup", "--find", "--show", file).strip())
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Path:
        return self.device

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        _run("losetup", "--detach", self.device)
        self._end()

    def _end(self) -> None:
        _run("umount", self._point)
        self._process.wait(60)
        self._point.rmdir()


class FileSystem:
    """A disk's file system, mounted at `root` while the `with` block lasts."""

    def __init__(self, home: Home, export: str, folder: Path, make: bool = False) -> None:
        """make: a new ext4."""
        self.root = folder / f"{home.name}-root"
        self._shown = Shown(home, export, folder)
        try:
            if make:
                _run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", self._shown.device)
            self.root.mkdir()
            _run("mount", self._shown.device, self.root)
        except BaseException:
            self._shown.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        _run("umount", self.root)
        self.root.rmdir()
        self._shown.__exit__(None, None, None)


class Writer:
    """Writes files with random bytes, each synced with its directory, under names that say what is in them."""

    def __init__(self, root: Path, seed: int, bytes_per_second: float) -> None:
        self.synced: list[str] = []  # names of files that were durable, in order
        self.failure: BaseException | None = None
        self._root = root / "work"
        self._made = np.random.default_rng(seed)
        self._rate = bytes_per_second
        self._stop = threading.Event()
        self._root.mkdir()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                data = self._made.bytes(int(self._made.integers(1, FILE_BYTES_MAX)))
                name = f"{len(self.synced):06d}-{hashlib.sha256(data).hexdigest()}"
                self._write(name, data)
                self.synced.append(name)
                if len(self.synced) > FILES_MAX:
                    (self._root / self.synced[-FILES_MAX - 1]).unlink()
                self._stop.wait(len(data) / self._rate)
        except BaseException as error:
            self.failure = error

    def _write(self, name: str, data: bytes) -> None:
        with (self._root / name).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(self._root, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise RuntimeError(f"the guest's writer failed: {self.failure}") from self.failure


def check_clone(home: Home, export: str, folder: Path, synced: list[str]) -> int:
    """As a guest that boots from it: the journal is played back, the file system is clean, and all that was synced is whole.

    synced: names of the files that were durable before the snapshot.  Returns how many files were read.
    """
    with Shown(home, export, folder) as device:
        _run("e2fsck", "-p", device, status_max=1)
        _run("e2fsck", "-f", "-n", device)
    with FileSystem(home, export, folder) as mounted:
        there = {path.name: path for path in (mounted.root / "work").iterdir()}
        # Deleted meanwhile, or not yet: files are deleted in order, so those that are left begin somewhere.
        first = min(there, default="")
        lost = [name for name in synced if name >= first and name not in there]
        if lost or not there:
            raise RuntimeError(f"{export}: {len(lost)} of {len(synced)} files that were synced are not there: {lost[:3]}")
        for name in synced:
            if name in there and hashlib.sha256(there[name].read_bytes()).hexdigest() != name.partition("-")[2]:
                raise RuntimeError(f"{export}: {name} has other bytes than were synced")
        return len(there)
