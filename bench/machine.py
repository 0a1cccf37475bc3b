"""What the numbers were measured on, and how busy the rest of the machine was meanwhile."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
VERSION_COMMANDS = {
    "nbdkit": ["nbdkit", "--version"],
    "qemu-nbd": ["qemu-nbd", "--version"],
    "fio": ["fio", "--version"],
    "blockdev": ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
}


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "missing"
    return done.stdout.partition("\n")[0].strip()


def _version(name: str, command: list[str]) -> str:
    """Without the program's name, which some repeat and some do not."""
    return _first_line(command).removeprefix(name).lstrip(" -")


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found.group(1) if found else platform.machine()


def _file_system(folder: Path) -> str:
    command = ["findmnt", "--noheadings", "--output", "FSTYPE,SOURCE", "--target", str(folder)]
    return " ".join(_first_line(command).split())


def describe(scratch: Path) -> dict[str, object]:
    """Versions and hardware for the head of a result; `scratch` is where the disks lie."""
    return {
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": _file_system(scratch),
        "load_average": os.getloadavg(),
        "versions": {name: _version(name, command) for name, command in VERSION_COMMANDS.items()},
    }


def busy_cpu_seconds() -> float:
    """CPU time all processes of the machine used since boot, what the hypervisor took away included."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND
