"""The lab's guest (tests/lab/guest.py) as a libvirt domain: the same kernel, root and share, with a guest agent's channel of libvirt's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from tests.lab.guest import write_job
from tests.lab.kernel import prepare
from tests.lab.qemu import KERNEL_ARGUMENTS, Machine

TREE = """\
<filesystem type='mount' accessmode='passthrough' multidevs='remap'>
  <source dir='{path}'/><target dir='{tag}'/>{access}
</filesystem>
"""
OUTPUT = "<channel type='file'><source path='{path}'/><target type='virtio' name='{name}'/></channel>"
DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>1024</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{arguments}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {devices}
    <serial type='file'><source path='{directory}/kernel.log'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <interface type='user'><model type='virtio'/></interface>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def lab_domain(name: str, directory: Path, command: Sequence[str], disks: Sequence[str]) -> str:
    """The domain that runs `command`; the guest's share is DIRECTORY/share, its output DIRECTORY/out and err."""
    kernel = prepare()
    write_job(directory / "share", command, Machine(modules=["virtio_blk"]))
    trees = [("lab.root", Path("/"), "<readonly/>"), ("lab.modules", kernel.modules, "<readonly/>"), ("lab.share", directory / "share", "")]
    devices = [TREE.format(tag=tag, path=escape(str(path)), access=access) for tag, path, access in trees]
    devices += [OUTPUT.format(path=directory / short, name=f"lab.{short}") for short in ("out", "err")]
    return DOMAIN.format(
        name=name,
        kernel=kernel.vmlinux,
        initrd=kernel.initramfs,
        arguments=KERNEL_ARGUMENTS,
        directory=directory,
        devices="".join([*disks, *devices]),
    )
