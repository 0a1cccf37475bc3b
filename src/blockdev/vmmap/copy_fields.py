"""How a SnapshotCopy is told in plain values: what stream files and replication say alike, and the checks of what they are told.

What is told comes from anywhere: ValueError, TypeError, KeyError, OverflowError or InvalidArgument when it cannot be.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, get_args

from blockdev.vmmap.clock import text_of
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.machine import check_config
from blockdev.vmmap.model import Consistency, Origin, Terms
from blockdev.vmmap.names import DESCRIPTION_BYTES_MAX, check_name, check_text

DISKS_MAX = 4096
NUMBER_MAX = (1 << 63) - 1
YEARS = range(1970, 9999)


def vm_fields(copy: SnapshotCopy) -> dict[str, Any]:
    return {"uuid": copy.vm_uuid, "name": copy.vm_name}


def snapshot_fields(copy: SnapshotCopy) -> dict[str, Any]:
    return {
        "uuid": copy.uuid,
        "name": copy.name,
        "description": copy.description,
        "created": copy.created,
        "lsn": copy.lsn,
        "consistency": copy.terms.consistency,
        "asked": copy.terms.asked,
        "frozen_ms": copy.terms.frozen_ms,
    }


def copy_of(fields: Mapping[str, Any], origin: Origin, disks: Sequence[CopiedDisk]) -> SnapshotCopy:
    """What `fields` tell with vm, snapshot and config, which are as above; it builds on nothing.

    disks: those that were told, each checked.
    """
    vm, snapshot = fields["vm"], fields["snapshot"]
    if not 0 < len({disk.name for disk in disks}) == len(disks) <= DISKS_MAX:
        raise ValueError("no disks, too many, or two of one name")
    return SnapshotCopy(
        uuid=check_uuid(snapshot["uuid"]),
        name=check_name("snapshot", snapshot["name"]),
        description=check_text("description", snapshot["description"], DESCRIPTION_BYTES_MAX),
        created=_check_time(snapshot["created"]),
        lsn=check_number(snapshot["lsn"]),
        terms=_terms(snapshot, origin),
        config=check_config(fields["config"]),
        disks=list(disks),
        vm_uuid=check_uuid(vm["uuid"]),
        vm_name=check_name("VM", vm["name"]),
        base_uuid=None,
        base_name="",
    )


def check_uuid(value: Any) -> str:
    if type(value) is not str or str(uuid.UUID(value)) != value:
        raise ValueError("a uuid that is not written as one")
    return value


def check_number(value: Any, number_max: int = NUMBER_MAX) -> int:
    if type(value) is not int or not 0 <= value <= number_max:
        raise ValueError("a number that cannot be")
    return value


def _terms(snapshot: Mapping[str, Any], origin: Origin) -> Terms:
    consistency, asked, frozen_ms = snapshot["consistency"], snapshot["asked"], snapshot["frozen_ms"]
    if consistency not in get_args(Consistency) or asked not in get_args(Consistency):
        raise ValueError("a consistency that is none")
    return Terms(origin, consistency, asked, None if frozen_ms is None else check_number(frozen_ms))


def _check_time(value: Any) -> str:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None or moment.year not in YEARS or text_of(moment) != value:
        raise ValueError("a time that is not written as one")
    return str(value)
