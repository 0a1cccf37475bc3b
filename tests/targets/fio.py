"""fio on block devices of the guest: load that verifies what it wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.targets.initiator import until

BASE = ("fio", "--ioengine=libaio", "--direct=1", "--thread", "--output-format=json", "--randrepeat=0")
WITHOUT_END = ("--time_based", "--runtime=600", "--verify_backlog=64")  # verifies as it goes, until it is stopped
STOPPED = 128  # fio's status after a signal
VERIFY = ("--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0")


def written_bytes(disks: list[Path]) -> int:
    """By the kernel's count of what it sent, since the devices are there."""
    numbers = [os.stat(disk).st_rdev for disk in disks]
    files = [Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat") for number in numbers]
    return 512 * sum(int(file.read_text().split()[6]) for file in files)


class Load:
    """A run of fio that goes on beside others; it has begun to write when this is made."""

    def __init__(self, disks: list[Path], seed: int, *options: str) -> None:
        words = [*BASE, f"--randseed={seed}", *options]
        for number, disk in enumerate(disks):
            words += [f"--name=disk{number}", f"--filename={disk}"]
        self.words = words
        before = written_bytes(disks)
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        until(lambda: written_bytes(disks) > before or not self.is_running(), "fio's first writes")

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> list[dict[str, Any]]:
        """As finish, of a load without an end."""
        assert self.is_running(), self.finish()
        self._process.send_signal(signal.SIGINT)
        return self.finish(expected=STOPPED)

    def finish(self, seconds: float = 240, expected: int = 0) -> list[dict[str, Any]]:
        """Its jobs; any I/O error or byte that is not what it wrote is a failure."""
        try:
            said, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        assert self._process.returncode == expected, f"{' '.join(self.words)}: {said[-3000:]}"
        jobs: list[dict[str, Any]] = json.loads(said[said.index("{\n") :])["jobs"]
        assert not any(job["error"] for job in jobs), said[-3000:]
        return jobs


def verified(disks: list[Path], seed: int, *options: str) -> Load:
    return Load(disks, seed, *VERIFY, *options)
