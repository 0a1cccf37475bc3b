"""Runs in the guest: two writers without pause on a file system on /dev/vda, and the guest agent, started again when it ends.

Each synced step of a writer appends a byte to `progress` in the share.  The agent's hook appends `freeze` and `thaw` to `hooks`, and
lets a freeze wait for as long as there is `hold-freeze` (and makes `held`), and fails while there is `fail-freeze` or `fail-thaw`.  A command is a line in `command-N`, answered by `done-N`.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

SHARE = Path(os.environ["LAB_SHARE"])
ROOT = Path("/mnt")
STATE = Path("/run/quiesce")  # the agent's: it notes there that it has frozen
HOOK = STATE / "hook"
PORT_NAME = "org.qemu.guest_agent.0"
POLL_S = 0.02
HOOK_TEXT = f"""\
#!/bin/sh
[ "$1" = freeze ] && while [ -e {SHARE}/hold-freeze ]; do touch {SHARE}/held; sleep 0.05; done
echo "$1" >>{SHARE}/hooks
[ ! -e "{SHARE}/fail-$1" ]
"""
is_stopping = threading.Event()


def write_without_pause(name: str) -> None:
    step = 0
    while not is_stopping.is_set():
        path = ROOT / f"{name}-{step % 20}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(handle, os.urandom(16 << 10))
        os.fsync(handle)
        os.close(handle)
        os.rename(path, f"{path}-kept")
        with open(SHARE / "progress", "ab") as progress:
            progress.write(b".")
        step += 1


def port() -> str:
    """No udev here, so no /dev/virtio-ports."""
    for found in Path("/sys/class/virtio-ports").iterdir():
        if (found / "name").exists() and (found / "name").read_text().strip() == PORT_NAME:
            return f"/dev/{found.name}"
    sys.exit(f"no channel {PORT_NAME}")


class Supervisor:
    """Keeps the agent running, as systemd does with Restart=always."""

    def __init__(self) -> None:
        self.command = ["qemu-ga", "-m", "virtio-serial", "-p", port(), "-t", STATE, "-f", STATE / "pid", f"-F{HOOK}"]
        self.start()

    def start(self) -> None:
        self.is_stopped = False
        self.agent = subprocess.Popen(self.command)

    def look(self) -> None:
        if self.agent.poll() is not None and not self.is_stopped:
            self.start()

    def kill(self) -> None:
        self.agent.send_signal(signal.SIGKILL)
        self.agent.wait()


def obey(order: str, supervisor: Supervisor) -> None:
    if order == "kill the agent":
        supervisor.kill()
    elif order == "kill the agent, and lose its state":
        supervisor.kill()
        (STATE / "qga.state.isfrozen").unlink()
    elif order == "stop the agent":
        supervisor.is_stopped = True
        supervisor.kill()
    elif order == "start the agent":
        supervisor.start()
    elif order == "thaw":
        subprocess.run(["fsfreeze", "-u", ROOT], check=True)
    elif order == "stop":
        is_stopping.set()


def main() -> None:
    STATE.mkdir()
    HOOK.write_text(HOOK_TEXT)
    HOOK.chmod(0o755)
    subprocess.run(["mount", "/dev/vda", ROOT], check=True)
    writers = [threading.Thread(target=write_without_pause, args=(name,)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    supervisor = Supervisor()
    number = 0
    while not is_stopping.is_set():
        supervisor.look()
        if (SHARE / f"command-{number}").exists():
            obey((SHARE / f"command-{number}").read_text(), supervisor)
            (SHARE / f"done-{number}").touch()
            number += 1
        time.sleep(POLL_S)
    for writer in writers:
        writer.join()
    supervisor.kill()
    subprocess.run(["umount", ROOT], check=True)


main()
