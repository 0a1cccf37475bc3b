"""A child process whose disk fails on demand (failing_medium.c): what the tests cannot ask of the real one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
PRELUDE = """
import ctypes, errno, os, sys
from blockdev import Pool, errors
from tests.engine.content import distinct_blocks
shim = ctypes.CDLL(None)
def fail_calls(call=None, part="", number=errno.EIO, skip=0, times=-1):
    shim.fail_calls(call and call.encode(), part.encode(), number, skip, times)
path = sys.argv[1]
"""


def run_on_failing_disk(script: str, path: str) -> subprocess.CompletedProcess[str]:
    """Run `script` with `path`, `fail_calls`, `shim.failed_calls` and the usual names; asserts that it ends well."""
    with tempfile.TemporaryDirectory(prefix="blockdev-test-") as directory:
        library = f"{directory}/failing_medium.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, str(SOURCE), "-ldl"], check=True)
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + script, path],
            env={**os.environ, "LD_PRELOAD": library},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    return done
