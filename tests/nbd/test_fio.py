"""Deep queues of mixed sizes, every byte verified by fio."""

from __future__ import annotations

import json

import pytest

from tests.nbd.conftest import Server

MIXED = "512/15:1k/5:4k/40:4608/5:16k/10:64k/10:128k/5:1M/10"


CONNECTIONS = 8


def fio_jobs(run, server: Server, *options: str) -> list[dict]:
    """Runs verified jobs; fio itself fails on the first byte that is not what it wrote."""
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
    jobs = json.loads(text[text.index("{") :])["jobs"]
    assert all(job["error"] == 0 for job in jobs)
    return jobs


def fio(run, server: Server, *options: str) -> dict:
    return fio_jobs(run, server, *options)[0]


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
def test_fio_verifies_every_byte(server: Server, run, seed: int, workload: list[str]) -> None:
    job = fio(run, server, f"--randseed={seed}", *workload)
    assert job["write"]["io_bytes"] > 10 << 20 and job["read"]["io_bytes"] > 0


def test_fio_verifies_every_byte_of_deep_queues_on_many_connections(server: Server, run, seed: int) -> None:
    jobs = fio_jobs(
        run,
        server,
        "--rw=randwrite",
        f"--bssplit={MIXED}",
        "--verify_backlog=256",
        "--iodepth=128",
        f"--numjobs={CONNECTIONS}",
        "--size=7m",
        "--offset_increment=7m",
        "--fsync=64",
        f"--randseed={seed}",
    )
    assert len(jobs) == CONNECTIONS
    assert all(job["write"]["io_bytes"] > 6 << 20 and job["read"]["io_bytes"] > 0 for job in jobs)


def test_what_fio_wrote_verifies_after_a_restart(server: Server, run, seed: int) -> None:
    workload = ["--rw=randwrite", f"--bssplit={MIXED}", f"--randseed={seed}"]
    fio(run, server, *workload, "--end_fsync=1", "--do_verify=0")
    assert server.stop() == 0
    server.start()
    fio(run, server, *workload, "--verify_only=1")
