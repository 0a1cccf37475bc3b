"""Target `frame`: the engine socket's frames as pure functions, at either end.  ProtocolError, or a value that is sound."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from typing import Any

import msgpack

from blockdev.engine import protocol
from blockdev.engine.protocol import HEADER_BYTES, Kind, ProtocolError
from blockdev.errors import BlockdevError
from blockdev.policies import check_pool_policy
from tests.fuzz import messages
from tests.fuzz.harness import Harness

SESSION = bytes(range(16))
REQUESTS: list[dict[str, Any]] = [
    {"op": "hello", "session": SESSION, "client": "a fuzzer"},
    {"op": "lead"},
    {"op": "status"},
    {"op": "attachments"},
    {"op": "objects"},
    {"op": "get", "id": 1},
    {"op": "find", "name": "web/root"},
    {"op": "create", "disks": [[1 << 20, "new/root", b"tag"], [512, None, b""]]},
    {"op": "snapshot", "ids": [1, 2], "names": ["web/root@n", None], "tags": [b"a", b""]},
    {"op": "clone", "clones": [[5, "copy/new", b""]]},
    {"op": "restore", "pairs": [[1, 5]], "force": False},
    {"op": "relabel", "changes": [[2, "web/other", b"t"]], "force": True},
    {"op": "delete", "ids": [2, 99], "force": False, "missing_ok": True},
    {"op": "resize", "id": 1, "size_bytes": 2 << 20, "shrink": False},
    {"op": "changes", "older": 5, "newer": 7, "offset": 0, "count": 9},
    {"op": "count_changes", "older": None, "newer": 7},
    {"op": "extents", "id": 1, "offset": 0, "length": 1 << 20},
    {"op": "more", "cursor": 1},
    {"op": "flush"},
    {"op": "checkpoint"},
    {"op": "inspect", "kind": "scrub", "rate_bytes": None},
    {"op": "inspection", "run": 1, "wait_ms": 1000},
    {"op": "cancel_inspection", "run": 1},
    {"op": "findings"},
    {"op": "set_capacity", "capacity_bytes": 128 << 20},
    {"op": "compact", "rate_bytes": 100 << 20},
    {"op": "compaction", "run": 1, "wait_ms": 1000},
    {"op": "cancel_compaction", "run": 1},
    {"op": "set_policy", "compression": "inline", "compression_level": 9, "dedup": "off", "compaction_rate_bytes": 1 << 20},
    {"op": "set_disk_policies", "policies": [[1, "off", None], [2, None, "on"]]},
    {"op": "offers", "older": 5, "newer": 7, "first_block": 0, "count": 100},
    {"op": "digest", "older": None, "older_digest": b"", "newer": 7},
    {"op": "fetch", "id": 1, "blocks": bytes(16)},
    {"op": "prove", "id": 1, "blocks": bytes(16)},
    {"op": "known", "id": 1, "offers": bytes(48)},
    {"op": "take", "id": 1, "offers": bytes(24), "proofs": bytes(32)},
    {"op": "share"},
    {"op": "put", "id": 1, "offers": bytes(24)},
    {"op": "clear", "id": 1, "runs": bytes(16)},
    {"op": "account", "groups": [[[1, 2], [[[5, None]], [[7, 5]]]], [[3], []]]},
    {"op": "statistics", "ids": [1, 2, 99], "first": 2},
]

FINDING = [1, "web/root", 4096, 8192, "segment 00000001 slots 3 to 4 do not verify"]
INSPECTION: dict[str, Any] = {
    "run": 1,
    "kind": "scrub",
    "state": "failed",
    "started": 1795348800.0,
    "done_bytes": 4096,
    "total_bytes": 8192,
    "findings": [FINDING],
    "dropped": 0,
    "healed": ["map node 3: one of two copies did not verify: written anew"],
    "error": {"code": "corrupt", "message": "no"},
}
STATISTICS: dict[str, Any] = {
    "instance": bytes(16),
    "monotonic_ns": 1,
    "row_bytes": 1104,
    "rows": bytes(1104),
    "cells": struct.pack("<IHHQ", 0, 4, 209, 7),
    "waits": struct.pack("<IHHQ", 0, 2, 209, 7),
    "rest": None,
}


class Frames(Harness):
    def one_input(self, data: bytes) -> None:
        with suppress(ProtocolError):
            header = protocol.decode_header(data[:HEADER_BYTES])
            assert header.body_bytes <= protocol.BODY_BYTES_MAX
        for packed in (data, data[HEADER_BYTES:]):
            with suppress(ProtocolError):
                check_body(protocol.decode_body(packed))

    def seeds(self) -> dict[str, bytes]:
        made = {
            f"{number:02}-{body['op']}": protocol.encode(Kind.REQUEST, number, body)
            for number, body in enumerate(REQUESTS)
        }
        made["error"] = protocol.encode_error(3, BlockdevError("what went wrong"))
        row = [5, 1, "web/root@s", b"s", 4 << 20, 77, None, None]
        made["inspection"] = protocol.encode(Kind.ANSWER, 6, INSPECTION)
        made["objects"] = protocol.encode(Kind.ANSWER, 4, {"objects": [row], "cursor": 1})
        made["extents"] = protocol.encode(Kind.ANSWER, 5, {"extents": [[0, 4096, True]], "cursor": None})
        return made

    def mutate(self, data: bytes, chance: random.Random) -> bytes | None:
        body = change_body(data[HEADER_BYTES:], chance)
        return None if body is None else data[:HEADER_BYTES] + body


def make(name: str) -> Harness:
    return Frames()


def change_body(packed: bytes, chance: random.Random) -> bytes | None:
    """The same body with one value changed; None when it is no msgpack, or cannot be any more."""
    try:
        value = msgpack.unpackb(packed, raw=False, strict_map_key=False)
        return bytes(msgpack.packb(messages.change(value, chance, with_bytes=True), use_bin_type=True))
    except Exception:  # whatever the bytes are
        return None


def check_body(body: dict[str, Any]) -> None:
    """What either end does with a body."""
    with suppress(ProtocolError):
        request = protocol.check_request(body)
        again = protocol.encode(Kind.REQUEST, 1, {"op": request.operation, **request.arguments})
        assert protocol.check_request(protocol.decode_body(again[HEADER_BYTES:])) == request
    with suppress(ProtocolError):
        error = protocol.check_error(body)
        assert isinstance(error, BlockdevError)
        protocol.encode_error(1, error)
    with suppress(ProtocolError):
        protocol.check_inspection(body)
    with suppress(ProtocolError):
        protocol.check_compaction(body)
    with suppress(ProtocolError):
        check_pool_policy(protocol.check_policy(body))
    for field, value in body.items():
        for kind in (list, str, bytes, int):
            with suppress(ProtocolError):
                protocol.check_field(body, field, kind)
        for row in value if isinstance(value, list) else [value]:
            with suppress(ProtocolError):
                thing = protocol.check_object(row)
                assert protocol.is_object_name(thing.name) and protocol.is_tag(thing.tag)
            with suppress(ProtocolError):
                protocol.check_extent(row)
            with suppress(ProtocolError):
                protocol.check_finding(row)
