"""Which home of this machine has the targets of a pool in the kernel: one, also while a copy of it is served, say out of a backup.

A copy has the same uuid, and so the same names in the kernel.  Both would take the same devices and targets for theirs, and a device
could come by the copy's engine.  The first one that needs the kernel has it until its control plane ends.  Threads: one at a time.
"""

from __future__ import annotations

import os
from pathlib import Path

from blockdev.locks import lock_or_holder

DIRECTORY = Path("/run/blockdev")  # root's alone; a machine that starts has none


class Claim:
    """Of one pool's targets, for this process."""

    def __init__(self, pool_uuid: str, home: Path, directory: Path = DIRECTORY) -> None:
        self._path = directory / f"targets-{pool_uuid}"
        self._home = home
        self._descriptor: int | None = None

    def missing(self) -> str | None:
        """Why this process has it not, as a sentence; None: it has it, from now on at the latest."""
        if self._descriptor is not None:
            return None
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            return f"{self._path}, which says whose the targets of this pool are, cannot be opened: {error.strerror}"
        try:
            other = lock_or_holder(descriptor, str(self._home))
        except OSError as error:
            os.close(descriptor)
            return f"{self._path}, which says whose the targets of this pool are, cannot be locked: {error.strerror}"
        if other is None:
            self._descriptor = descriptor
            return None
        os.close(descriptor)
        return (
            f"the targets of this pool are those of {other or 'another home'} on this machine, and this home is a copy of it: "
            "serve one of them alone, or on another machine"
        )

    def release(self) -> None:
        """Let another process have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
