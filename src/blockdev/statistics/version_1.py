"""Files of history of version 1, made into this version's: rings, places and sizes are the same, parts of the slots are not.

Version 1 had the p99 of a kind as a code of 16 bits, and none of waits.  What a file is made into is new, beside it: whoever dies
meanwhile leaves the old one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockdev.statistics import coding, layout
from blockdev.statistics.figures import KINDS
from blockdev.statistics.layout import LONG, RINGS, SHORT, Slots

VERSION = 1
_FIRST_CHANGED, _FIRST_SAME = "read_us", "log_us"  # what is between is where it was in neither


def _slot(now: np.dtype[np.void]) -> np.dtype[np.void]:
    names = list(now.names or ())
    same = [(name, now[name].str) for name in names]
    before, after = same[: names.index(_FIRST_CHANGED)], same[names.index(_FIRST_SAME) :]
    times = [(f"{kind}_{what}", "<u2") for kind in KINDS for what in ("us", "p99_ns")]
    return np.dtype([*before, *times, *after])


SLOTS = {SHORT: _slot(SHORT), LONG: _slot(LONG)}


def converted(data: bytes, uuid: bytes) -> bytes:
    """A whole file of this version from one of version 1.  Slots that were none are zeros."""
    parts = [layout.header(uuid)]
    for ring in RINGS:
        old = np.frombuffer(data[ring.offset : ring.offset + ring.byte_count].ljust(ring.byte_count, b"\0"), SLOTS[ring.slot])
        parts.append(_slots(old, ring.slot).tobytes())
    return b"".join(parts)


def _slots(old: Slots, slot: np.dtype[np.void]) -> Slots:
    new = np.zeros(len(old), slot)
    for name in slot.names or ():
        if name in (old.dtype.names or ()):
            new[name] = old[name]
    for kind in KINDS:
        new[f"{kind}_p99"] = coding.encode_short(coding.decode(old[f"{kind}_p99_ns"]))
    new["check"] = layout.check(new)
    new[old["check"] != _check(old)] = 0
    return new


def _check(slots: Slots) -> NDArray[np.uint8]:
    """As layout.check was: some changes of one byte left it."""
    octets = np.ascontiguousarray(slots).view(np.uint8).reshape(len(slots), slots.dtype.itemsize)
    weights = np.arange(slots.dtype.itemsize, dtype=np.uint32) * 7 + 3
    weights[3] = 0
    return (1 + (octets.astype(np.uint32) @ weights) % 251).astype(np.uint8)
