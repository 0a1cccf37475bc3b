"""Defects that the simulation has to find: each is planted for as long as its context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

from blockdev.replicate import receiver
from blockdev.replicate.control import Begin, End
from blockdev.replicate.receiver import Receiver
from blockdev.replicate.source import SnapshotSource
from blockdev.replicate.store import PeerStore
from blockdev.vmmap.copies import SnapshotCopy
from blockdev.vmmap.receipts import Receipt, ReceiptOperations

Plant = Callable[[], AbstractContextManager[object]]
_set_base, _ended = SnapshotSource.set_base, Receiver._ended


def _saved_before_flush(store: ReceiptOperations, receipt: Receipt) -> None:
    """Positions are kept although what is before them is not durable."""


def _other_engine_not_noticed(store: ReceiptOperations, receipt: Receipt) -> None:
    """What an engine that died had of it is lost; the one that flushes knows nothing of it."""
    store._engine.flush()


def _advance_out_of_order(self: Receiver) -> None:
    """Positions go on although an earlier batch is incomplete."""
    for number, batch in list(self._batches.items()):
        if batch.is_complete:
            self._next_blocks[batch.disk] = batch.next_block
            del self._batches[number]


def _newest_base(self: SnapshotSource, base_uuid: str | None, is_based: list[bool]) -> int:
    """Compared with the newest snapshot, whatever the receiver has."""
    return _set_base(self, self._sent.ancestors[0] if base_uuid and self._sent.ancestors else base_uuid, is_based)


def _based_on_nothing(self: SnapshotSource, base_uuid: str | None, is_based: list[bool]) -> int:
    """Compared with nothing, whatever the receiver has."""
    return _set_base(self, None, [False] * len(is_based))


def _first_look(self: PeerStore, begin: Begin, copy: SnapshotCopy) -> Receipt | None:
    """Whether a channel that had the receipt has ended it meanwhile is not looked at."""
    receipt = self._vms.begin_receipt(self._peer_id, begin.purpose, copy, begin.ancestors)
    if receipt is not None:
        self._hold = self._holds.take(receipt.id)
    return receipt


def _ended_unseen(self: Receiver, end: End) -> bytes:
    """Digests are not compared."""
    self._store.digests = lambda: end.digests  # type: ignore[method-assign]
    return _ended(self, end)


@contextmanager
def _both(one: AbstractContextManager[object], other: AbstractContextManager[object]) -> Iterator[None]:
    with one, other:
        yield


BUGS: dict[str, Plant] = {
    "saved before the flush": lambda: mock.patch.object(ReceiptOperations, "make_receipt_durable", _saved_before_flush),
    "another engine is not noticed": lambda: mock.patch.object(ReceiptOperations, "make_receipt_durable", _other_engine_not_noticed),
    # the copy that Receiver._begin_save makes of them is none
    "positions are those of when they are kept": lambda: mock.patch.object(receiver, "tuple", lambda blocks: blocks, create=True),
    "positions run ahead": lambda: mock.patch.object(Receiver, "_advance", _advance_out_of_order),
    "another base": lambda: mock.patch.object(SnapshotSource, "set_base", _newest_base),
    "no base": lambda: mock.patch.object(SnapshotSource, "set_base", _based_on_nothing),
    "holes are forgotten": lambda: mock.patch.object(PeerStore, "clear", lambda self, disk, runs: None),
    "said to be there before it is": lambda: mock.patch.object(PeerStore, "finish", lambda self, digests: None),
    "another base, and digests are not compared": lambda: _both(
        mock.patch.object(SnapshotSource, "set_base", _newest_base), mock.patch.object(Receiver, "_ended", _ended_unseen)
    ),
    "a receipt is not looked at again when it was taken": lambda: mock.patch.object(PeerStore, "_take_hold", _first_look),
    "all is sent again": lambda: mock.patch.object(PeerStore, "known", lambda self, disk, offers: bytes(len(offers) // 24)),
}
