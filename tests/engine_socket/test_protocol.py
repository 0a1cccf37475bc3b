"""Frames of the engine socket: golden bytes, and bytes and values that no friend would send."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.constants import NAME_BYTES_MAX, TAG_BYTES_MAX, VDISK_BYTES_MAX
from blockdev.engine import protocol
from blockdev.engine.protocol import HEADER, MAGIC, VERSION, Header, Kind, ProtocolError, Request
from blockdev.errors import Busy, InvalidArgument

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
    "create": {"disks": [[512, "web/root", b"tag"], [1024, None, b""]]},
    "snapshot": {"ids": [1], "names": ["web/root@a"], "tags": [b""]},
    "clone": {"clones": [[2, "b/root", b""]]},
    "restore": {"pairs": [[1, 2]], "force": False},
    "relabel": {"changes": [[1, None, b""]], "force": True},
    "delete": {"ids": [1, 2], "force": False, "missing_ok": True},
    "resize": {"id": 1, "size_bytes": 512, "shrink": False},
    "set_capacity": {"capacity_bytes": 1 << 40},
    "diff": {"older": None, "newer": 2},
    "extents": {"id": 1, "offset": 0, "length": 4096},
    "more": {"cursor": 1},
    "flush": {},
    "checkpoint": {},
    "inspect": {"kind": "scrub", "rate_bytes": 1 << 20},
    "inspection": {"run": 1, "wait_ms": 0},
    "cancel_inspection": {"run": 1},
    "findings": {},
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
        ("diff", "newer", None),
        ("hello", "session", b"short"),
        ("hello", "client", ""),
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
    for check in (protocol.check_object, protocol.check_extent):
        with pytest.raises(ProtocolError):
            check(row)


@given(st.dictionaries(st.sampled_from(["code", "message", "x"]), VALUES))
def test_any_error_body_is_an_error(body: dict[str, Any]) -> None:
    try:
        error: Exception = protocol.check_error(body)
    except ProtocolError as refused:
        error = refused
    assert isinstance(error, Exception)
    assert isinstance(ProtocolError("x"), InvalidArgument)
