"""Both state machines over real SSH and a line of 40 ms: most of the line is used, and what it lacks is not the windows' fault."""

from __future__ import annotations

import random
import time
from pathlib import Path

from blockdev import Pool
from blockdev.replicate.halt import Halt
from blockdev.replicate.receiver import Receiver
from blockdev.replicate.sender import Sender
from tests.replicate.pools import MEBIBYTE, PoolSource, PoolStore, a_begin
from tests.replicate.sides import Pusher, two_sides
from tests.replicate.slow_link import SlowLink

SIZE_BYTES = 160 * MEBIBYTE
RATE_BYTES = 40e6
SHARE_MIN = 0.7


def test_seven_tenths_of_a_line_of_40_ms_are_used_by_random_blocks(pool: Pool, other: Pool, tmp_path: Path, seed: int) -> None:
    disk = pool.create_vdisk(SIZE_BYTES)
    content = random.Random(seed).randbytes(SIZE_BYTES)
    disk.write(0, content)
    source, store = PoolSource(pool.snapshot([disk])), PoolStore(other, [other.create_vdisk(SIZE_BYTES)])
    receiver_machine = Receiver(store)
    with (
        two_sides(tmp_path, lambda: receiver_machine) as (sender, receiver),
        SlowLink(receiver.port, 0.02, RATE_BYTES) as line,
    ):
        path = sender.path_to(receiver, line.port)
        machine = Sender(a_begin([SIZE_BYTES]), source, 0)
        began = time.monotonic()
        sender.transport.run(path, machine, Halt())
        seconds = time.monotonic() - began
        sent = sender.transport.counted(1).sent_bytes
    assert store.finished == [source.digest(0)]
    assert sent < 1.02 * SIZE_BYTES
    print(f"{SIZE_BYTES / seconds / 1e6:.1f} MB/s over a line of {RATE_BYTES / 1e6:.0f} MB/s, {sent:,} bytes sent")
    assert SIZE_BYTES / seconds >= SHARE_MIN * RATE_BYTES


def test_answer_takes_one_round_trip_and_not_two(tmp_path: Path) -> None:
    """Twenty questions, each asked when the last one was answered: Nagle and delayed acknowledgements would cost 40 ms each."""
    with two_sides(tmp_path) as (sender, receiver), SlowLink(receiver.port, 0.01) as line:
        path = sender.path_to(receiver, line.port)
        sender.transport.run(path, Pusher(1, 1), Halt())
        began = time.monotonic()
        sender.transport.run(path, Pusher(20, 10, ahead=1), Halt())
        assert time.monotonic() - began < 24 * 0.02 * 2
