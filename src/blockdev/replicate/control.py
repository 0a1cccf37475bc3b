"""The control messages of replication: who speaks, what is to come, how far it is, how it ended (docs/format/replication.md).

Each is a msgpack map.  As in messages.py: what is decoded may say anything, and raises ProtocolError when it cannot be;
fields that are not known are passed over.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, get_args

import msgpack

from blockdev.constants import DURATION_SECONDS_MAX
from blockdev.errors import BlockdevError, InvalidArgument, from_code
from blockdev.replicate.frames import Frame, ProtocolError, frame
from blockdev.replicate.messages import BLOCKS_MAX, DIGEST_BYTES, Kind
from blockdev.vmmap.catalog_replication import Purpose
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.copy_fields import (
    DISKS_MAX,
    check_number,
    check_uuid,
    copy_of,
    snapshot_fields,
    vm_fields,
)
from blockdev.vmmap.names import check_name, check_size, is_unfinished

ANCESTORS_MAX = 10_000
VERSIONS_MAX = 16
FEATURES_MAX = 64
SOFTWARE_CHARACTERS_MAX = 200
REASON_CHARACTERS_MAX = 2000
ITEMS_MAX = 65_536  # in the arguments of a request, or its answer
DEPTH_MAX = 8
LIST_ITEMS_MAX = DISKS_MAX  # room is made for as many as a list says that it has, before they come
MAP_ITEMS_MAX = 256
CONTAINERS_MAX = 2 * DISKS_MAX  # lists and maps: of 2 MiB of empty ones Python makes 150 MiB, and nothing else for 2 seconds
UUID_BYTES = 16
_WORD = re.compile(r"[a-z][a-z0-9_.-]{0,63}")

T = TypeVar("T")


class Hello(NamedTuple):
    """Who speaks."""

    versions: list[int]
    features: list[str]
    software: str


class Begin(NamedTuple):
    """Which snapshot is to come."""

    purpose: Purpose
    snapshot: SnapshotCopy  # with no base: that is the receiver's to choose
    ancestors: list[str]  # uuids of the VM's older snapshots that the sender has, newest first
    keep_seconds: int | None  # how long the receiver keeps it; None: until somebody deletes it
    rpo_seconds: int | None
    vm_name: str | None  # of a copy: what the VM is to be called; None: as it is called


class DiskState(NamedTuple):
    next_block: int  # what is before it is at the receiver
    is_based: bool  # it began as the base's disk of that name


class State(NamedTuple):
    """How far the receiver is with a snapshot."""

    is_present: bool  # it has it
    base_uuid: str | None
    disks: list[DiskState]


class End(NamedTuple):
    digests: list[bytes]  # the content digest of each disk
    sizes: list[int]


class Ask(NamedTuple):
    """A request that is no transfer."""

    what: str
    arguments: dict[str, Any]


def _encode(kind: Kind, **fields: Any) -> Frame:
    return frame(kind, bytes(msgpack.packb(fields)))


class _Containers:
    """Counts the lists and maps of a message as they are made."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, made: T) -> T:
        self._count += 1
        if self._count > CONTAINERS_MAX:
            raise ValueError("too many lists and maps")
        return made


def _decode(body: memoryview, what: str, make: Callable[[Mapping[str, Any]], T]) -> T:
    """What `make` makes of a map; whatever it stumbles over is the sender's fault."""
    try:
        count = _Containers()
        fields = msgpack.unpackb(
            body, list_hook=count, object_hook=count, max_array_len=LIST_ITEMS_MAX, max_map_len=MAP_ITEMS_MAX
        )
        if type(fields) is not dict:
            raise ValueError("no map")
        return make(fields)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, InvalidArgument, msgpack.UnpackException) as error:
        raise ProtocolError(f"{what} is none: {type(error).__name__}: {str(error)[:200]}") from None


# --- hello -----------------------------------------------------------------------------------------------------------


def encode_hello(hello: Hello) -> Frame:
    return _encode(Kind.HELLO, **hello._asdict())


def decode_hello(body: memoryview) -> Hello:
    return _decode(body, "a hello", _hello_of)


def _hello_of(fields: Mapping[str, Any]) -> Hello:
    versions = [check_number(one, (1 << 16) - 1) for one in _list(fields["versions"], VERSIONS_MAX)]
    features = [_word(one) for one in _list(fields["features"], FEATURES_MAX)]
    return Hello(versions, features, _shown(fields["software"], SOFTWARE_CHARACTERS_MAX))


# --- begin and state -------------------------------------------------------------------------------------------------


def encode_begin(begin: Begin) -> Frame:
    copy = begin.snapshot
    return _encode(
        Kind.BEGIN,
        purpose=begin.purpose,
        snapshot=snapshot_fields(copy),
        vm=vm_fields(copy),
        config=copy.config,
        disks=[[disk.name, disk.size_bytes] for disk in copy.disks],
        ancestors=b"".join(uuid.UUID(one).bytes for one in begin.ancestors[:ANCESTORS_MAX]),
        keep_seconds=begin.keep_seconds,
        rpo_seconds=begin.rpo_seconds,
        vm_name=begin.vm_name,
    )


def decode_begin(body: memoryview) -> Begin:
    return _decode(body, "the beginning of a transfer", _begin_of)


def _begin_of(fields: Mapping[str, Any]) -> Begin:
    if fields["purpose"] not in get_args(Purpose):
        raise ValueError("a purpose that is none")
    ancestors = fields["ancestors"]
    if type(ancestors) is not bytes or len(ancestors) % UUID_BYTES or len(ancestors) > ANCESTORS_MAX * UUID_BYTES:
        raise ValueError("ancestors that are none")
    name = fields["vm_name"]
    return Begin(
        purpose=fields["purpose"],
        snapshot=_snapshot_of(fields),
        ancestors=[
            str(uuid.UUID(bytes=ancestors[place : place + UUID_BYTES])) for place in range(0, len(ancestors), UUID_BYTES)
        ],
        keep_seconds=_seconds(fields["keep_seconds"]),
        rpo_seconds=_seconds(fields["rpo_seconds"]),
        vm_name=None if name is None else check_name("VM", name),
    )


def _snapshot_of(fields: Mapping[str, Any]) -> SnapshotCopy:
    copy = copy_of(fields, "replication", [_disk_of(row) for row in _list(fields["disks"], DISKS_MAX)])
    if is_unfinished(copy.description):
        raise ValueError("a snapshot that is not whole where it was taken")
    return copy


def _disk_of(row: Any) -> CopiedDisk:
    name, size_bytes = row
    check_name("disk", name)
    return CopiedDisk(name, check_size(f"disk {name}", size_bytes), False)


def encode_state(state: State) -> Frame:
    disks = [list(disk) for disk in state.disks]
    return _encode(Kind.STATE, present=state.is_present, base=state.base_uuid, disks=disks)


def decode_state(body: memoryview) -> State:
    return _decode(body, "the state of a transfer", _state_of)


def _state_of(fields: Mapping[str, Any]) -> State:
    base = fields["base"]
    disks = [_disk_state_of(row, base is not None) for row in _list(fields["disks"], DISKS_MAX)]
    return State(_flag(fields["present"]), None if base is None else check_uuid(base), disks)


def _disk_state_of(row: Any, has_base: bool) -> DiskState:
    next_block, is_based = row
    if _flag(is_based) and not has_base:
        raise ValueError("a disk that builds on nothing")
    return DiskState(check_number(next_block, BLOCKS_MAX), is_based)


# --- the end ---------------------------------------------------------------------------------------------------------


def encode_end(end: End) -> Frame:
    return _encode(Kind.END, digests=b"".join(end.digests), sizes=end.sizes)


def decode_end(body: memoryview) -> End:
    return _decode(body, "the end of a transfer", _end_of)


def _end_of(fields: Mapping[str, Any]) -> End:
    sizes = [check_size("a disk", one) for one in _list(fields["sizes"], DISKS_MAX)]
    digests = fields["digests"]
    if type(digests) is not bytes or len(digests) != len(sizes) * DIGEST_BYTES:
        raise ValueError("digests that are none")
    return End([digests[place : place + DIGEST_BYTES] for place in range(0, len(digests), DIGEST_BYTES)], sizes)


def encode_committed(snapshot_uuid: str) -> Frame:
    return _encode(Kind.COMMITTED, snapshot=snapshot_uuid)


def decode_committed(body: memoryview) -> str:
    return _decode(body, "a commit", lambda fields: check_uuid(fields["snapshot"]))


def encode_refuse(error: BlockdevError) -> Frame:
    return _encode(Kind.REFUSE, code=error.code, message=_clean(error.message)[:REASON_CHARACTERS_MAX])


def decode_refuse(body: memoryview) -> BlockdevError:
    """The error that the other end tells of."""

    def make(fields: Mapping[str, Any]) -> BlockdevError:
        return from_code(_word(fields["code"]), _shown(fields["message"], REASON_CHARACTERS_MAX))

    return _decode(body, "a refusal", make)


# --- requests --------------------------------------------------------------------------------------------------------


def encode_request(what: str, arguments: dict[str, Any]) -> Frame:
    return _encode(Kind.REQUEST, what=what, arguments=arguments)


def decode_request(body: memoryview) -> Ask:
    return _decode(body, "a request", lambda fields: Ask(_word(fields["what"]), _plain(fields["arguments"])))


def encode_answer(answer: dict[str, Any]) -> Frame:
    return _encode(Kind.ANSWER, answer=answer)


def decode_answer(body: memoryview) -> dict[str, Any]:
    """Its text is for people to see, wherever in it."""
    return _decode(body, "an answer", lambda fields: {name: _cleaned(value) for name, value in _plain(fields["answer"]).items()})


# --- fields ----------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> dict[str, Any]:
    """A map of text to plain values, neither deep nor of too many."""
    if type(value) is not dict:
        raise ValueError("no map")
    todo, count = [(value, 1)], 0
    while todo:
        one, depth = todo.pop()
        count += 1
        if depth > DEPTH_MAX or count > ITEMS_MAX:
            raise ValueError("too many values, or too deep")
        if isinstance(one, dict):
            if not all(type(key) is str for key in one):
                raise ValueError("a map whose keys are not text")
            todo += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            todo += [(inner, depth + 1) for inner in one]
        elif type(one) not in (str, bytes, int, float, bool, type(None)):
            raise ValueError("a value that is not plain")
    return value


def _list(value: Any, count_max: int) -> list[Any]:
    if type(value) is not list or len(value) > count_max:
        raise ValueError("no list, or too long a one")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("neither true nor false")
    return value


def _seconds(value: Any) -> int | None:
    return None if value is None else check_number(value, DURATION_SECONDS_MAX)


def _word(value: Any) -> str:
    if type(value) is not str or _WORD.fullmatch(value) is None:
        raise ValueError("no word")
    return value


def _clean(text: str) -> str:
    """On one line, and nothing that a terminal would obey."""
    return "".join(one if one.isprintable() else " " for one in text).encode(errors="replace").decode()


def _cleaned(value: Any) -> Any:
    """Of plain values."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    if isinstance(value, dict):
        return {name: _cleaned(one) for name, one in value.items()}
    return value


def _shown(value: Any, characters_max: int) -> str:
    if type(value) is not str or len(value) > characters_max:
        raise ValueError("no text, or too long a one")
    return _clean(value)
