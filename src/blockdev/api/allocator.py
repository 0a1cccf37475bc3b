"""How the C library gives memory back: a process that moves large blocks all day keeps some.

By its defaults glibc takes blocks above 128 KiB from the kernel one by one, and gives them back at once; the page faults of
that took two thirds of the CPU of an SSH channel with packets of 256 KiB (measured).  And it has eight arenas a core, each of
which keeps what was free at its worst moment: with tens of threads that was 150 MiB for nothing in a home of 1,000 VMs
(measured).  Few of our threads allocate at the same time.  Elsewhere than with glibc: no change.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # mallopt(3)
BLOCK_BYTES_MAX = 4 << 20  # larger ones are taken from the kernel as ever
KEPT_BYTES_MAX = 32 << 20  # free, at the end of an arena
GROWN_BYTES = 4 << 20  # at once
ARENAS_MAX = 2


def keep_freed_memory() -> None:
    """For this process from now on."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, ARENAS_MAX)
        mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES_MAX)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES_MAX)
        mallopt(M_TOP_PAD, GROWN_BYTES)
