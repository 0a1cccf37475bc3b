"""A real guest with Debian's qemu-guest-agent, run by a real libvirt, is frozen through it around snapshots, while it writes without pause."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt_qemu
import pytest

from blockdev.errors import BlockdevError
from blockdev.quiesce.freeze import frozen
from tests.cli.served import Home, run_tool
from tests.hypervisor.domains import disk
from tests.hypervisor.lab_domain import lab_domain
from tests.hypervisor.libvirt_daemon import LibvirtDaemon
from tests.quiesce.owner import OWNER, watchdogs_of

WRITER = Path(__file__).parents[1] / "guest" / "quiesce_guest.py"
LIMIT_S = 60.0
SILENCE_S = 1.0  # far longer than a writer's step


class RunningVM:
    """The VM `quiet`, whose guest libvirt runs."""

    def __init__(self, home: Home, daemon: LibvirtDaemon, directory: Path) -> None:
        self.home = home
        self.daemon = daemon
        self.share = directory / "share"
        self.directory = directory
        self.domain = daemon.connect().lookupByName("quiet")
        self._command_count = 0

    @property
    def address(self) -> str:
        return f"libvirt:{self.domain.UUIDString()}@{self.daemon.uri}"

    def wait_until(self, condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline or not self.domain.isActive():
                log = (self.directory / "kernel.log").read_text(errors="replace")[-3000:]
                raise AssertionError(f"not within {limit_s} s; {(self.directory / 'err').read_text()}\n{log}")
            time.sleep(0.02)

    def order(self, text: str) -> None:
        number, self._command_count = self._command_count, self._command_count + 1
        (self.share / "new").write_text(text)
        (self.share / "new").rename(self.share / f"command-{number}")
        self.wait_until((self.share / f"done-{number}").exists)

    def progress(self) -> int:
        path = self.share / "progress"
        return path.stat().st_size if path.exists() else 0

    def await_progress(self, limit_s: float = LIMIT_S) -> None:
        before = self.progress()
        self.wait_until(lambda: self.progress() >= before + 4, limit_s)

    def hooks(self) -> list[str]:
        path = self.share / "hooks"
        return path.read_text().split() if path.exists() else []

    def has_agent(self) -> bool:
        try:
            return bool(libvirt_qemu.qemuAgentCommand(self.domain, '{"execute": "guest-ping"}', 2, 0))
        except Exception:
            return False


@pytest.fixture(scope="module")
def quiet(home: Home, libvirtd: LibvirtDaemon) -> Iterator[RunningVM]:
    directory = Path(tempfile.mkdtemp(prefix="bd-guest-"))
    try:
        run_tool("truncate", "-s", "128M", directory / "root.img")
        run_tool("mke2fs", "-q", "-t", "ext4", directory / "root.img")
        home("vm", "create", "quiet", "--image", f"root={directory}/root.img")
        root = disk("quiet/root", home.path / "run/nbd.sock")
        xml = lab_domain("quiet", directory, ["/usr/bin/python3", "-S", str(WRITER)], [root])
        connection = libvirtd.connect()
        connection.defineXML(xml).create()
        home("hypervisor", "add", "kvm", libvirtd.uri)
        home("hypervisor", "discover")
        made = RunningVM(home, libvirtd, directory)
        made.await_progress(120.0)
        made.wait_until(made.has_agent)
        yield made
    finally:
        for domain in libvirtd.connect().listAllDomains():
            if domain.isActive():
                domain.destroy()
        shutil.rmtree(directory)


def needs_recovery(home: Home, export: str, raw: Path) -> bool:
    run_tool("nbdcopy", home.uri(export), raw)
    shown = run_tool("dumpe2fs", "-h", raw)
    checked = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True, env={"PATH": "/usr/sbin:/sbin"})
    raw.unlink()
    replay = "needs_recovery" in shown
    assert replay or checked.returncode == 0, checked.stdout
    return replay


def test_a_guest_is_frozen_through_libvirt_and_its_snapshot_needs_no_journal_replay(quiet: RunningVM, tmp_path: Path) -> None:
    home, hooks_before = quiet.home, len(quiet.hooks())
    assert home.json("vm", "agent", "quiet") == {"agent": None, "way": "libvirt"}
    under_load = home.json("snapshot", "create", "quiet", "--name", "under-load")
    taken = home.json("snapshot", "create", "quiet", "--name", "whole", "--consistency", "vm", "--if-not-frozen", "fail")
    assert (under_load["consistency"], taken["consistency"]) == ("crash", "vm")
    print(f"frozen for {taken['frozen_ms']} ms")
    quiet.await_progress()
    assert quiet.hooks()[hooks_before:] == ["freeze", "thaw"]
    assert not needs_recovery(home, "quiet/root@whole", tmp_path / "raw")
    assert needs_recovery(home, "quiet/root@under-load", tmp_path / "raw")


def test_a_killed_process_leaves_a_guest_that_writes_on(quiet: RunningVM) -> None:
    command = [sys.executable, "-c", OWNER, quiet.address, "30"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "frozen\n"
        os.kill(process.pid, signal.SIGKILL)
        quiet.await_progress()


def test_a_killed_watchdog_leaves_the_thaw_to_its_owner(quiet: RunningVM) -> None:
    command = [sys.executable, "-c", OWNER, quiet.address, "30"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == "frozen\n"
        (watchdog,) = watchdogs_of(quiet.address)
        os.kill(watchdog, signal.SIGKILL)
        process.stdin.close()
        assert process.stdout.readline() == "True\n"
    quiet.await_progress()


def test_a_control_plane_killed_while_the_guest_is_frozen(quiet: RunningVM) -> None:
    """The agent's hook holds the freeze until blockdevd is dead: its watchdog thaws."""
    home, hooks_before = quiet.home, len(quiet.hooks())
    hold = quiet.share / "hold-freeze"
    hold.touch()
    asking = home.start_command("snapshot", "create", "quiet", "--consistency", "vm")
    quiet.wait_until((quiet.share / "held").exists)
    os.kill(home.control_pid(), signal.SIGKILL)
    hold.unlink()
    quiet.wait_until(lambda: quiet.hooks()[hooks_before:] == ["freeze", "thaw"])
    quiet.await_progress()
    asking.communicate(timeout=300)


def test_a_libvirt_killed_while_the_guest_is_frozen_and_started_again(quiet: RunningVM) -> None:
    """The watchdog connects to the new one, and thaws: domains outlive libvirt's daemon."""
    command = [sys.executable, "-c", OWNER, quiet.address, "30"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == "frozen\n"
        quiet.daemon.stop(signal.SIGKILL)
        process.stdin.close()
        quiet.daemon.start()
        quiet.domain = quiet.daemon.connect().lookupByName("quiet")
        assert process.stdout.readline() == "True\n"
    quiet.await_progress()


def test_a_freeze_that_comes_too_late_is_undone_by_the_watchdog(quiet: RunningVM) -> None:
    """libvirt gives up on the agent first, so that it takes the thaw at all."""
    hold, hooks_before = quiet.share / "hold-freeze", len(quiet.hooks())
    hold.touch()
    with pytest.raises(BlockdevError, match="may be frozen"), frozen(quiet.address, 1.0):
        raise AssertionError("frozen")
    hold.unlink()
    quiet.wait_until(lambda: quiet.hooks()[hooks_before : hooks_before + 2] == ["freeze", "thaw"])
    quiet.await_progress()


def test_somebody_who_thaws_by_libvirt_is_noticed(quiet: RunningVM) -> None:
    command = [sys.executable, "-c", OWNER, quiet.address, "30"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == "frozen\n"
        assert quiet.domain.fsThaw() == 1
        process.stdin.close()
        assert process.stdout.readline() == "False\n"
    quiet.await_progress()


def test_a_guest_that_somebody_else_froze_is_left_so(quiet: RunningVM) -> None:
    assert quiet.domain.fsFreeze() == 1
    refused = quiet.home.run("snapshot", "create", "quiet", "--consistency", "vm", "--if-not-frozen", "fail")
    assert refused.status == 5 and "is frozen already" in refused.error
    assert quiet.domain.fsThaw() == 1, "it was frozen still"
    quiet.await_progress()


def test_a_hook_that_fails_fails_the_freeze(quiet: RunningVM) -> None:
    fail = quiet.share / "fail-freeze"
    fail.touch()
    refused = quiet.home.run("snapshot", "create", "quiet", "--consistency", "vm", "--if-not-frozen", "fail")
    fail.unlink()
    assert refused.status == 17 and "libvirt does not freeze the guest" in refused.error
    quiet.await_progress()


def test_an_agent_killed_while_it_freezes_makes_a_snapshot_that_says_crash_of_a_guest_that_writes_on(quiet: RunningVM) -> None:
    hold, held = quiet.share / "hold-freeze", quiet.share / "held"
    held.unlink(missing_ok=True)
    hold.touch()
    asking = quiet.home.start_command("snapshot", "create", "quiet", "--name", "killed", "--consistency", "vm", "--json")
    quiet.wait_until(held.exists)
    quiet.order("kill the agent")
    hold.unlink()
    out, error = asking.communicate(timeout=300)
    assert asking.returncode == 0, error
    taken = json.loads(out)
    assert (taken["asked"], taken["consistency"], taken["frozen_ms"]) == ("vm", "crash", None)
    quiet.await_progress()
    quiet.wait_until(quiet.has_agent)


def test_without_its_agent_the_snapshot_says_crash(quiet: RunningVM) -> None:
    quiet.order("stop the agent")
    taken = quiet.home.json("snapshot", "create", "quiet", "--consistency", "vm")
    assert (taken["asked"], taken["consistency"], taken["frozen_ms"]) == ("vm", "crash", None)
    quiet.await_progress()
    quiet.order("start the agent")
    quiet.wait_until(quiet.has_agent)
    assert quiet.home.json("snapshot", "create", "quiet", "--consistency", "vm")["consistency"] == "vm"
