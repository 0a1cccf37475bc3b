"""Locks of files that say who has them, for messages."""

from __future__ import annotations

import contextlib
import fcntl
import os

HOLDER_BYTES_MAX = 4096


def lock_or_holder(descriptor: int, holder: str) -> str | None:
    """Lock an open file for this process and write `holder` into it: None; or what another one wrote, which has it.

    The lock goes with the descriptor, so it can never be stale.  OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, HOLDER_BYTES_MAX, 0).decode(errors="replace").strip()
    with contextlib.suppress(OSError):  # it is for a message only; the file system may be full
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, os.fsencode(f"{holder}\n"), 0)
    return None
