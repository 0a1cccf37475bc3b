"""fio that writes until its server dies or is full, and then tells what of it must be there.

FioLoad: the flushing jobs write one block at a time and flush after every WRITES_PER_FLUSH of them, each block once, in an order that
their seed gives: so the number of flushes that were answered says which blocks must verify.  The deep jobs keep a deep
queue busy beside them and verify what they wrote while they write on.
FioFill: each job writes one block at a time until that is refused, so the number that was taken says which must verify.
"""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path
from typing import Any

TIED_TO_US = ("setpriv", "--pdeathsig", "KILL", "--")  # TERM is not enough for fio when its server died
MEBIBYTE = 1 << 20
FLUSHING_JOBS, FLUSHING_BYTES = 4, 32 * MEBIBYTE
DEEP_JOBS, DEEP_BYTES = 2, 256 * MEBIBYTE
CONNECTIONS = FLUSHING_JOBS + DEEP_JOBS
DISK_BYTES = FLUSHING_JOBS * FLUSHING_BYTES + DEEP_JOBS * DEEP_BYTES
WRITES_PER_FLUSH = 4
FILL_JOBS, FILL_BYTES, FILL_BLOCK = 8, 256 * MEBIBYTE, 65536
FILL_DISK_BYTES = FILL_JOBS * FILL_BYTES
BLOCK = 4096
FLUSH_LOST = (
    22  # the write after the last flush found the connection dead: fio counts a flush that failed, too
)


class FioLoad:
    """One run of fio on a disk of DISK_BYTES."""

    def __init__(self, uri: str, seed: int, directory: Path) -> None:
        self._seed = seed
        self._output = directory / "fio.json"
        self._said = directory / "fio-deep.txt"
        self._common = common_words(uri)
        self._flushed = [0] * FLUSHING_JOBS  # writes
        self._processes: list[
            subprocess.Popen[bytes]
        ] = []  # that of the flushing jobs, that of the deep ones

    def start(self) -> None:
        words = [*self._common, f"--output={self._output}"]
        for job in range(FLUSHING_JOBS):
            words += self._flushing_job(job)
            words += ["--bs=4k", "--iodepth=1", f"--fsync={WRITES_PER_FLUSH}", "--do_verify=0"]
        deep = list(self._common)
        for job in range(DEEP_JOBS):
            offset = FLUSHING_JOBS * FLUSHING_BYTES + job * DEEP_BYTES
            deep += [
                f"--name=deep{job}",
                f"--offset={offset}",
                f"--size={DEEP_BYTES}",
                f"--randseed={self._seed}",
            ]
            deep += ["--bssplit=512/10:4k/60:12k/10:64k/20", "--iodepth=16", "--rate=12m,12m"]
            deep += ["--verify_backlog=64", "--verify_fatal=1"]
        with self._said.open("wb") as said:
            self._processes = [
                subprocess.Popen([*TIED_TO_US, *line], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
                for line in (words, deep)
            ]

    def _flushing_job(self, job: int) -> list[str]:
        place = [f"--offset={job * FLUSHING_BYTES}", f"--size={FLUSHING_BYTES}"]
        return [f"--name=flushing{job}", *place, f"--randseed={self._seed + job}"]

    def finish(self) -> int:
        """The server died, so fio ends.  Returns how many of its writes are flushed."""
        self._processes[0].wait(60)
        self.kill()
        said = self._said.read_text(errors="replace")
        assert "verify:" not in said, f"fio read wrong bytes before the kill: {said}"
        self._flushed = [flushed_writes(job) for job in read_jobs(self._output)]
        return sum(self._flushed)

    def check_running(self) -> None:
        for process in self._processes:
            assert process.poll() is None, f"fio ended too early: {self._said.read_text(errors='replace')}"

    def kill(self) -> None:
        """With requests in flight, fio may wait for ever for those of a dead connection."""
        for process in self._processes:
            process.kill()
            process.wait()

    def verify(self) -> None:
        """fio reads what it had flushed; it fails on the first byte that differs."""
        words = [
            *self._common,
            f"--output={self._output}",
            "--bs=4k",
            "--iodepth=8",
            "--verify_only=1",
            "--verify_fatal=1",
        ]
        for job, count in enumerate(self._flushed):
            words += self._flushing_job(job)
            words += verify_words(count, BLOCK)
        self._output.unlink()
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
        said = f"it had flushed {self._flushed} writes; {' '.join(words)}: {done.stdout}{done.stderr}"
        assert done.returncode == 0, f"fio does not find what it flushed: {said}"
        read = [job["read"]["total_ios"] for job in read_jobs(self._output)]
        assert read == [max(count, 1) for count in self._flushed], said


class FioFill:
    """FILL_JOBS connections to a disk of FILL_DISK_BYTES that is larger than what is free."""

    def __init__(self, uri: str, seed: int, directory: Path) -> None:
        self._words = common_words(uri)
        self._seed = seed
        self._output = directory / "fio-fill.json"
        self._taken = [0] * FILL_JOBS

    def fill(self) -> int:
        """Until every job was refused; returns the bytes that were taken.  Any other end is a failure."""
        jobs, said = self._run([["--do_verify=0", "--iodepth=1"]] * FILL_JOBS)
        assert [job["error"] for job in jobs] == [errno.ENOSPC] * FILL_JOBS, said
        self._taken = [job["write"]["clat_ns"]["N"] for job in jobs]
        return sum(self._taken) * FILL_BLOCK

    def verify(self) -> None:
        """All that was taken is read."""
        each = ["--verify_only=1", "--verify_fatal=1", "--iodepth=4"]
        jobs, said = self._run([[*each, *verify_words(count, FILL_BLOCK)] for count in self._taken])
        assert not any(job["error"] for job in jobs), said
        assert [job["read"]["total_ios"] for job in jobs] == [max(count, 1) for count in self._taken], said

    def write_on(self, blocks: int) -> None:
        """Each job writes so many other blocks, without any error, and flushes; they are what verify() looks at then."""
        self._seed += FILL_JOBS
        each = ["--do_verify=0", "--iodepth=4", "--end_fsync=1", f"--io_size={blocks * FILL_BLOCK}"]
        jobs, said = self._run([each] * FILL_JOBS)
        assert not any(job["error"] for job in jobs), said
        self._taken = [job["write"]["total_ios"] for job in jobs]
        assert self._taken == [blocks] * FILL_JOBS, said

    def _run(self, options: list[list[str]]) -> tuple[list[dict[str, Any]], str]:
        words = [*self._words, f"--output={self._output}", f"--bs={FILL_BLOCK}"]
        for job, each in enumerate(options):
            words += [f"--name=fill{job}", f"--offset={job * FILL_BYTES}", f"--size={FILL_BYTES}"]
            words += [f"--randseed={self._seed + job}", *each]
        self._output.unlink(missing_ok=True)
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        return read_jobs(self._output), f"{' '.join(words)}: {done.stderr}"


def common_words(uri: str) -> list[str]:
    return [
        "fio",
        "--ioengine=nbd",
        f"--uri={uri}",
        "--thread=1",
        "--rw=randwrite",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--output-format=json",
    ]


def verify_words(count: int, block_bytes: int) -> list[str]:
    """So that a verifying job expects `count` blocks.  For 0 it reads one instead: a job's place is part of its seed."""
    if count:
        return [f"--io_size={count * block_bytes}"]
    return ["--rw=read", "--verify=0", "--verify_only=0", f"--io_size={block_bytes}"]


def flushed_writes(job: dict[str, Any]) -> int:
    flushes = job["sync"]["lat_ns"]["N"]
    assert flushes <= job["write"]["clat_ns"]["N"] // WRITES_PER_FLUSH
    return WRITES_PER_FLUSH * max(0, flushes - (job["error"] == FLUSH_LOST))


def read_jobs(output: Path) -> list[dict[str, Any]]:
    """fio puts what it says before its JSON."""
    text = output.read_text()
    found: list[dict[str, Any]] = json.loads(text[text.index("{\n") :])["jobs"]
    return found
