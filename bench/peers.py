"""The peers: each class is one way to serve one disk over NBD on a Unix socket.

An instance is one disk that is being served, in a folder of its own that goes away with it.  Peers run with the defaults
a person would get; where a default is changed, the reason stands beside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from bench.server import Server, ServerFailed, Usage
from bench.workloads import FILE, MEMORY, QCOW2


class Peer(ABC):
    """One disk being served.  `close` must be called."""

    name: ClassVar[str]
    can_snapshot: ClassVar[bool] = False
    keeps_memory_only: ClassVar[bool] = False  # nothing on the file system to wait for

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self.size_bytes = size_bytes
        folder.mkdir(mode=0o700, parents=True)
        self._server: Server | None = None
        try:
            self._create()
            self._start()
        except BaseException:
            self.close()
            raise

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Why this peer cannot run here, None if it can."""

    @abstractmethod
    def _create(self) -> None:
        """Make the disk, never written."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The server, in the foreground, on `socket_path`."""

    @property
    def socket_path(self) -> Path:
        return self.folder / "s"

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket_path}"

    def snapshot(self) -> None:
        """Take a snapshot, durable when it returns."""
        raise NotImplementedError(f"{self.name} has no snapshots")

    def usage(self) -> Usage:
        assert self._server is not None
        return self._server.usage()

    @property
    def process_id(self) -> int:
        assert self._server is not None
        return self._server.process.pid

    def close(self) -> None:
        self._stop()
        # Dirty pages of a deleted file are dropped, not written: the next run finds an idle disk.
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        self._server = Server(self._command(), self.socket_path, self.folder / "log")

    def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()


def _missing_program(*names: str) -> str | None:
    absent = [name for name in names if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ServerFailed(f"{command[0]} failed: {done.stderr.strip()}")


class NbdkitMemory(Peer):
    """nbdkit's memory plugin: no file system and no bookkeeping, the ceiling of the protocol and of nbdkit."""

    name = MEMORY
    keeps_memory_only = True

    @classmethod
    def missing(cls) -> str | None:
        return _missing_program("nbdkit")

    def _create(self) -> None:
        """The server holds it."""

    def _command(self) -> list[str]:
        return ["nbdkit", "-f", "-U", str(self.socket_path), "memory", str(self.size_bytes)]


class NbdkitFile(Peer):
    """nbdkit's file plugin on a raw file with its space allocated: what a plain file can do."""

    name = FILE

    @classmethod
    def missing(cls) -> str | None:
        return _missing_program("nbdkit")

    @property
    def _image(self) -> Path:
        return self.folder / "disk.raw"

    def _create(self) -> None:
        descriptor = os.open(self._image, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size_bytes)
        finally:
            os.close(descriptor)

    def _command(self) -> list[str]:
        return ["nbdkit", "-f", "-U", str(self.socket_path), "file", str(self._image)]


class QemuNbdQcow2(Peer):
    """qemu-nbd on qcow2 with its defaults (64 KiB clusters, page cache, thread pool; io_uring was no faster here)."""

    name = QCOW2
    can_snapshot = True

    @classmethod
    def missing(cls) -> str | None:
        return _missing_program("qemu-nbd", "qemu-img")

    @property
    def _image(self) -> Path:
        return self.folder / "disk.qcow2"

    def _create(self) -> None:
        _run("qemu-img", "create", "-q", "-f", "qcow2", str(self._image), str(self.size_bytes))

    def _command(self) -> list[str]:
        # --persistent: it would end with its first client, and `fill` is one.
        return [
            "qemu-nbd",
            "--persistent",
            f"--socket={self.socket_path}",
            "--format=qcow2",
            str(self._image),
        ]

    def snapshot(self) -> None:
        """Internal; qemu-img wants the image closed, so the server starts anew."""
        self._stop()
        _run("qemu-img", "snapshot", "-c", "bench", str(self._image))
        self._start()


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (NbdkitMemory, NbdkitFile, QemuNbdQcow2)}
