"""The files of history of a directory, one for each VM, named by its UUID; `pool` is that of all VMs together.

Threads: any; whoever writes slots of one VM is alone.  What was written survives the death of the process at once, and that of
the machine as soon as the kernel has written it back (half a minute): these files are never synced, guests' flushes have the disk.
"""

from __future__ import annotations

import logging
import os
import uuid as uuid_module
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from blockdev.statistics import figures, layout, version_1
from blockdev.statistics.figures import Span
from blockdev.statistics.layout import Ring, Slots

logger = logging.getLogger(__name__)

POOL = str(uuid_module.UUID(int=0))  # the VM that is all of them
SUFFIX = ".ring"
MODE = 0o600
PAGE_BYTES = 4096
ZEROS = bytes(PAGE_BYTES)


class RingFiles:
    """Of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_failing = False  # and was told so

    def make_directory(self) -> None:
        """And no file that a death left half made in it."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for left in self._directory.glob(f"*{SUFFIX}.new"):
            left.unlink(missing_ok=True)

    def path(self, vm: str) -> Path:
        """Of the VM of this UUID."""
        return self._directory / f"{uuid_module.UUID(vm)}{SUFFIX}"

    def vms(self) -> Iterator[str]:
        """The UUIDs of VMs that have a file."""
        for path in self._directory.glob(f"*{SUFFIX}"):
            with suppress(ValueError):
                yield str(uuid_module.UUID(path.name.removesuffix(SUFFIX)))

    def delete(self, vm: str) -> None:
        self.path(vm).unlink(missing_ok=True)

    def write(self, ring: Ring, number: int, vms: Sequence[str], slots: Slots) -> None:
        """A slot of each of these VMs.  A medium that is full or broken is told of once; history has a gap then."""
        offset, _lap = layout.place(ring, number)
        size = ring.slot.itemsize
        data = memoryview(slots.tobytes())
        try:
            for row, vm in enumerate(vms):
                self._write(vm, offset, data[row * size : (row + 1) * size])
        except OSError as error:
            if not self._is_failing:
                logger.warning("history could not be written, it has a gap from now on: %s", error)
            self._is_failing = True
        else:
            self._is_failing = False

    def read(self, vm: str, ring: Ring, first: int, count: int) -> Span:
        """So many slots from the number `first` on, at most the ring's; without a file they are gaps."""
        assert 0 < count <= ring.slot_count
        try:
            descriptor = os.open(self.path(vm), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return figures.unknown(count)
        try:
            if not _is_whole(descriptor, vm):
                return figures.unknown(count)
            return layout.decode(ring, first, _read_slots(descriptor, ring, first, count))
        finally:
            os.close(descriptor)

    def _write(self, vm: str, offset: int, data: memoryview) -> None:
        path = self.path(vm)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._make(vm, path)
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)

    def _make(self, vm: str, path: Path, data: bytes | None = None) -> None:
        """Beside its place, and renamed: nobody sees a file without a header.  What is zeros of `data` becomes a hole."""
        making = path.with_name(path.name + ".new")
        making.unlink(missing_ok=True)
        content = memoryview(data or layout.header(uuid_module.UUID(vm).bytes))
        descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        try:
            for offset in range(0, len(content), PAGE_BYTES):
                page = content[offset : offset + PAGE_BYTES]
                if page != ZEROS[: len(page)]:
                    os.pwrite(descriptor, page, offset)
            os.ftruncate(descriptor, layout.FILE_BYTES)
        finally:
            os.close(descriptor)
        os.rename(making, path)

    def check(self, vm: str) -> None:
        """Make a file of an older format one of this, and put one aside that is not one of this VM: its history begins anew."""
        path = self.path(vm)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if _is_whole(descriptor, vm):
                return
            old = _is_whole(descriptor, vm, version_1.VERSION)
            data = os.pread(descriptor, layout.FILE_BYTES, 0) if old else b""
        finally:
            os.close(descriptor)
        if old:
            self._make(vm, path, version_1.converted(data, uuid_module.UUID(vm).bytes))
            return
        aside = path.with_suffix(".damaged")
        logger.warning("%s is damaged or of another build: it is kept as %s, and history begins anew", path, aside.name)
        os.rename(path, aside)


def _is_whole(descriptor: int, vm: str, version: int = layout.VERSION) -> bool:
    wanted = layout.header(uuid_module.UUID(vm).bytes, version)
    return os.pread(descriptor, len(wanted), 0) == wanted


def _read_slots(descriptor: int, ring: Ring, first: int, count: int) -> Slots:
    """In the order of their numbers: at most two pieces of the ring."""
    parts: list[Any] = []
    while count:
        offset, _lap = layout.place(ring, first)
        here = min(count, ring.slot_count - first % ring.slot_count)
        data = os.pread(descriptor, here * ring.slot.itemsize, offset)
        parts.append(np.frombuffer(data.ljust(here * ring.slot.itemsize, b"\0"), ring.slot))
        first, count = first + here, count - here
    return np.concatenate(parts)
