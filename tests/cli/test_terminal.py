"""On a terminal: a bar for long work, a question before a loss, and Ctrl-C that cancels."""

from __future__ import annotations

import os
import pty
import re
import select
import time
from pathlib import Path

import pytest

from tests.cli.served import BLOCKDEVCTL, SECONDS_MAX, Home


class Terminal:
    """One command on a pseudo-terminal."""

    def __init__(self, home: Home, *arguments: str) -> None:
        self.seen = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(BLOCKDEVCTL, [BLOCKDEVCTL, "--home", str(home.path), *arguments])

    def wait_for(self, pattern: str) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not re.search(pattern, self.seen):
            assert time.monotonic() < deadline and self._read(), self.seen

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def end(self) -> int:
        """The exit status."""
        while self._read():
            pass
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self) -> bool:
        if not select.select([self._terminal], [], [], SECONDS_MAX)[0]:
            return False
        try:
            part = os.read(self._terminal, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += part.decode(errors="replace")
        return bool(part)


@pytest.mark.parametrize("answer", ["n", "y"])
def test_deleting_asks_first(home: Home, name: str, answer: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    terminal = Terminal(home, "vm", "delete", name)
    terminal.wait_for(r"Go on\? \[y/N\]")
    assert f"delete VM {name} with disk root (1 MiB)" in terminal.seen
    terminal.type(f"{answer}\n")
    status = terminal.end()
    if answer == "y":
        assert status == 0 and home.run("vm", "show", name).status == 3
    else:
        assert status != 0 and "nothing was changed" in terminal.seen
        assert home.run("vm", "show", name).status == 0


def test_import_shows_a_bar(home: Home, name: str, images: Path) -> None:
    terminal = Terminal(home, "vm", "create", name, "--image", f"root={images / 'fs.qcow2'}")
    assert terminal.end() == 0
    assert "━" in terminal.seen and "256.0" in terminal.seen and f"created VM {name}" in terminal.seen


def test_control_c_at_the_question_changes_nothing(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    terminal = Terminal(home, "vm", "delete", name)
    terminal.wait_for(r"\[y/N\]")
    terminal.type("\x03\n")  # the newline wakes a read that began just after the signal
    assert terminal.end() == 130 and "error: interrupted" in terminal.seen
    assert home.run("vm", "show", name).status == 0
