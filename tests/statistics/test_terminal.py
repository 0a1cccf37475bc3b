"""`top` and `vm stats --watch` in a terminal: live until Ctrl-C, which is no failure."""

from __future__ import annotations

import httpx

from tests.cli.served import Home
from tests.cli.test_terminal import Terminal


def test_what_is_live_in_a_terminal_ends_with_ctrl_c_and_leaves_it_as_it_was(home: Home, rest: httpx.Client) -> None:
    assert rest.post("/vms", json={"name": "web", "disks": [{"name": "root", "size_bytes": 1 << 20}]}).status_code == 201
    for command, shown in ((["top"], "VMs by iops"), (["vm", "stats", "web", "--watch"], "latency")):
        terminal = Terminal(home, *command)
        terminal.wait_for(shown)
        terminal.wait_for("web")  # also where it is narrow: 80 columns
        terminal.type("\x03")
        assert terminal.end() == 0, terminal.seen
        assert "\x1b[?1049h" in terminal.seen and "\x1b[?1049l" in terminal.seen, "the screen before is there again"


def test_so_many_rounds_end_by_themselves(home: Home) -> None:
    terminal = Terminal(home, "top", "--count", "2", "--sort", "latency")
    assert terminal.end() == 0 and "VMs by latency" in terminal.seen
