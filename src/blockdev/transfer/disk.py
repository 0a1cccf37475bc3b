"""Fill a disk from an image, or make an image of a disk or snapshot: qemu-img over NBD, sparse both ways.

After import_image returns the data is as durable as a flush makes it.  An exported file appears whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from blockdev import _medium
from blockdev.beside import made_beside
from blockdev.errors import AlreadyExists, InvalidArgument, MediumError, PoolFull, ToolFailed
from blockdev.transfer.image import FORMATS, Image, require_sound
from blockdev.transfer.qemu_img import convert
from blockdev.watching import Watcher

SPARSE = ["-S", "4k"]  # a run of zeros this long becomes a hole
DURABLE = ["-t", "writeback"]  # qemu-img's default for targets ignores flushes


def import_image(image: Image, uri: str, watcher: Watcher) -> None:
    """Write `image` into the fresh, all-zero export at `uri`, which is at least as large."""
    require_sound(image, watcher)
    try:
        convert(
            ["-n", "--target-is-zero", *SPARSE, *DURABLE, "-f", image.format, "-O", "raw", image.path, uri], watcher
        )
    except PoolFull as error:
        raise PoolFull(
            f"the pool is full: {image.path} did not fit ({error.message}); delete VMs or snapshots, or use a larger pool"
        ) from None
    except ToolFailed as error:
        raise ToolFailed(f"importing {image.path} failed: {error.message}") from None


def check_destination(path: str, format: str, overwrite: bool) -> None:
    """Raises what export_image would, before a job is made of it."""
    if format not in FORMATS:
        raise InvalidArgument(f"unknown image format {format!r}: use one of {', '.join(FORMATS)}")
    check_file(path, overwrite)


def check_file(path: str, overwrite: bool) -> None:
    """InvalidArgument, AlreadyExists: unless a file of that name can be made, or replaced when `overwrite` says so."""
    try:
        _check_target(Path(path), path, overwrite)
    except OSError as error:  # a name that is too long, a directory above that cannot be searched
        raise InvalidArgument(f"{path} cannot be written to by the blockdev daemon: {error.strerror}") from None


def _check_target(target: Path, path: str, overwrite: bool) -> None:
    if not target.is_absolute():
        raise InvalidArgument(f"path {path!r} is not absolute")
    if target.is_dir() or not target.name:
        raise InvalidArgument(f"{path} is a directory: name the file to write")
    if not target.parent.is_dir():
        raise InvalidArgument(f"directory {target.parent} does not exist: make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InvalidArgument(f"directory {target.parent} cannot be written to by the blockdev daemon")
    if os.path.lexists(target) and not (overwrite and target.is_file()):
        raise AlreadyExists(f"{path} exists already: choose another name, or say --overwrite")


@contextmanager
def directory_beside(target: Path) -> Iterator[Path]:
    """An empty directory on the file system of `target`, which goes when it is left, with those that killed exports left.  MediumError."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(made_beside(target, "blockdev-export"))
        except MediumError as error:
            raise MediumError(f"exporting to {target} failed: {os.strerror(error.errno)}", error.errno) from None
        yield made


def export_image(uri: str, path: str, format: str, overwrite: bool, watcher: Watcher) -> int:
    """Write the export at `uri` to the file `path`, durably.  Returns the bytes that the file occupies."""
    check_destination(path, format, overwrite)
    target = Path(path)
    # A directory beside the target, and not another name in it: a VMDK holds its own file name.
    with directory_beside(target) as directory:
        made = directory / target.name
        try:
            convert([*SPARSE, *DURABLE, "-f", "raw", "-O", format, uri, str(made)], watcher)
        except (PoolFull, ToolFailed) as error:
            raise ToolFailed(f"exporting to {path} failed: {error.message}") from None
        check_destination(path, format, overwrite)
        _medium.rename_file(str(made), path)
        _medium.sync_directory(str(target.parent))
    with suppress(FileNotFoundError):
        return target.stat().st_blocks * 512
    return 0
