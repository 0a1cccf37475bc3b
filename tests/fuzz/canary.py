"""A target with defects, which shows that the machinery finds and sees them: inputs that are their names."""

from __future__ import annotations

import ctypes

from tests.fuzz.harness import Harness


class Canary(Harness):
    def one_input(self, data: bytes) -> None:
        if data == b"property":
            raise AssertionError("a property that does not hold")
        if data == b"overrun":
            ctypes.memset(ctypes.create_string_buffer(64), 0, 65)
        if data == b"memory":
            bytes(1 << 30)
        while data == b"hang":
            pass

    def seeds(self) -> dict[str, bytes]:
        return {"nothing": b"nothing"}


def make(name: str) -> Harness:
    return Canary()
