"""A program that holds a guest frozen until its standard input ends, and how its watchdog is found."""

from __future__ import annotations

from pathlib import Path

OWNER = """\
import sys
from blockdev.quiesce.freeze import frozen
with frozen(sys.argv[1], float(sys.argv[2])) as held:
    print("frozen", flush=True)
    sys.stdin.read()
print(held.was_whole, flush=True)
"""



def watchdogs_of(address: str) -> list[int]:
    """The process ids of those that watch the agent at an address."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")  # python -I [-S] -c BOOT PACKAGE ADDRESS LIMIT
            is_zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if address.encode() in words and b"-I" in words and not is_zombie:
            found.append(int(process.name))
    return found
