"""What a target is to the fuzzer."""

from __future__ import annotations

import random


class Harness:
    """Takes one input after the other; state that an input changed is made anew before the next."""

    def one_input(self, data: bytes) -> None:
        """Raises whatever is not allowed: an AssertionError that says so, or an exception that no caller expects."""
        raise NotImplementedError

    def seeds(self) -> dict[str, bytes]:
        """Inputs made of real things, by name: where fuzzing begins."""
        raise NotImplementedError

    def mutate(self, data: bytes, chance: random.Random) -> bytes | None:
        """`data` changed where its structure is; None leaves it to libFuzzer, which does half of the work anyway."""
        return None

    def close(self) -> None:
        """End what was started."""
