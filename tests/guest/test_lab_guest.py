"""The lab guest keeps its promises: status and outputs come back, time limits hold, nothing is left running."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import cache, kernel
from tests.lab.cache import LabError
from tests.lab.guest import STATUS_TIMED_OUT, AnyMachine, Guest, run
from tests.lab.qemu import Machine
from tests.lab.uml import UserModeMachine

GUEST_RUN = Path(__file__).resolve().parents[2] / "scripts" / "guest-run"


KINDS = {"qemu": [], "uml": ["--uml"]}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> list[str]:
    """Arguments of guest-run: the promises are the same for both kinds of guest."""
    chosen: list[str] = request.param
    return chosen


def test_guest_run_passes_status_outputs_and_directory(kind: list[str], tmp_path: Path) -> None:
    """And every byte of the outputs, of which there are more than fit a pipe."""
    data = random.Random(7).randbytes(300_000)
    (tmp_path / "seen").write_bytes(data)
    script = "cat seen; cat seen >&2; echo gone >seen; uname -m -s; read -r word < <(echo word) && echo $word; exit 7"
    done = subprocess.run([GUEST_RUN, *kind, "bash", "-c", script], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (7, data + b"Linux x86_64\nword\n")
    assert done.stderr == data
    assert (tmp_path / "seen").read_bytes() == data


@pytest.mark.parametrize("machine", [Machine(time_limit_s=1), UserModeMachine(time_limit_s=1)])
def test_a_guest_whose_time_is_over_is_stopped(machine: AnyMachine) -> None:
    with Guest(["sleep", "1000"], machine) as guest:
        assert guest.wait().status == STATUS_TIMED_OUT
        assert not guest.is_running()


@pytest.mark.parametrize("machine", [Machine(), UserModeMachine()])
def test_guest_and_machine_tell_each_other_of_events_through_the_share(machine: AnyMachine) -> None:
    script = """
        echo 1 >$LAB_SHARE/begins && mv $LAB_SHARE/begins $LAB_SHARE/begun
        until [ -e $LAB_SHARE/answer ]; do sleep 0.05; done
        until grep -q more $LAB_SHARE/answer; do sleep 0.05; done
        echo 2 >>$LAB_SHARE/begun"""
    with Guest(["sh", "-c", script], machine) as guest:
        assert guest.await_file("begun").read_text() == "1\n"
        (guest.share / "answer").write_text("first\n")
        (guest.share / "answer").write_text("first, and more\n")
        assert guest.wait().status == 0
        assert (guest.share / "begun").read_text() == "1\n2\n"


def test_a_user_mode_guest_keeps_what_it_wrote_to_its_disk_and_has_the_modules_asked_for(
    tmp_path: Path,
) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"")
    os.truncate(image, 16 << 20)
    machine = UserModeMachine(disks=[image], modules=["nbd"])
    script = "[ -b /dev/nbd0 ] && mke2fs -q -t ext4 /dev/ubda && mount /dev/ubda /mnt && echo kept >/mnt/file && umount /mnt"
    first = run(["sh", "-c", script], machine)
    assert first.status == 0, first.describe()
    second = run(["sh", "-c", "mount /dev/ubda /mnt && cat /mnt/file"], machine)
    assert second.stdout == b"kept\n", second.describe()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ending_guest_run_ends_its_guest(kind: list[str], number: int, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # SIGKILL leaves the share behind
    running = subprocess.Popen([GUEST_RUN, *kind, "sleep", "1000"], env=environment)
    emulators = await_emulators(running.pid, at_least=5 if kind else 1)
    running.send_signal(number)
    running.wait()
    deadline = time.monotonic() + 60
    while any(is_alive(pid) for pid in emulators):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Not a zombie either, that nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_emulators(pid: int, at_least: int) -> set[int]:
    """The processes below `pid` of QEMU, or of User-Mode Linux, which has some of its own and one for each of its guest's."""
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        found = {child for child in descendants(pid) if runs_an_emulator(child)}
        if len(found) >= at_least:
            return found
        time.sleep(0.02)


def descendants(pid: int) -> set[int]:
    try:
        children = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return children.union(*map(descendants, children))


def runs_an_emulator(pid: int) -> bool:
    try:
        program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"qemu" in program or b"linux.uml" in program


def test_processes_that_prepare_the_kernel_at_once_get_the_same(tmp_path: Path) -> None:
    kernel.prepare()
    link_cached_kernel(tmp_path)
    script = "from tests.lab import kernel; print(kernel.prepare())"
    environment = os.environ | {"BLOCKDEV_LAB_CACHE": str(tmp_path)}
    root = GUEST_RUN.parents[1]
    running = [
        subprocess.Popen([sys.executable, "-c", script], cwd=root, env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    answers = {process.communicate()[0] for process in running}
    assert len(answers) == 1
    assert b"initramfs-" in answers.pop()
    assert len(list(tmp_path.glob("kernel-*/initramfs-*"))) == 1


def link_cached_kernel(other: Path) -> None:
    """The cached kernel in another cache, without its initramfs: all three processes have that to build."""
    cached = max(cache.cache_directory().glob("kernel-*"))
    made = other / cached.name
    made.mkdir()
    (made / "lib").symlink_to(cached / "lib")
    (made / "vmlinux").symlink_to(cached / "vmlinux")


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SYSTEM_PATH", "/nonexistent")
    with pytest.raises(LabError, match="apt-get install busybox-static"):
        kernel.prepare()


def test_a_wrong_qemu_argument_is_reported_with_qemus_words() -> None:
    with (
        Guest(["true"], Machine(qemu_arguments=["-nonsense"])) as guest,
        pytest.raises(LabError, match="nonsense"),
    ):
        guest.wait()
