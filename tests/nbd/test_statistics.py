"""What clients of the NBD socket ask for is what the engine tells of, behind either front end, and fio's numbers are the engine's."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest

import nbd
from blockdev.engine.clients import TRANSFER
from blockdev.transfer.nbd import Export
from tests.nbd.conftest import DISK, MEBIBYTE, Server

READ, WRITE, FLUSH, DISCARD, ZERO = range(5)
LATENCY_SHARE_MAX = {"native": 0.02, "python": 0.1}  # the plugin of Python copies data that is not zeros from memory that is colder
ATTEMPTS_MAX = 10
HURRIED = ("chrt", "--fifo", "10") if os.geteuid() == 0 else ()


def told(server: Server, export: str = DISK) -> Any:
    """The row of an export's vdisk."""
    engine = server.control()
    thing = engine.find(export)
    [row] = engine.statistics([thing.vdisk_id or thing.id]).rows
    engine.close()
    return row


def fio(run, server: Server, *options: str, before: tuple[str, ...] = ()) -> dict[str, Any]:
    text = run(
        *(*before, "fio", "--name=job", "--ioengine=nbd", f"--uri={server.uri()}", "--size=64m", "--randrepeat=0"),
        *("--output-format=json", *options),
    )
    [job] = json.loads(text[text.index("{") :])["jobs"]
    assert job["error"] == 0
    return job


def test_known_series_of_requests_gives_exactly_these_counts(server: Server) -> None:
    disk = server.connect()
    data = os.urandom(8192)
    disk.pwrite(data, 0)
    disk.pwrite(data, 1 * MEBIBYTE, nbd.CMD_FLAG_FUA)
    assert disk.pread(4096, 4096) == data[4096:]
    disk.pread(512, 0)
    disk.pread(2 * MEBIBYTE, 0)
    disk.flush()
    disk.trim(4096, 0)
    disk.zero(8192, 1 * MEBIBYTE)
    disk.zero(4096, 2 * MEBIBYTE, nbd.CMD_FLAG_FUA)
    row = told(server)
    assert row["kinds"]["operations"].tolist() == [3, 2, 1, 1, 2]
    assert row["kinds"]["bytes"].tolist() == [4096 + 512 + 2 * MEBIBYTE, 16384, 0, 4096, 12288]
    assert (row["blocks_appended"], row["blocks_deduplicated"]) == (2, 2)
    assert row["failed"] == row["in_flight"] == 0
    with pytest.raises(nbd.Error):  # turned away by the front end: it never was a request
        disk.pread(512, 64 * MEBIBYTE)
    assert told(server)["failed"] == 0


def test_kept_writes_count_as_writes(server: Server) -> None:
    disk = server.connect(f"kept:{DISK}")
    disk.pwrite(os.urandom(4096), 0)
    disk.trim(4096, 0)
    row = told(server)
    assert row["kinds"]["operations"].tolist() == [0, 1, 0, 1, 0]
    assert row["kinds"][WRITE]["medium_ns"] > 0  # the file has it before the reply


def test_snapshot_and_clone_are_counted_for_their_own_vm(server: Server) -> None:
    engine = server.control()
    disk = engine.find(DISK)
    [snapshot] = engine.snapshot([disk.id], [f"{DISK}@s"], [b""])
    engine.clone([(snapshot.id, "copy/root", b"")])
    server.connect(f"{DISK}@s").pread(4096, 0)
    server.connect("copy/root").pread(8192, 0)
    assert told(server)["kinds"]["operations"].tolist() == [1, 0, 0, 0, 0]
    assert told(server)["kinds"][READ]["bytes"] == 4096
    assert told(server, "copy/root")["kinds"][READ]["bytes"] == 8192


def test_transfers_count_apart(server: Server) -> None:
    with Export(server.home.nbd_socket, DISK) as export:
        export.write(0, os.urandom(65536))
        export.flush()
        export.zero(0, 4096)
        export.read(0, 4096)
    row = told(server)
    assert row["kinds"]["operations"].sum() == 0
    assert (row["transferred_written_bytes"], row["transferred_read_bytes"]) == (65536, 4096)
    assert server.connect(TRANSFER + DISK).get_size() == 64 * MEBIBYTE


def test_clients_at_once_lose_no_count(server: Server) -> None:
    """Eight connections with several requests on the way at once, looked at all the while."""
    clients, rounds = 8, 200

    def work(number: int) -> None:
        disk = server.connect()
        for i in range(rounds):
            offset = (number * rounds + i) * 4096
            disk.pwrite(os.urandom(4096), offset)
            disk.pread(4096, offset)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    before = 0
    while any(thread.is_alive() for thread in threads):
        row = told(server)
        assert before <= row["kinds"]["operations"].sum()
        before = row["kinds"]["operations"].sum()
    row = told(server)
    assert row["kinds"]["operations"].tolist() == [clients * rounds] * 2 + [0, 0, 0]
    assert row["in_flight"] == row["failed"] == 0


def test_fio_and_engine_agree_in_every_operation_and_byte(server: Server, run) -> None:
    """So they do in IOPS and throughput: those are these numbers by the time that fio ran."""
    job = fio(run, server, "--rw=randrw", "--bssplit=4k/60:16k/30:256k/10", "--iodepth=32", "--io_size=96m")
    kinds = told(server)["kinds"]
    for kind, name in ((READ, "read"), (WRITE, "write")):
        assert job[name]["total_ios"] == kinds[kind]["operations"] > 0
        assert job[name]["io_bytes"] == kinds[kind]["bytes"]


def test_engines_latency_is_within_fios(server: Server, run) -> None:
    """Each request's time in the engine is a part of its time in fio, which has the way there and back, too (docs/statistics.md)."""
    job = fio(run, server, "--rw=randrw", "--bs=64k", "--iodepth=1", "--io_size=32m")
    kinds = told(server)["kinds"]
    for kind, name in ((READ, "read"), (WRITE, "write")):
        of_fio = job[name]["lat_ns"]["mean"] * job[name]["total_ios"]
        assert 0 < kinds[kind]["latency_ns"] < of_fio


def test_fio_and_engine_agree_in_mean_latency_beside_the_way_between_them(server: Server, run) -> None:
    """One read at a time, so that none waits in the socket.  The way is what a read of a hole, which costs the engine next to nothing,
    takes longer for fio than for the engine; of the same size, since most of it is the copying of data.
    """
    fio(run, server, "--rw=write", "--bs=1m", "--size=32m", "--end_fsync=1")
    hurry(run, server)
    differences: list[float] = []
    share_max = LATENCY_SHARE_MAX[server.plugin]
    while len(differences) < ATTEMPTS_MAX and min(differences, default=1.0) > share_max:
        hole_fio, hole_engine = compare_reads(run, server, "--offset=32m")
        data_fio, data_engine = compare_reads(run, server, "--offset=0")
        way = hole_fio - hole_engine
        differences.append(abs(data_fio - way - data_engine) / data_fio)
        print(f"fio {data_fio / 1000:.1f} us, engine {data_engine / 1000:.1f}, way {way / 1000:.1f}: apart {differences[-1]:.1%}")
    assert min(differences) <= share_max


def test_flush_takes_as_long_for_fio_as_for_the_engine(server: Server, run) -> None:
    """It waits for 16 MiB to reach the disk, beside which the way is nothing."""
    hurry(run, server)
    differences: list[float] = []
    share_max = LATENCY_SHARE_MAX[server.plugin]
    while len(differences) < ATTEMPTS_MAX and min(differences, default=1.0) > share_max:
        before = told(server)["kinds"][FLUSH]
        job = fio(run, server, "--rw=write", "--bs=16m", "--fsync=1", "--io_size=64m", before=HURRIED)
        after = told(server)["kinds"][FLUSH]
        count = int(after["operations"] - before["operations"])
        mean_ns = int(after["latency_ns"] - before["latency_ns"]) / count
        assert job["sync"]["total_ios"] == count
        differences.append(abs(job["sync"]["lat_ns"]["mean"] - mean_ns) / mean_ns)
        print(f"{mean_ns / 1000:.0f} us, apart {differences[-1]:.1%}")
    assert min(differences) <= share_max


def hurry(run, server: Server) -> None:
    """Let the engine work before all else on this machine, as fio with HURRIED: the times are not to be the scheduler's."""
    assert server.engine is not None
    if os.geteuid() == 0:
        run("chrt", "--all-tasks", "--fifo", "--pid", "10", str(server.engine.pid))


def compare_reads(run, server: Server, offset: str) -> tuple[float, float]:
    """Mean latency of a second of reads of 1 MiB in fio's eyes and in the engine's, ns."""
    before = told(server)["kinds"][READ]
    options = ("--rw=randread", "--bs=1m", "--size=32m", offset, "--runtime=1", "--time_based")
    job = fio(run, server, *options, before=HURRIED)
    after = told(server)["kinds"][READ]
    count = int(after["operations"] - before["operations"])
    assert count == job["read"]["total_ios"]
    return job["read"]["lat_ns"]["mean"], int(after["latency_ns"] - before["latency_ns"]) / count
