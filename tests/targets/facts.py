"""Facts that are tried one after the other in one lab guest, and seen as tests of their own on the machine.

A script in the guest marks functions with `@fact`; `play` calls them in the order of the file and writes into the share how
each of them ended.  A guest costs seconds to start and a served home more, so that facts share one: each leaves behind what the next
ones need, and says so by its place.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.lab.guest import Guest
from tests.lab.uml import UserModeMachine

ROOT = Path(__file__).resolve().parents[2]
OUTCOMES = "outcomes.json"
ASKED_BY = "BLOCKDEV_TARGETS_"  # variables that begin so make longer forms of the tests
Fact = Callable[[Any], None]


def facts_of(module: Any) -> list[str]:
    """The names of a script's facts, in its order."""
    return [name for name, value in vars(module).items() if getattr(value, "is_fact", False)]


def fact(function: Fact) -> Fact:
    function.is_fact = True  # type: ignore[attr-defined]
    return function


def share() -> Path:
    return Path(os.environ["LAB_SHARE"])


def play(module: Any, world: Any, names: Sequence[str] = ()) -> None:
    """In the guest: try the facts with `world`; a failure is written down, and the next one is tried."""
    outcomes: dict[str, Any] = {}
    for name in names or facts_of(module):
        begun = time.monotonic()
        try:
            getattr(module, name)(world)
            failure = None
        except BaseException:
            failure = traceback.format_exc()
            print(f"--- {name}: {failure}", file=sys.stderr, flush=True)
            world.describe_failure(name)
        took = round(time.monotonic() - begun, 1)
        print(f"{took:6} s {name}{': FAILED' if failure else ''}", flush=True)
        outcomes[name] = {"seconds": took, "failure": failure}
    (share() / OUTCOMES).write_text(json.dumps(outcomes))


class Outcomes:
    """On the machine: how the facts of one guest ended, and what the guest left in its share."""

    def __init__(self, module: Any, machine: UserModeMachine, *arguments: str) -> None:
        asked = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(ASKED_BY)]
        command = ["env", *asked, sys.executable, "-m", module.__name__, *arguments]
        with Guest(command, machine) as guest:
            self.result = guest.wait()
            outcomes = guest.share / OUTCOMES
            self.of: dict[str, Any] = json.loads(outcomes.read_text()) if outcomes.exists() else {}
            self.files = {path.name: path.read_bytes() for path in guest.share.glob("left-*")}
        print(self.result.stdout.decode(errors="replace"))

    def check(self, name: str) -> None:
        assert name in self.of, f"it was not tried: {self.result.describe()}"
        failure = self.of[name]["failure"]
        assert failure is None, f"{failure}\n{self.result.stderr.decode(errors='replace')[-6000:]}"
