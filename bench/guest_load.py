"""What a guest has of a disk for some seconds: fio, and what is kept of its answer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.workloads import DISTINCT_DATA


def guest_load(uri: str, size_bytes: int, seconds: float, seed: int, output: Path, options: Sequence[str]) -> dict[str, float]:
    """Microseconds at p50 and p99 of all requests of 4 KiB, and requests a second.  options: of fio, with --rw."""
    command = [
        *("fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", f"--size={size_bytes}", "--bs=4k"),
        *("--time_based", f"--runtime={round(seconds * 1000)}ms", "--norandommap", f"--randseed={seed}"),
        *("--randrepeat=0", "--unified_rw_reporting=1", "--output-format=json", f"--output={output}", *DISTINCT_DATA, *options),
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    job = json.loads("{" + output.read_text().partition("{")[2])["jobs"][0]["mixed"]
    return {**{f"p{p[:2]}": job["clat_ns"]["percentile"][p] / 1000 for p in ("50.000000", "99.000000")}, "iops": job["iops"]}
