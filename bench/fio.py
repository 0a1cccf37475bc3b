"""fio as the one client of every peer: its command lines and what is kept of its answer."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.workloads import DISTINCT_DATA, MIB, Workload

GRACE_SECONDS = 120  # beyond the run itself: start, the last requests in flight, end
SUSTAINED_SECONDS_MAX = 1800
SERIES_MS = 500  # one point of the speed over time
PERCENTILES = ("50", "99", "99.9")


class FioFailed(RuntimeError):
    """fio ended with an error, or without having done anything."""


class Connection(NamedTuple):
    """One of the client's connections and the part of the disk that it works on."""

    uri: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Measurement:
    """All connections together; `latency_us` goes from handing a request to libnbd until its answer."""

    iops: float
    megabytes_per_second: float
    bytes_done: int
    bytes_written: int
    latency_us: dict[str, float]  # by percentile
    flush_latency_us: dict[str, float] | None  # of the flushes alone, where there are any
    client_cpu_seconds: float
    series: list[tuple[float, float]] | None  # (seconds since the start, IOPS), of a sustained run


def connections(workload: Workload, uris: Sequence[str], size_bytes: int) -> list[Connection]:
    """One for each of the clones, or as many as the workload wants to the one disk, in parts of their own."""
    if workload.clones:
        return [Connection(uri, 0, size_bytes) for uri in uris]
    part = size_bytes // workload.connections // workload.request_bytes * workload.request_bytes
    return [Connection(uris[0], part * number, part) for number in range(workload.connections)]


def _run(
    clients: Sequence[Connection], seed: int, output: Path, seconds_max: float, options: Sequence[str]
) -> dict[str, Any]:
    command = [
        "fio",
        "--name=global",
        "--ioengine=nbd",
        # 64 processes would cost more to start than some runs take.
        "--thread",
        # One answer for all jobs, percentiles over all their requests; reads and writes apart and together.
        "--group_reporting",
        "--unified_rw_reporting=both",
        f"--output={output}",
        "--output-format=json",
        # Data and offsets follow from our seed alone; by default every run repeats those of the one before.
        "--randrepeat=0",
        f"--randseed={seed}",
        f"--percentile_list={':'.join(PERCENTILES)}",
        *options,
    ]
    for number, client in enumerate(clients):
        command += [f"--name=connection{number}", f"--uri={client.uri}"]
        command += [f"--offset={client.offset}", f"--size={client.size_bytes}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds_max + GRACE_SECONDS)
    if done.returncode != 0:
        raise FioFailed(
            f"fio ended with status {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}"
        )
    # The nbd engine greets each connection in the same file first.
    greetings, brace, answer = output.read_text().partition("{")
    if not brace:
        raise FioFailed(f"fio said: {greetings.strip()[-500:]}")
    job: dict[str, Any] = json.loads(brace + answer)["jobs"][0]
    if job["error"] != 0:
        raise FioFailed(f"fio's job ended with error {job['error']}")
    return job


def fill(uri: str, size_bytes: int, seed: int, output: Path) -> None:
    """Write the whole disk once with distinct incompressible blocks."""
    options = ["--rw=write", f"--bs={MIB}", "--iodepth=8", "--end_fsync=1", *DISTINCT_DATA]
    _run([Connection(uri, 0, size_bytes)], seed, output, 600, options)


def _span(workload: Workload, runtime_seconds: float) -> list[str]:
    if workload.sustained:
        return []
    limit = f"--runtime={round(runtime_seconds * 1000)}ms"  # fio takes no fractions
    if workload.reads_only and workload.state != "cold":
        # Reads change nothing, so they may go round as long as they like.  No random map: a real reader
        # comes back to a block too, and fio's bookkeeping would cost its one core.
        return [limit, "--time_based", "--norandommap"]
    # The others touch every block once at most (fio's random map sees to it) and end with the disk or the time:
    # a second write to a block would meet another state than the one under test (allocated in qcow2,
    # no longer shared with the snapshot), a second cold read would be a warm one.
    return [limit]


def _latencies(part: dict[str, Any]) -> dict[str, float]:
    percentiles = {float(key): value for key, value in part.get("percentile", {}).items()}
    return {key: percentiles[float(key)] / 1000 for key in PERCENTILES if float(key) in percentiles}


def _series(log: Path) -> list[tuple[float, float]]:
    """fio's lines are time in ms, requests a second, direction, size, offset."""
    rows = [line.split(",") for line in log.read_text().splitlines()]
    log.unlink()
    return [(int(row[0]) / 1000, float(row[1])) for row in rows]


def measure(
    workload: Workload,
    uris: Sequence[str],
    size_bytes: int,
    runtime_seconds: float,
    seed: int,
    output: Path,
) -> Measurement:
    """Run `workload` on the disks at `uris`.  Raises FioFailed on any I/O error."""
    log = output.with_name("fio-series")
    logged = [f"--write_iops_log={log}", "--per_job_logs=0", f"--log_avg_msec={SERIES_MS}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    job = _run(
        connections(workload, uris, size_bytes),
        seed,
        output,
        SUSTAINED_SECONDS_MAX if workload.sustained else runtime_seconds,
        [
            f"--rw={workload.pattern}",
            f"--bs={workload.request_bytes}",
            f"--iodepth={workload.depth}",
            *_span(workload, runtime_seconds),
            *workload.options,
            *(logged if workload.sustained else []),
        ],
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    together = job["mixed"]
    if together["io_bytes"] == 0:
        raise FioFailed("fio did no input or output")
    flushes = job["sync"]["total_ios"] > 0
    return Measurement(
        iops=together["iops"],
        megabytes_per_second=together["bw_bytes"] / 1e6,
        bytes_done=together["io_bytes"],
        bytes_written=job["write"]["io_bytes"],
        latency_us=_latencies(together["clat_ns"]),
        flush_latency_us=_latencies(job["sync"]["lat_ns"]) if flushes else None,
        client_cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        series=_series(log.with_name(f"{log.name}_iops.log")) if workload.sustained else None,
    )
