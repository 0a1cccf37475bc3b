"""The lab guest keeps its promises: status and outputs come back, time limits hold, nothing is left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import kernel
from tests.lab.guest import STATUS_TIMED_OUT, Guest, Machine
from tests.lab.kernel import LabError

GUEST_RUN = Path(__file__).resolve().parents[2] / "scripts" / "guest-run"


def test_guest_run_passes_status_outputs_and_directory(tmp_path: Path) -> None:
    (tmp_path / "seen").write_text("from the machine\n")
    script = "cat seen; echo gone >seen; echo wrong >&2; uname -r; exit 7"
    done = subprocess.run([GUEST_RUN, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    said, release = done.stdout.splitlines()
    assert (done.returncode, said, done.stderr) == (7, "from the machine", "wrong\n")
    assert release.endswith("-amd64")
    assert (tmp_path / "seen").read_text() == "from the machine\n"


def test_a_guest_whose_time_is_over_is_stopped() -> None:
    with Guest(["sleep", "1000"], Machine(time_limit_s=1)) as guest:
        assert guest.wait().status == STATUS_TIMED_OUT
        assert not guest.is_running()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ending_guest_run_ends_its_guest(number: int, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # SIGKILL leaves the share behind
    running = subprocess.Popen([GUEST_RUN, "sleep", "1000"], env=environment)
    qemu = await_child(running.pid)
    running.send_signal(number)
    running.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{qemu}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def await_child(pid: int) -> int:
    deadline = time.monotonic() + 30
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while True:
        assert time.monotonic() < deadline
        for child in children.read_text().split():
            if b"qemu" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
                return int(child)
        time.sleep(0.02)


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


def link_cached_kernel(cache: Path) -> None:
    """The cached kernel in another cache, without its initramfs: all three processes have that to build."""
    cached = max(kernel.cache_directory().glob("kernel-*"))
    made = cache / cached.name
    made.mkdir()
    (made / "lib").symlink_to(cached / "lib")
    (made / "vmlinux").symlink_to(cached / "vmlinux")


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "SYSTEM_PATH", "/nonexistent")
    with pytest.raises(LabError, match="apt-get install busybox-static"):
        kernel.prepare()


def test_a_wrong_qemu_argument_is_reported_with_qemus_words() -> None:
    with (
        Guest(["true"], Machine(qemu_arguments=["-nonsense"])) as guest,
        pytest.raises(LabError, match="nonsense"),
    ):
        guest.wait()
