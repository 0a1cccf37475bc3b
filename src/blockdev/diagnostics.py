"""Lines for the administrator on stderr, which in an engine is its log: best effort, because a log may be on the very
file system that is full."""

from __future__ import annotations

import sys
import traceback


def report(text: str) -> None:
    """One line.  Never raises: what cannot be logged must not stop the work that it is about."""
    _write(f"blockdev: {text}\n")


def report_bug(error: BaseException) -> None:
    """Where it came from.  Never raises."""
    _write("".join(traceback.format_exception(error)))


def flush() -> None:
    """What Python still holds of stdout and stderr.  Never raises."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        return
