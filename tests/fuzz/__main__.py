"""python -m tests.fuzz [TARGET...] [--seconds N] [--seed N]: fuzz.   --input FILE: run one input.   --merge: grow the corpus."""

from __future__ import annotations

import argparse
import random
import sys

from tests.fuzz import session
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; none: each in turn")
    parser.add_argument("--seconds", type=int, default=300, help="for each target")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 31))
    parser.add_argument("--input", action="append", default=[], metavar="FILE", help="run this input, once")
    parser.add_argument("--merge", action="store_true", help="add what was found worth keeping to tests/fuzz/corpus")
    given = parser.parse_args()
    unknown = set(given.targets) - set(TARGETS)
    if unknown:
        parser.error(f"there is no target {sorted(unknown)[0]}; there are {', '.join(TARGETS)}")
    failed = []
    for name in given.targets or TARGETS:
        print(f"=== {name}, seed {given.seed}", flush=True)
        if given.merge:
            outcome = session.merge(name)
        elif given.input:
            limits = session.flags(name, given.seed)
            outcome = session.run(name, [*limits, *given.input])
        else:
            outcome = session.fuzz(name, given.seconds, given.seed)
        if outcome.status:
            failed.append(name)
    if failed:
        print(f"FOUND something in {', '.join(failed)}; once more: .venv/bin/python -m tests.fuzz TARGET --input FILE")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
