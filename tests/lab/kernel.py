"""Debian's stock kernel for the lab guest: downloaded once, unpacked and kept in a cache directory.

A cache directory holds kernel-VERSION/ with `vmlinux`, `lib/modules/RELEASE/` and `initramfs-KEY`.
Each of them appears by a rename when it is whole, under an exclusive lock on CACHE/lock, so what is there may
be used without the lock and several processes may ask at once. Nothing here is ever changed in place.
"""

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

META_PACKAGE = "linux-image-amd64"
EARLY_MODULES = ("virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "9p", "9pnet_virtio", "overlay")
INIT = Path(__file__).with_name("init.sh")
SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
PACKAGE_OF_TOOL = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "modprobe": "kmod",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
}


class LabError(Exception):
    """The lab itself failed (not the command in the guest); the message says what to do."""


@dataclass(frozen=True)
class Kernel:
    """What QEMU needs to boot; `modules` is the directory that holds the release's module tree."""

    vmlinux: Path
    initramfs: Path
    modules: Path


def tool(name: str) -> str:
    """The full path of a program that the lab runs."""
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise LabError(f"{name} is missing: apt-get install {PACKAGE_OF_TOOL[name]}")
    return found


def cache_directory() -> Path:
    """BLOCKDEV_LAB_CACHE, else .cache/lab of this source tree."""
    default = Path(__file__).resolve().parents[2] / ".cache" / "lab"
    return Path(os.environ.get("BLOCKDEV_LAB_CACHE") or default).resolve()


def prepare(cache: Path | None = None) -> Kernel:
    """The newest cached kernel; the first call downloads one (70 MB) and takes about 10 s, later calls 1 ms."""
    cache = cache or cache_directory()
    kernel = _cached(cache)
    if kernel is None:
        with _lock(cache):
            kernel = _cached(cache) or _build(cache)
    return kernel


def _cached(cache: Path) -> Kernel | None:
    directory = _newest_kernel(cache)
    if directory is None:
        return None
    kernel = Kernel(directory / "vmlinux", directory / _initramfs_name(), directory / "lib" / "modules")
    return kernel if kernel.initramfs.exists() else None


def _newest_kernel(cache: Path) -> Path | None:
    return max(cache.glob("kernel-*"), key=lambda directory: directory.stat().st_mtime, default=None)


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = open(cache / "lock", "w")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise LabError(
            f"cannot use the lab's cache {cache}: {error.strerror}; set BLOCKDEV_LAB_CACHE"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(cache: Path) -> Kernel:
    directory = _newest_kernel(cache) or _add_kernel(cache)
    initramfs = directory / _initramfs_name()
    if not initramfs.exists():
        with _scratch(cache) as scratch:
            _write_initramfs(directory, scratch).rename(initramfs)
    return Kernel(directory / "vmlinux", initramfs, directory / "lib" / "modules")


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    # beside the final place: a rename must not cross file systems
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=cache) as name:
        yield Path(name)


def _run(command: Sequence[str], *, cwd: Path | None = None, typed: str | None = None) -> str:
    done = subprocess.run(
        [tool(command[0]), *command[1:]], capture_output=True, text=True, check=False, cwd=cwd, input=typed
    )
    if done.returncode != 0:
        raise LabError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _add_kernel(cache: Path) -> Path:
    with _scratch(cache) as scratch:
        package, version = _download(scratch)
        tree = scratch / "tree"
        _run(["dpkg-deb", "-x", str(package), str(tree)])
        release = next((tree / "lib" / "modules").iterdir()).name
        _run(["depmod", "-b", str(tree), release])
        made = scratch / "made"
        made.mkdir()
        (tree / "lib").rename(made / "lib")
        image = (tree / "boot" / f"vmlinuz-{release}").read_bytes()
        (made / "vmlinux").write_bytes(extract_vmlinux(image))
        directory = cache / f"kernel-{version}"
        made.rename(directory)
    return directory


def _download(scratch: Path) -> tuple[Path, str]:
    """Fetch the package that the meta-package depends on, through apt, which verifies it."""
    try:
        return _try_download(scratch)
    except LabError:
        if os.geteuid() != 0:
            raise
    _run(["apt-get", "-qq", "update"])  # no package lists yet, or too old ones
    return _try_download(scratch)


def _try_download(scratch: Path) -> tuple[Path, str]:
    shown = _run(["apt-cache", "show", "--no-all-versions", META_PACKAGE])
    match = re.search(r"^Depends: (linux-image-[^ ,]+)", shown, re.MULTILINE)
    if match is None:
        raise LabError(f"apt does not know what {META_PACKAGE} depends on: apt-get update")
    # the scratch directory is ours alone, so apt's download user could not write there
    _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", match[1]], cwd=scratch)
    package = next(scratch.glob("*.deb"))
    return package, package.name.split("_")[1]


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage (boot protocol 2.08 and later): under TCG, xz would cost 4 s at each boot."""
    setup_sectors = image[0x1F1]
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(setup_sectors + 1) * 512 + offset :][:length]
    try:
        return lzma.LZMADecompressor().decompress(payload)
    except lzma.LZMAError as error:
        raise LabError(
            "the kernel package's image is not xz-compressed; teach tests/lab/kernel.py the new format"
        ) from error


def _initramfs_name() -> str:
    busybox = os.stat(tool("busybox"))
    key = INIT.read_bytes() + repr((EARLY_MODULES, busybox.st_size, busybox.st_mtime_ns)).encode()
    return f"initramfs-{hashlib.sha256(key).hexdigest()[:16]}"


def _write_initramfs(kernel: Path, scratch: Path) -> Path:
    root = scratch / "root"
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    modules = _early_modules(kernel)
    for module in modules:
        shutil.copy(module, root / "modules")
    (root / "modules" / "order").write_text("".join(module.name + "\n" for module in modules))
    shutil.copy(tool("busybox"), root / "bin")
    shutil.copy(INIT, root / "init")
    (root / "init").chmod(0o755)
    names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    made = scratch / "initramfs"
    _run(["busybox", "cpio", "-o", "-H", "newc", "-F", str(made)], cwd=root, typed=names)
    return made


def _early_modules(kernel: Path) -> list[Path]:
    """The modules that mount the root, each after those it needs."""
    release = next((kernel / "lib" / "modules").iterdir()).name
    order: dict[Path, None] = {}
    for module in EARLY_MODULES:
        shown = _run(["modprobe", "-d", str(kernel), "-S", release, "--show-depends", module])
        order.update(
            dict.fromkeys(Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod "))
        )
    return list(order)
