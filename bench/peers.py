"""The peers: each class is one way to serve one disk over NBD on a Unix socket.

An instance is one disk being served, in a folder of its own that goes away with it.  Peers run with the defaults
a person would get; where a default is changed, the reason stands beside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Self

from blockdev.targets import nbdkit

from bench.server import Server, ServerFailed
from bench.workloads import FILE, GIB, MEMORY, NATIVE, PYTHON, QCOW2, UNCHECKED
from blockdev import Pool
from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError
from blockdev.home import Home

VDISK = "bench/disk"
POOL_CAPACITY_BYTES = 64 * GIB  # far more than a run writes: what runs out is not measured here


class Peer(ABC):
    """One disk being served, for as long as the `with` block lasts."""

    name: ClassVar[str]
    can_snapshot: ClassVar[bool] = False
    keeps_memory_only: ClassVar[bool] = False  # nothing on the file system to wait for
    only: ClassVar[tuple[str, ...] | None] = None  # workloads that it is there for; None: all

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self.size_bytes = size_bytes

    def __enter__(self) -> Self:
        self.folder.mkdir(mode=0o700, parents=True)
        try:
            self._create()
            self._start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self._stop()
        finally:
            self._remove()

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Why this peer cannot run here, None if it can."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """Where a client finds the disk."""

    @property
    @abstractmethod
    def process_id(self) -> int:
        """Of the running server."""

    def snapshot(self) -> None:
        """Take a snapshot, durable when it returns."""
        raise NotImplementedError(f"{self.name} has no snapshots")

    def details(self) -> dict[str, Any]:
        """What the server itself tells of its work so far."""
        return {}

    @abstractmethod
    def _create(self) -> None:
        """Make the disk, never written."""

    @abstractmethod
    def _start(self) -> None:
        """Serve the disk; it can be connected to when this returns."""

    @abstractmethod
    def _stop(self) -> None:
        """End the server, and wait for it."""

    def _remove(self) -> None:
        # Dirty pages of a deleted file are dropped, not written: the next run finds an idle disk.
        shutil.rmtree(self.folder, ignore_errors=True)


class ForeignPeer(Peer):
    """A peer that is one command in the foreground, serving on `socket_path`."""

    _server: Server

    @property
    def socket_path(self) -> Path:
        return self.folder / "nbd.sock"

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket_path}"

    @property
    def process_id(self) -> int:
        return self._server.process.pid

    @abstractmethod
    def _command(self) -> list[str]:
        """The server's command line."""

    def _start(self) -> None:
        self._server = Server(self._command(), self.socket_path, self.folder / "log")

    def _stop(self) -> None:
        self._server.stop()


def _missing_program(*names: str) -> str | None:
    absent = [name for name in names if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


class Blockdev(Peer):
    """A vdisk of a pool of its own, served by nbdkit with one of blockdev's plugins as `blockdevctl serve` does it."""

    can_snapshot = True
    plugin: ClassVar[nbdkit.Plugin]

    _server: nbdkit.NbdServer

    @classmethod
    def missing(cls) -> str | None:
        try:
            nbdkit.plugin_arguments(cls.plugin)
        except BlockdevError as error:
            return error.message
        return _missing_program("nbdkit")

    @property
    def _home(self) -> Home:
        return Home.at(self.folder / "home")

    @property
    def uri(self) -> str:
        return f"nbd+unix:///{VDISK}?socket={self._home.nbd_socket}"

    @property
    def process_id(self) -> int:
        return self._server.pid

    def snapshot(self) -> None:
        with closing(EngineClient(self._home.engine_socket)) as engine:
            engine.snapshot([engine.find(VDISK).id], [f"{VDISK}@bench"], [b""])

    def details(self) -> dict[str, Any]:
        with closing(EngineClient(self._home.engine_socket)) as engine:
            return engine.status()

    def _create(self) -> None:
        self._home.make_directories()
        with closing(Pool.create(str(self._home.pool), POOL_CAPACITY_BYTES)) as pool:
            pool.create_vdisk(self.size_bytes, name=VDISK)

    def _start(self) -> None:
        self._server = nbdkit.start(nbdkit.Options(self._home.path, self.plugin))

    def _stop(self) -> None:
        # A clean stop would checkpoint and sync a pool that is thrown away the next moment.
        self._server.process.kill()
        self._server.process.wait()


class BlockdevNative(Blockdev):
    """Through the native plugin."""

    name = NATIVE
    plugin = "native"


class BlockdevPython(Blockdev):
    """Through the Python script plugin."""

    name = PYTHON
    plugin = "python"


class BlockdevUnchecked(BlockdevNative):
    """The native plugin of a build without checksums and without the medium's door (see setup.py): what those cost.

    For comparison only: it serves whatever the file system gives it.
    """

    name = UNCHECKED
    only = ("random-read", "random-write")

    _unchecked: Server

    @classmethod
    def missing(cls) -> str | None:
        return None if _unchecked_plugin().is_file() else "not built: make build/unchecked/.built"

    @property
    def process_id(self) -> int:
        return self._unchecked.process.pid

    def _create(self) -> None:
        self._home.make_directories()
        create = "import sys; from blockdev import Pool; path, capacity, size, name = sys.argv[1:]; "
        create += "pool = Pool.create(path, int(capacity)); pool.create_vdisk(int(size), name=name); pool.close()"
        arguments = [str(self._home.pool), str(POOL_CAPACITY_BYTES), str(self.size_bytes), VDISK]
        _run(sys.executable, "-c", create, *arguments, environment=_UNCHECKED_ENVIRONMENT)

    def _start(self) -> None:
        socket_path, log = self._home.nbd_socket, self._home.run / "engine.log"
        command = ["nbdkit", "-f", "-U", str(socket_path), f"--threads={nbdkit.THREADS['native']}"]
        command += [str(_unchecked_plugin()), f"home={self._home.path}", f"python={sys.executable}"]
        self._unchecked = Server(command, socket_path, log, _UNCHECKED_ENVIRONMENT)

    def _stop(self) -> None:
        self._unchecked.process.kill()
        self._unchecked.process.wait()


_UNCHECKED_PATH = Path(__file__).parents[1] / "build" / "unchecked"
_UNCHECKED_ENVIRONMENT = {"PYTHONPATH": str(_UNCHECKED_PATH)}


def _unchecked_plugin() -> Path:
    return _UNCHECKED_PATH / "blockdev" / f"_nbdkit{sysconfig.get_config_var('EXT_SUFFIX')}"


def _run(*command: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        raise ServerFailed(f"{command[0]} failed: {done.stderr.strip()}")


class NbdkitMemory(ForeignPeer):
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


class NbdkitFile(ForeignPeer):
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


class QemuNbdQcow2(ForeignPeer):
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


PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (NbdkitMemory, NbdkitFile, QemuNbdQcow2, BlockdevNative, BlockdevPython, BlockdevUnchecked)
}
