"""One run of a command as root in a guest on a stock Debian kernel, with the machine's tree as its root.

A `Machine` (tests/lab/qemu.py) or a `UserModeMachine` (tests/lab/uml.py) says which kind of guest, and what it has.
The guest's root is the machine's /, read-only, under an overlay that dies with the guest. `Guest.share` on
the machine is $LAB_SHARE in the guest, writable on both sides: files there carry events between them.
The guest dies with the thread that started it (also by SIGKILL): start it from one that outlives it.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.lab.cache import LabError, tool
from tests.lab.qemu import Machine
from tests.lab.uml import UserModeMachine

STATUS_TIMED_OUT = 124
STATUS_DIED = 125
POLL_S = 0.02
HOST_LOG = "host.log"  # what the emulator says
BOOTED = "Linux version"  # in the log of every kernel that began to run
SWITCH_OFF_S = 90  # more than the last stage sleeps (stage2.sh)
STAGE2 = Path(__file__).with_name("stage2.sh")

Sink = Callable[[bytes], object]
AnyMachine = Machine | UserModeMachine


@dataclass
class Result:
    """How a run ended; status is the command's, else STATUS_TIMED_OUT or STATUS_DIED (without a status)."""

    status: int
    kernel_log: str
    stdout: bytes = b""
    stderr: bytes = b""

    def describe(self) -> str:
        said = [f"status {self.status}", "stdout:", self.stdout.decode(errors="replace")]
        said += ["stderr:", self.stderr.decode(errors="replace")]
        if self.status in (STATUS_TIMED_OUT, STATUS_DIED):
            said += ["the kernel's last words:", self.kernel_log[-4000:]]
        return "\n".join(said)


class Guest:
    """A guest that runs `command` in the caller's directory, as a context manager; leaving it ends it.

    Without sinks, what the command writes is in the Result. Raises LabError when the lab itself fails.
    """

    def __init__(
        self,
        command: Sequence[str],
        machine: AnyMachine | None = None,
        *,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> None:
        self.command = list(command)
        self.machine: AnyMachine = machine or Machine()
        self._collected = (bytearray(), bytearray())
        self._sinks = (stdout or self._collected[0].extend, stderr or self._collected[1].extend)
        self._pumps: list[threading.Thread] = []
        self._sink_error: OSError | None = None
        self._result: Result | None = None

    def __enter__(self) -> "Guest":
        self._directory = Path(tempfile.mkdtemp(prefix="lab-guest-"))
        try:
            self.share = self._directory / "share"
            write_job(self.share, self.command, self.machine)
            self._start()
        except BaseException:
            shutil.rmtree(self._directory)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        shutil.rmtree(self._directory)

    def wait(self) -> Result:
        """Wait until the guest is off or its time is over."""
        if self._result is None:
            timed_out = not self._wait_for_end()
            self._end()
            if self._sink_error:
                raise LabError(f"the guest's output went nowhere: {self._sink_error.strerror}")
            self._result = Result(
                STATUS_TIMED_OUT if timed_out else self._status(),
                self._kernel_log(),
                *map(bytes, self._collected),
            )
        return self._result

    def is_running(self) -> bool:
        """Whether it runs and its time is not over."""
        return self._process.poll() is None and time.monotonic() < self._deadline

    def await_file(self, name: str) -> Path:
        """Wait until the guest has made NAME in the share; LabError if it ends first or its time is over."""
        path = self.share / name
        running = True
        while not path.exists():
            if not running:
                raise LabError(f"the guest made no {name}: {self.wait().describe()}")
            running = self.is_running()  # before the next look: a file made at the very end counts
            time.sleep(POLL_S)
        return path

    def _start(self) -> None:
        pipes = [os.pipe(), os.pipe()]
        inputs = [write for _, write in pipes]
        self._deadline = time.monotonic() + self.machine.time_limit_s
        try:
            with open(self._directory / HOST_LOG, "wb") as log:
                self._process = subprocess.Popen(
                    [tool("setpriv"), "--pdeathsig", "KILL", *self.machine.command(self._directory, inputs)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=inputs,
                )
        except BaseException:
            for read, _ in pipes:
                os.close(read)
            raise
        finally:
            for write in inputs:
                os.close(write)
        for (read, _), sink in zip(pipes, self._sinks, strict=True):
            pump = threading.Thread(target=self._pump, args=(read, sink), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def _pump(self, source: int, sink: Sink) -> None:
        with open(source, "rb", buffering=0) as pipe:
            try:
                while data := pipe.read(1 << 16):
                    sink(data)
            except OSError as error:  # such as a broken pipe: nobody reads the output any more
                self._sink_error = error
                self._process.kill()

    def _wait_for_end(self) -> bool:
        off_at = None  # when a guest whose command has ended is taken for one that cannot switch itself off
        while (now := time.monotonic()) < self._deadline:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(min(1.0, self._deadline - now))
                return True
            if off_at is None and (self.share / ".status").exists():
                off_at = now + SWITCH_OFF_S
            if off_at is not None and now > off_at:
                self._process.kill()  # its kernel may wait for a disk whose server has ended
                self._process.wait()
                return True
        return self._process.poll() is not None

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pump in self._pumps:
            pump.join()

    def _status(self) -> int:
        status = self.share / ".status"
        if status.exists():
            return int(status.read_text())
        if BOOTED not in self._kernel_log():
            said = (self._directory / HOST_LOG).read_text(errors="replace").strip()
            raise LabError(f"the guest did not start: {said}")
        return STATUS_DIED

    def _kernel_log(self) -> str:
        log = self._directory / self.machine.kernel_log
        return log.read_text(errors="replace") if log.exists() else ""


def write_job(share: Path, command: Sequence[str], machine: AnyMachine) -> None:
    """What the guest's second stage reads: makes `share`."""
    share.mkdir()
    shutil.copy(STAGE2, share / ".stage2")
    (share / ".modules").write_text("".join(f"{name}\n" for name in machine.drivers()))
    job = f"cd {shlex.quote(os.getcwd())} || exit\n{shlex.join(command)}\n"
    (share / ".job").write_text(job)


def run(command: Sequence[str], machine: AnyMachine | None = None) -> Result:
    """Run a command in a guest of its own to its end."""
    with Guest(command, machine) as guest:
        return guest.wait()
