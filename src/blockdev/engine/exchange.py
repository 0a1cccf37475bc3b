"""Both halves of what the engine socket does with single blocks, for replication: offers, proofs, bytes (_exchange.pxd).

None of it is a change in the protocol's sense: `take`, `put` and `clear` write to a vdisk as a guest would, durable by
`flush`, and doing one of them twice is doing it once.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import xxhash

from blockdev import Pool, VDisk, _exchange
from blockdev.constants import BLOCK_BYTES
from blockdev.engine import protocol
from blockdev.engine.protocol import ProtocolError
from blockdev.errors import InvalidArgument, NotFound

OFFER_BYTES = protocol.OFFER_BYTES
BEHIND_GUESTS = frozenset({"offers", "fetch", "prove", "known", "take", "put", "clear"})  # a connection that asks these gives way
RUN = struct.Struct("<QQ")
ZEROS = bytes(BLOCK_BYTES)
ZEROS_FINGERPRINT = xxhash.xxh3_128_digest(ZEROS)[::-1]  # little-endian, low half first
NUMBER_BYTES = 8
Answer = dict[str, Any]
Room = mmap.mmap
T = TypeVar("T")


class ExchangeOperations:
    """The engine's half."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def by_name(self) -> dict[str, Callable[..., Answer]]:
        return {
            "offers": self._offers,
            "digest": self._digest,
            "prove": self._prove,
            "known": self._known,
            "take": self._take,
            "clear": self._clear,
        }

    def _offers(self, older: int | None, newer: int, first_block: int, count: int) -> Answer:
        offers, rest = _exchange.changed_blocks(self._thing(older), self._pool.get(newer), first_block, count)
        return {"offers": offers, "rest": rest}

    def _digest(self, older: int | None, older_digest: bytes, newer: int) -> Answer:
        return {"digest": _exchange.content_digest(self._thing(older), older_digest, self._pool.get(newer))}

    def fetch(self, room: Room, id: int, blocks: bytes) -> Answer:
        """Put the bytes of blocks into the connection's room."""
        _exchange.fetch_blocks(self._pool.get(id), blocks, room)
        return {}

    def _prove(self, id: int, blocks: bytes) -> Answer:
        return {"proofs": _exchange.prove_blocks(self._pool.get(id), blocks)}

    def _known(self, id: int, offers: bytes) -> Answer:
        return {"known": _exchange.known_blocks(self._vdisk(id), offers)}

    def _take(self, id: int, offers: bytes, proofs: bytes) -> Answer:
        return {"taken": _exchange.take_blocks(self._vdisk(id), offers, proofs)}

    def put(self, room: Room, id: int, offers: bytes) -> Answer:
        """Write offered blocks from the connection's room, which the client leaves alone until it has the answer."""
        with memoryview(room) as whole, whole[: len(offers) // OFFER_BYTES * BLOCK_BYTES] as data:
            _exchange.put_blocks(self._vdisk(id), offers, data)
        return {}

    def _clear(self, id: int, runs: bytes) -> Answer:
        disk = self._vdisk(id)
        whole = disk.size_bytes // BLOCK_BYTES  # the rest of the disk is less than a block
        for first, count in RUN.iter_unpack(runs):
            end = first + count
            if end * BLOCK_BYTES >= disk.size_bytes + BLOCK_BYTES:
                raise InvalidArgument(f"clearing blocks of {disk.name or disk.id}: there is a block beyond its end")
            if first < min(end, whole):
                disk.clear(first * BLOCK_BYTES, (min(end, whole) - first) * BLOCK_BYTES)
            if whole < end:  # as a whole block: what is behind the disk's end goes, too
                _exchange.put_blocks(disk, RUN.pack(whole, 0)[:8] + ZEROS_FINGERPRINT, ZEROS)
        return {}

    def _thing(self, id: int | None) -> Any:
        return None if id is None else self._pool.get(id)

    def _vdisk(self, id: int) -> VDisk:
        thing = self._pool.get(id)
        if not isinstance(thing, VDisk):
            raise NotFound(f"object {id} is a snapshot, not a vdisk")
        return thing


class ExchangeClient:
    """The control plane's half; numbers of blocks are packed as u64, offers as in _exchange.pxd."""

    def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        raise NotImplementedError

    def _ask_in_room(
        self, operation: str, arguments: dict[str, Any], data: bytes | memoryview, use: Callable[[memoryview], T]
    ) -> T:
        """Ask with `data` in the connection's room; what `use` makes of the room after the answer, which it must not keep."""
        raise NotImplementedError

    def offers(self, older: int | None, newer: int, first_block: int, count: int) -> tuple[bytes, int | None]:
        """At most `count` offers of what changed from first_block on, and where the rest begins; None: there is no rest."""
        answer = self._ask("offers", older=older, newer=newer, first_block=first_block, count=count)
        offers = _field(answer, "offers", None)
        if len(offers) % OFFER_BYTES or len(offers) // OFFER_BYTES > count:
            raise ProtocolError("the engine made offers that are none")
        rest = answer.get("rest")
        if rest is not None and (type(rest) is not int or rest <= first_block):
            raise ProtocolError("the engine told of a rest that begins nowhere")
        return offers, rest

    def digest(self, older: int | None, older_digest: bytes, newer: int) -> bytes:
        """The content digest of `newer`, from that of `older` (None, b"": from nothing)."""
        return _field(self._ask("digest", older=older, older_digest=older_digest, newer=newer), "digest", 16)

    def fetch(self, id: int, blocks: bytes, use: Callable[[memoryview], T]) -> T:
        """What `use` makes of the bytes of at most ROOM_BLOCKS blocks, 4096 for each, which are gone when it returns."""
        byte_count = len(blocks) // NUMBER_BYTES * BLOCK_BYTES
        return self._ask_in_room("fetch", {"id": id, "blocks": blocks}, b"", lambda room: use(room[:byte_count]))

    def prove(self, id: int, blocks: bytes) -> bytes:
        """The SHA-256 of blocks, 32 bytes for each."""
        return _field(self._ask("prove", id=id, blocks=blocks), "proofs", len(blocks) // 8 * 32)

    def known(self, id: int, offers: bytes) -> bytes:
        """A byte for each offer: 1 if the pool may have it."""
        return _field(self._ask("known", id=id, offers=offers), "known", len(offers) // OFFER_BYTES)

    def take(self, id: int, offers: bytes, proofs: bytes) -> bytes:
        """Let a vdisk have what the pool has and is proved; a byte for each offer: 1 if it was taken."""
        return _field(self._ask("take", id=id, offers=offers, proofs=proofs), "taken", len(offers) // OFFER_BYTES)

    def put(self, id: int, offers: bytes, data: bytes | memoryview) -> None:
        """Write at most ROOM_BLOCKS offered blocks.  Corrupt: a block is not what its offer said."""
        if len(data) != len(offers) // OFFER_BYTES * BLOCK_BYTES or len(data) > protocol.ROOM_BLOCKS * BLOCK_BYTES:
            raise InvalidArgument(f"{len(data)} bytes of blocks for {len(offers) // OFFER_BYTES} offers")
        self._ask_in_room("put", {"id": id, "offers": offers}, data, lambda room: None)

    def clear(self, id: int, runs: bytes) -> None:
        """Make holes of runs of blocks: of each the first, and how many they are, as u64."""
        self._ask("clear", id=id, runs=runs)


def _field(answer: dict[str, Any], name: str, byte_count: int | None) -> bytes:
    found: bytes = protocol.check_field(answer, name, bytes)
    if byte_count is not None and len(found) != byte_count:
        raise ProtocolError(f"the engine answered with {len(found)} bytes of {name} instead of {byte_count}")
    return found
