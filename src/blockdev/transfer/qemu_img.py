"""Running qemu-img: never through a shell, never outliving the thread that started it."""

from __future__ import annotations

import errno
import os
import re
import selectors
import subprocess
import tempfile
from collections.abc import Callable
from typing import IO

from blockdev.errors import PoolFull, ToolFailed
from blockdev.watching import Cancelled, Watcher

# A child of a killed blockdevd must not go on writing to a disk that the next blockdevd may drop.
TIED_TO_PARENT = ["setpriv", "--pdeathsig", "KILL", "--"]
PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
POLL_SECONDS = 0.1  # how late a cancel is noticed
INFO_SECONDS_MAX = 60
CHECK_LEAKS, CHECK_UNSUPPORTED = 3, 63  # exit statuses of qemu-img check


def run_qemu_img(arguments: list[str]) -> str:
    """The output of a short qemu-img command.  Raises ToolFailed with qemu-img's first line."""
    try:
        done = subprocess.run(
            [*TIED_TO_PARENT, "qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=_environment(),
            timeout=INFO_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired:
        raise ToolFailed(f"qemu-img {arguments[0]} did not answer in {INFO_SECONDS_MAX} s") from None
    if done.returncode != 0:
        raise ToolFailed(_first_line(done.stderr, done.returncode))
    return done.stdout


def convert(arguments: list[str], watcher: Watcher) -> None:
    """Run qemu-img convert ARGUMENTS.  Raises Cancelled, PoolFull (no space), ToolFailed."""
    status, complaint = _run_watched(["convert", "-p", *arguments], watcher, watcher.advance)
    if status != 0:
        line = _first_line(complaint, status)
        raise (PoolFull if os.strerror(errno.ENOSPC) in line else ToolFailed)(line)


def is_sound(path: str, format: str, watcher: Watcher) -> bool:
    """Whether the metadata of an image holds together; true for a format that has nothing to check."""
    status, _ = _run_watched(["check", "-q", "-f", format, path], watcher, lambda _: None)
    return status in (0, CHECK_LEAKS, CHECK_UNSUPPORTED)


def _run_watched(arguments: list[str], watcher: Watcher, advance: Callable[[float], None]) -> tuple[int, str]:
    """Exit status and complaints of a qemu-img that may take long.  Raises Cancelled."""
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [*TIED_TO_PARENT, "qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=_environment(),
        )
        try:
            assert process.stdout is not None
            _follow(process.stdout, watcher, advance)
            status = process.wait()
        finally:
            _end(process)
        complaints.seek(0)
        return status, complaints.read().decode(errors="replace")


def _follow(output: IO[bytes], watcher: Watcher, advance: Callable[[float], None]) -> None:
    """Read progress until qemu-img closes its output."""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            if watcher.is_cancelled():
                raise Cancelled
            if not selector.select(POLL_SECONDS):
                continue
            chunk = os.read(output.fileno(), 65536)
            if not chunk:
                return
            seen = PERCENT.findall(chunk)
            if seen:
                advance(min(float(seen[-1]) / 100, 1.0))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _first_line(complaint: str, status: int) -> str:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    return lines[0] if lines else f"qemu-img ended with status {status} and no message"


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}
