"""A child process by fork: as dead as any other when it dies, and started in no time."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

DIED_AS_TOLD = 77
Say = Callable[[str], None]


class Child:
    """Runs `work` in a forked process; what it says can be read here."""

    def __init__(self, work: Callable[[Say], None]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _live(work, writing)
        os.close(writing)
        self._said = os.fdopen(reading)
        self._status: int | None = None

    def hear(self) -> str:
        """The next line it says, "" when it has ended."""
        return self._said.readline().rstrip("\n")

    def kill(self) -> None:
        if self._status is None:
            os.kill(self.pid, 9)
            self.wait()

    def wait(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def close(self) -> None:
        self.kill()
        self._said.close()


def _live(work: Callable[[Say], None], writing: int) -> None:
    """Never returns: what the parent would do at its own end is not to be done here."""
    status = 1

    def say(line: str) -> None:
        os.write(writing, line.encode() + b"\n")

    try:
        work(say)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def die_at(wanted: str) -> Callable[[str], None]:
    """An `at_step` that ends the process there."""

    def at_step(step: str) -> None:
        if step == wanted:
            os._exit(DIED_AS_TOLD)

    return at_step
