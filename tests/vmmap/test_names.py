"""Names, sizes, texts and tags: what is accepted, and what the refusals say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.constants import TAG_BYTES_MAX, VDISK_BYTES_MAX
from blockdev.errors import InvalidArgument
from blockdev.vmmap.names import (
    ObjectName,
    check_name,
    check_size,
    check_text,
    object_name,
    parse_object_name,
)
from blockdev.vmmap.tags import CONSISTENCIES, ORIGINS, Tag, decode_tag, encode_tag
from blockdev.vmmap.views import import_name

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
UUID = "8d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b11"


@pytest.mark.parametrize("name", ["a", "web", "Web-1", "0", "a.b_c-d", "x" * 63])
def test_good_names_are_taken(name: str) -> None:
    assert check_name("VM", name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "_a", "a b", "a/b", "a@b", "a~b", "é", "a\n", "x" * 64, "a\0", None, 7, "٣", "x" * 10_000]
)
def test_bad_names_are_refused_in_words(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="VM name .* cannot be used: take 1 to 63 letters") as refused:
        check_name("VM", name)
    assert len(refused.value.message) < 250


@given(NAMES, NAMES, st.none() | NAMES)
def test_an_object_name_reads_back_as_what_it_was_made_of(vm: str, disk: str, snapshot: str | None) -> None:
    assert parse_object_name(object_name(vm, disk, snapshot)) == ObjectName(vm, disk, snapshot)


@given(st.text(max_size=40))
def test_any_name_reads_one_way_or_not_at_all(name: str) -> None:
    parsed = parse_object_name(name)
    assert parsed is None or object_name(*parsed) == name


@pytest.mark.parametrize(
    "name", [None, "", "web", "web/", "/root", "web/root@", "a/b/c", "a/b@c@d", import_name("web", "root")]
)
def test_other_names_are_not_of_vms(name: str | None) -> None:
    assert parse_object_name(name) is None


@pytest.mark.parametrize("size_bytes", [512, 1024, 1 << 40, VDISK_BYTES_MAX])
def test_good_sizes_are_taken(size_bytes: int) -> None:
    assert check_size("disk root", size_bytes) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "nearest"),
    [
        (0, 512),
        (-5, 512),
        (1, 512),
        (513, 512),
        (767, 512),
        (768, 1024),
        (1000, 1024),
        ((1 << 40) + 1, 1 << 40),
        (VDISK_BYTES_MAX + 512, VDISK_BYTES_MAX),
    ],
)
def test_a_bad_size_is_refused_with_the_nearest_good_one(size_bytes: int, nearest: int) -> None:
    with pytest.raises(
        InvalidArgument, match=f"disk root, {size_bytes} bytes.*nearest good size is {nearest}$"
    ):
        check_size("disk root", size_bytes)


@pytest.mark.parametrize("size", [True, 512.0, "512", None])
def test_a_size_is_a_whole_number(size: Any) -> None:
    with pytest.raises(InvalidArgument, match="whole number"):
        check_size("disk root", size)


@given(st.integers(-(1 << 50), 1 << 50))
def test_the_nearest_size_is_good_and_near(size_bytes: int) -> None:
    try:
        check_size("it", size_bytes)
    except InvalidArgument as error:
        said = re.search(r"(\d+)$", error.message)
        assert said is not None
        nearest = int(said[1])
        check_size("it", nearest)
        assert nearest in (512, VDISK_BYTES_MAX) or abs(nearest - size_bytes) <= 256


@pytest.mark.parametrize("text", ["a\0b", "\udc80", "é" * 6, 7, b"bytes"])
def test_texts_that_cannot_be_kept_are_refused(text: Any) -> None:
    with pytest.raises(InvalidArgument, match="description"):
        check_text("description", text, 10)


TAGS = st.builds(
    Tag,
    st.uuids().map(str),
    st.datetimes().map(lambda moment: moment.isoformat(timespec="milliseconds") + "Z"),
    st.sampled_from(ORIGINS),
    st.sampled_from(CONSISTENCIES),
    st.booleans(),
)


@given(TAGS)
def test_a_tag_reads_back_as_what_it_was(tag: Tag) -> None:
    assert decode_tag(encode_tag(tag)) == tag
    assert len(encode_tag(tag)) <= 40 < TAG_BYTES_MAX


@given(st.binary(max_size=60))
def test_any_bytes_are_a_tag_or_none(data: bytes) -> None:
    tag = decode_tag(data)
    assert tag is None or decode_tag(encode_tag(tag)) == tag


@given(TAGS, st.data())
def test_a_damaged_tag_is_a_tag_or_none(tag: Tag, data: st.DataObject) -> None:
    damaged = bytearray(encode_tag(tag))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    found = decode_tag(bytes(damaged))
    assert found is None or decode_tag(encode_tag(found)) == found


def test_a_tag_has_the_documented_bytes() -> None:
    tag = Tag(UUID, "2026-11-22T15:19:26.123Z", origin="restore", temporary=True)
    assert encode_tag(tag).hex() == (
        "96"  # six fields
        "01"  # version
        "c4108d0c6b9a3c114c4e9a390b6f6d2f3b11"  # the VM's uuid
        "cf000001a203d738ab"  # milliseconds since 1970
        "c3"  # temporary
        "02"  # restore
        "00"  # crash-consistent
    )
