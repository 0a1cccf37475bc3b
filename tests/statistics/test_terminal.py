"""`top` and `vm stats --watch` in a terminal: live until Ctrl-C, which is no failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from blockdev.cli import main, statistics
from blockdev.cli.session import Session
from tests.cli.served import SECONDS_MAX, Home
from tests.cli.test_terminal import Terminal


def test_what_is_live_in_a_terminal_ends_with_ctrl_c_and_leaves_it_as_it_was(home: Home, rest: httpx.Client) -> None:
    assert rest.post("/vms", json={"name": "web", "disks": [{"name": "root", "size_bytes": 1 << 20}]}).status_code == 201
    for command, shown in ((["top"], " by iops"), (["vm", "stats", "web", "--watch"], "latency")):
        terminal = Terminal(home, *command)
        terminal.wait_for(shown)
        terminal.wait_for("web")  # also where it is narrow: 80 columns
        terminal.type("\x03")
        assert terminal.end() == 0, terminal.seen
        assert "\x1b[?1049h" in terminal.seen and "\x1b[?1049l" in terminal.seen, "the screen before is there again"


def test_so_many_rounds_end_by_themselves(home: Home) -> None:
    terminal = Terminal(home, "top", "--count", "2", "--sort", "latency")
    assert terminal.end() == 0 and " by latency" in terminal.seen


def test_watchers_say_who_is_away_and_go_on_when_it_is_back(own: Home) -> None:
    """blockdevd and all that looks after it, longer than a command waits; then the engine."""
    own("vm", "create", "web", "--disk", "root=1M")
    watcher, terminal = own.start_command("vm", "stats", "web", "--watch", "--json"), Terminal(own, "top")
    try:
        _read_until(watcher, lambda found: "vm" in found)
        terminal.wait_for("1 VM by iops")
        own.stop()
        assert _read_until(watcher, lambda found: "vm" not in found).keys() == {"away_since"}
        terminal.wait_for("blockdevd does not answer")
        own.serve()
        _read_until(watcher, lambda found: found.get("engine_running"))
        terminal.seen = ""
        terminal.wait_for("requests/s")
        assert own.serving is not None
        engine = own.engine_pid()
        os.kill(own.serving.pid, signal.SIGSTOP)  # so that nobody starts it again
        try:
            os.kill(engine, signal.SIGKILL)
            _read_until(watcher, lambda found: found.get("engine_running") is False)
            terminal.wait_for("the engine does not answer")
        finally:
            os.kill(own.serving.pid, signal.SIGCONT)
        _read_until(watcher, lambda found: found.get("engine_running"))
        terminal.seen = ""
        terminal.wait_for("requests/s")
        terminal.type("\x03")
        assert terminal.end() == 0, terminal.seen
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(SECONDS_MAX) == 0
    finally:
        watcher.kill()
        watcher.communicate()


@pytest.mark.parametrize("command", [["top"], ["vm", "stats", "web", "--watch"]], ids=["top", "stats"])
def test_a_blockdevd_that_hangs_is_told_of_once_and_the_watcher_goes_on(
    home: Home, rest: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """In this process, for a person waits longer than a test should (8 s)."""
    rest.post("/vms", json={"name": "web", "disks": [{"name": "root", "size_bytes": 1 << 20}]})  # or it is there
    asked, control = statistics._rounds, home.control_pid()

    def rounds(session: Session, *given: Any) -> Iterator[statistics.Row]:
        for number, found in enumerate(asked(session, *given)):
            yield found
            if number == 0:
                assert session.client.answer_seconds_max < 10
                session.client.answer_seconds_max = 0.5
                os.kill(control, signal.SIGSTOP)
            elif number == 2:
                os.kill(control, signal.SIGCONT)
            elif number > 2 and found["away_since"] is None:
                return

    monkeypatch.setattr(statistics, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(statistics, "_rounds", rounds)
    try:
        assert main.run(["--home", str(home.path), *command, "--json", "--count", "1000"]) == 0
    finally:
        os.kill(control, signal.SIGCONT)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["away_since" in one for one in told] == [False, True, False], told


def _read_until(watcher: subprocess.Popen[str], is_it: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    assert watcher.stdout is not None
    for line in watcher.stdout:
        found: dict[str, Any] = json.loads(line)
        if is_it(found):
            return found
    raise AssertionError(f"it ended with {watcher.wait()}")
