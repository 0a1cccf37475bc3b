"""The type stubs of the extensions say what these have: each name, and each argument."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src/blockdev"


def test_stubs_are_true() -> None:
    modules = [f"blockdev.{stub.stem}" for stub in sorted(PACKAGE.glob("*.pyi"))]
    assert "blockdev._pool" in modules
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", *modules]
    done = subprocess.run(command, cwd=PACKAGE.parents[1], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
