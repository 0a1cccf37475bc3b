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
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Self

from blockdev.targets import nbdkit

from bench.server import Server, ServerFailed
from bench.workloads import (
    FILE,
    GIB,
    MEMORY,
    MIB,
    NATIVE,
    PYTHON,
    QCOW2,
    QCOW2_SNAPSHOTS,
    REFLINK,
    STORAGE_DAEMON,
    UNCHECKED,
    UNCOUNTED,
)
from blockdev import Pool
from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError
from blockdev.home import Home

VM = "bench"
VDISK = f"{VM}/disk"
POOL_CAPACITY_BYTES = 64 * GIB  # far more than a run writes: what runs out is not measured here


class Peer(ABC):
    """One disk being served, for as long as the `with` block lasts."""

    name: ClassVar[str]
    can_snapshot: ClassVar[bool] = False
    keeps_memory_only: ClassVar[bool] = False  # nothing on the file system to wait for
    snapshots: ClassVar[int] = 0  # that the filled disk has in any case

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self.size_bytes = size_bytes
        self.snapshot_count = 0

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
        self.snapshot_count += 1
        self._take_snapshot(str(self.snapshot_count))

    def clones(self, count: int) -> list[str]:
        """Where clients find `count` clones of the disk as it is; a peer without any offers the disk itself."""
        return [self.uri] * count

    def checkpoint(self) -> None:
        """Have the server write down what it keeps in memory about the disk."""
        raise NotImplementedError(f"{self.name} has no checkpoints")

    def compact(self) -> None:
        """Have the server give back the space of what was overwritten; returns when it has."""
        raise NotImplementedError(f"{self.name} does not compact")

    def evict(self) -> None:
        """Have the page cache hold nothing of the disk's files."""
        os.sync()  # what is dirty stays
        for path in self.folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

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

    def _take_snapshot(self, name: str) -> None:
        raise NotImplementedError(f"{self.name} has no snapshots")

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
        return self._uri("")

    def _uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.socket_path}"

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
        return self._uri(VDISK)

    def _uri(self, name: str) -> str:
        return f"nbd+unix:///{name}?socket={self._home.nbd_socket}"

    @property
    def process_id(self) -> int:
        return self._server.pid

    def clones(self, count: int) -> list[str]:
        self.snapshot()
        names = [f"{VM}-{number}/disk" for number in range(count)]
        with closing(EngineClient(self._home.engine_socket)) as engine:
            snapshot = engine.find(f"{VDISK}@{self.snapshot_count}").id
            engine.clone([(snapshot, name, b"") for name in names])
        return [self._uri(name) for name in names]

    def checkpoint(self) -> None:
        with closing(EngineClient(self._home.engine_socket)) as engine:
            engine.checkpoint()

    def compact(self) -> None:
        with closing(EngineClient(self._home.engine_socket)) as engine:
            run = engine.compact()
            while engine.compaction(run, 1.0).state == "running":
                pass

    def _take_snapshot(self, name: str) -> None:
        with closing(EngineClient(self._home.engine_socket)) as engine:
            engine.snapshot([engine.find(VDISK).id], [f"{VDISK}@{name}"], [b""])

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


class BlockdevVariant(BlockdevNative):
    """The native plugin of another build (see setup.py), to compare with."""

    variant: str

    _server: Server

    @classmethod
    def missing(cls) -> str | None:
        return None if cls._plugin().is_file() else f"not built: make build/{cls.variant}/.built"

    @property
    def process_id(self) -> int:
        return self._server.process.pid

    @classmethod
    def _path(cls) -> Path:
        return Path(__file__).parents[1] / "build" / cls.variant

    @classmethod
    def _plugin(cls) -> Path:
        return cls._path() / "blockdev" / f"_nbdkit{sysconfig.get_config_var('EXT_SUFFIX')}"

    @classmethod
    def _environment(cls) -> dict[str, str]:
        return {"PYTHONPATH": str(cls._path())}

    def _create(self) -> None:
        self._home.make_directories()
        create = "import sys; from blockdev import Pool; path, capacity, size, name = sys.argv[1:]; "
        create += "pool = Pool.create(path, int(capacity)); pool.create_vdisk(int(size), name=name); pool.close()"
        arguments = [str(self._home.pool), str(POOL_CAPACITY_BYTES), str(self.size_bytes), VDISK]
        _run(sys.executable, "-c", create, *arguments, environment=self._environment())

    def _start(self) -> None:
        socket_path, log = self._home.nbd_socket, self._home.run / "engine.log"
        command = ["nbdkit", "-f", "-U", str(socket_path), f"--threads={nbdkit.THREADS['native']}"]
        command += [str(self._plugin()), f"home={self._home.path}", f"python={sys.executable}"]
        self._server = Server(command, socket_path, log, self._environment())

    def _stop(self) -> None:
        self._server.process.kill()
        self._server.process.wait()


class BlockdevUnchecked(BlockdevVariant):
    """Without checksums and without the medium's door: what those cost.

    For comparison only: it serves whatever the file system gives it.
    """

    name = UNCHECKED
    variant = "unchecked"


class BlockdevUncounted(BlockdevVariant):
    """Without statistics: what those cost."""

    name = UNCOUNTED
    variant = "uncounted"


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


class NbdkitFileReflink(NbdkitFile):
    """The same on XFS, in a file of its own mounted as a loop device; snapshots and clones are copies that share blocks."""

    name = REFLINK
    can_snapshot = True

    @classmethod
    def missing(cls) -> str | None:
        if os.geteuid() != 0:
            return "mounting a file system needs root"
        return _missing_program("nbdkit", "mkfs.xfs") or _reason_not_to_mount_xfs()

    @property
    def _mount_point(self) -> Path:
        return self.folder / "xfs"

    @property
    def _image(self) -> Path:
        return self._mount_point / "disk.raw"

    @property
    def uri(self) -> str:
        return self._uri(self._image.name)

    def clones(self, count: int) -> list[str]:
        names = [f"clone-{number}.raw" for number in range(count)]
        for name in names:
            self._copy(name)
        return [self._uri(name) for name in names]

    def _create(self) -> None:
        # Overwriting a shared block takes a new one: the disk twice, its log and its bookkeeping.
        _mount_xfs(self.folder / "xfs.img", 2 * self.size_bytes + XFS_BYTES_MIN, self._mount_point)
        super()._create()

    def _command(self) -> list[str]:
        return ["nbdkit", "-f", "-U", str(self.socket_path), "file", f"dir={self._mount_point}"]

    def _take_snapshot(self, name: str) -> None:
        self._copy(f"snapshot-{name}.raw")
        os.sync()

    def _copy(self, name: str) -> None:
        _run("cp", "--reflink=always", str(self._image), str(self._mount_point / name))

    def _remove(self) -> None:
        if self._mount_point.is_mount():
            _run("umount", str(self._mount_point))
        super()._remove()


XFS_BYTES_MIN = 512 * MIB  # mkfs.xfs takes no less than 300 MiB


def _mount_xfs(file: Path, size_bytes: int, mount_point: Path) -> None:
    """A new XFS in a sparse file; unmounting gives the loop device back."""
    with file.open("wb") as image:
        image.truncate(size_bytes)
    mount_point.mkdir()
    _run("mkfs.xfs", "-q", "-m", "reflink=1", str(file))
    # discard: blocks that the file system frees go back to the file below.
    _run("mount", "-o", "loop,discard", str(file), str(mount_point))


def _reason_not_to_mount_xfs() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        mount_point = Path(folder) / "xfs"
        try:
            _mount_xfs(Path(folder) / "xfs.img", XFS_BYTES_MIN, mount_point)
        except ServerFailed as error:
            return str(error)
        _run("umount", str(mount_point))
    return None


class Qcow2(ForeignPeer):
    """A new qcow2 image with qemu's defaults: 64 KiB clusters, page cache, thread pool (io_uring was no faster here)."""

    can_snapshot = True

    @property
    def _image(self) -> Path:
        return self.folder / "disk.qcow2"

    def _create(self) -> None:
        _run("qemu-img", "create", "-q", "-f", "qcow2", str(self._image), str(self.size_bytes))

    def _take_snapshot(self, name: str) -> None:
        """Internal; qemu-img wants the image closed, so the server starts anew."""
        self._stop()
        _run("qemu-img", "snapshot", "-c", name, str(self._image))
        self._start()


class QemuNbdQcow2(Qcow2):
    """Served by qemu-nbd."""

    name = QCOW2

    @classmethod
    def missing(cls) -> str | None:
        return _missing_program("qemu-nbd", "qemu-img")

    def _command(self) -> list[str]:
        # --persistent: it would end with its first client, and `fill` is one.  --shared=0: as many as come.
        options = ["--persistent", "--shared=0", f"--socket={self.socket_path}", "--format=qcow2"]
        return ["qemu-nbd", *options, str(self._image)]


class QemuNbdQcow2Snapshots(QemuNbdQcow2):
    """The same after a while of use: with 20 internal snapshots of the filled disk."""

    name = QCOW2_SNAPSHOTS
    snapshots = 20


class QemuStorageDaemonQcow2(Qcow2):
    """Served by qemu-storage-daemon; clones are overlays that have the disk as their common backing file."""

    name = STORAGE_DAEMON

    def __init__(self, folder: Path, size_bytes: int) -> None:
        super().__init__(folder, size_bytes)
        self._overlays: list[Path] = []

    @classmethod
    def missing(cls) -> str | None:
        return _missing_program("qemu-storage-daemon", "qemu-img")

    @property
    def uri(self) -> str:
        return self._uri(self._image.stem)

    def clones(self, count: int) -> list[str]:
        self._stop()
        self._overlays = [self.folder / f"overlay{number}.qcow2" for number in range(count)]
        for overlay in self._overlays:
            _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(self._image), "-F", "qcow2", str(overlay))
        self._start()
        return [self._uri(overlay.stem) for overlay in self._overlays]

    def _command(self) -> list[str]:
        command = ["qemu-storage-daemon", "--nbd-server", f"addr.type=unix,addr.path={self.socket_path}"]
        command += _blockdev(self._image, "read-only=on" if self._overlays else "read-only=off")
        for overlay in self._overlays:
            command += _blockdev(overlay, f"backing={self._image.stem}")
        for image in self._overlays or [self._image]:
            name = image.stem
            command += ["--export", f"type=nbd,id={name}-export,node-name={name},name={name},writable=on"]
        return command


def _blockdev(image: Path, option: str) -> list[str]:
    """One image as a node of qemu's that is named after it."""
    node = f"driver=qcow2,node-name={image.stem},file.driver=file,file.filename={image},{option}"
    return ["--blockdev", node]


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        NbdkitMemory,
        NbdkitFile,
        NbdkitFileReflink,
        QemuNbdQcow2,
        QemuNbdQcow2Snapshots,
        QemuStorageDaemonQcow2,
        BlockdevNative,
        BlockdevPython,
        BlockdevUnchecked,
        BlockdevUncounted,
    )
}
