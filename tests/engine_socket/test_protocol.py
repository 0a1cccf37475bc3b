"""Frames of the engine socket: golden bytes, and bytes and values that no friend would send."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.accounting import Group, GroupUsage, PoolUsage, SnapshotUsage, Usage
from blockdev.compaction import CompactionReport
from blockdev.constants import CHUNK_EXTENTS_MAX, NAME_BYTES_MAX, TAG_BYTES_MAX, VDISK_BYTES_MAX
from blockdev.engine import protocol
from blockdev.engine.protocol import HEADER, MAGIC, VERSION, Header, Kind, ProtocolError, Request
from blockdev.errors import Busy, Corrupt, InvalidArgument
from blockdev.policies import DiskPolicy, PoolPolicy
from blockdev.runner import Outcome, Progress

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=1100),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
GOOD: dict[str, dict[str, Any]] = {
    "hello": {"session": b"s" * 16, "client": "blockdevd"},
    "lead": {},
    "status": {},
    "attachments": {},
    "objects": {},
    "get": {"id": 1},
    "find": {"name": "web/root"},
    "statistics": {"ids": [1], "first": 0},
    "create": {"disks": [[512, "web/root", b"tag"], [1024, None, b""]]},
    "snapshot": {"ids": [1], "names": ["web/root@a"], "tags": [b""]},
    "clone": {"clones": [[2, "b/root", b""]]},
    "restore": {"pairs": [[1, 2]], "force": False},
    "relabel": {"changes": [[1, None, b""]], "force": True},
    "delete": {"ids": [1, 2], "force": False, "missing_ok": True},
    "resize": {"id": 1, "size_bytes": 512, "shrink": False},
    "set_capacity": {"capacity_bytes": 1 << 40},
    "set_policy": {"compression": "cold", "compression_level": 3, "dedup": "on", "compaction_rate_bytes": 0},
    "set_disk_policies": {"policies": [[1, "inline", None], [2, None, "off"]]},
    "account": {"groups": [[[1, 2], [[[5, None]], [[7, 5], [8, None]]]], [[], []]]},
    "changes": {"older": None, "newer": 2, "offset": 4096, "count": 1},
    "count_changes": {"older": 1, "newer": 2},
    "extents": {"id": 1, "offset": 0, "length": 4096},
    "more": {"cursor": 1},
    "flush": {},
    "checkpoint": {},
    "inspect": {"kind": "scrub", "rate_bytes": 1 << 20},
    "inspection": {"run": 1, "wait_ms": 0},
    "cancel_inspection": {"run": 1},
    "findings": {},
    "compact": {"rate_bytes": None},
    "compaction": {"run": 1, "wait_ms": 1000},
    "cancel_compaction": {"run": 1},
    "offers": {"older": None, "newer": 2, "first_block": 0, "count": 65536},
    "digest": {"older": 1, "older_digest": bytes(16), "newer": 2},
    "fetch": {"id": 1, "blocks": bytes(16)},
    "prove": {"id": 1, "blocks": bytes(8)},
    "known": {"id": 1, "offers": bytes(48)},
    "take": {"id": 1, "offers": bytes(24), "proofs": bytes(32)},
    "put": {"id": 1, "offers": bytes(24)},
    "share": {},
    "clear": {"id": 1, "runs": bytes(16)},
}
GROUPS = [Group([1, 2], [[(5, None)], [(7, 5), (8, None)]]), Group([], [])]
USAGE = Usage(
    PoolUsage(*range(1, len(PoolUsage._fields) + 1)),
    [GroupUsage(1, 2, 3, 4, 9, [SnapshotUsage(5, 6), SnapshotUsage(7, 8)]), GroupUsage(0, 0, 0, 0, 0, [])],
)
USAGE_ROWS = [[1, 2, 3, 4, 9], [5, 6], [7, 8], [0, 0, 0, 0, 0]]
PROGRESS = Progress(run=3, kind="compact", started=1795348800.0, done_bytes=4096, total_bytes=8192)
REPORT = CompactionReport(1, 2, 3, 4, 5, 6, ("segment 00000007: the pool has no room for its live blocks",))
COMPACTION = {**PROGRESS._asdict(), "state": "done", "report": REPORT._asdict(), "error": None}
INSPECTION = {
    **PROGRESS._replace(kind="check")._asdict(),
    "state": "done",
    "findings": [[1, "web/root", 4096, 8192, "segment 00000001 slots 3 to 4 do not verify"]],
    "dropped": 0,
    "healed": [],
    "error": None,
}


def test_a_frame_has_the_documented_bytes() -> None:
    frame = protocol.encode(Kind.REQUEST, 7, {"op": "get", "id": 3})
    assert frame.hex() == (
        "4244454e"  # BDEN
        "01"  # version
        "01"  # request
        "0000"
        "07000000"  # request id
        "0c000000"  # body length
        "82a26f70a3676574a2696403"  # {"op": "get", "id": 3}
    )


def test_a_frame_comes_back_as_it_was() -> None:
    frame = protocol.encode(Kind.ANSWER, 0xFFFFFFFF, {"a": [1, b"x", None, "é"]})
    header = protocol.decode_header(frame[:16])
    assert header == Header(Kind.ANSWER, 0xFFFFFFFF, len(frame) - 16)
    assert protocol.decode_body(frame[16:]) == {"a": [1, b"x", None, "é"]}


def test_an_error_travels_by_its_code() -> None:
    frame = protocol.encode_error(3, Busy("web/root is attached"))
    assert protocol.decode_header(frame[:16]).kind is Kind.ERROR
    error = protocol.check_error(protocol.decode_body(frame[16:]))
    assert type(error) is Busy
    assert error.message == "web/root is attached"


def test_an_error_message_that_utf8_cannot_hold_still_travels() -> None:
    frame = protocol.encode_error(3, Busy("no \udc80 such " + "x" * 100_000))
    error = protocol.check_error(protocol.decode_body(frame[16:]))
    assert error.message.startswith("no ? such")
    assert len(error.message) <= protocol.MESSAGE_CHARACTERS_MAX


def test_every_operation_has_a_good_request() -> None:
    assert set(GOOD) == set(protocol.OPERATIONS)
    assert set(protocol.OPERATIONS) >= protocol.CHANGES
    for operation, arguments in GOOD.items():
        assert protocol.check_request({"op": operation, **arguments}) == Request(operation, arguments)


@pytest.mark.parametrize("operation", GOOD)
def test_a_request_with_a_missing_or_an_unknown_argument_is_refused(operation: str) -> None:
    arguments = GOOD[operation]
    for missing in arguments:
        with pytest.raises(ProtocolError, match=missing):
            protocol.check_request({"op": operation, **{k: v for k, v in arguments.items() if k != missing}})
    with pytest.raises(ProtocolError, match="no argument 'nonsense'"):
        protocol.check_request({"op": operation, **arguments, "nonsense": 1})


@pytest.mark.parametrize(
    ("operation", "argument", "value"),
    [
        ("get", "id", 0),
        ("get", "id", True),
        ("get", "id", 1 << 63),
        ("get", "id", "1"),
        ("find", "name", ""),
        ("find", "name", "x" * (NAME_BYTES_MAX + 1)),
        ("find", "name", "é" * (NAME_BYTES_MAX // 2 + 1)),
        ("create", "disks", [[512, "a"]]),
        ("create", "disks", [(512, "a", b"")]),
        ("create", "disks", [[VDISK_BYTES_MAX + 1, "a", b""]]),
        ("create", "disks", [[-512, "a", b""]]),
        ("create", "disks", [[512, b"a", b""]]),
        ("create", "disks", [[512, "a", b"x" * (TAG_BYTES_MAX + 1)]]),
        ("create", "disks", {"0": [512, "a", b""]}),
        ("delete", "ids", [1] * (protocol.ITEMS_MAX + 1)),
        ("delete", "force", 1),
        ("extents", "offset", 511),
        ("changes", "newer", None),
        ("changes", "offset", 512),
        ("changes", "count", 0),
        ("changes", "count", CHUNK_EXTENTS_MAX + 1),
        ("hello", "session", b"short"),
        ("hello", "client", ""),
        ("inspect", "kind", "compact"),
        ("inspect", "rate_bytes", 0),
        ("compact", "rate_bytes", 0),
        ("compact", "rate_bytes", -1),
        ("compact", "rate_bytes", 1.5),
        ("compact", "rate_bytes", "100M"),
        ("compact", "rate_bytes", 1 << 63),
        ("set_policy", "compression", None),
        ("set_policy", "compression", "hot"),
        ("set_policy", "compression_level", 0),
        ("set_policy", "compression_level", 20),
        ("set_policy", "dedup", True),
        ("set_policy", "compaction_rate_bytes", -1),
        ("set_policy", "compaction_rate_bytes", 1 << 63),
        ("set_disk_policies", "policies", [[1, "inline"]]),
        ("offers", "count", 0),
        ("offers", "count", 65537),
        ("digest", "older_digest", bytes(15)),
        ("fetch", "blocks", bytes(7)),
        ("fetch", "blocks", bytes(8 * 257)),
        ("put", "offers", bytes(24 * 257)),
        ("take", "proofs", bytes(33)),
        ("clear", "runs", bytes(8)),
        ("clear", "runs", bytes(16 * 8193)),
        ("set_disk_policies", "policies", [[0, None, None]]),
        ("set_disk_policies", "policies", [[1, "pool", None]]),
        ("set_disk_policies", "policies", [[1, None, ["on"]]]),
        ("account", "groups", [[[1]]]),
        ("account", "groups", [[[0], []]]),
        ("account", "groups", [[[1], [[5]]]]),
        ("account", "groups", [[[1], [[[5]]]]]),
        ("account", "groups", [[[1], [[[None, 5]]]]]),
        ("account", "groups", [[[1] * 40_000, []]] * 27),
        ("account", "groups", [[[], [[]] * (protocol.ITEMS_MAX + 1)]]),
        ("compaction", "run", 0),
        ("compaction", "wait_ms", protocol.WAIT_MS_MAX + 1),
        ("cancel_compaction", "run", None),
    ],
)
def test_a_bad_argument_is_refused(operation: str, argument: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match=argument):
        protocol.check_request({"op": operation, **GOOD[operation], argument: value})


@pytest.mark.parametrize(
    "header",
    [
        (b"BDEX", VERSION, 1, 0, 1, 0),
        (MAGIC, VERSION + 1, 1, 0, 1, 0),
        (MAGIC, VERSION, 0, 0, 1, 0),
        (MAGIC, VERSION, 4, 0, 1, 0),
        (MAGIC, VERSION, 1, 1, 1, 0),
        (MAGIC, VERSION, 1, 0, 1, protocol.BODY_BYTES_MAX + 1),
    ],
)
def test_a_bad_header_is_refused(header: tuple[Any, ...]) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_header(HEADER.pack(*header))


def test_a_body_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.encode(Kind.ANSWER, 1, {"x": bytes(protocol.BODY_BYTES_MAX)})


def test_what_msgpack_cannot_hold_is_not_sent() -> None:
    for value in (object(), 1 << 70):
        with pytest.raises(ProtocolError):
            protocol.encode(Kind.ANSWER, 1, {"x": value})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x90",  # a list
        b"\x81\x01\x02",  # a key that is no text
        b"\x81\xa1a",  # truncated
        b"\xdd\xff\xff\xff\xff",  # a list of 4 G items
        b"\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
        b"\x91" * 100_000,  # deep
        b"\x81\xa1a\xa1\xff",  # text that is not UTF-8
        b"\x80\x80",  # two values
    ],
)
def test_a_body_that_is_no_map_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_body(body)


@given(st.binary(min_size=0, max_size=40))
def test_any_header_bytes_are_a_header_or_an_error(data: bytes) -> None:
    try:
        header = protocol.decode_header(data)
    except ProtocolError:
        return
    assert HEADER.pack(MAGIC, VERSION, header.kind, 0, header.request_id, header.body_bytes) == data


@given(st.binary(max_size=2000))
def test_any_body_bytes_are_a_map_or_an_error(data: bytes) -> None:
    with suppress(ProtocolError):
        assert isinstance(protocol.decode_body(data), dict)


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_any_values_are_a_checked_request_or_an_error(operation: str, data: st.DataObject) -> None:
    body = {"op": operation, **GOOD[operation]}
    key = data.draw(st.sampled_from(sorted(body)))
    body[key] = data.draw(VALUES)
    body = msgpack.unpackb(msgpack.packb(body), raw=False)
    try:
        request = protocol.check_request(body)
    except ProtocolError:
        return
    assert set(request.arguments) == set(protocol.OPERATIONS[request.operation])


@given(VALUES)
def test_any_answer_row_is_an_object_or_an_error(row: Any) -> None:
    """A list such as [0, 0, False] comes by chance, and is an extent."""
    with suppress(ProtocolError):
        assert list(protocol.check_object(row)) == row
    with suppress(ProtocolError):
        extent = protocol.check_extent(row)
        assert [extent.offset, extent.length, extent.state == "data"] == row


def travelled(body: dict[str, Any]) -> dict[str, Any]:
    return protocol.decode_body(protocol.encode(Kind.ANSWER, 1, body)[16:])


def test_an_object_row_says_the_vdisks_policy() -> None:
    row = [5, None, "web/root", b"", 512, None, "inline", None]
    assert protocol.check_object(row).policy == DiskPolicy("inline", None)
    for bad in (row[:6], [*row[:6], "hot", None], [*row[:6], None, "pool"], [*row, None], [*row[:7], []]):
        with pytest.raises(ProtocolError):
            protocol.check_object(bad)


def test_a_policy_comes_back_as_it_is() -> None:
    policy = PoolPolicy("off", 19, "off", 1 << 20)
    body = travelled({"policy": policy._asdict()})
    assert protocol.check_policy(body) == policy
    for field in PoolPolicy._fields:
        for value in (None, "nonsense", -1, {}):
            with pytest.raises(ProtocolError):
                protocol.check_policy({"policy": {**body["policy"], field: value}})
    for bad in (None, {}, {**body["policy"], "more": 1}):
        with pytest.raises(ProtocolError):
            protocol.check_policy({"policy": bad})


def test_a_usage_comes_back_as_it_was() -> None:
    body = travelled({"pool": USAGE.pool._asdict(), "rows": USAGE_ROWS})
    assert protocol.check_usage(body, body["rows"], GROUPS) == USAGE
    for rows in (USAGE_ROWS[:3], [*USAGE_ROWS, [1, 2]], [[1, 2]] * 4, [*USAGE_ROWS[:3], [0, 0, 0, -1]], [1, 2, 3, 4]):
        with pytest.raises(ProtocolError):
            protocol.check_usage(body, rows, GROUPS)
    for pool in (None, {}, {**body["pool"], "used_bytes": -1}, {**body["pool"], "more": 1}):
        with pytest.raises(ProtocolError):
            protocol.check_usage({"pool": pool}, USAGE_ROWS, GROUPS)


def test_a_compaction_comes_back_as_it_stood() -> None:
    assert protocol.check_compaction(travelled(COMPACTION)) == Outcome(PROGRESS, "done", REPORT)
    cancelled = {**COMPACTION, "state": "cancelled", "report": None}
    assert protocol.check_compaction(travelled(cancelled)) == Outcome(PROGRESS, "cancelled")
    error = {"code": "corrupt", "message": "map node 3 does not verify"}
    failed = protocol.check_compaction(travelled({**cancelled, "state": "failed", "error": error}))
    assert type(failed.error) is Corrupt and failed.error.message == "map node 3 does not verify"
    assert failed.report is None


@pytest.mark.parametrize(
    ("check", "good"),
    [(protocol.check_compaction, COMPACTION), (protocol.check_inspection, INSPECTION)],
)
def test_an_answer_that_tells_of_no_work_is_refused(
    check: Callable[[dict[str, Any]], Any], good: dict[str, Any]
) -> None:
    good = travelled(good)
    assert check(good).state == "done"
    for field in sorted(set(good) - {"error"}):
        for value in (None, 1, "nonsense", []):
            if type(value) is not type(good[field]):
                with pytest.raises(ProtocolError):
                    check({**good, field: value})
    for change in ({"kind": "format"}, {"state": "over"}, {"state": "failed"}):
        with pytest.raises(ProtocolError):
            check({**good, **change})


@pytest.mark.parametrize("field", CompactionReport._fields)
def test_a_compaction_without_a_whole_report_is_refused(field: str) -> None:
    report = {name: value for name, value in REPORT._asdict().items() if name != field}
    with pytest.raises(ProtocolError, match=field):
        protocol.check_compaction(travelled({**COMPACTION, "report": report}))


@given(st.dictionaries(st.sampled_from(["code", "message", "x"]), VALUES))
def test_any_error_body_is_an_error(body: dict[str, Any]) -> None:
    try:
        error: Exception = protocol.check_error(body)
    except ProtocolError as refused:
        error = refused
    assert isinstance(error, Exception)
    assert isinstance(ProtocolError("x"), InvalidArgument)
