"""Deep queues of mixed sizes, every byte verified by fio."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.nbd.conftest import Server

MIXED = "512/15:1k/5:4k/40:4608/5:16k/10:64k/10:128k/5:1M/10"


def fio(run, server: Server, work: Path, *options: str) -> dict:
    """Runs one verified job; fio itself fails on the first byte that is not what it wrote."""
    text = run(
        "fio",
        "--name=verify",
        "--verify_state_save=0",
        "--ioengine=nbd",
        f"--uri={server.uri()}",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--size=60m",
        "--output-format=json",
        *options,
    )
    job = json.loads(text[text.index("{") :])["jobs"][0]
    assert job["error"] == 0
    return job


@pytest.mark.parametrize(
    "workload",
    [
        ["--rw=randwrite", f"--bssplit={MIXED}", "--verify_backlog=512"],
        ["--rw=write", f"--bssplit={MIXED}"],
        ["--rw=randrw", "--rwmixread=40", "--bsrange=512-1M", "--blockalign=512"],
        ["--rw=randwrite", "--bs=4k", "--dedupe_percentage=50", "--io_size=40m", "--fsync=16"],
    ],
    ids=["mixed-random", "mixed-sequential", "mixed-read-and-write", "dedup-and-flush"],
)
def test_fio_verifies_every_byte(server: Server, run, work: Path, seed: int, workload: list[str]) -> None:
    job = fio(run, server, work, f"--randseed={seed}", *workload)
    assert job["write"]["io_bytes"] > 10 << 20 and job["read"]["io_bytes"] > 0


def test_what_fio_wrote_verifies_after_a_restart(server: Server, run, work: Path, seed: int) -> None:
    workload = ["--rw=randwrite", f"--bssplit={MIXED}", f"--randseed={seed}"]
    fio(run, server, work, *workload, "--end_fsync=1", "--do_verify=0")
    assert server.stop() == 0
    server.start()
    fio(run, server, work, *workload, "--verify_only=1")
