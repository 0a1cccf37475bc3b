"""The lab's User-Mode-Linux guest: Debian's user-mode-linux, a kernel that is an ordinary process of this machine.

It has the machine's processor speed, one processor, and no network but its own loopback: LIO, the kernel's NBD client,
open-iscsi and device-mapper are tried inside of it. A cache directory holds uml-VERSION/ with `linux.uml` and `modules/RELEASE/`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.lab.cache import cache_directory, download, locked, newest, output_of, scratch_in, tool

PACKAGE = "user-mode-linux"
INIT = Path(__file__).with_name("uml_init.sh")
MODULES_EARLY = ("overlay",)


@dataclass(frozen=True)
class Kernel:
    """What there is to run; `modules` is the directory that holds the release's module tree."""

    program: Path
    modules: Path


@dataclass(frozen=True)
class UserModeMachine:
    """What the guest has besides the machine's tree.

    `disks` are raw image files, read and written; the first one is /dev/ubda. `modules` are loaded before the command runs.
    """

    disks: Sequence[Path] = ()
    modules: Sequence[str] = ()
    memory_mib: int = 1024
    time_limit_s: float = 300

    kernel_log: ClassVar[str] = "host.log"  # the kernel is the process, and that is where its words go

    def drivers(self) -> list[str]:
        """The kernel modules to load before the command runs."""
        return list(self.modules)

    def command(self, directory: Path, outputs: Sequence[int]) -> list[str]:
        """What runs it; `directory` is the guest's own, with its share; outputs: descriptors of stdout and stderr."""
        kernel = prepare()
        # a space of processes of its own: each process of the guest is one of the machine, and must end with the kernel
        command = [tool("unshare"), *([] if os.geteuid() == 0 else ["--map-root-user"])]
        command += ["--pid", "--fork", "--kill-child=KILL"]
        command += [str(kernel.program), f"mem={self.memory_mib}M", f"uml_dir={directory}", "umid=uml"]
        command += ["rootfstype=hostfs", "rootflags=/", "ro", f"init={INIT}", "panic=-1"]
        command += [f"LAB_SHARE_ON_HOST={directory / 'share'}", f"LAB_MODULES_ON_HOST={kernel.modules}"]
        command += ["con=null", "con0=null,fd:1", "ssl=null"]
        command += [f"ssl{line}=null,fd:{output}" for line, output in enumerate(outputs)]
        # d: the file is the disk, not a layer above another one
        return command + [f"ubd{index}d={disk.resolve()}" for index, disk in enumerate(self.disks)]


def prepare(cache: Path | None = None) -> Kernel:
    """The newest cached kernel; the first call downloads one (41 MB) and takes about 5 s, later calls 1 ms."""
    cache = cache or cache_directory()
    found = newest(cache, "uml")
    if found is None:
        with locked(cache):
            found = newest(cache, "uml") or _add_kernel(cache)
    return Kernel(found / "linux.uml", found / "modules")


def _add_kernel(cache: Path) -> Path:
    with scratch_in(cache) as scratch:
        package, version = download(lambda: PACKAGE, scratch)
        tree = scratch / "tree"
        output_of(["dpkg-deb", "-x", str(package), str(tree)])
        made = scratch / "made"
        made.mkdir()
        (tree / "usr/bin/linux.uml").rename(made / "linux.uml")
        (tree / "usr/lib/uml/modules").rename(made / "modules")
        directory = cache / f"uml-{version}"
        made.rename(directory)
    return directory
