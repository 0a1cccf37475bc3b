"""blockdevctl pool check, scrub and compact: progress, Ctrl-C, findings that stay until they are gone, space that comes back."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool
from blockdev.api.schemas import Compacted
from blockdev.cli.progress import Lines
from tests.cli.served import SECONDS_MAX, Home, run_tool, until
from tests.cli.test_terminal import Terminal
from tests.engine.content import distinct_blocks

BLOCK = 4096
SLOW = "100K"  # a scrub or a compaction at this rate takes minutes


@pytest.fixture
def served(fresh: Home) -> Iterator[Home]:
    """VM web with 16 MiB of data on disk root, in a snapshot as well, and a clone of it."""
    image = fresh.above / "image.raw"
    image.write_bytes(distinct_blocks(0, 4096))
    fresh.serve()
    fresh("vm", "create", "web", "--image", f"root={image}", "--disk", "data=1M")
    fresh("snapshot", "create", "web", "--name", "monday")
    fresh("clone", "web@monday", "test")
    yield fresh


def damage(home: Home, number: int) -> None:
    """Flip a bit of a block in the segment file."""
    for file in sorted((home.path / "pool/segments").iterdir()):
        at = file.read_bytes().find(distinct_blocks(number, 1))
        if at >= 0:
            with open(file, "r+b") as opened:
                opened.seek(at + 100)
                opened.write(b"\xa5")
            return
    raise AssertionError("the block is in no segment")


def known(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = home.json("pool", "status")["inspections"]
    return found


def compacting(home: Home) -> dict[str, Any] | None:
    progress: dict[str, Any] | None = home.json("pool", "status")["compaction"]
    return progress


def test_findings_stay_until_they_are_gone_whatever_is_restarted(served: Home) -> None:
    assert known(served)["last_scrub"] is None
    damage(served, 700)
    result = served.run("pool", "scrub")
    assert result.status == 8 and "found 3 faults" in result.stderr
    [job] = served.json("job", "list", "--kind", "pool.scrub")["jobs"]
    watched = served.run("job", "watch", job["id"])
    assert (watched.status, watched.stdout) == (8, result.stdout), "as the command that began it"
    where = f"bytes {700 * BLOCK} to {701 * BLOCK - 1}: segment 0000"
    for name in ("VM web, disk root, ", "VM web, disk root, snapshot monday, ", "VM test, disk root, "):
        assert name + where in result.stdout, result
    [finding] = [f for f in known(served)["findings"] if f["snapshot"] == "monday"]
    assert (finding["vm"], finding["disk"], finding["object"]) == ("web", "root", "web/root@monday")
    assert (finding["offset"], finding["length"]) == (700 * BLOCK, BLOCK)
    assert "VM test, disk root, " + where in served("pool", "status")

    os.kill(served.control_pid(), signal.SIGKILL)
    until(lambda: served.run("pool", "status").status == 0, "the control plane's next start")
    assert len(known(served)["findings"]) == 3
    served.stop()
    served.serve()
    assert len(known(served)["findings"]) == 3
    assert served.run("pool", "check", "--json").status == 8

    served("vm", "delete", "test", "--yes")
    assert len(known(served)["findings"]) == 2
    run_tool("qemu-io", "-f", "raw", "-c", f"write {700 * BLOCK} {BLOCK}", served.uri("web/root"))
    assert [f["snapshot"] for f in known(served)["findings"]] == ["monday"]
    served("snapshot", "delete", "web@monday", "--yes")
    status = known(served)
    assert status["findings"] == [] and status["last_scrub"]["finding_count"] == 3
    assert "sound" in served("pool", "scrub")


def test_what_a_guest_met_asks_for_a_scrub_until_one_has_looked(served: Home) -> None:
    damage(served, 700)
    with pytest.raises(AssertionError, match="Input/output error"):
        run_tool("qemu-io", "-r", "-f", "raw", "-c", f"read {700 * BLOCK} {BLOCK}", served.uri("web/root"))
    assert "met a block that did not verify, since the last scrub: run pool scrub" in served("pool", "status")
    assert "run pool scrub" in served.run("pool", "status", "--check").stderr
    served.run("pool", "scrub")
    checked = served.run("pool", "status", "--check")
    assert checked.status == 8 and "pool status names it" in checked.stderr and "run pool scrub" not in checked.stdout + checked.stderr
    served("vm", "delete", "test", "--yes")
    served("snapshot", "delete", "web@monday", "--yes")
    served("disk", "remove", "web/root", "--yes")
    assert served.run("pool", "status", "--check").status == 0
    assert served.json("pool", "status")["engine"]["stats"]["checksum_errors"] > 0


def test_what_is_there_twice_is_healed_and_no_failure(served: Home) -> None:
    served.stop()
    with open(served.path / "pool/map/nodes-mirror", "r+b") as file:
        content = file.read()
        for at in range(0, len(content), 4608):
            file.seek(at + 1000)
            file.write(bytes([content[at + 1000] ^ 1]))
    served.serve()
    found = served.json("pool", "scrub")
    assert found["findings"] == [] and all("written anew" in line for line in found["healed"]) and found["healed"]
    assert known(served)["last_scrub"]["healed_count"] == len(found["healed"])
    assert served.json("pool", "scrub")["healed"] == []


def test_scrub_shows_a_bar_and_control_c_ends_it_without_harm(served: Home) -> None:
    terminal = Terminal(served, "pool", "scrub", "--rate", SLOW)
    terminal.wait_for("━")
    running = until(lambda: known(served)["running"], "the scrub to be seen")
    assert running["kind"] == "scrub" and running["total_bytes"] > running["done_bytes"]
    assert "scrub:" in served("pool", "status") and "running" in served("pool", "status")
    assert served.run("pool", "check").status == 5
    terminal.type("\x03")
    assert terminal.end() == 130
    until(lambda: known(served)["running"] is None, "the scrub to end")
    status = known(served)
    assert status["last_scrub"] is None and status["findings"] == []
    assert "sound" in served("pool", "scrub")


def test_a_scrub_outlives_the_control_plane_and_is_joined(served: Home) -> None:
    process = served.start_command("pool", "scrub", "--rate", SLOW)
    first = until(lambda: known(served)["running"], "the scrub to be seen")
    os.kill(served.control_pid(), signal.SIGKILL)
    process.communicate(timeout=SECONDS_MAX)
    until(lambda: served.run("pool", "status").status == 0, "the control plane's next start")
    again = known(served)["running"]
    assert again["started"] == first["started"]
    process = served.start_command("pool", "scrub")
    with served.rest() as rest:
        [job] = until(lambda: rest.get("/jobs", params={"state": "running"}).json()["jobs"], "the job")
        until(lambda: rest.get(f"/jobs/{job['id']}").json()["total_bytes"], "the job's progress")
        assert known(served)["running"]["started"] == first["started"]
        assert rest.delete(f"/jobs/{job['id']}").status_code == 200
    assert process.wait(SECONDS_MAX) != 0
    process.communicate()
    until(lambda: known(served)["running"] is None, "the scrub to end")


@pytest.mark.parametrize("verb", ["scrub", "compact"])
def test_serve_stops_while_work_on_the_pool_runs(served: Home, verb: str) -> None:
    process = served.start_command("pool", verb, "--rate", SLOW)
    until(lambda: compacting(served) if verb == "compact" else known(served)["running"], f"the {verb} to be seen")
    before = time.monotonic()
    served.stop()
    assert time.monotonic() - before < 90
    assert process.wait(SECONDS_MAX) != 0
    process.communicate()


def test_offline_needs_no_server_and_refuses_a_served_pool(served: Home, tmp_path: Path) -> None:
    result = served.run("pool", "check", "--offline")
    assert result.status == 5 and "in use by another engine" in result.error
    served.stop()
    assert "check: the pool is sound" in served("pool", "check", "--offline")
    damage(served, 5)
    result = served.run("pool", "scrub", "--offline")
    assert result.status == 8 and f"VM web, disk root, snapshot monday, bytes {5 * BLOCK} to" in result.stdout
    Pool.create(str(tmp_path / "another"), 256 << 20).close()
    assert served.json("pool", "scrub", "--offline", tmp_path / "another")["findings"] == []
    assert served.run("pool", "check", "--offline", tmp_path).status == 3
    assert served.run("pool", "check", tmp_path / "another").status == 2


COMPACTED = re.compile(r"compact: .* given back, \d+ segments? removed, \d+ rewritten; .* of live data\n")


def add_garbage(home: Home) -> None:
    """16 MiB that nothing needs any more."""
    image = home.above / "gone.raw"
    image.write_bytes(distinct_blocks(1 << 20, 4096))
    home("vm", "create", "gone", "--image", f"root={image}")
    home("vm", "delete", "gone", "--yes")


def used_bytes(home: Home) -> int:
    return int(home.json("pool", "status")["engine"]["stats"]["used_bytes"])


def reads_the_same(home: Home) -> bool:
    for export in ("web/root", "web/root@monday", "test/root"):
        run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", home.above / "image.raw", home.uri(export))
    return "sound" in home("pool", "scrub")


def test_compact_gives_back_what_was_deleted_and_overwritten(served: Home) -> None:
    add_garbage(served)
    before = used_bytes(served)
    assert COMPACTED.fullmatch(served("pool", "compact"))
    after = used_bytes(served)
    assert before - after > 12 << 20
    assert reads_the_same(served)

    run_tool("qemu-io", "-f", "raw", "-c", "write -P 1 0 8M", served.uri("web/root"))
    served("snapshot", "delete", "web@monday", "--yes")
    served("vm", "delete", "test", "--yes")
    found = served.json("pool", "compact")
    assert set(found) == set(Compacted.model_fields)
    assert found["freed_bytes"] > 6 << 20 and 8 << 20 <= found["live_bytes"] < 10 << 20 and found["kept"] == []
    assert after - used_bytes(served) > 6 << 20
    run_tool("qemu-io", "-f", "raw", "-c", "read -P 1 0 8M", served.uri("web/root"))


def test_compact_shows_a_bar_and_control_c_ends_it_without_harm(served: Home) -> None:
    add_garbage(served)
    terminal = Terminal(served, "pool", "compact", "--rate", SLOW)
    terminal.wait_for("━")
    running = until(lambda: compacting(served), "the compaction to be seen")
    assert running["kind"] == "compact" and running["total_bytes"] >= running["done_bytes"]
    assert re.search(r"compact: +running, \d+%", served("pool", "status"))
    terminal.type("\x03")
    assert terminal.end() == 130
    until(lambda: compacting(served) is None, "the compaction to end")
    assert reads_the_same(served)
    assert COMPACTED.fullmatch(served("pool", "compact"))
    assert reads_the_same(served)


def test_compact_refuses_a_rate_that_is_none_and_says_when_nobody_serves(served: Home) -> None:
    for rate in ("fast", "0", "-1"):
        assert served.run("pool", "compact", f"--rate={rate}").status == 2
    served.stop()
    assert served.run("pool", "compact").status == 11


def test_plain_lines_say_how_far_how_fast_and_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = Lines("scrub of the pool", lambda: now[0])
    for second in range(11):
        now[0] = float(second)
        done = second * (10 << 20)
        lines.show({"state": "running", "done_bytes": done, "total_bytes": 200 << 20, "fraction": second / 20})
    lines.show({"state": "done", "done_bytes": 200 << 20, "total_bytes": 200 << 20, "fraction": 1.0})
    assert capsys.readouterr().err.splitlines() == [
        "scrub of the pool: 25% (50 MiB of 200 MiB, 10 MiB/s, 15 s left)",
        "scrub of the pool: 50% (100 MiB of 200 MiB, 10 MiB/s, 10 s left)",
        "scrub of the pool: 100% (200 MiB of 200 MiB, 20 MiB/s)",
    ]


def test_a_pool_that_fills_up_says_so() -> None:
    home = Home()
    try:
        home.init("96M")
        home.serve()
        home("vm", "create", "web", "--disk", "root=90M")
        assert home.run("pool", "status", "--check").status == 0
        for blocks, status, word in ((17920, 15, "WARNING"), (20700, 7, "CRITICAL")):
            image = home.above / "image.raw"
            image.write_bytes(distinct_blocks(0, blocks))
            home("disk", "import", "web/root", image, "--replace", "--yes")
            found = home.run("pool", "status", "--check")
            assert (found.status, word in found.stdout) == (status, True), found
            assert "left" in found.stderr and found.stderr.count("\n") == 1
        home.stop()
        assert home.run("pool", "status", "--check").status == 11
    finally:
        home.close()
