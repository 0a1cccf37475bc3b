"""How each program here tells what it found: a head with seed and versions, a table, and the same as JSON.

Every head says what else the machine did: the share of its cores that was taken by others than us while it was measured
is not to be had from outside, so the load average at the beginning and at the end stands for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from bench import machine

DEFAULT_FOLDER = Path(__file__).parents[2] / ".cache" / "bench"
VERSION_COMMANDS = {
    "qemu-img": ["qemu-img", "--version"],
    "rsync": ["rsync", "--version"],
    "ssh": ["ssh", "-V"],
    "zstd": ["zstd", "--version"],
}


def _first_line(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "missing"
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def versions() -> dict[str, str]:
    """Of all that takes part."""
    return {
        "python": platform.python_version(),
        "asyncssh": version("asyncssh"),
        "cryptography": version("cryptography"),
        "zstandard": version("zstandard"),
        **{name: _first_line(command) for name, command in VERSION_COMMANDS.items()},
    }


def parser(module: str, document: str | None) -> argparse.ArgumentParser:
    """With what every program here takes."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=document)
    made.add_argument("--scratch", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="where homes and images lie")
    made.add_argument("--seed", type=int, metavar="N", help="repeat a run's data and choices")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return made


def seed_of(given: argparse.Namespace) -> int:
    return random.SystemRandom().randrange(1 << 30) if given.seed is None else int(given.seed)


class Stopped(Exception):
    """SIGTERM; unwinds, which stops what was started."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise Stopped


@contextmanager
def scratch_folder(above: Path, name: str) -> Iterator[Path]:
    """A new folder that goes away; SIGTERM ends what is done in it."""
    signal.signal(signal.SIGTERM, _stop)
    above.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=above.absolute()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Result:
    """What one program found; collected while it runs, told at its end."""

    def __init__(self, name: str, seed: int, scratch: Path, **parameters: Any) -> None:
        self.found: dict[str, Any] = {
            "benchmark": name,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": seed,
            "parameters": parameters,
            "machine": machine.describe(scratch),
            "versions": versions(),
        }

    def __setitem__(self, key: str, value: Any) -> None:
        self.found[key] = value

    def head(self) -> list[str]:
        on, used = self.found["machine"], {**self.found["versions"], **self.found["machine"]["versions"]}
        parameters = ", ".join(f"{name} {value}" for name, value in self.found["parameters"].items())
        return [
            f"{self.found['benchmark']}: {self.found['started']}, seed {self.found['seed']}, {parameters}",
            f"{on['cpu_count']} x {on['cpu']}, {on['kernel']}, {on['file_system']}, "
            f"load {on['load_average'][0]:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end",
            ", ".join(f"{name} {number}" for name, number in used.items()),
        ]

    def tell(self, table: Sequence[Sequence[str]], file: Path | None) -> None:
        """Print the head, the table and the JSON; keep the JSON in `file`."""
        self.found["load_at_end"] = os.getloadavg()
        self.found["table"] = [list(row) for row in table]
        print("\n".join([*self.head(), "", *aligned(table), ""]))
        document = json.dumps(self.found, default=str)
        print(document, flush=True)
        if file is not None:
            file.write_text(json.dumps(self.found, default=str, indent=1) + "\n")


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]


def note(text: str) -> None:
    """How far it is, for who watches; not part of the result."""
    print(text, file=sys.stderr, flush=True)
