"""Which file system of a disk's image to mount, and how: read-only, and without playing back its journal.

Found by blkid and partx of util-linux.  A journal cannot be played back, as nothing may be written to a snapshot; the
options say so to each kind of file system, which would refuse to be mounted otherwise.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from blockdev.errors import InvalidArgument, ToolFailed

SECTOR_BYTES = 512  # in which partx counts, whatever the disk's own are
SECONDS_MAX = 60
NOTHING_FOUND = 2  # exit status of blkid

# the file system is a guest's: its devices, its set-uid programs and its programs are of no use here
SAFE = ("ro", "nodev", "nosuid", "noexec")
WITHOUT_JOURNAL = {
    "ext3": ("noload",),
    "ext4": ("noload",),
    "xfs": ("norecovery", "nouuid"),
    "btrfs": ("rescue=nologreplay",),
}
NOT_THE_SYSTEM = ("vfat",)  # the partition that firmware boots from
VOLUME_MANAGERS = {"LVM2_member": "LVM", "linux_raid_member": "RAID"}


class FileSystem(NamedTuple):
    """Where it is in the image."""

    kind: str  # as blkid calls it
    offset: int
    size_bytes: int | None  # None: to the end
    partition: int | None  # None: it has the whole disk

    def options(self) -> str:
        """For mount -o, but for those that say where it is."""
        return ",".join([*SAFE, *WITHOUT_JOURNAL.get(self.kind, ())])

    def mount_words(self, image: Path, directory: Path) -> list[str]:
        place = ["loop", f"offset={self.offset}", *([] if self.size_bytes is None else [f"sizelimit={self.size_bytes}"])]
        return ["mount", "-t", self.kind, "-o", ",".join([self.options(), *place]), str(image), str(directory)]


def run(words: Sequence[str], also_good: Sequence[int] = ()) -> str:
    """What an outside program printed.  ToolFailed: its first complaint."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
    environment = {**os.environ, "PATH": path, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment, timeout=SECONDS_MAX
        )
    except FileNotFoundError:
        raise ToolFailed(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ToolFailed(f"{words[0]} did not end in {SECONDS_MAX} s") from None
    if done.returncode not in (0, *also_good):
        complaint = (done.stderr.strip() or f"it ended with status {done.returncode}").splitlines()[0]
        raise ToolFailed(f"{words[0]}: {complaint.removeprefix(f'{words[0]}: ')}")
    return done.stdout


def find(image: Path, what: str, partition: int | None) -> FileSystem:
    """The one to mount of `what`, whose bytes are in the file `image`.

    Without a partition: that of the whole disk, or of the only partition that could be meant.  InvalidArgument, with
    what there is, otherwise.
    """
    whole = _probe(image)
    if partition is None and whole.get("USAGE") == "filesystem":
        return FileSystem(whole["TYPE"], 0, None, None)
    if "PTTYPE" not in whole:
        table = "no partition table" if partition is not None else _nothing(whole)
        raise InvalidArgument(f"{what} has {table}{_advice(whole)}")
    found = {number: (offset, size, _probe(image, offset, size)) for number, offset, size in _partitions(image)}
    mountable = {n: FileSystem(about["TYPE"], at, size, n) for n, (at, size, about) in found.items() if about.get("USAGE") == "filesystem"}
    if partition is not None:
        if partition in mountable:
            return mountable[partition]
        if partition in found:
            about = found[partition][2]
            raise InvalidArgument(f"partition {partition} of {what} has {_nothing(about)}{_advice(about)}")
        raise InvalidArgument(f"{what} has no partition {partition}: it has {', '.join(map(str, found)) or 'none'}")
    candidates = [one for one in mountable.values() if one.kind not in NOT_THE_SYSTEM] or list(mountable.values())
    if len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(f"{number} ({about.get('TYPE', 'unknown')})" for number, (_, _, about) in found.items()) or "none"
    managers = next((about for _, _, about in found.values() if about.get("TYPE") in VOLUME_MANAGERS), {})
    raise InvalidArgument(f"say which partition of {what} with --partition N: it has {listed}{_advice(managers)}")


def _probe(image: Path, offset: int = 0, size_bytes: int | None = None) -> dict[str, str]:
    """TYPE, USAGE, PTTYPE and more of what is there; nothing when blkid knows nothing of it."""
    place = [] if size_bytes is None else ["-O", str(offset), "-S", str(size_bytes)]
    lines = run(["blkid", "-p", "-o", "export", *place, str(image)], [NOTHING_FOUND]).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _partitions(image: Path) -> list[tuple[int, int, int]]:
    """(number, offset, size in bytes); an extended one, which holds others, has nothing to mount."""
    rows = run(["partx", "--raw", "--noheadings", "--output", "NR,START,SECTORS", str(image)]).splitlines()
    numbers = [[int(word) for word in row.split()] for row in rows]
    return [(number, start * SECTOR_BYTES, sectors * SECTOR_BYTES) for number, start, sectors in numbers]


def _nothing(about: dict[str, str]) -> str:
    kind = about.get("TYPE")
    return f"no file system of its own but {kind}" if kind else "no file system that is recognised"


def _advice(about: dict[str, str]) -> str:
    manager = VOLUME_MANAGERS.get(about.get("TYPE", ""))
    return f"; guestmount (apt install guestmount) reads {manager}" if manager else ""
