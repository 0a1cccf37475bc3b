"""fio as the one client of every peer: its command lines and what is kept of its answer."""

from __future__ import annotations

import json
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.workloads import DISTINCT_DATA, MIB, Workload

GRACE_SECONDS = 120  # beyond the run itself: start, the last requests in flight, end
PERCENTILES = ("50", "99", "99.9")


class FioFailed(RuntimeError):
    """fio ended with an error, or without having done anything."""


@dataclass(frozen=True)
class Measurement:
    iops: float
    megabytes_per_second: float
    bytes_done: int
    latency_us: dict[str, float]  # percentile -> from handing a request to libnbd until its answer
    flush_latency_us: dict[str, float] | None  # of the flushes alone, where there are any
    client_cpu_seconds: float


def _run(uri: str, seed: int, output: Path, seconds_max: float, options: list[str]) -> dict[str, Any]:
    command = [
        "fio",
        "--name=bench",
        "--ioengine=nbd",
        f"--uri={uri}",
        # A file: on stdout the nbd engine's greeting comes before the JSON.
        f"--output={output}",
        "--output-format=json",
        # Data and offsets follow from our seed alone; by default every run repeats those of the one before.
        "--randrepeat=0",
        f"--randseed={seed}",
        f"--percentile_list={':'.join(PERCENTILES)}",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds_max + GRACE_SECONDS)
    if done.returncode != 0:
        raise FioFailed(
            f"fio ended with status {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}"
        )
    text = output.read_text()
    if not text.startswith("{"):
        raise FioFailed(f"fio said: {text.strip()[-500:]}")
    job: dict[str, Any] = json.loads(text)["jobs"][0]
    if job["error"] != 0:
        raise FioFailed(f"fio's job ended with error {job['error']}")
    return job


def fill(uri: str, size_bytes: int, seed: int, output: Path) -> None:
    """Write the whole disk once with distinct incompressible blocks."""
    _run(
        uri,
        seed,
        output,
        600,
        ["--rw=write", f"--bs={MIB}", "--iodepth=8", f"--size={size_bytes}", "--end_fsync=1", *DISTINCT_DATA],
    )


def _span(workload: Workload, runtime_seconds: float) -> list[str]:
    limit = f"--runtime={round(runtime_seconds * 1000)}ms"  # fio takes no fractions
    if workload.reads_only:
        # Reads change nothing, so they may go round as long as they like.  No random map: a real reader
        # comes back to a block too, and fio's bookkeeping would cost its one core.
        return [limit, "--time_based", "--norandommap"]
    # Writes touch every block once at most (fio's random map sees to it) and end with the disk or the time:
    # a second write to a block would meet another state than the one under test (allocated in qcow2,
    # no longer shared with the snapshot).
    return [limit]


def _latencies(part: dict[str, Any]) -> dict[str, float]:
    percentiles = {float(key): value for key, value in part.get("percentile", {}).items()}
    return {key: percentiles[float(key)] / 1000 for key in PERCENTILES if float(key) in percentiles}


def measure(
    workload: Workload, uri: str, size_bytes: int, runtime_seconds: float, seed: int, output: Path
) -> Measurement:
    """Run `workload` on the disk at `uri`.  Raises FioFailed on any I/O error."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    job = _run(
        uri,
        seed,
        output,
        runtime_seconds,
        [
            f"--rw={workload.pattern}",
            f"--bs={workload.request_bytes}",
            f"--iodepth={workload.depth}",
            f"--size={size_bytes}",
            *_span(workload, runtime_seconds),
            *workload.options,
        ],
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    side = job["read" if workload.reads_only else "write"]
    if side["io_bytes"] == 0:
        raise FioFailed("fio did no input or output")
    flushes = job["sync"]["total_ios"] > 0
    return Measurement(
        iops=side["iops"],
        megabytes_per_second=side["bw_bytes"] / 1e6,
        bytes_done=side["io_bytes"],
        latency_us=_latencies(side["clat_ns"]),
        flush_latency_us=_latencies(job["sync"]["lat_ns"]) if flushes else None,
        client_cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )
