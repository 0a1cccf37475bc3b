"""A child process of the torture build whose disk fails on demand: what the tests cannot ask of the real one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

from tests.torture.runner import BUILD, ROOT, build

PRELUDE = """
import errno, os, sys
from blockdev import Pool, errors
from tests.engine.content import distinct_blocks
from tests.engine.failing_medium import FailingMedium
medium = FailingMedium()
fail_calls = medium.fail_calls
path = sys.argv[1]
"""


class FailingMedium:
    """The hook of this process's medium: lets chosen calls on chosen files fail."""

    def __init__(self) -> None:
        from blockdev import _medium  # a torture build

        self.paths: dict[int, str] = {}  # by file descriptor
        self.written_bytes = 0
        self.fail_calls()
        _medium.intercept(self)

    def fail_calls(
        self, call: str = "", part: str = "", number: int = errno.EIO, skip: int = 0, times: int = -1
    ) -> None:
        """After `skip` such calls that work, `times` fail (-1: all).  A later call replaces the former; no name ends it.

        call: as the hook names it; part: of the path.
        """
        self.call, self.part, self.number, self.skip, self.times = call, part, number, skip, times
        self.failed_count = 0

    def __call__(
        self, operation: str, fd: int, path: str | None, _other: str | None, data: bytes | None, _offset: int
    ) -> tuple[int, bool, int] | None:
        if operation == "opened" and path:
            self.paths[fd] = path
        if operation == "write":
            self.written_bytes += len(data or b"")
        if operation != self.call or self.part not in (path or self.paths.get(fd, "")) or self.times == 0:
            return None
        if self.skip > 0:
            self.skip -= 1
            return None
        self.times -= 1
        self.failed_count += 1
        return self.number, False, 0


def run_on_failing_disk(script: str, path: str) -> subprocess.CompletedProcess[str]:
    """Run `script` with `path`, `medium`, `fail_calls` and the usual names; asserts that it ends well."""
    build()
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, path],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(BUILD)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done
