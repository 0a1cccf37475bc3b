"""Numbers of any size in 16 bits, to 0.04 % of one more, and times in 8: what a slot of history has room for.

A code is 0 for "not known", else 1 + 1024 log2(1 + value), rounded: 0 and 1 come back exactly, and so does the order of values.
A short code, of nanoseconds, is 0 or 1 + 9 log2(1 + value / 256): right to 4 %, as far as the engine's histograms reach.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint16]
ShortCodes = NDArray[np.uint8]
Values = NDArray[np.float64]
PER_DOUBLING = 1024
ERROR_MAX = 0.0004  # of 1 + a value
CODE_MAX = 65535
SHORT_UNIT_NS = 256
SHORT_PER_DOUBLING = 9
SHORT_ERROR_MAX = 0.04  # of SHORT_UNIT_NS + a value, up to 2^36 ns
SHORT_CODE_MAX = 255


def encode(values: NDArray[Any]) -> Codes:
    """Of values at least 0; NaN and what is below 0 is not known."""
    return _encode(values, 1, PER_DOUBLING, CODE_MAX).astype(np.uint16)


def decode(codes: Codes) -> Values:
    """NaN: not known."""
    return _decode(codes, 1, PER_DOUBLING)


def encode_short(values_ns: NDArray[Any]) -> ShortCodes:
    """Of nanoseconds, else as encode()."""
    return _encode(values_ns, SHORT_UNIT_NS, SHORT_PER_DOUBLING, SHORT_CODE_MAX).astype(np.uint8)


def decode_short(codes: ShortCodes) -> Values:
    """Nanoseconds; NaN: not known."""
    return _decode(codes, SHORT_UNIT_NS, SHORT_PER_DOUBLING)


def _encode(values: NDArray[Any], unit: int, per_doubling: int, code_max: int) -> Values:
    with np.errstate(invalid="ignore"):
        given = np.asarray(values, dtype=np.float64)
        codes = 1 + np.rint(per_doubling * np.log2(1 + np.where(given >= 0, given, 0) / unit))
        return np.where(given >= 0, np.minimum(codes, code_max), 0)


def _decode(codes: NDArray[Any], unit: int, per_doubling: int) -> Values:
    values = unit * (np.exp2((codes.astype(np.float64) - 1) / per_doubling) - 1)
    return np.where(codes > 0, values, np.nan)
