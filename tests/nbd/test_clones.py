"""Hundreds of clones of a VM that is written to: made in no time, and each a disk of its own at once."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

import nbd
from tests.cli.served import Home, run_tool

MEBIBYTE = 1 << 20
BLOCK = 4096
CLONES, TOGETHER = 500, 20
ATTACHED = 100  # at the same time; a connection has 16 threads in the engine
ATTEMPTS = 5  # to make them in a second of the two processes' time, whatever else the machine does
CLONES_SECONDS_MAX = 1.0
PAUSE_SECONDS = 0.002  # of the writer, so that what it adds to the log does not hide what the clones add
FIO_BYTES = 2 * MEBIBYTE


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home()
    made.init()
    made.serve()
    yield made
    made.close()


def connect(home: Home, export: str) -> nbd.NBD:
    handle = nbd.NBD()
    handle.connect_uri(home.uri(export))
    return handle


@contextmanager
def writing(home: Home, export: str, value: int) -> Iterator[list[int]]:
    """Somebody writes blocks of other bytes than those of `value` meanwhile; how many of the first half of a disk."""
    handle, stop, written = connect(home, export), threading.Event(), [0]

    def write() -> None:
        source = random.Random(value)
        while not stop.wait(PAUSE_SECONDS):
            handle.pwrite(source.randbytes(BLOCK), source.randrange(MEBIBYTE // BLOCK) * BLOCK)
            written[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        stop.set()
        writer.join()


def new_bytes(home: Home) -> int:
    """That the pool's log ever had, and its maps and checkpoints have, without what guests wrote."""
    stats = home.json("pool", "status")["engine"]["stats"]
    return int(stats["segment_bytes_added"]) + int(stats["map_bytes"]) - BLOCK * int(stats["blocks_written"])


def processor_seconds(home: Home) -> float:
    """That the engine and the control plane ever took, see proc(5), /proc/pid/stat."""
    ticks = 0
    for pid in (home.engine_pid(), home.control_pid()):
        with open(f"/proc/{pid}/stat") as file:
            ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def test_500_clones_of_a_running_vm_take_no_time_and_no_room(home: Home, seed: int) -> None:
    home("vm", "create", "web", "--disk", "root=10G", "--disk", "data=20G")
    marks = {disk: random.Random(seed).randbytes(BLOCK) for disk in ("root", "data")}
    for disk, mark in marks.items():
        connect(home, f"web/{disk}").pwrite(mark, 2 * MEBIBYTE)
    with writing(home, "web/root", seed) as written, home.rest() as rest:
        assert any(make_clones(home, rest, written, attempt) < CLONES_SECONDS_MAX for attempt in range(ATTEMPTS))
        for first in range(1, CLONES + 1, ATTACHED):
            numbers = range(first, first + ATTACHED)
            handles = [connect(home, f"c0-{number}/data") for number in numbers]
            for number, handle in zip(numbers, handles, strict=True):
                assert handle.pread(BLOCK, 2 * MEBIBYTE) == marks["data"]
                handle.pwrite(number.to_bytes(4, "big") * 1024, 2 * MEBIBYTE)
            for number, handle in zip(numbers, handles, strict=True):
                assert handle.pread(BLOCK, 2 * MEBIBYTE) == number.to_bytes(4, "big") * 1024
    assert connect(home, "web/data").pread(BLOCK, 2 * MEBIBYTE) == marks["data"]
    verify_together(home, [f"c0-{number}/root" for number in range(1, CLONES + 1, CLONES // TOGETHER)], seed)
    assert connect(home, "web/root").pread(BLOCK, 2 * MEBIBYTE) == marks["root"]


def make_clones(home: Home, rest: httpx.Client, written: list[int], attempt: int) -> float:
    """500 of the VM while it is written to; the processor's seconds that the two processes took."""
    before, began, used, at = new_bytes(home), written[0], processor_seconds(home), time.monotonic()
    answer = rest.post("/vms/web/clones", json={"count": CLONES, "prefix": f"c{attempt}"})
    taken, used = time.monotonic() - at, processor_seconds(home) - used
    each = (new_bytes(home) - before) / CLONES
    assert answer.status_code == 201 and len(answer.json()["vms"]) == CLONES
    assert written[0] > began, "nobody wrote meanwhile"
    print(f"{CLONES} clones: {taken:.3f} s, of the processor {used:.2f} s, {each:.0f} new bytes each, {written[0] - began} writes meanwhile")
    assert each < BLOCK
    return used


def test_500_customized_clones_take_seconds(home: Home) -> None:
    home("vm", "create", "web", "--disk", "root=10G", "--disk", "data=20G")
    with home.rest() as rest:
        before, at = new_bytes(home), time.monotonic()
        answer = rest.post("/vms/web/clones", json={"count": CLONES, "prefix": "c", "customize": {}})
        taken = time.monotonic() - at
    assert answer.status_code == 201 and len(set(answer.json()["hostnames"].values())) == CLONES
    each = (new_bytes(home) - before) / CLONES  # without the blocks that no other seed has: one or two
    print(f"{CLONES} customized clones: {taken:.2f} s, {each:.0f} new bytes each besides")
    assert each < 4 * BLOCK
    assert taken < 60, "two or three seconds where nothing else runs"
    handles = [connect(home, f"c-{number}/seed") for number in (1, CLONES // 2, CLONES)]
    seeds = [handle.pread(handle.get_size(), 0) for handle in handles]
    for number, seed in zip((1, CLONES // 2, CLONES), seeds, strict=True):
        assert f"local-hostname: c-{number}\n".encode() in seed


def verify_together(home: Home, exports: list[str], seed: int) -> None:
    """fio fills the beginning of each by random writes, all at the same time, and reads back what it wrote."""
    words = ["--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]
    words += [f"--size={FIO_BYTES}", "--verify_state_save=0", "--output-format=json"]
    jobs = [[f"--name=job{n}", f"--uri={home.uri(export)}", f"--randseed={seed + n}"] for n, export in enumerate(exports)]
    said = run_tool("fio", *words, *(word for job in jobs for word in job))
    done = json.loads(said[said.index("{\n") :])["jobs"]
    assert len(done) == len(exports) == TOGETHER and all(job["error"] == 0 for job in done)
    assert all(job["write"]["io_bytes"] == job["read"]["io_bytes"] == FIO_BYTES for job in done)
