"""How a started process tells its supervisor that it serves, or why not: one line on an inherited file descriptor.

`ready`, or `error CODE MESSAGE`.  nbdkit's plugin says the same (blockdev.engine.process).
"""

from __future__ import annotations

import os
from contextlib import suppress

from blockdev.errors import BlockdevError


def report_ready(descriptor: int | None) -> None:
    _report(descriptor, "ready")


def report_error(descriptor: int | None, error: BlockdevError) -> None:
    _report(descriptor, f"error {error.code} {' '.join(error.message.split())}")


def _report(descriptor: int | None, line: str) -> None:
    if descriptor is None:
        return
    with suppress(OSError):  # said already, or nobody listens any more
        os.write(descriptor, line.encode() + b"\n")
        os.close(descriptor)
