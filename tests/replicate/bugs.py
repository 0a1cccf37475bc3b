"""Defects that the simulation has to find: each is planted for as long as its context lasts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

Plant = Callable[[], AbstractContextManager[object]]

BUGS: dict[str, Plant] = {}
