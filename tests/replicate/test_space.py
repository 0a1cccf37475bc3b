"""What a peer may take is counted before it is refused, seldom, and at nobody else's cost."""

from __future__ import annotations

import threading

import pytest

from blockdev.errors import PoolFull
from blockdev.replicate.space import COUNT_PART, COUNT_SECONDS_MIN, PeerSpace
from blockdev.vmmap.catalog_replication import PeerRow

SECONDS_MAX = 120.0


class Pool:
    """What peers take; each count takes `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.now = 100.0
        self.used_bytes = 0
        self.count_count = 0
        self.seconds = seconds

    def count(self, _peer_id: int) -> int:
        self.count_count += 1
        self.now += self.seconds
        return self.used_bytes

    def clock(self) -> float:
        return self.now


def a_peer(id: int = 1, space_bytes: int | None = 1000) -> PeerRow:
    return PeerRow(id, f"peer-{id}", "key", "[]", space_bytes, "")


def test_what_became_smaller_is_counted_before_a_peer_is_refused() -> None:
    pool = Pool()
    space = PeerSpace(pool.count, pool.clock)
    for _ in range(50):
        pool.now += 2 * COUNT_SECONDS_MIN
        space.take(a_peer(), 600)
        pool.used_bytes += 5
    assert pool.count_count <= 51
    pool.used_bytes, pool.now = 900, pool.now + 2 * COUNT_SECONDS_MIN
    with pytest.raises(PoolFull, match="takes 900 bytes, and it may take 1000"):
        space.take(a_peer(), 600)


def test_a_peer_that_tries_again_and_again_is_counted_for_a_small_part_of_the_time() -> None:
    pool = Pool(seconds=3.0)
    pool.used_bytes = 999
    space = PeerSpace(pool.count, pool.clock)
    began = pool.now
    for _ in range(1000):
        pool.now += 1.0
        with pytest.raises(PoolFull):
            space.take(a_peer(), 600)
    assert 0 < pool.count_count * pool.seconds <= (pool.now - began) / COUNT_PART + pool.seconds


def test_no_peer_waits_while_another_is_counted() -> None:
    counting, go_on = threading.Event(), threading.Event()

    def count(peer_id: int) -> int:
        if peer_id == 1:
            counting.set()
            assert go_on.wait(SECONDS_MAX)
        return 0

    space = PeerSpace(count)
    first = threading.Thread(target=space.take, args=(a_peer(1), 10))
    second = threading.Thread(target=space.take, args=(a_peer(2), 10))
    first.start()
    try:
        assert counting.wait(SECONDS_MAX)
        second.start()
        second.join(SECONDS_MAX)
        assert not second.is_alive()
    finally:
        go_on.set()
        first.join()
        second.join()


def test_a_peer_without_a_limit_is_never_counted() -> None:
    pool = Pool()
    PeerSpace(pool.count, pool.clock).take(a_peer(space_bytes=None), 1 << 60)
    assert pool.count_count == 0
