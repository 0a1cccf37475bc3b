"""Where a Receiver puts what a peer sends: the receipts of this home.

What a peer may do is looked at when it begins, and again each time that something is saved.  One channel has a receipt: it
is given to the latest that begins with it.  Threads: one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError, NotAllowed, NotFound
from blockdev.replicate.answers import matches
from blockdev.replicate.control import Begin, DiskState, State
from blockdev.replicate.holding import Hold, Holds
from blockdev.replicate.messages import Runs, Saved
from blockdev.replicate.saving import RunApart, Saving, in_a_thread
from blockdev.replicate.space import PeerSpace
from blockdev.vmmap.catalog_replication import PeerRow
from blockdev.vmmap.copies import SnapshotCopy
from blockdev.vmmap.receipts import Receipt
from blockdev.vmmap.service import VMs

Answer = Callable[[str, dict[str, Any]], dict[str, Any]]


class PeerStore:
    """What one channel of a peer brings; see receiver.Store for what its methods mean."""

    def __init__(
        self,
        vms: VMs,
        engine: EngineClient,
        peer_id: int,
        space: PeerSpace,
        holds: Holds,
        answer: Answer,
        run_apart: RunApart = in_a_thread,
    ) -> None:
        """space, holds: the home's; answer: to a request that is no transfer, of what and arguments; run_apart: saves."""
        self.answer = answer
        self._vms = vms
        self._engine = engine
        self._peer_id = peer_id
        self._peer: PeerRow  # as it was when what it may do was looked at
        self._space = space
        self._holds = holds
        self._hold: Hold | None = None
        self._begun: Begin | None = None
        self._receipt: Receipt | None = None
        self._earlier_bytes = 0  # of data, of earlier channels
        self._run_apart = run_apart
        self._saving: Saving | None = None

    @property
    def receipt(self) -> Receipt:
        assert self._receipt is not None, "nothing was begun"
        return self._receipt

    def begin(self, begin: Begin) -> State:
        self._check_allowed(begin)
        self._space.take(self._peer, 0)
        copy = begin.snapshot
        if begin.purpose == "copy":
            copy = copy._replace(vm_name=begin.vm_name or copy.vm_name)
        receipt = self._take_hold(begin, copy)
        if receipt is None:
            return State(True, None, [])
        self._begun, self._receipt = begin, receipt
        self._earlier_bytes = receipt.data_bytes
        disks = [DiskState(disk.next_block, disk.is_based) for disk in receipt.disks]
        return State(False, receipt.base_uuid, disks)

    def _take_hold(self, begin: Begin, copy: SnapshotCopy) -> Receipt | None:
        """The receipt, when no other channel has it, nor has ended it before it was taken from it."""
        arguments = self._peer_id, begin.purpose, copy, begin.ancestors
        receipt = self._vms.begin_receipt(*arguments)
        while receipt is not None:
            hold = self._holds.take(receipt.id)
            now = self._vms.begin_receipt(*arguments)
            if now is not None and now.id == receipt.id:
                self._hold = hold
                return now
            self._holds.release(receipt.id, hold)
            receipt = now
        return None

    @property
    def _held(self) -> Hold:
        assert self._hold is not None, "nothing was begun"
        return self._hold

    def release(self) -> None:
        with suppress(BlockdevError):
            self.end_save(wait=True)
        if self._hold is not None:
            self._holds.release(self.receipt.id, self._hold)

    def _check_allowed(self, begin: Begin) -> None:
        peer = self._peer = self._vms.peer_now(self._peer_id)
        names = {begin.snapshot.vm_name, begin.vm_name or begin.snapshot.vm_name}
        if begin.purpose == "protect":
            names.update(self._vms.names_of_nobody(begin.snapshot.vm_uuid))
        globs: list[str] = json.loads(peer.vms)
        for name in sorted(names):
            if not matches(name, globs):
                raise NotAllowed(
                    f"this peer may not send VM {name}: blockdevctl replicate peer change {peer.name} --allow {name} there lets it"
                )

    @contextmanager
    def _working(self) -> Iterator[None]:
        """With what is written to."""
        with self._held:
            try:
                yield
            except NotFound:
                self._vms.doubt_receipt(self.receipt.id)
                raise

    def known(self, disk: int, offers: bytes) -> bytes:
        with self._working():
            return self._engine.known(self._object(disk), offers)

    def take(self, disk: int, offers: bytes, proofs: bytes) -> bytes:
        with self._working():
            return self._engine.take(self._object(disk), offers, proofs)

    def put(self, disk: int, offers: bytes, data: bytes | memoryview) -> None:
        self._space.take(self._peer, len(data))
        with self._working():
            self._engine.put(self._object(disk), offers, data)

    def clear(self, disk: int, runs: Runs) -> None:
        packed = np.empty((len(runs), 2), "<u8")
        packed[:, 0], packed[:, 1] = runs["block"], runs["count"]
        with self._working():
            self._engine.clear(self._object(disk), packed.tobytes())

    def begin_save(self, next_blocks: tuple[int, ...], data_bytes: int) -> None:
        self._check_allowed(self._begin)
        saved = Saved(self._earlier_bytes + data_bytes, next_blocks)

        def make_durable() -> None:
            self._vms.make_receipt_durable(self.receipt)  # not held: more may be put meanwhile

        def keep() -> Saved:
            with self._held:
                self._vms.save_receipt(self.receipt, saved.next_blocks, saved.data_bytes)
            return saved

        self._saving = Saving(make_durable, keep, self._run_apart)

    def end_save(self, wait: bool) -> Saved | None:
        if self._saving is None:
            return None
        try:
            saved = self._saving.result(wait)
        except BaseException:
            self._saving = None
            raise
        if saved is not None:
            self._saving = None
        return saved

    def digests(self) -> list[bytes]:
        with self._held:
            return self._vms.receipt_digests(self.receipt)

    def finish(self, digests: list[bytes]) -> None:
        self._check_allowed(self._begin)
        self._space.take(self._peer, 0)
        keep_seconds, rpo_seconds = self._begin.keep_seconds, self._begin.rpo_seconds
        with self._held:
            self._vms.finish_receipt(self.receipt, digests, keep_seconds, rpo_seconds)

    def drop(self) -> None:
        with self._held:
            self._vms.drop_receipt(self.receipt.id)

    @property
    def _begin(self) -> Begin:
        assert self._begun is not None, "nothing was begun"
        return self._begun

    def _object(self, disk: int) -> int:
        return self.receipt.disks[disk].object_id
