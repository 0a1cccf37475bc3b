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
TRIES_MAX = 3


def test_seven_tenths_of_a_line_of_40_ms_are_used_by_random_blocks(pool: Pool, tmp_path: Path, seed: int) -> None:
    """The best of some tries: a machine that is busy with other tests slows one of them, windows that are too small all."""
    disk = pool.create_vdisk(SIZE_BYTES)
    disk.write(0, random.Random(seed).randbytes(SIZE_BYTES))
    source = PoolSource(pool.snapshot([disk]))
    rates: list[float] = []
    while len(rates) < TRIES_MAX and max(rates, default=0.0) < SHARE_MIN * RATE_BYTES:
        directory = tmp_path / str(len(rates))
        directory.mkdir()
        with Pool.create(str(directory / "other"), 2 * SIZE_BYTES) as other:
            rates.append(_send(source, PoolStore(other, [other.create_vdisk(SIZE_BYTES)]), directory))
        print(f"{rates[-1] / 1e6:.1f} MB/s over a line of {RATE_BYTES / 1e6:.0f} MB/s")
    assert max(rates) >= SHARE_MIN * RATE_BYTES


def _send(source: PoolSource, store: PoolStore, directory: Path) -> float:
    """Bytes of the disk a second, from the connecting on."""
    with two_sides(directory, lambda: Receiver(store)) as (sender, receiver), SlowLink(receiver.port, 0.02, RATE_BYTES) as line:
        path = sender.path_to(receiver, line.port)
        machine = Sender(a_begin([SIZE_BYTES]), source, 0)
        began = time.monotonic()
        sender.transport.run(path, machine, Halt())
        seconds = time.monotonic() - began
        sent = sender.sent_bytes
    assert store.finished == [source.digest(0)]
    assert sent < 1.02 * SIZE_BYTES
    return SIZE_BYTES / seconds


def test_answer_takes_one_round_trip_and_not_two(tmp_path: Path) -> None:
    """Twenty questions, each asked when the last one was answered: Nagle and delayed acknowledgements would cost 40 ms each.

    The best of some tries, as above.
    """
    with two_sides(tmp_path) as (sender, receiver), SlowLink(receiver.port, 0.01) as line:
        path = sender.path_to(receiver, line.port)
        sender.transport.run(path, Pusher(1, 1), Halt())
        taken: list[float] = []
        while len(taken) < TRIES_MAX and min(taken, default=1.0) >= 24 * 0.02 * 2:
            began = time.monotonic()
            sender.transport.run(path, Pusher(20, 10, ahead=1), Halt())
            taken.append(time.monotonic() - began)
        assert min(taken) < 24 * 0.02 * 2, taken
