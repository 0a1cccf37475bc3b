"""fio that writes until its server dies, and then tells what of it must be there.

The flushing jobs write one block at a time and flush after every WRITES_PER_FLUSH of them, each block once, in an order that
their seed gives: so the number of flushes that were answered says which blocks must verify.  The deep jobs keep a deep
queue busy beside them and verify what they wrote while they write on.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

TIED_TO_US = ("setpriv", "--pdeathsig", "KILL", "--")  # TERM is not enough for fio when its server died
MEBIBYTE = 1 << 20
FLUSHING_JOBS, FLUSHING_BYTES = 4, 8 * MEBIBYTE
DEEP_JOBS, DEEP_BYTES = 2, 64 * MEBIBYTE
CONNECTIONS = FLUSHING_JOBS + DEEP_JOBS
DISK_BYTES = FLUSHING_JOBS * FLUSHING_BYTES + DEEP_JOBS * DEEP_BYTES
WRITES_PER_FLUSH = 4
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
        self._common = [
            "fio",
            "--ioengine=nbd",
            f"--uri={uri}",
            "--thread=1",
            "--rw=randwrite",
            "--verify=crc32c",
            "--verify_state_save=0",
            "--output-format=json",
        ]
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
            # a job's number is part of its seed, so one that flushed nothing needs a stand-in
            words += (
                [f"--io_size={count * BLOCK}"]
                if count
                else ["--rw=read", "--verify=0", "--verify_only=0", "--io_size=4k"]
            )
        self._output.unlink()
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        said = f"it had flushed {self._flushed} writes; {' '.join(words)}: {done.stdout}{done.stderr}"
        assert done.returncode == 0, f"fio does not find what it flushed: {said}"
        read = [job["read"]["total_ios"] for job in read_jobs(self._output)]
        assert read == [max(count, 1) for count in self._flushed], said


def flushed_writes(job: dict[str, Any]) -> int:
    flushes = job["sync"]["lat_ns"]["N"]
    assert flushes <= job["write"]["clat_ns"]["N"] // WRITES_PER_FLUSH
    return WRITES_PER_FLUSH * max(0, flushes - (job["error"] == FLUSH_LOST))


def read_jobs(output: Path) -> list[dict[str, Any]]:
    """fio puts what it says before its JSON."""
    text = output.read_text()
    found: list[dict[str, Any]] = json.loads(text[text.index("{\n") :])["jobs"]
    return found
