"""Values of msgpack and JSON, changed where their structure is: one field, one item, one number, one text."""

from __future__ import annotations

import random
from typing import Any

NUMBERS = (0, 1, 2, 3, 511, 512, 4096, 1 << 20, 1 << 31, 1 << 32, (1 << 48) - 1, 1 << 48, (1 << 63) - 1, 1 << 63, -1)
TEXTS = ("", "a", "web", "web/root", "web/root@s1", "é\U0001f600", "\0", "a\nb", "~", "..", "x" * 64, "x" * 300, "\ud800")
OTHERS = (None, True, False, 0.5, float("nan"), float("inf"), [], {}, [[]], {"": None})


def interesting(chance: random.Random, with_bytes: bool) -> Any:
    """A value that code may not expect."""
    kinds: list[tuple[Any, ...]] = [NUMBERS, TEXTS, OTHERS]
    if with_bytes:
        kinds.append((b"", b"tag", bytes(16), bytes(300)))
    return chance.choice(chance.choice(kinds))


def change(value: Any, chance: random.Random, with_bytes: bool) -> Any:
    """`value` with one change somewhere in it."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        return _change_map(value, chance, with_bytes)
    if isinstance(value, list) and value and chance.random() < 0.9:
        return _change_list(value, chance, with_bytes)
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return value + chance.choice((-1, 1, -512, 512, 1 << 20))
    if isinstance(value, str) and value and chance.random() < 0.5:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice(TEXTS)[:8] + value[at + chance.randrange(2) :]
    return interesting(chance, with_bytes)


def _change_map(value: dict[Any, Any], chance: random.Random, with_bytes: bool) -> dict[Any, Any]:
    changed = dict(value)
    key = chance.choice(list(changed))
    what = chance.random()
    if what < 0.1:
        del changed[key]
    elif what < 0.15:
        changed[chance.choice(TEXTS)] = changed[key]
    else:
        changed[key] = change(changed[key], chance, with_bytes)
    return changed


def _change_list(value: list[Any], chance: random.Random, with_bytes: bool) -> list[Any]:
    changed = list(value)
    at = chance.randrange(len(changed))
    what = chance.random()
    if what < 0.15:
        del changed[at]
    elif what < 0.3:
        changed.insert(at, changed[at])
    else:
        changed[at] = change(changed[at], chance, with_bytes)
    return changed
