"""Directories in which something is made beside its place, to which a rename brings it whole.

Who makes one has its LOCK, which goes with the process.  What a killed maker left is locked by nobody: the next one removes it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from blockdev import _medium
from blockdev.errors import Busy, MediumError
from blockdev.locks import lock_or_holder

LOCK = "LOCK"
MADE = "made"


def clear(above: str, names: re.Pattern[str]) -> None:
    """Remove what killed makers left of these names in the directory `above`; what is being made is locked, and stays."""
    with suppress(OSError):  # a directory that cannot be listed has none of ours
        for entry in os.listdir(above):
            if names.fullmatch(entry):
                _clear(f"{above}/{entry}")


def _clear(making: str) -> None:
    with suppress(OSError):
        os.rmdir(making)  # its maker came no further, or makes another one
        return
    with suppress(OSError), ExitStack() as stack:
        with suppress(FileNotFoundError):  # whoever cleared it was killed, too; and earlier builds had no lock there
            lock_file = os.open(f"{making}/{LOCK}", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, lock_file)
            if lock_or_holder(lock_file, str(os.getpid())) is not None:
                return
        shutil.rmtree(making)


def begin(prefix: str, take: Callable[[str], int]) -> tuple[str, int]:
    """A new directory, and the lock that keeps it from being cleared, which may happen until it is locked.

    take: locks a directory.  Busy: it is being cleared.  MediumError.
    """
    while True:
        making = f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
        _medium.make_directory(making)
        try:
            lock_file = take(making)
        except (Busy, MediumError) as failure:
            if isinstance(failure, Busy) or failure.errno == errno.ENOENT:
                continue
            shutil.rmtree(making, ignore_errors=True)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(f"{making}/{LOCK}"), os.fstat(lock_file)):
                return making, lock_file
        os.close(lock_file)


@contextmanager
def made_beside(place: Path, name: str) -> Iterator[Path]:
    """An empty directory on the file system of `place`, which goes when it is left.  MediumError.

    name: what those of its kind begin with, behind a dot.
    """
    above = str(place.parent)
    clear(above, re.compile(rf"\.{name}-[0-9]+-[0-9a-f]{{8}}"))
    making, lock_file = begin(f"{above}/.{name}-", _take)
    try:
        _medium.make_directory(f"{making}/{MADE}")
        yield Path(making, MADE)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        os.close(lock_file)


def _take(making: str) -> int:
    """On a file system without locks nobody else has it either, so nobody clears it."""
    try:
        lock_file = os.open(f"{making}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        raise MediumError(f"{making}: {failure.strerror}", failure.errno or 0) from None
    with suppress(OSError):
        if lock_or_holder(lock_file, str(os.getpid())) is not None:
            os.close(lock_file)
            raise Busy(f"{making} is being cleared")
    return lock_file
