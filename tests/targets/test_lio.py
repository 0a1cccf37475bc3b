"""What LIO holds follows what is wanted, on a real kernel: the stories run in the lab's User-Mode-Linux guest."""

from __future__ import annotations

import sys

from tests.lab.guest import run
from tests.lab.uml import UserModeMachine


def tell(story: str, *modules: str, memory_mib: int = 1024) -> None:
    """Runs a story in the guest; what it printed is shown when it fails."""
    machine = UserModeMachine(modules=modules, memory_mib=memory_mib, time_limit_s=560)
    result = run([sys.executable, "-m", f"tests.targets.{story}"], machine)
    assert result.status == 0, f"{result.stdout.decode()}\n{result.stderr.decode()}"


def test_configfs_is_brought_to_what_is_wanted_and_nothing_else_is_touched() -> None:
    tell("lio_story", "brd")
