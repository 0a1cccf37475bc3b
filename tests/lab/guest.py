"""One run of a command as root in a QEMU guest on Debian's stock kernel, with the machine's tree as its root.

The guest's root is the machine's / (9p, read-only) under an overlay that dies with the guest. `Guest.share` on
the machine is $LAB_SHARE in the guest, uncached and writable on both sides: files there carry events between them.
Acceleration is TCG always: this kernel does not boot under every /dev/kvm, and a test must not depend on it.
The guest reaches nothing but the services named in its Machine, each at SERVICE_ADDRESS and the service's port.
QEMU dies with the thread that started the guest (also by SIGKILL): start it from one that outlives it.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.lab.kernel import Kernel, LabError, prepare, tool

SERVICE_ADDRESS = "10.0.2.100"
STATUS_TIMED_OUT = 124
STATUS_DIED = 125
POLL_S = 0.02
# no_timer_check: on a busy machine, the timer of TCG comes too late for the kernel, which panics
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 mitigations=off no_timer_check"
STAGE2 = Path(__file__).with_name("stage2.sh")
RELAY = Path(__file__).with_name("relay.py")

Sink = Callable[[bytes], object]


@dataclass(frozen=True)
class Drive:
    """A virtio disk of the guest: a raw image file or an NBD URI. The first one is /dev/vda."""

    source: str
    read_only: bool = False


@dataclass(frozen=True)
class Machine:
    """What the guest has besides the machine's tree.

    `forwards` maps ports of the machine's loopback to the guest's; `services` maps ports at SERVICE_ADDRESS to
    what listens on the machine: a Unix socket's path, or HOST:PORT. `modules` are loaded before the command runs.
    """

    drives: Sequence[Drive] = ()
    forwards: Sequence[tuple[int, int]] = ()
    services: Sequence[tuple[int, str]] = ()
    modules: Sequence[str] = ()
    qemu_arguments: Sequence[str] = ()
    memory_mib: int = 2048
    cpu_count: int = 2
    time_limit_s: float = 300


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
    """A guest that runs `command` in the caller's directory, as a context manager; leaving it ends QEMU.

    Without sinks, what the command writes is in the Result. Raises LabError when the lab itself fails.
    """

    def __init__(
        self,
        command: Sequence[str],
        machine: Machine | None = None,
        *,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> None:
        self.command = list(command)
        self.machine = machine or Machine()
        self._collected = (bytearray(), bytearray())
        self._sinks = (stdout or self._collected[0].extend, stderr or self._collected[1].extend)
        self._pumps: list[threading.Thread] = []
        self._sink_error: OSError | None = None
        self._result: Result | None = None

    def __enter__(self) -> "Guest":
        kernel = prepare()
        self._directory = Path(tempfile.mkdtemp(prefix="lab-guest-"))
        try:
            self.share = self._directory / "share"
            write_job(self.share, self.command, self.machine)
            self._start(kernel)
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
            timed_out = not self._wait_for_qemu()
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
        """Whether QEMU runs and its time is not over."""
        return self._qemu.poll() is None and time.monotonic() < self._deadline

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

    def _start(self, kernel: Kernel) -> None:
        pipes = [os.pipe(), os.pipe()]
        inputs = [write for _, write in pipes]
        command = [tool("setpriv"), "--pdeathsig", "KILL", *self._qemu_command(kernel, inputs)]
        self._deadline = time.monotonic() + self.machine.time_limit_s
        try:
            with open(self._directory / "qemu.log", "wb") as log:
                self._qemu = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=inputs
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
                self._qemu.kill()

    def _qemu_command(self, kernel: Kernel, outputs: Sequence[int]) -> list[str]:
        machine = self.machine
        command = [tool("qemu-system-x86_64"), "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]
        command += ["-m", str(machine.memory_mib), "-smp", str(machine.cpu_count)]
        command += ["-nodefaults", "-nographic", "-no-reboot"]
        command += [
            "-kernel",
            str(kernel.vmlinux),
            "-initrd",
            str(kernel.initramfs),
            "-append",
            KERNEL_ARGUMENTS,
        ]
        command += ["-serial", f"file:{self._directory}/kernel.log"]
        command += _shared_tree("lab.root", Path("/"), "readonly=on")
        command += _shared_tree("lab.modules", kernel.modules, "readonly=on")
        command += _shared_tree("lab.share", self.share, "readonly=off")
        command += ["-device", "virtio-serial-pci,id=lab.serial"]
        for name, output in zip(("lab.out", "lab.err"), outputs, strict=True):
            # a file, not stdio: QEMU's stdio closes its output when its input ends
            command += ["-chardev", f"file,id={name},path=/dev/fd/{output}"]
            command += ["-device", f"virtserialport,bus=lab.serial.0,chardev={name},name={name}"]
        command += ["-netdev", self._network(), "-device", "virtio-net-pci,netdev=net0,romfile="]
        command += ["-device", "virtio-rng-pci"]
        for index, drive in enumerate(machine.drives):
            command += _drive(index, drive)
        return command + list(machine.qemu_arguments)

    def _network(self) -> str:
        network = "user,id=net0,restrict=on"
        for host_port, guest_port in self.machine.forwards:
            network += f",hostfwd=tcp:127.0.0.1:{host_port}-:{guest_port}"
        for port, target in self.machine.services:
            relay = shlex.join([sys.executable, "-S", str(RELAY), target])
            network += f",guestfwd=tcp:{SERVICE_ADDRESS}:{port}-cmd:{_escape(relay)}"
        return network

    def _wait_for_qemu(self) -> bool:
        try:
            self._qemu.wait(max(0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _end(self) -> None:
        if self._qemu.poll() is None:
            self._qemu.kill()
            self._qemu.wait()
        for pump in self._pumps:
            pump.join()

    def _status(self) -> int:
        status = self.share / ".status"
        if status.exists():
            return int(status.read_text())
        if not self._kernel_log():
            raise LabError(f"QEMU did not start: {(self._directory / 'qemu.log').read_text().strip()}")
        return STATUS_DIED

    def _kernel_log(self) -> str:
        log = self._directory / "kernel.log"
        return log.read_text(errors="replace") if log.exists() else ""


def write_job(share: Path, command: Sequence[str], machine: Machine) -> None:
    """What the guest's second stage reads: makes `share`."""
    share.mkdir()
    shutil.copy(STAGE2, share / ".stage2")
    drivers = ["virtio_net", *(["virtio_blk"] if machine.drives else [])]
    (share / ".modules").write_text("".join(f"{name}\n" for name in [*drivers, *machine.modules]))
    job = f"cd {shlex.quote(os.getcwd())} || exit\n{shlex.join(command)}\n"
    (share / ".job").write_text(job)


def run(command: Sequence[str], machine: Machine | None = None) -> Result:
    """Run a command in a guest of its own to its end."""
    with Guest(command, machine) as guest:
        return guest.wait()


def _escape(value: str) -> str:
    # QEMU's option parser: a doubled comma is a comma
    return value.replace(",", ",,")


def _shared_tree(tag: str, path: Path, access: str) -> list[str]:
    backend = f"local,id={tag},path={_escape(str(path))},security_model=none,multidevs=remap,{access}"
    return ["-fsdev", backend, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _drive(index: int, drive: Drive) -> list[str]:
    access = "on" if drive.read_only else "off"
    backend = (
        f"file={_escape(drive.source)},if=none,id=drive{index},format=raw,discard=unmap,readonly={access}"
    )
    return ["-drive", backend, "-device", f"virtio-blk-pci,drive=drive{index}"]
