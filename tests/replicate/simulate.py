"""Lives of two homes that replicate to each other, each from one seed: `python -m tests.replicate.simulate --seeds 1000`.

Guests write, snapshots come and go at both ends, connections are made twice and cut in the middle of a message, either
process of either home dies at any moment, power fails, clocks jump, the receiver is full for a while.  In the end all is
mended, and then: each snapshot that should be there is there, bit for bit, in order; nothing else is left over; and what
was sent is what had to be.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

from blockdev.replicate import receiver, sender, window
from tests.replicate.bugs import BUGS
from tests.replicate.world import World

SMALL = {  # so that a disk of some 200 blocks is many batches and messages
    (sender, "OFFERS_MAX"): 16,
    (sender, "RUNS_MAX"): 40,
    (sender, "DATA_BLOCKS_MAX"): 5,
    (sender, "UNANSWERED_MAX"): 3,
    (sender, "BATCH_BYTES"): 16 * 4096,
    (receiver, "SAVE_BYTES"): 150_000,
    (window, "WINDOW_BYTES_MIN"): 60_000,
}


@contextmanager
def small_messages() -> Iterator[None]:
    with ExitStack() as patched:
        for (module, name), value in SMALL.items():
            patched.enter_context(mock.patch.object(module, name, value))
        yield


def directory() -> str:
    """In memory where that can be: thousands of pools are made."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()


def run_seed(seed: int) -> World:
    """One life.  Raises what is wrong with it."""
    gc.collect()  # homes are rings of objects: what pools of earlier lives have outside of Python would not have them collected
    with tempfile.TemporaryDirectory(prefix="blockdev-sim-", dir=directory()) as root, small_messages():
        world = World(root, seed)
        try:
            world.live()
            world.mend()
            world.check()
            world.reverse()
        finally:
            world.stop()
        return world


def again(seed: int, bug: str | None = None) -> str:
    planted = f" --bug '{bug}'" if bug else ""
    return f".venv/bin/python -m tests.replicate.simulate --seed {seed}{planted}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.replicate.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, help="this one only, told step by step")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant it")
    asked = parser.parse_args()
    seeds = [asked.seed] if asked.seed is not None else range(asked.first_seed, asked.first_seed + asked.seeds)
    failed = 0
    totals: dict[str, int] = {}
    with BUGS[asked.bug]() if asked.bug else nullcontext():
        for count, seed in enumerate(seeds, 1):
            try:
                world = run_seed(seed)
            except Exception:
                failed += 1
                traceback.print_exc()
                print(f"seed {seed} failed; again: {again(seed, asked.bug)}", flush=True)
                continue
            for what, number in world.counts.items():
                totals[what] = totals.get(what, 0) + number
            if asked.seed is not None:
                print(*world.told, sep="\n")
            if count % 100 == 0:
                print(f"{count} seeds, {failed} failed", flush=True)
    print(f"{len(seeds)} seeds, {failed} failed; " + ", ".join(f"{number} {what}" for what, number in sorted(totals.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
