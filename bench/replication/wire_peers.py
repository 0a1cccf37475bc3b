"""The ways to bring a change of a disk to another machine by what every machine has: qemu-img, rsync and ssh.

Each is one disk and its copy beyond an SSH server, reached through a proxy that counts.  `prepare` makes both as they are
before the change and lets the change happen; only `send` is counted.  Then the copy is compared.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import nbd
from bench.replication.images import BLOCK_BYTES, Case, changed_blocks, copy_sparse, same
from bench.replication.proxy import Proxy
from bench.replication.sshd import Sshd
from bench.server import Server

ROOT = Path(__file__).parents[2]
LEVEL = 3  # of zstd where nothing else is said: blockdev's
TEMPLATE = "template.raw"
CLUSTERS = [sys.executable, "-m", "bench.replication.clusters"]


class WirePeer(ABC):
    """One way, in a folder of its own."""

    name: ClassVar[str]
    cases: ClassVar[tuple[str, ...]] = ("known", "random", "upgrade")

    def __init__(self, folder: Path, sshd: Sshd, proxy: Proxy) -> None:
        self.here, self.there = folder / "here", folder / "there"
        self.here.mkdir(parents=True)
        self.there.mkdir()
        self._sshd = sshd
        self._proxy = proxy

    @abstractmethod
    def prepare(self, case: Case) -> None:
        """The copy is as before the change, the disk as after it."""

    @abstractmethod
    def send(self, case: Case) -> None:
        """Bring the change over."""

    @abstractmethod
    def is_right(self, case: Case) -> bool:
        """Whether the copy is what the disk is."""

    def ssh(self, *options: str) -> str:
        return self._sshd.command(self._proxy.port, *options)

    def shell(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, env=self._sshd.environment, stdin=subprocess.DEVNULL, capture_output=True
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {command} ended with {done.returncode}: {done.stderr.decode()[-500:]}")


class ConvertSsh(WirePeer):
    """qemu-img convert writes to a raw file by its own ssh driver; it passes over zeros."""

    name = "qemu-img convert, ssh: raw"

    def prepare(self, case: Case) -> None:
        pass

    def send(self, case: Case) -> None:
        target = f"ssh://{self._sshd.address}:{self._proxy.port}{self.there}/disk.raw?host_key_check=no"
        self.shell(shlex.join(["qemu-img", "convert", "-f", "raw", "-O", "raw", str(case.after), target]))

    def is_right(self, case: Case) -> bool:
        return same(self.there / "disk.raw", case.after)


class ConvertPipe(WirePeer):
    """qemu-img convert makes a qcow2, which has no zeros, and `ssh cat` takes it over."""

    name = "qemu-img convert qcow2 | ssh"
    convert: ClassVar[tuple[str, ...]] = ()
    pack = "cat"
    unpack = "cat"
    options: ClassVar[tuple[str, ...]] = ()

    def prepare(self, case: Case) -> None:
        # It cannot write to a pipe.  What it takes meanwhile is not counted here, but its time is.
        pass

    def send(self, case: Case) -> None:
        file = self.here / "disk.qcow2"
        self.shell(shlex.join(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *self.convert, str(case.after), str(file)]))
        there = shlex.quote(f"{self.unpack} > {shlex.quote(str(self.there / 'disk.qcow2'))}")
        self.shell(f"{self.pack} < {shlex.quote(str(file))} | {self.ssh(*self.options)} {there}")

    def is_right(self, case: Case) -> bool:
        command = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", str(self.there / "disk.qcow2"), str(case.after)]
        return subprocess.run(command).returncode == 0


class ConvertPipeC(ConvertPipe):
    """The same with ssh's own compression."""

    name = "qemu-img convert qcow2 | ssh -C"
    options = ("-C",)


class ConvertPipeZstd(ConvertPipe):
    """The same through zstd."""

    name = "qemu-img convert qcow2 | zstd | ssh"
    pack, unpack = f"zstd -q -{LEVEL}", "zstd -q -d"


class ConvertCompressed(ConvertPipe):
    """qcow2 with each cluster compressed."""

    name = "qemu-img convert qcow2 -c zstd | ssh"
    convert = ("-c", "-o", "compression_type=zstd")


class Rsync(WirePeer):
    """rsync over the raw images, in place."""

    name = "rsync --inplace"
    options: ClassVar[tuple[str, ...]] = ()

    def prepare(self, case: Case) -> None:
        if case.before is not None:
            copy_sparse(case.before, self.there / "disk.raw")
        if case.known is not None:
            copy_sparse(case.known, self.there / TEMPLATE)
            # rsync looks for another name's file by size and time.
            known = case.known.stat()
            os.utime(self.there / TEMPLATE, ns=(known.st_atime_ns, known.st_mtime_ns))

    def send(self, case: Case) -> None:
        shell = self.ssh().rpartition(" ")[0]
        target = f"{self._sshd.address}:{self.there}/disk.raw"
        # --times: so that --fuzzy may go by them.  --ignore-times: a copy of the same size and age is no reason to believe it.
        self.shell(shlex.join(["rsync", "--inplace", "--times", "--ignore-times", *self.options, "-e", shell, str(case.after), target]))

    def is_right(self, case: Case) -> bool:
        return same(self.there / "disk.raw", case.after)


class RsyncZ(Rsync):
    """With its compression, which is zstd."""

    name = "rsync --inplace -z"
    options = ("-z", "--compress-choice=zstd", f"--compress-level={LEVEL}")


class RsyncBlocksZ(Rsync):
    """With blocks as small as blockdev's, for it otherwise takes about the root of the size."""

    name = "rsync --inplace -z -B 4096"
    options = (*RsyncZ.options, f"--block-size={BLOCK_BYTES}")


class RsyncFuzzyZ(Rsync):
    """Told to look for a file of another name, in the same folder there, to begin from."""

    name = "rsync --inplace -z --fuzzy"
    options = (*RsyncZ.options, "--fuzzy")
    cases = ("known",)


class Bitmap(WirePeer):
    """A qcow2 with a dirty bitmap, of which qemu-nbd tells; only its dirty clusters of 64 KiB travel.

    Where the other end has nothing of the disk there is no bitmap, and all clusters that have data travel.
    """

    name = "qcow2 dirty bitmap | ssh"
    pack = "cat"
    unpack = "cat"
    options: ClassVar[tuple[str, ...]] = ()

    def prepare(self, case: Case) -> None:
        self._image = self.here / "disk.qcow2"
        self._run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(case.before or case.after), str(self._image))
        copy = self.there / "disk.raw"
        if case.before is None:
            with copy.open("wb") as file:
                file.truncate(case.after.stat().st_size)
            return
        copy_sparse(case.before, copy)
        self._run("qemu-img", "bitmap", "--add", "-g", "65536", "-f", "qcow2", str(self._image), "b0")
        with self._served() as uri:
            guest = nbd.NBD()
            guest.connect_uri(uri)
            for block, data in changed_blocks(case.before, case.after):
                guest.pwrite(data, block * BLOCK_BYTES)
            guest.flush()
            guest.shutdown()

    def send(self, case: Case) -> None:
        bitmap = [] if case.before is None else ["b0"]
        with self._served("--read-only", *(f"--bitmap={name}" for name in bitmap)) as uri:
            read = shlex.join([*CLUSTERS, "send", uri, *bitmap])
            apply = shlex.join([*CLUSTERS, "receive", str(self.there / "disk.raw")])
            there = shlex.quote(f"cd {shlex.quote(str(ROOT))} && {self.unpack} | {apply}")
            self.shell(f"{read} | {self.pack} | {self.ssh(*self.options)} {there}")

    def is_right(self, case: Case) -> bool:
        return same(self.there / "disk.raw", case.after)

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def _served(self, *options: str) -> Served:
        return Served(self._image, self.here / "nbd.sock", options)


class Served:
    """A qcow2 that qemu-nbd serves while the `with` block lasts."""

    def __init__(self, image: Path, socket: Path, options: tuple[str, ...]) -> None:
        self._command = ["qemu-nbd", "--persistent", "--shared=4", f"--socket={socket}", "--format=qcow2", *options, str(image)]
        self._socket = socket

    def __enter__(self) -> str:
        self._server = Server(self._command, self._socket, self._socket.with_name("log"))
        return f"nbd+unix:///?socket={self._socket}"

    def __exit__(self, *_exception: object) -> None:
        self._server.stop()


class BitmapC(Bitmap):
    """The same with ssh's own compression."""

    name = "qcow2 dirty bitmap | ssh -C"
    options = ("-C",)


class BitmapZstd(Bitmap):
    """The same through zstd."""

    name = "qcow2 dirty bitmap | zstd | ssh"
    pack, unpack = f"zstd -q -{LEVEL}", "zstd -q -d"


WIRE_PEERS: tuple[type[WirePeer], ...] = (
    ConvertSsh,
    ConvertPipe,
    ConvertPipeC,
    ConvertPipeZstd,
    ConvertCompressed,
    Rsync,
    RsyncZ,
    RsyncBlocksZ,
    RsyncFuzzyZ,
    Bitmap,
    BitmapC,
    BitmapZstd,
)
