"""Numbers of any size in 16 bits, to 0.04 % of one more: what a slot of history has room for.

A code is 0 for "not known", else 1 + 1024 log2(1 + value), rounded: 0 and 1 come back exactly, and so does the order of values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint16]
Values = NDArray[np.float64]
PER_DOUBLING = 1024
ERROR_MAX = 0.0004  # of 1 + a value
CODE_MAX = 65535


def encode(values: NDArray[Any]) -> Codes:
    """Of values at least 0; NaN and what is below 0 is not known."""
    with np.errstate(invalid="ignore"):
        given = np.asarray(values, dtype=np.float64)
        codes = 1 + np.rint(PER_DOUBLING * np.log2(1 + np.where(given >= 0, given, 0)))
        return np.where(given >= 0, np.minimum(codes, CODE_MAX), 0).astype(np.uint16)


def decode(codes: Codes) -> Values:
    """NaN: not known."""
    values = np.exp2((codes.astype(np.float64) - 1) / PER_DOUBLING) - 1
    return np.where(codes > 0, values, np.nan)
