"""What a person writes and reads: sizes, durations and rates, parsed and shown in one way everywhere."""

from __future__ import annotations

import re
from fractions import Fraction

from blockdev.constants import DURATION_SECONDS_MAX, KEEP_SECONDS_MIN, SECTOR_BYTES, VDISK_BYTES_MAX
from blockdev.errors import InvalidArgument

SIZE_BYTES_MAX = 4 * 10**18  # what the API takes
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
DURATION_TEXT = re.compile(r"([0-9]{1,10})\s*([smhdw])", re.IGNORECASE)
FOREVER = SAME = 0  # as a duration
NO_LIMIT = 0  # as a rate
MB = 10**6
RATE_TEXT = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(?:MB(?:/s)?)?", re.IGNORECASE)
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:iB|B)?", re.IGNORECASE)
PERIODS = (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
BINARY_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def parse_size(text: str) -> int:
    """Bytes of `20G`, `1.5 TiB`, `512`: units are binary, at most SIZE_BYTES_MAX.  Raises InvalidArgument."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{text!r} is not a size: write it like 20G, 512M or 1.5T")
    size_bytes = Fraction(match[1]) * UNITS[match[2].upper()]
    if size_bytes.denominator != 1:
        raise InvalidArgument(f"{text!r} is not a whole number of bytes")
    if size_bytes > SIZE_BYTES_MAX:
        raise InvalidArgument(f"{text} is more than anything here can have: a disk has at most {VDISK_BYTES_MAX >> 40}T")
    return int(size_bytes)


def parse_rate(text: str) -> int:
    """Bytes in a second; 0 of `auto`.  Raises InvalidArgument."""
    if text.strip().lower() == "auto":
        return 0
    rate_bytes = parse_size(text)
    if rate_bytes == 0:
        raise InvalidArgument("a rate of 0 is none: write auto to let the pool choose, or a size like 100M")
    return rate_bytes


def parse_read_rate(text: str) -> int:
    """Bytes in a second.  Raises InvalidArgument."""
    rate_bytes = parse_size(text)
    if rate_bytes == 0:
        raise InvalidArgument("a rate of 0 would never end: write a size like 100M, or leave --rate away for no limit")
    return rate_bytes


def parse_link_rate(text: str) -> int:
    """Bytes in a second of `20` or `2.5 MB/s`, decimal as networks are; 0 of `none`.  Raises InvalidArgument."""
    match = RATE_TEXT.fullmatch(text.strip())
    if text.strip().lower() == "none":
        return NO_LIMIT
    rate_bytes = 0 if match is None else int(Fraction(match[1]) * MB)
    if rate_bytes == 0:
        raise InvalidArgument(f"{text!r} is no rate: write MB in a second, like 20 or 2.5, or none for no limit")
    return rate_bytes


def parse_window(text: str) -> tuple[str, int]:
    """When, and the rate then, of `mon-fri 08:00-18:00=20`; the service reads the first.  Raises InvalidArgument."""
    at, equals, rate = text.rpartition("=")
    if not (equals and at.strip()):
        raise InvalidArgument(f"{text!r} is no window: write it like 'mon-fri 08:00-18:00=20', in MB/s, or =none")
    return at.strip(), parse_link_rate(rate)


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `30m`, `12h`, `3d`, `2w`.  Raises InvalidArgument."""
    match = DURATION_TEXT.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise InvalidArgument(f"{text!r} is not a duration: write it like 90s, 30m, 12h, 3d or 2w")
    seconds = int(match[1]) * SECONDS_OF[match[2].lower()]
    if seconds > DURATION_SECONDS_MAX:
        raise InvalidArgument(f"{text} is longer than a hundred years")
    return seconds


def parse_keep(text: str) -> int:
    """How long a snapshot is kept that goes by itself.  Raises InvalidArgument."""
    seconds = parse_duration(text)
    if seconds < KEEP_SECONDS_MIN:
        raise InvalidArgument(f"{text} is too short: a snapshot is kept for a minute at least, 1m")
    return seconds


def parse_duration_or_forever(text: str) -> int:
    """Seconds; 0 of `forever`.  Raises InvalidArgument."""
    return FOREVER if text.strip().lower() == "forever" else parse_duration(text)


def parse_duration_or_none(text: str) -> int:
    """Seconds; 0 of `none`.  Raises InvalidArgument."""
    return 0 if text.strip().lower() == "none" else parse_duration(text)


def parse_keep_or_same(text: str) -> int:
    """Seconds; 0 of `same`.  Raises InvalidArgument."""
    return SAME if text.strip().lower() == "same" else parse_keep(text)


def parse_disk_size(text: str) -> int:
    """A size that a disk can have.  Raises InvalidArgument."""
    size_bytes = parse_size(text)
    if size_bytes % SECTOR_BYTES:
        down = size_bytes - size_bytes % SECTOR_BYTES
        near = f"{down} or {down + SECTOR_BYTES}" if down else f"{SECTOR_BYTES}"
        raise InvalidArgument(
            f"disk size {text} is {size_bytes} bytes, not a multiple of {SECTOR_BYTES}: use {near}"
        )
    if not 0 < size_bytes <= VDISK_BYTES_MAX:
        raise InvalidArgument(f"disk size {text} must be from {SECTOR_BYTES} bytes to {VDISK_BYTES_MAX >> 40}T")
    return size_bytes


def show_size(size_bytes: int) -> str:
    """20 GiB, 1.5 GiB, 512 bytes."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(BINARY_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.1f}".removesuffix(".0") + f" {BINARY_UNITS[unit]}"


def show_duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 7 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def show_period(seconds: int) -> str:
    """3d, 12h, 90s: as a person writes it, and exactly."""
    unit, size = next((unit, size) for unit, size in PERIODS if seconds % size == 0)
    return f"{seconds // size}{unit}"


def show_count(count: int, noun: str) -> str:
    """1 disk, 2 disks."""
    return f"{count} {plural(count, noun)}"


def plural(count: int, noun: str) -> str:
    """disk, of one; disks."""
    return noun if count == 1 else f"{noun}s"


def show_speed(bytes_per_second: int) -> str:
    """38 MB/s: decimal, as limits are."""
    if not bytes_per_second:
        return "-"
    rate = bytes_per_second / MB
    return f"{rate:.0f} MB/s" if rate >= 10 else f"{rate:.2g} MB/s"


def show_link_rate(rate_bytes: int | None) -> str:
    """What a path may send in a second: 2.5 MB/s, none."""
    return "none" if rate_bytes is None else f"{rate_bytes / MB:g} MB/s"
