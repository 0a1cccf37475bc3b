"""The process that fuzzes: python -m tests.fuzz.run TARGET [libFuzzer's arguments]; started by tests.fuzz.session."""

from __future__ import annotations

import ctypes
import importlib
import os
import random
import resource
import sys

import atheris

from tests.fuzz.harness import Harness
from tests.fuzz.targets import target_of

NATIVE_ONLY_SHARE = 0.5  # of all mutations


def main() -> None:
    preloaded = os.environ.pop("LD_PRELOAD", "").split()  # not for the programs that a target starts
    name, *flags = sys.argv[1:]
    target = target_of(name)
    if not target.sanitized:  # under sanitizers the address space is never small, libFuzzer limits each allocation then
        resource.setrlimit(resource.RLIMIT_AS, (2 * target.memory_mib_max << 20,) * 2)
    with atheris.instrument_imports(include=["blockdev", "tests.fuzz.canary"]):
        module = importlib.import_module(target.module)
    harness: Harness = module.make(name)

    def mutate(data: bytes, bytes_max: int, seed: int) -> bytes:
        chance = random.Random(seed)
        changed = None if chance.random() < NATIVE_ONLY_SHARE else harness.mutate(data, chance)
        return atheris.Mutate(data, bytes_max) if changed is None else changed[:bytes_max]

    one_input = CoveredInput(harness, preloaded[0]) if preloaded else harness.one_input
    # libFuzzer starts itself again by a shell when it merges corpora
    again = f"env LD_PRELOAD='{' '.join(preloaded)}' {sys.executable} -m tests.fuzz.run {name}"
    atheris.Setup([again, *flags], one_input, custom_mutator=mutate)
    atheris.Fuzz()


class CoveredInput:
    """Begins to tell of the extensions' coverage with the first input: only then atheris has loaded its libFuzzer."""

    def __init__(self, harness: Harness, preloaded: str) -> None:
        self._harness = harness
        self._preloaded: str | None = preloaded

    def __call__(self, data: bytes) -> None:
        if self._preloaded is not None:
            begin_coverage(self._preloaded)
            self._preloaded = None
        self._harness.one_input(data)


def begin_coverage(path: str) -> None:
    """Let the extensions' coverage reach atheris's libFuzzer (preload.c)."""
    fuzzer = importlib.import_module("atheris.core_with_libfuzzer").__file__
    assert fuzzer is not None
    if not ctypes.CDLL(path).fuzz_coverage_begin(fuzzer.encode()):
        raise RuntimeError(f"{path} finds no libFuzzer in {fuzzer}")


if __name__ == "__main__":
    main()
