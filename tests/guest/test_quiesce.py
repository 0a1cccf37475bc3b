"""A guest on a stock kernel with Debian's qemu-guest-agent is frozen around snapshots, while it writes without pause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockdev.errors import GuestFailed, Unavailable
from blockdev.quiesce.agent import Agent
from blockdev.quiesce.freeze import frozen
from tests.guest.conftest import ServedHome
from tests.lab.guest import Guest, run
from tests.lab.qemu import Drive, Machine
from tests.quiesce.owner import OWNER, watchdogs_of

HERE = Path(__file__).parent
LIMIT_S = 30.0  # of a freeze
WAIT_S = 120.0  # for what a guest without KVM does on a busy machine
LOOK_AT_SNAPSHOTS = "mount -t ext4 -o ro /dev/vda /mnt && ls /mnt && umount /mnt; mount -t ext4 -o ro /dev/vdb /mnt"


class WritingGuest:
    """The guest, as the tests talk to it."""

    def __init__(self, guest: Guest, home: ServedHome, address: str) -> None:
        self.guest = guest
        self.home = home
        self.address = address
        self._command_count = 0

    def order(self, text: str) -> None:
        number, self._command_count = self._command_count, self._command_count + 1
        (self.guest.share / "new").write_text(text)
        (self.guest.share / "new").rename(self.guest.share / f"command-{number}")
        self.guest.await_file(f"done-{number}")

    def progress(self) -> int:
        """Steps that the writers have synced."""
        path = self.guest.share / "progress"
        return path.stat().st_size if path.exists() else 0

    def await_progress(self, limit_s: float = WAIT_S) -> None:
        """More than what both writers may have had under way."""
        before = self.progress()
        self.wait_until(lambda: self.progress() >= before + 4, limit_s)

    def wait_until(self, condition: Callable[[], bool], limit_s: float = WAIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self.guest.is_running(), self.guest.wait().describe()
            assert time.monotonic() < deadline, f"not within {limit_s} s"
            time.sleep(0.02)

    def hooks(self) -> list[str]:
        path = self.guest.share / "hooks"
        return path.read_text().split() if path.exists() else []

    def snapshot(self, name: str) -> None:
        self.home.ctl("snapshot", "create", "quiet", "--name", name)


@pytest.fixture(scope="module")
def writing(served_home: ServedHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WritingGuest]:
    image = tmp_path_factory.mktemp("quiesce") / "root.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image, "128M"], check=True)
    served_home.ctl("vm", "create", "quiet", "--image", f"root={image}")
    image.unlink()  # pytest would keep those of three runs
    address = str(served_home.directory / "agent.sock")
    channel = ["-chardev", f"socket,id=agent,path={address},server=on,wait=off"]
    channel += ["-device", "virtserialport,bus=lab.serial.0,chardev=agent,name=org.qemu.guest_agent.0"]
    machine = Machine(drives=[Drive(served_home.uri("quiet/root"))], qemu_arguments=channel, time_limit_s=480)
    with Guest(["/usr/bin/python3", "-S", str(HERE / "quiesce_guest.py")], machine) as guest:
        made = WritingGuest(guest, served_home, address)
        made.await_progress(120.0)
        made.wait_until(lambda: answers(address))
        yield made
        with Agent(address) as agent:
            agent.thaw(WAIT_S)  # a failed test may have left it frozen
        made.order("stop")
        result = guest.wait()
        assert result.status == 0, result.describe()


def answers(address: str) -> bool:
    with Agent(address) as agent:
        try:
            agent.ping(5.0)
        except Unavailable:
            return False
        return agent.version(5.0).startswith("7.")


def needs_recovery(raw: Path) -> bool:
    shown = subprocess.run(["dumpe2fs", "-h", raw], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" in shown


def test_a_frozen_snapshot_needs_no_journal_replay_and_one_under_the_same_load_does(
    writing: WritingGuest, tmp_path: Path
) -> None:
    hooks_before = len(writing.hooks())
    writing.snapshot("under-load")
    writing.await_progress()
    with frozen(writing.address) as held:
        progress = writing.progress()
        writing.snapshot("whole")
        assert writing.progress() <= progress + 2  # each writer may have told of a step that was synced before
    assert held.was_whole and held.file_system_count == 1
    assert held.frozen_ms is not None
    print(f"frozen for {held.frozen_ms:.0f} ms")
    writing.await_progress()
    assert writing.hooks()[hooks_before:] == ["freeze", "thaw"]

    raw = {name: writing.home.copy(f"quiet/root@{name}", tmp_path / name) for name in ("under-load", "whole")}
    assert {name: needs_recovery(path) for name, path in raw.items()} == {"under-load": True, "whole": False}
    checked = subprocess.run(["e2fsck", "-fn", raw["whole"]], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    for path in raw.values():
        path.unlink()  # pytest would keep those of three runs

    drives = [Drive(writing.home.uri(f"quiet/root@{name}"), read_only=True) for name in ("whole", "under-load")]
    looked = run(["sh", "-c", LOOK_AT_SNAPSHOTS], Machine(drives=drives, time_limit_s=300))
    # where nothing can be written, a file system that needs a replay cannot be mounted
    assert looked.status != 0 and b"-kept" in looked.stdout, looked.describe()
    assert "vda): recovery" not in looked.kernel_log
    assert "(vdb): write access unavailable, cannot proceed" in looked.kernel_log, looked.kernel_log[-2000:]


def test_a_killed_process_leaves_a_guest_that_writes_on(writing: WritingGuest) -> None:
    command = [sys.executable, "-c", OWNER, writing.address, "60"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "frozen\n"
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        writing.await_progress(45.0)
    print(f"writes go on {time.monotonic() - killed:.2f} s after the kill")


def test_a_body_beyond_the_limit_lets_the_guest_write_on(writing: WritingGuest) -> None:
    with frozen(writing.address, 5.0) as held:
        writing.await_progress()
    assert not held.was_whole


def test_somebody_in_the_guest_who_thaws_is_noticed(writing: WritingGuest) -> None:
    with frozen(writing.address) as held:
        writing.order("thaw")
    assert not held.was_whole
    writing.await_progress()


def test_a_hook_that_fails_fails_the_freeze(writing: WritingGuest) -> None:
    fail = writing.guest.share / "fail-freeze"
    fail.touch()
    with pytest.raises(GuestFailed, match="refused guest-fsfreeze-freeze"), frozen(writing.address):
        raise AssertionError("frozen")
    fail.unlink()
    writing.await_progress()


def test_a_hook_that_fails_behind_the_thaw_does_not_keep_the_guest_frozen(writing: WritingGuest) -> None:
    fail = writing.guest.share / "fail-thaw"
    fail.touch()
    with frozen(writing.address) as held:
        pass
    assert not held.was_whole
    writing.await_progress()
    fail.unlink()


def test_an_agent_killed_while_frozen_and_started_without_its_state(writing: WritingGuest) -> None:
    with frozen(writing.address, LIMIT_S) as held:
        writing.order("kill the agent, and lose its state")
    assert not held.was_whole  # the new one did not know of the freeze, and thaws all the same
    writing.await_progress()


def test_an_agent_killed_while_frozen_and_started_with_its_state_keeps_the_freeze(
    writing: WritingGuest, tmp_path: Path
) -> None:
    """A freeze is the kernel's, not the agent's: its state in /run lets the new agent go on where the old one was."""
    with frozen(writing.address, LIMIT_S) as held:
        writing.order("kill the agent")
        writing.snapshot("agent-killed")
    raw = writing.home.copy("quiet/root@agent-killed", tmp_path / "raw")
    assert (held.was_whole, needs_recovery(raw)) == (True, False)
    raw.unlink()
    writing.await_progress()


def test_a_freeze_that_comes_after_all_have_given_up_is_undone_by_the_next_client(writing: WritingGuest) -> None:
    """The guest's hook makes the freeze late.  The agent waits for a client to take its answer, and then finds the thaw in its queue."""
    hold, hooks_before = writing.guest.share / "hold-freeze", len(writing.hooks())
    hold.touch()
    with pytest.raises(Unavailable, match="may be frozen"), frozen(writing.address, 1.0):
        raise AssertionError("frozen")
    for watchdog in watchdogs_of(writing.address):
        os.kill(watchdog, signal.SIGKILL)
    hold.unlink()
    with Agent(writing.address) as agent:
        agent.ping(WAIT_S)
    assert writing.hooks()[hooks_before : hooks_before + 2] == ["freeze", "thaw"]
    writing.await_progress()


def test_a_freeze_that_comes_too_late_is_undone_by_the_watchdog(writing: WritingGuest) -> None:
    hold, hooks_before = writing.guest.share / "hold-freeze", len(writing.hooks())
    hold.touch()
    with pytest.raises(Unavailable, match="may be frozen"), frozen(writing.address, 1.0):
        raise AssertionError("frozen")
    hold.unlink()
    writing.wait_until(lambda: writing.hooks()[hooks_before : hooks_before + 2] == ["freeze", "thaw"])
    writing.await_progress()
