"""The disks that travel: a Debian system, the same after an upgrade to the next release, and one changed at random.

The system is a real one: debootstrap makes it on ext4 in a loop-mounted file, and `apt-get dist-upgrade` in a chroot of a
copy takes it from Debian 12 to 13.  Both need root and the mirror; what was made is kept and used again.  What a guest
would write for it is taken to be the blocks that differ, which flatters who tracks dirty clusters: blocks that were
written twice, or with what they had, are not among them.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.replication.results import note
from bench.workloads import GIB, MIB

BLOCK_BYTES = 4096
SYSTEM_BYTES = 3 * GIB
MIRROR = "http://deb.debian.org/debian"
RELEASE, NEXT_RELEASE = "bookworm", "trixie"
PACKAGES = "openssh-server,python3,perl,nginx-light,postgresql,vim,git,curl,rsync,e2fsprogs,iproute2,systemd,udev"
NO_SERVICES = "#!/bin/sh\nexit 101\n"  # policy-rc.d: nothing is started in the chroot
# As apt, which a person types, does it: what was downloaded is deleted again, and its blocks stay as they are.
UPGRADE = ["apt-get", "-y", "-q", "-o", "APT::Keep-Downloaded-Packages=false", "-o", "Dpkg::Options::=--force-confold", "dist-upgrade"]


class Case(NamedTuple):
    """One change, and what the other end has before it."""

    name: str
    title: str
    before: Path | None  # what it has of this disk; None: the disk is new to it
    after: Path  # what it shall have
    known: Path | None = None  # what it has by another name


def _run(*command: str | Path, log: Path | None = None) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run([*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if log is not None:
        with log.open("a") as file:
            file.write(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")


@contextmanager
def loop_mounted(image: Path) -> Iterator[Path]:
    point = image.with_suffix(".mnt")
    point.mkdir(exist_ok=True)
    _run("mount", "-o", "loop", image, point)
    try:
        yield point
    finally:
        _run("umount", point)
        point.rmdir()


def copy_sparse(source: Path, target: Path) -> None:
    _run("cp", "--sparse=always", source, target)


def systems(folder: Path) -> tuple[Path, Path]:
    """A system before and after its upgrade; made once in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    before, after = folder / f"{RELEASE}.raw", folder / f"{NEXT_RELEASE}.raw"
    if not before.exists():
        note(f"making a system of Debian {RELEASE}")
        _made(before, _install)
    if not after.exists():
        note(f"upgrading it to {NEXT_RELEASE}")
        _made(after, lambda image: _upgrade(before, image))
    return before, after


def _made(image: Path, make: object) -> None:
    unfinished = image.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    assert callable(make)
    make(unfinished)
    unfinished.rename(image)


def _install(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(SYSTEM_BYTES)
    _run("mkfs.ext4", "-q", "-F", image)
    with loop_mounted(image) as root:
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, root, MIRROR, log=image.with_suffix(".log"))
        _run("chroot", root, "apt-get", "clean")


def _upgrade(before: Path, image: Path) -> None:
    copy_sparse(before, image)
    with loop_mounted(image) as root:
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text(NO_SERVICES)
        policy.chmod(0o755)
        (root / "etc/apt/sources.list").write_text(f"deb {MIRROR} {NEXT_RELEASE} main\n")
        for name in ("resolv.conf", "hosts"):
            shutil.copyfile(f"/etc/{name}", root / "etc" / name)
        log = image.with_suffix(".log")
        _run("chroot", root, "apt-get", "-qq", "update", log=log)
        _run("chroot", root, *UPGRADE, log=log)


def changed_at_random(before: Path, after: Path, share: float, seed: int) -> None:
    """`share` of all blocks become random bytes."""
    copy_sparse(before, after)
    chosen = random.Random(seed)
    count = before.stat().st_size // BLOCK_BYTES
    with after.open("r+b") as file:
        for block in sorted(chosen.sample(range(count), round(count * share))):
            file.seek(block * BLOCK_BYTES)
            file.write(chosen.randbytes(BLOCK_BYTES))


def random_file(path: Path, size_bytes: int, seed: int) -> None:
    """Bytes that neither compress nor repeat."""
    made = np.random.default_rng(seed)
    with path.open("wb") as file:
        for at in range(0, size_bytes, MIB):
            file.write(made.bytes(min(MIB, size_bytes - at)))


def changed_blocks(before: Path, after: Path) -> Iterator[tuple[int, bytes]]:
    """(block, what it has after) of each block that differs."""
    with before.open("rb") as old, after.open("rb") as new:
        for first in range(0, after.stat().st_size, MIB):
            was, now = old.read(MIB), new.read(MIB)
            if was != now:
                pair = [np.frombuffer(data, np.uint64).reshape(-1, BLOCK_BYTES // 8) for data in (was, now)]
                for number in np.flatnonzero((pair[0] != pair[1]).any(axis=1)).tolist():
                    yield first // BLOCK_BYTES + number, now[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


def same(one: Path, other: Path) -> bool:
    """Whether two raw images have the same bytes."""
    return subprocess.run(["cmp", "--quiet", str(one), str(other)]).returncode == 0


def cases(folder: Path, kept: Path, seed: int) -> list[Case]:
    """The three; what is made for this run alone goes to `folder`."""
    before, after = systems(kept)
    changed = folder / "changed.raw"
    changed_at_random(before, changed, 0.01, seed)
    return [
        Case("known", "a new VM whose image the other end has by another name", None, before, before),
        Case("random", "1 % of the disk's blocks changed at random", before, changed),
        Case("upgrade", f"an upgrade from Debian {RELEASE} to {NEXT_RELEASE}", before, after),
    ]
