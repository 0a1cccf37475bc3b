"""The frames of the engine socket (docs/format/engine-socket.md): pure functions, no socket, no pool.

Everything here is given bytes or values from a peer: each field is checked before it is used, sizes before memory is
taken, and whatever is wrong raises ProtocolError, never another exception.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar, get_args

import msgpack

from blockdev.accounting import Group, GroupUsage, PoolUsage, SnapshotUsage, Usage
from blockdev.compaction import COMPACT, RECLAIM, CompactionReport
from blockdev.constants import (
    BLOCK_BYTES,
    CHUNK_EXTENTS_MAX,
    NAME_BYTES_MAX,
    SECTOR_BYTES,
    TAG_BYTES_MAX,
    VDISK_BYTES_MAX,
)
from blockdev.errors import BlockdevError, InvalidArgument, from_code
from blockdev.findings import InspectionKind
from blockdev.policies import COMPRESSIONS, DEDUPS, LEVELS, Compression, Dedup, DiskPolicy, PoolPolicy
from blockdev.runner import Outcome, Progress, State
from blockdev.types import Extent

MAGIC = b"BDEN"
VERSION = 1
HEADER = struct.Struct("<4sBBHII")  # magic, version, kind, reserved, request id, body length
HEADER_BYTES = HEADER.size
BODY_BYTES_MAX = 16 << 20
ITEMS_MAX = 65536  # ids, names or specs in one request
ACCOUNTED_MAX = 1 << 20  # ids, groups and snapshots in one `account`: a peer may have sent many VMs, which share blocks
USAGE_PAGE_MAX = 65536  # VMs and snapshots in one answer
STATISTICS_BYTES_MAX = 8 << 20  # of one answer, about; what does not fit is in the next one
OBJECTS_PAGE_MAX = 8192  # objects in one answer: at their longest names and tags they still fit a frame
MESSAGE_CHARACTERS_MAX = 8192
SESSION_BYTES = 16
OFFER_BYTES = 24  # a block's number and fingerprint
RUN_BYTES = 16  # the first block of a run, and how many they are
RUNS_MAX = 8192  # in one `clear`
BLOCKS_MAX = 2048  # in one `prove` or `take`
ROOM_BLOCKS = 256  # in one `fetch` or `put`: they are in the connection's room
WAIT_MS_MAX = 1000  # that the answer to `inspection` or `compaction` may take
CLIENT_CHARACTERS_MAX = 200
INSPECTION_KINDS: tuple[str, ...] = get_args(InspectionKind)
COMPACTION_KINDS = (COMPACT, RECLAIM)

R = TypeVar("R")


class ProtocolError(InvalidArgument):
    """A peer that does not speak this protocol, or not well."""


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1
    ANSWER = 2
    ERROR = 3


class Header(NamedTuple):
    """A checked frame header."""

    kind: Kind
    request_id: int
    body_bytes: int


class EngineObject(NamedTuple):
    """A vdisk or a vdisk snapshot, as the engine socket tells of it."""

    id: int
    vdisk_id: int | None  # the vdisk that this is a snapshot of; None: this is a vdisk
    name: str | None
    tag: bytes
    size_bytes: int
    lsn: int | None  # of the snapshot; None: this is a vdisk
    compression: Compression | None = None  # of a vdisk; None: as the pool's, or this is a snapshot
    dedup: Dedup | None = None  # likewise

    @property
    def policy(self) -> DiskPolicy:
        return DiskPolicy(self.compression, self.dedup)


class EngineFinding(NamedTuple):
    """Something that is wrong, as the engine socket tells of it."""

    object_id: int  # 0: of the pool itself
    name: str  # of the object
    offset: int  # bytes of the object
    length: int  # 0: all of it, or of the pool itself
    what: str


class EngineInspection(NamedTuple):
    """What a check or a scrub found, as the engine socket tells of it."""

    findings: list[EngineFinding]
    dropped: int  # findings that are not named
    healed: list[str]
    done_bytes: int


class Request(NamedTuple):
    """A checked request: `arguments` has exactly the operation's arguments, each of its kind."""

    operation: str
    arguments: dict[str, Any]


def encode(kind: Kind, request_id: int, body: Mapping[str, Any]) -> bytes:
    """One frame.  ProtocolError when the body is larger than a frame may be."""
    try:
        packed: bytes = msgpack.packb(body, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"not a value for the engine socket: {error}") from error
    if len(packed) > BODY_BYTES_MAX:
        raise ProtocolError(f"a message of {len(packed)} bytes is over the limit of {BODY_BYTES_MAX}")
    return HEADER.pack(MAGIC, VERSION, kind, 0, request_id, len(packed)) + packed


def decode_header(data: bytes | bytearray) -> Header:
    """The header of a frame from its first 16 bytes."""
    if len(data) != HEADER_BYTES:
        raise ProtocolError(f"a frame header has {HEADER_BYTES} bytes, not {len(data)}")
    magic, version, kind, reserved, request_id, body_bytes = HEADER.unpack(data)
    if magic != MAGIC:
        raise ProtocolError(f"not a frame of the engine socket: it begins with {magic!r}")
    if version != VERSION:
        raise ProtocolError(f"engine socket protocol {version}; this build speaks {VERSION}")
    if kind not in Kind.__members__.values() or reserved != 0:
        raise ProtocolError(f"unknown kind of frame: {kind}, reserved field {reserved}")
    if body_bytes > BODY_BYTES_MAX:
        raise ProtocolError(f"a frame of {body_bytes} bytes is over the limit of {BODY_BYTES_MAX}")
    return Header(Kind(kind), request_id, body_bytes)


def decode_body(data: bytes | bytearray) -> dict[str, Any]:
    """The map that a frame's body is."""
    try:
        body = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack raises its own, ValueError, UnicodeDecodeError, RecursionError
        raise ProtocolError(f"the body of a frame does not unpack: {type(error).__name__}") from error
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise ProtocolError("the body of a frame is not a map with text keys")
    return body


def encode_error(request_id: int, error: BlockdevError) -> bytes:
    """The error frame that tells a peer of `error`."""
    message = error.message[:MESSAGE_CHARACTERS_MAX].encode(errors="replace").decode()
    return encode(Kind.ERROR, request_id, {"code": error.code, "message": message})


def check_error(body: Mapping[str, Any]) -> BlockdevError:
    """The exception that an error frame tells of."""
    code, message = body.get("code"), body.get("message")
    if not isinstance(code, str) or not isinstance(message, str):
        raise ProtocolError("an error frame without code and message")
    return from_code(code, message[:MESSAGE_CHARACTERS_MAX])


Check = Callable[[Any], bool]


def _is_integer(value: Any, smallest: int, largest: int) -> bool:
    return type(value) is int and smallest <= value <= largest


def _is_text(value: Any, characters_max: int) -> bool:
    return type(value) is str and 0 < len(value) <= characters_max


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def is_id(value: Any) -> bool:
    """An object id."""
    return _is_integer(value, 1, (1 << 63) - 1)


def is_size(value: Any) -> bool:
    """A vdisk size in bytes; whether it is a multiple of a sector is the pool's to say."""
    return _is_integer(value, 0, VDISK_BYTES_MAX)


def is_object_name(value: Any) -> bool:
    """A name an object can have; None is no name."""
    if value is None:
        return True
    if not _is_text(value, NAME_BYTES_MAX):
        return False
    try:
        return len(value.encode()) <= NAME_BYTES_MAX
    except UnicodeEncodeError:
        return False


def is_tag(value: Any) -> bool:
    return type(value) is bytes and len(value) <= TAG_BYTES_MAX


def _list_of(check: Check) -> Check:
    return lambda value: type(value) is list and len(value) <= ITEMS_MAX and all(map(check, value))


def _row_of(*checks: Check) -> Check:
    def check(value: Any) -> bool:
        return (
            type(value) is list
            and len(value) == len(checks)
            and all(one(item) for one, item in zip(checks, value, strict=True))
        )

    return check


def _is_session(value: Any) -> bool:
    return type(value) is bytes and len(value) == SESSION_BYTES


def _is_client(value: Any) -> bool:
    return _is_text(value, CLIENT_CHARACTERS_MAX)


def _is_id_or_none(value: Any) -> bool:
    return value is None or is_id(value)


def _is_offset(value: Any) -> bool:
    return is_size(value) and value % SECTOR_BYTES == 0


def _is_block_offset(value: Any) -> bool:
    return is_size(value) and value % BLOCK_BYTES == 0


def _is_extent_count(value: Any) -> bool:
    return _is_integer(value, 1, CHUNK_EXTENTS_MAX)


def _is_inspection_kind(value: Any) -> bool:
    return type(value) is str and value in INSPECTION_KINDS


def _is_rate_or_none(value: Any) -> bool:
    return value is None or _is_integer(value, 1, (1 << 63) - 1)


def _is_wait(value: Any) -> bool:
    return _is_integer(value, 0, WAIT_MS_MAX)


def _is_count(value: Any) -> bool:
    return _is_integer(value, 0, (1 << 63) - 1)


def _is_pace(value: Any) -> bool:
    return _is_integer(value, 0, (1 << 62) - 1)


def _is_compression(value: Any) -> bool:
    return type(value) is str and value in COMPRESSIONS


def _is_dedup(value: Any) -> bool:
    return type(value) is str and value in DEDUPS


def _is_level(value: Any) -> bool:
    return _is_integer(value, LEVELS[0], LEVELS[-1])


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _bytes_of(item_bytes: int, items_max: int) -> Check:
    return lambda value: type(value) is bytes and len(value) % item_bytes == 0 and len(value) // item_bytes <= items_max


def _is_offer_count(value: Any) -> bool:
    return _is_integer(value, 1, ITEMS_MAX)


def _is_groups(value: Any) -> bool:
    return _GROUPS(value) and not are_too_many(value)


def are_too_many(groups: Sequence[Sequence[Any]]) -> bool:
    """Whether `account` cannot count these at once: VMs, snapshots, vdisks and disks of snapshots."""
    lists = [part for vdisk_ids, snapshots in groups for part in (vdisk_ids, snapshots, *snapshots)]
    return len(groups) + sum(map(len, lists)) > ACCOUNTED_MAX or max(map(len, [groups, *lists])) > ITEMS_MAX


_IDS = _list_of(is_id)
_GROUPS = _list_of(_row_of(_IDS, _list_of(_list_of(_row_of(is_id, _is_id_or_none)))))
_IS_COMPRESSION_OR_NONE, _IS_DEDUP_OR_NONE = _or_none(_is_compression), _or_none(_is_dedup)
_NAMES = _list_of(is_object_name)
_TAGS = _list_of(is_tag)

# Arguments of each operation.  An operation or argument that is not here does not reach the engine.
OPERATIONS: dict[str, dict[str, Check]] = {
    "hello": {"session": _is_session, "client": _is_client},
    "lead": {},
    "status": {},
    "attachments": {},
    "objects": {},
    "get": {"id": is_id},
    "find": {"name": is_object_name},
    "create": {"disks": _list_of(_row_of(is_size, is_object_name, is_tag))},
    "snapshot": {"ids": _IDS, "names": _NAMES, "tags": _TAGS},
    "clone": {"clones": _list_of(_row_of(is_id, is_object_name, is_tag))},
    "restore": {"pairs": _list_of(_row_of(is_id, is_id)), "force": _is_flag},
    "relabel": {"changes": _list_of(_row_of(is_id, is_object_name, is_tag)), "force": _is_flag},
    "delete": {"ids": _IDS, "force": _is_flag, "missing_ok": _is_flag},
    "resize": {"id": is_id, "size_bytes": is_size, "shrink": _is_flag},
    "set_capacity": {"capacity_bytes": _is_count},
    "set_policy": {
        "compression": _is_compression,
        "compression_level": _is_level,
        "dedup": _is_dedup,
        "compaction_rate_bytes": _is_pace,
    },
    "set_disk_policies": {"policies": _list_of(_row_of(is_id, _IS_COMPRESSION_OR_NONE, _IS_DEDUP_OR_NONE))},
    "account": {"groups": _is_groups},
    "changes": {"older": _is_id_or_none, "newer": is_id, "offset": _is_block_offset, "count": _is_extent_count},
    "count_changes": {"older": _is_id_or_none, "newer": is_id},
    "extents": {"id": is_id, "offset": _is_offset, "length": _is_offset},
    "more": {"cursor": is_id},
    "statistics": {"ids": _or_none(_IDS), "first": _is_count},
    "flush": {},
    "checkpoint": {},
    "inspect": {"kind": _is_inspection_kind, "rate_bytes": _is_rate_or_none},
    "inspection": {"run": is_id, "wait_ms": _is_wait},
    "cancel_inspection": {"run": is_id},
    "findings": {},
    "compact": {"rate_bytes": _is_rate_or_none},
    "compaction": {"run": is_id, "wait_ms": _is_wait},
    "cancel_compaction": {"run": is_id},
    "offers": {"older": _is_id_or_none, "newer": is_id, "first_block": _is_count, "count": _is_offer_count},
    "digest": {"older": _is_id_or_none, "older_digest": _bytes_of(16, 1), "newer": is_id},
    "share": {},
    "fetch": {"id": is_id, "blocks": _bytes_of(8, ROOM_BLOCKS)},
    "prove": {"id": is_id, "blocks": _bytes_of(8, BLOCKS_MAX)},
    "known": {"id": is_id, "offers": _bytes_of(OFFER_BYTES, ITEMS_MAX)},
    "take": {"id": is_id, "offers": _bytes_of(OFFER_BYTES, BLOCKS_MAX), "proofs": _bytes_of(32, BLOCKS_MAX)},
    "put": {"id": is_id, "offers": _bytes_of(OFFER_BYTES, ROOM_BLOCKS)},
    "clear": {"id": is_id, "runs": _bytes_of(RUN_BYTES, RUNS_MAX)},
}
# These change the pool: one at a time, and none from a session that another has taken the lead from.
CHANGES = frozenset(
    {
        *("create", "snapshot", "clone", "restore", "relabel", "delete", "resize"),
        *("set_capacity", "set_policy", "set_disk_policies"),
    }
)


def check_request(body: Mapping[str, Any]) -> Request:
    """The request that a body is; all arguments must be there, and no others."""
    operation = body.get("op")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise ProtocolError(f"the engine has no operation {str(operation)[:40]!r}")
    checks = OPERATIONS[operation]
    unknown = set(body) - set(checks) - {"op"}
    if unknown:
        raise ProtocolError(f"{operation} takes no argument {sorted(unknown)[0][:40]!r}")
    for argument, check in checks.items():
        if argument not in body or not check(body[argument]):
            raise ProtocolError(f"{operation} needs a good argument {argument!r}")
    return Request(operation, {argument: body[argument] for argument in checks})


def check_object(row: Any) -> EngineObject:
    """The object that a row of an answer tells of."""
    if not (
        type(row) is list
        and len(row) == len(EngineObject._fields)
        and is_id(row[0])
        and _is_id_or_none(row[1])
        and is_object_name(row[2])
        and is_tag(row[3])
        and is_size(row[4])
        and (row[5] is None or _is_count(row[5]))
        and _IS_COMPRESSION_OR_NONE(row[6])
        and _IS_DEDUP_OR_NONE(row[7])
    ):
        raise ProtocolError("the engine told of an object that is none")
    return EngineObject(*row)


def check_extent(row: Any) -> Extent:
    """The extent that a row of an answer tells of: offset, length, whether it is data."""
    if not (type(row) is list and len(row) == 3 and is_size(row[0]) and is_size(row[1]) and _is_flag(row[2])):
        raise ProtocolError("the engine told of an extent that is none")
    return Extent(row[0], row[1], "data" if row[2] else "hole")


def check_field(body: Mapping[str, Any], field: str, kind: type) -> Any:
    """A field of an answer, when it is of the kind it must be."""
    value = body.get(field)
    if type(value) is not kind:
        raise ProtocolError(f"an answer of the engine without a good {field!r}")
    return value


def check_rest(value: Any, offset: int) -> int | None:
    """Where the rest of an answer begins that began at `offset`; None: there is none."""
    if value is not None and not (_is_block_offset(value) and value > offset):
        raise ProtocolError("the engine told of a rest that begins nowhere")
    return None if value is None else int(value)


def check_policy(body: Mapping[str, Any]) -> PoolPolicy:
    """The pool's policy that the answer to `status` tells of."""
    policy = check_field(body, "policy", dict)
    checks = OPERATIONS["set_policy"]
    if set(policy) != set(checks) or not all(check(policy[field]) for field, check in checks.items()):
        raise ProtocolError("the engine told of a policy that is none")
    return PoolPolicy(**policy)


def check_usage(body: Mapping[str, Any], rows: Sequence[Any], groups: Sequence[Group]) -> Usage:
    """What the answer to `account` tells of: `rows` are those of all its pages."""
    pool = check_field(body, "pool", dict)
    if set(pool) != set(PoolUsage._fields) or not all(map(_is_count, pool.values())):
        raise ProtocolError("the engine told of a pool's usage that is none")
    if len(rows) != sum(1 + len(group.snapshots) for group in groups):
        raise ProtocolError("the engine did not account for what it was asked for")
    at, found = iter(rows), []
    for group in groups:
        data, shared, unique, of_snapshots, maps = _check_counts(next(at), 5)
        snapshots = [SnapshotUsage(*_check_counts(next(at), 2)) for _ in group.snapshots]
        found.append(GroupUsage(data, shared, unique, of_snapshots, maps, snapshots))
    return Usage(PoolUsage(**pool), found)


def _check_counts(row: Any, length: int) -> list[int]:
    if not (type(row) is list and len(row) == length and all(map(_is_count, row))):
        raise ProtocolError("the engine told of a usage that is none")
    return row


def check_finding(row: Any) -> EngineFinding:
    """The finding that a row of an answer tells of."""
    if not (
        type(row) is list
        and len(row) == len(EngineFinding._fields)
        and [type(field) for field in row] == [int, str, int, int, str]
        and min(row[0], row[2], row[3]) >= 0
    ):
        raise ProtocolError("the engine told of a finding that is none")
    return EngineFinding(*row)


def check_inspection(body: Mapping[str, Any]) -> Outcome[EngineInspection]:
    """How the inspection stands that an answer tells of."""
    return _check_outcome(body, INSPECTION_KINDS, _check_inspected)


def check_compaction(body: Mapping[str, Any]) -> Outcome[CompactionReport]:
    """How the compaction stands that an answer tells of."""
    return _check_outcome(body, COMPACTION_KINDS, _check_compacted)


def _check_outcome(
    body: Mapping[str, Any], kinds: tuple[str, ...], check_report: Callable[[Mapping[str, Any]], R]
) -> Outcome[R]:
    kind, state = check_field(body, "kind", str), check_field(body, "state", str)
    if kind not in kinds or state not in get_args(State):
        raise ProtocolError("the engine told of work on the pool that is none")
    progress = Progress(
        run=check_field(body, "run", int),
        kind=kind,
        started=check_field(body, "started", float),
        done_bytes=check_field(body, "done_bytes", int),
        total_bytes=check_field(body, "total_bytes", int),
    )
    return Outcome(
        progress,
        state,
        check_report(body) if state == "done" else None,
        check_error(check_field(body, "error", dict)) if state == "failed" else None,
    )


def _check_inspected(body: Mapping[str, Any]) -> EngineInspection:
    return EngineInspection(
        findings=[check_finding(row) for row in check_field(body, "findings", list)],
        dropped=check_field(body, "dropped", int),
        healed=[str(line) for line in check_field(body, "healed", list)],
        done_bytes=check_field(body, "done_bytes", int),
    )


def _check_compacted(body: Mapping[str, Any]) -> CompactionReport:
    report = check_field(body, "report", dict)
    counts = {field: check_field(report, field, int) for field in CompactionReport._fields if field != "kept"}
    return CompactionReport(**counts, kept=tuple(str(line) for line in check_field(report, "kept", list)))
