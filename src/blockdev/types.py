"""Plain values that cross layers."""

from __future__ import annotations

from typing import Literal, NamedTuple

ExtentState = Literal["data", "hole"]


class Extent(NamedTuple):
    """A contiguous run of bytes of one state.  A hole reads as zeros and holds no space."""

    offset: int  # bytes, from the start of the vdisk
    length: int  # bytes
    state: ExtentState
