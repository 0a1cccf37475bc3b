"""The tag that the pool keeps with each object of a VM: enough to know the VM again when the catalog is lost.

Names are not in it: the object's name says them, and a rename changes that one alone.  JSON, at most 1024 bytes.
"""

from __future__ import annotations

import json
from typing import NamedTuple, get_args

from blockdev.vmmap.model import Consistency, Origin

TAG_VERSION = 1


class Tag(NamedTuple):
    """Whose an object is."""

    vm_uuid: str
    created: str  # ISO 8601 UTC
    origin: Origin = "manual"  # of a snapshot
    consistency: Consistency = "crash"  # of a snapshot
    temporary: bool = False  # no user was told of it: an import under way, or what a replacement left


def encode_tag(tag: Tag) -> bytes:
    """The bytes that the pool keeps."""
    fields: dict[str, object] = {"v": TAG_VERSION, "vm": tag.vm_uuid, "created": tag.created}
    if tag.origin != "manual":
        fields["origin"] = tag.origin
    if tag.consistency != "crash":
        fields["consistency"] = tag.consistency
    if tag.temporary:
        fields["temporary"] = True
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_tag(data: bytes) -> Tag | None:
    """The tag that some bytes are; None when they are not one of ours."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("v") != TAG_VERSION:
        return None
    vm_uuid, created = fields.get("vm"), fields.get("created")
    origin, consistency = fields.get("origin", "manual"), fields.get("consistency", "crash")
    temporary = fields.get("temporary", False)
    if not isinstance(vm_uuid, str) or not isinstance(created, str) or not isinstance(temporary, bool):
        return None
    if origin not in get_args(Origin) or consistency not in get_args(Consistency):
        return None
    return Tag(vm_uuid, created, origin, consistency, temporary)
