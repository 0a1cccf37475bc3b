"""Starting blockdevd and waiting until it serves."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable

from blockdev.api.listening import Tcp
from blockdev.clock import monotonic_seconds
from blockdev.errors import ToolFailed, from_code
from blockdev.home import Home

READY_SECONDS_MAX = 60.0  # for another READY_CPU_SECONDS of its start, which takes 2 to 10 s of a processor
READY_CPU_SECONDS = 1.0
READY_PERIODS_MAX = 10
LOOK_SECONDS = 1.0  # between calls of `meanwhile`
# It must not outlive its supervisor: the next one starts its own.  setpriv becomes blockdevd, so the pid is the same.
TIED_TO_PARENT = ("setpriv", "--pdeathsig", "TERM", "--")


def start_control(
    home: Home, tcp: Tcp | None, nbd: str | None, replicate: str | None, meanwhile: Callable[[], None]
) -> subprocess.Popen[bytes]:
    """A control plane that answers.  Raises what it says keeps it from serving, ToolFailed, or what `meanwhile` raises.

    meanwhile: is called again and again until it answers, since that may take long.
    """
    reader, writer = os.pipe()
    arguments = [*TIED_TO_PARENT, sys.executable, "-m", "blockdev.web.daemon", "--home", str(home.path)]
    arguments += ["--ready-fd", str(writer), *(tcp.arguments() if tcp else [])]
    arguments += ["--nbd", nbd] if nbd else []
    arguments += ["--replicate", replicate] if replicate else []
    try:
        # A process group of its own: Ctrl-C is for the supervisor, which stops its children in order.
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, pass_fds=[writer], process_group=0)
    except OSError as error:
        os.close(reader)
        raise ToolFailed(f"blockdevd cannot be started: {error}") from None
    finally:
        os.close(writer)
    try:
        _wait_until_ready(process, reader, meanwhile)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        os.close(reader)
    return process


def _wait_until_ready(process: subprocess.Popen[bytes], reader: int, meanwhile: Callable[[], None]) -> None:
    """One that gets on is waited for: killed and begun anew it would never be there while others take the processor."""
    used_s = 0.0
    for period in range(READY_PERIODS_MAX):
        if _says_something(reader, READY_SECONDS_MAX, meanwhile):
            break
        before_s, used_s = used_s, _cpu_seconds(process.pid)
        if used_s - before_s < READY_CPU_SECONDS or period == READY_PERIODS_MAX - 1:
            raise ToolFailed(f"blockdevd did not become ready within {READY_SECONDS_MAX * (period + 1):g} s")
    word, _, rest = os.read(reader, 65536).decode(errors="replace").strip().partition(" ")
    if word == "ready":
        return
    status = process.wait()
    if word == "error":
        code, _, message = rest.partition(" ")
        raise from_code(code, message)
    raise ToolFailed(f"blockdevd ended with status {status} before it served; what it said is above")


def _says_something(reader: int, seconds: float, meanwhile: Callable[[], None]) -> bool:
    deadline = monotonic_seconds() + seconds
    while not select.select([reader], [], [], min(LOOK_SECONDS, seconds))[0]:
        meanwhile()
        if monotonic_seconds() >= deadline:
            return False
    return True


def _cpu_seconds(pid: int) -> float:
    """What a process has used of processors; one that has ended says so by its pipe."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
