"""A first transfer that is cut again and again over real SSH ends whole, for hardly more bytes (bench/replication/cuts.py)."""

from __future__ import annotations

from pathlib import Path

from bench.replication import cuts
from bench.workloads import MIB

SIZE_BYTES = 256 * MIB
CUTS = 10
RATE_MB = 60  # a second: one that is not held ends before the cuts


def test_transfer_that_is_cut_ten_times_ends_whole_and_sends_little_twice(tmp_path: Path, seed: int) -> None:
    uncut, cut = cuts.measure(tmp_path, SIZE_BYTES, CUTS, seed, RATE_MB)
    assert sum(cut.cuts.values()) == CUTS
    assert uncut.sent_bytes < 1.02 * SIZE_BYTES
    # Twice what 200 cuts may cost in 10 GiB, for each of them: ten scatter more (1.1 to 3.1 MiB where 2.6 are allowed), and
    # one that does not go on from where it was costs half of the disk.
    assert cut.sent_bytes <= uncut.sent_bytes + CUTS * 2 * cuts.BYTES_PER_CUT_MAX, f"{cut} after {uncut}"
