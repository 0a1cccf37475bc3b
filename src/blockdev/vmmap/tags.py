"""The tag that the pool keeps with each object of a VM: enough to know the VM again when the catalog is lost.

Names are not in it: the object's name says them, and a rename changes that one alone.  Short, because every tag is in
every checkpoint, and all tags of a VM are in the one record that renames it (docs/format/catalog.md).
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgpack

from blockdev.vmmap.clock import text_of
from blockdev.vmmap.model import Consistency, Origin

TAG_VERSION = 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ORIGINS: tuple[Origin, ...] = ("manual", "clone", "restore", "schedule", "import", "replication")  # by their number in a tag; so the next
CONSISTENCIES: tuple[Consistency, ...] = ("crash", "vm")


class Tag(NamedTuple):
    """Whose an object is."""

    vm_uuid: str
    created: str  # ISO 8601 UTC
    origin: Origin = "manual"  # of a snapshot
    consistency: Consistency = "crash"  # of a snapshot
    temporary: bool = False  # no user was told of it: an import under way, or what a replacement left


def encode_tag(tag: Tag) -> bytes:
    """The bytes that the pool keeps."""
    milliseconds = (datetime.fromisoformat(tag.created) - EPOCH) // timedelta(milliseconds=1)
    fields: list[Any] = [
        TAG_VERSION,
        uuid.UUID(tag.vm_uuid).bytes,
        milliseconds,
        tag.temporary,
        ORIGINS.index(tag.origin),
        CONSISTENCIES.index(tag.consistency),
    ]
    return bytes(msgpack.packb(fields))


def decode_tag(data: bytes) -> Tag | None:
    """The tag that some bytes are; None when they are not one of ours."""
    try:
        version, vm_uuid, milliseconds, temporary, origin, consistency = msgpack.unpackb(data)
        if version != TAG_VERSION or type(temporary) is not bool or min(origin, consistency) < 0:
            return None
        return Tag(
            str(uuid.UUID(bytes=vm_uuid)),
            text_of(EPOCH + timedelta(milliseconds=milliseconds)),
            ORIGINS[origin],
            CONSISTENCIES[consistency],
            temporary,
        )
    except Exception:  # whatever other bytes unpack to
        return None
