"""Runs in the lab guest: snapshots of two VMs at once, one attached over iSCSI and one over NBD, under load.

Each VM has two disks and one client, which writes a number to the first disk, flushes, writes it to the second, flushes, and goes
on with the next number: at any instant the first disk is as far as the second, or one ahead. A snapshot that is not
of one instant over both disks sooner or later holds something else.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import nbd
from tests.targets import fio, initiator
from tests.targets.facts import fact
from tests.targets.world import DIRECTORY, World, no_kernel_error

SNAPSHOTS = int(os.environ.get("BLOCKDEV_TARGETS_SNAPSHOTS") or 12)
NUMBER_OFFSET = 4096
BLOCK = 4096
Write = Callable[[bytes], None]


class Counter:
    """One VM's client; `number` is the last one that was written to both disks."""

    def __init__(self, writes: list[Write]) -> None:
        self._writes = writes
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self.number = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                data = (self.number + 1).to_bytes(8, "little") * (BLOCK // 8)
                for write in self._writes:
                    write(data)
                self.number += 1
        except BaseException as failure:
            self._failure = failure

    def await_number(self, number: int) -> None:
        initiator.until(lambda: self.number >= number or self._failure is not None, f"number {number}")

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


def to_device(disk: Path) -> Write:
    """Past the page cache, and flushed."""
    device = os.open(disk, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, BLOCK)  # aligned, as direct writes must be

    def write(data: bytes) -> None:
        buffer[:] = data
        os.pwrite(device, buffer, NUMBER_OFFSET)
        os.fsync(device)

    return write


def to_export(uri: str) -> Write:
    handle = nbd.NBD()
    handle.connect_uri(uri)

    def write(data: bytes) -> None:
        handle.pwrite(data, NUMBER_OFFSET)
        handle.flush()

    return write


def numbers_of(world: World, vm: str, snapshot: str) -> list[int]:
    found = []
    for disk in ("a", "b"):
        handle = nbd.NBD()
        handle.connect_uri(world.home.uri(f"{vm}/{disk}@{snapshot}"))
        words = handle.pread(BLOCK, NUMBER_OFFSET)
        handle.shutdown()
        assert bytes(words[:8]) * (BLOCK // 8) == bytes(words), "a block is torn"
        found.append(int.from_bytes(words[:8], "little"))
    return found


@fact
def snapshots_of_two_vms_at_once_are_each_of_one_instant(world: World) -> None:
    for vm in ("by-iscsi", "by-nbd"):
        world.make_vm(vm, a=32, b=32)
    session = initiator.login(world.offer("by-iscsi")["iqn"])
    disks = session.disks(2)
    load = fio.verified(
        disks, 31, "--rw=randwrite", "--bs=4k", "--iodepth=4", "--offset=8m", "--size=16m", "--rate=300k,300k", *fio.WITHOUT_END
    )
    counters = {
        "by-iscsi": Counter([to_device(disk) for disk in disks]),
        "by-nbd": Counter([to_export(world.home.uri(f"by-nbd/{disk}")) for disk in ("a", "b")]),
    }
    with no_kernel_error():
        for number in range(SNAPSHOTS):
            begun = {vm: counter.number for vm, counter in counters.items()}
            asked = [threading.Thread(target=world.snapshot, args=(vm, f"s{number}")) for vm in counters]
            for thread in asked:
                thread.start()
            for thread in asked:
                thread.join()
            for vm, counter in counters.items():
                counter.await_number(begun[vm] + 1)
        for counter in counters.values():
            counter.stop()
        load.stop()
    for vm, counter in counters.items():
        seen = [numbers_of(world, vm, f"s{number}") for number in range(SNAPSHOTS)]
        print(vm, counter.number, seen, flush=True)
        assert all(first - second in (0, 1) for first, second in seen), seen
        assert [first for first, _ in seen] == sorted(first for first, _ in seen)
        assert SNAPSHOTS // 2 < seen[-1][0] <= counter.number + 1, f"hardly any load: {seen}"
    session.logout()


@fact
def the_state_at_a_snapshot_is_there_after_a_restore_of_both_at_once(world: World) -> None:
    for vm in ("by-iscsi", "by-nbd"):
        expected = numbers_of(world, vm, "s3")
        world.ask("POST", f"/vms/{vm}/restore", {"snapshot": "s3", "force": True})
        world.snapshot(vm, "restored")
        assert numbers_of(world, vm, "restored") == expected
    disks = initiator.login(world.target("by-iscsi")["iqn"]).disks(2)
    for disk, number in zip(disks, numbers_of(world, "by-iscsi", "s3"), strict=True):
        head = subprocess.run(["dd", f"if={disk}", "bs=4k", "skip=1", "count=1", "iflag=direct"], capture_output=True, check=True)
        assert int.from_bytes(head.stdout[:8], "little") == number


def main() -> None:
    World(DIRECTORY).play(sys.modules[__name__], "1G")


if __name__ == "__main__":
    main()
