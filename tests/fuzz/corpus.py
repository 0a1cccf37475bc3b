"""Writes the seeds of every target to tests/fuzz/corpus: .venv/bin/python -m tests.fuzz.corpus [TARGET...].

Seeds are named seed-...; regressions (inputs that failed once) and what fuzzing found worth keeping are left alone.
Run it when a format changes.
"""

from __future__ import annotations

import importlib
import sys

from tests.fuzz.harness import Harness
from tests.fuzz.session import CORPUS
from tests.fuzz.targets import TARGETS


def main() -> None:
    for name in sys.argv[1:] or TARGETS:
        harness: Harness = importlib.import_module(TARGETS[name].module).make(name)
        directory = CORPUS / name
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("seed-*"):
            old.unlink()
        for seed, data in harness.seeds().items():
            (directory / f"seed-{seed}").write_bytes(data)
        harness.close()


if __name__ == "__main__":
    main()
