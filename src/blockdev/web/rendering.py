"""Templates: HTML that escapes all it is given, and the words and numbers that people read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from blockdev.clock import now_seconds
from blockdev.errors import InvalidArgument
from blockdev.written import plural, show_period

HERE = Path(__file__).parent
STATIC = HERE / "static"
STEPS = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def render(template: str, given: Mapping[str, Any]) -> str:
    """The HTML of a template."""
    return _environment().get_template(template).render(given)


@lru_cache(1)
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "size": size,
        "rate": rate,
        "count": count,
        "counted": counted,
        "iops": iops,
        "duration": duration,
        "latency": latency,
        "ago": ago,
        "time": time,
        "percent": percent,
        "pairs": pairs,
        "period": show_period,
    }
    made.tests["received"] = is_received
    made.globals["asset"] = asset
    return made


@lru_cache(64)
def asset(name: str) -> str:
    """The address of a static file, which changes with its content: browsers may keep it for ever."""
    return f"/static/{name}?v={hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def size(number: float | None) -> str:
    """1536 -> 1.5 KiB; None -> –."""
    if number is None:
        return "–"
    value, unit = float(number), 0
    while abs(value) >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 or abs(value) >= 100 else f"{value:.3g} {UNITS[unit]}"


def rate(number: float | None) -> str:
    return "–" if number is None else f"{size(number)}/s"


def count(number: float | None) -> str:
    """12345 -> 12,345."""
    if number is None:
        return "–"
    return f"{number:,.0f}" if abs(number) >= 10 or number == int(number) else f"{number:.1f}"


def counted(number: int, noun: str) -> str:
    """1 disk, 2,000 disks."""
    return f"{count(number)} {plural(number, noun)}"


def is_received(vm: Mapping[str, Any]) -> bool:
    """Whether a VM, as the API shows it, is a peer's: it came from one, and was not promoted."""
    return vm["received"] is not None and vm["received"]["promoted"] is None


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Choices that are called what they are, for the macro `choice`."""
    return [(name, name) for name in names]


def iops(number: float | None) -> str:
    return "–" if number is None else f"{count(number)} IOPS"


def percent(part: float | None, whole: float | None) -> str:
    if part is None or not whole:
        return "–"
    share = 100 * part / whole
    return "< 0.1 %" if 0 < share < 0.1 else f"{share:.3g} %"


def duration(seconds: float | None) -> str:
    """3600 -> 1 h, 5400 -> 1 h 30 min; None -> –."""
    if seconds is None:
        return "–"
    left = int(seconds)
    parts: list[str] = []
    for step, unit in STEPS:
        if left >= step or (unit == "s" and not parts):
            parts.append(f"{left // step} {unit}")
            left %= step
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(part for index, part in enumerate(parts) if index == 0 or not part.startswith("0 "))


def latency(microseconds: float | None) -> str:
    """850 -> 850 µs, 1500 -> 1.5 ms."""
    if microseconds is None:
        return "–"
    if microseconds < 1000:
        return f"{microseconds:.3g} µs" if microseconds < 10 else f"{microseconds:.0f} µs"
    return f"{microseconds / 1000:.3g} ms" if microseconds < 1_000_000 else f"{microseconds / 1_000_000:.3g} s"


def seconds_of(text: str) -> float:
    """Of a time as the API writes it."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidArgument(f"{text[:40]!r} is no time") from None


def ago(text: str | None) -> str:
    """5 min ago, in 2 h."""
    if text is None:
        return "–"
    passed = now_seconds() - seconds_of(text)
    return f"in {_roughly(-passed)}" if passed < -1 else f"{_roughly(max(passed, 0))} ago"


def _roughly(seconds: float) -> str:
    """The first word of a duration; both when the first is small."""
    first, unit, *rest = duration(seconds).split()
    return " ".join([first, unit, *rest]) if int(first) < 3 else f"{first} {unit}"


def time(text: str | None) -> str:
    """2026-11-28 14:05:09 UTC; the page's script shows it in the reader's zone."""
    return "–" if text is None else f"{datetime.fromtimestamp(seconds_of(text), UTC):%Y-%m-%d %H:%M:%S} UTC"
