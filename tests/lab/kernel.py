"""Debian's stock kernel for the lab's QEMU guest: downloaded once, unpacked and kept in the lab's cache (tests/lab/cache.py).

A cache directory holds kernel-VERSION/ with `vmlinux`, `lib/modules/RELEASE/` and `initramfs-KEY`.
"""

import hashlib
import lzma
import os
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import (
    LabError,
    cache_directory,
    download,
    locked,
    newest,
    output_of,
    scratch_in,
    tool,
)

META_PACKAGE = "linux-image-amd64"
EARLY_MODULES = ("virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "9p", "9pnet_virtio", "overlay")
INIT = Path(__file__).with_name("init.sh")


@dataclass(frozen=True)
class Kernel:
    """What QEMU needs to boot; `modules` is the directory that holds the release's module tree."""

    vmlinux: Path
    initramfs: Path
    modules: Path


def prepare(cache: Path | None = None) -> Kernel:
    """The newest cached kernel; the first call downloads one (70 MB) and takes about 10 s, later calls 1 ms."""
    cache = cache or cache_directory()
    kernel = _cached(cache)
    if kernel is None:
        with locked(cache):
            kernel = _cached(cache) or _build(cache)
    return kernel


def _cached(cache: Path) -> Kernel | None:
    directory = newest(cache, "kernel")
    if directory is None:
        return None
    kernel = Kernel(directory / "vmlinux", directory / _initramfs_name(), directory / "lib" / "modules")
    return kernel if kernel.initramfs.exists() else None


def _build(cache: Path) -> Kernel:
    directory = newest(cache, "kernel") or _add_kernel(cache)
    initramfs = directory / _initramfs_name()
    if not initramfs.exists():
        with scratch_in(cache) as scratch:
            _write_initramfs(directory, scratch).rename(initramfs)
    return Kernel(directory / "vmlinux", initramfs, directory / "lib" / "modules")


def _add_kernel(cache: Path) -> Path:
    with scratch_in(cache) as scratch:
        package, version = download(_package, scratch)
        tree = scratch / "tree"
        output_of(["dpkg-deb", "-x", str(package), str(tree)])
        release = next((tree / "lib" / "modules").iterdir()).name
        output_of(["depmod", "-b", str(tree), release])
        made = scratch / "made"
        made.mkdir()
        (tree / "lib").rename(made / "lib")
        image = (tree / "boot" / f"vmlinuz-{release}").read_bytes()
        (made / "vmlinux").write_bytes(extract_vmlinux(image))
        directory = cache / f"kernel-{version}"
        made.rename(directory)
    return directory


def _package() -> str:
    shown = output_of(["apt-cache", "show", "--no-all-versions", META_PACKAGE])
    match = re.search(r"^Depends: (linux-image-[^ ,]+)", shown, re.MULTILINE)
    if match is None:
        raise LabError(f"apt does not know what {META_PACKAGE} depends on: apt-get update")
    return match[1]


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
    output_of(["busybox", "cpio", "-o", "-H", "newc", "-F", str(made)], cwd=root, typed=names)
    return made


def _early_modules(kernel: Path) -> list[Path]:
    """The modules that mount the root, each after those it needs."""
    release = next((kernel / "lib" / "modules").iterdir()).name
    order: dict[Path, None] = {}
    for module in EARLY_MODULES:
        shown = output_of(["modprobe", "-d", str(kernel), "-S", release, "--show-depends", module])
        order.update(
            dict.fromkeys(Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod "))
        )
    return list(order)
