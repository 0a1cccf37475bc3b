"""The lab's QEMU guest: Debian's stock kernel under TCG, several processors, and a network to this machine if one is asked for.

Acceleration is TCG always: this kernel does not boot under every /dev/kvm, and a test must not depend on it.
The guest reaches nothing but the services named in its Machine, each at SERVICE_ADDRESS and the service's port.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.lab.cache import tool
from tests.lab.kernel import prepare

SERVICE_ADDRESS = "10.0.2.100"
# no_timer_check: on a busy machine, the timer of TCG comes too late for the kernel, which panics
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 mitigations=off no_timer_check"
RELAY = Path(__file__).with_name("relay.py")


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

    kernel_log: ClassVar[str] = "kernel.log"  # in the guest's directory

    def drivers(self) -> list[str]:
        """The kernel modules to load before the command runs."""
        return ["virtio_net", *(["virtio_blk"] if self.drives else []), *self.modules]

    def command(self, directory: Path, outputs: Sequence[int]) -> list[str]:
        """What runs it; `directory` is the guest's own, with its share; outputs: descriptors of stdout and stderr."""
        kernel = prepare()
        command = [tool("qemu-system-x86_64"), "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]
        command += ["-m", str(self.memory_mib), "-smp", str(self.cpu_count)]
        command += ["-nodefaults", "-nographic", "-no-reboot"]
        command += [
            "-kernel",
            str(kernel.vmlinux),
            "-initrd",
            str(kernel.initramfs),
            "-append",
            KERNEL_ARGUMENTS,
        ]
        command += ["-serial", f"file:{directory / self.kernel_log}"]
        command += _shared_tree("lab.root", Path("/"), "readonly=on")
        command += _shared_tree("lab.modules", kernel.modules, "readonly=on")
        command += _shared_tree("lab.share", directory / "share", "readonly=off")
        command += ["-device", "virtio-serial-pci,id=lab.serial"]
        for name, output in zip(("lab.out", "lab.err"), outputs, strict=True):
            # a file, not stdio: QEMU's stdio closes its output when its input ends
            command += ["-chardev", f"file,id={name},path=/dev/fd/{output}"]
            command += ["-device", f"virtserialport,bus=lab.serial.0,chardev={name},name={name}"]
        command += ["-netdev", self._network(), "-device", "virtio-net-pci,netdev=net0,romfile="]
        command += ["-device", "virtio-rng-pci"]
        for index, drive in enumerate(self.drives):
            command += _drive(index, drive)
        return command + list(self.qemu_arguments)

    def _network(self) -> str:
        network = "user,id=net0,restrict=on"
        for host_port, guest_port in self.forwards:
            network += f",hostfwd=tcp:127.0.0.1:{host_port}-:{guest_port}"
        for port, target in self.services:
            relay = shlex.join([sys.executable, "-S", str(RELAY), target])
            network += f",guestfwd=tcp:{SERVICE_ADDRESS}:{port}-cmd:{_escape(relay)}"
        return network


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
