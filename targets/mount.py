"""Disks of a snapshot mounted read-only in a person's directory, by outside programs and in the person's own right.

Two ways: guestmount (libguestfs), which knows volume managers and needs no root; or nbdfuse, which shows an export as a
file, and a loop device on that file, for root.  Nothing is written to the snapshot, and the VM does not notice.

What is mounted is in the kernel's mount table alone.  HOME/run/mounts/ID is of one directory: `disk/`, where nbdfuse shows
the file; `pid` of the helper process; `log`, what it said.  What is there and not mounted means nothing: a reboot or a kill
leaves nothing stale, and `unmount` takes back what a kill left half done.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

from blockdev.targets.attach import nbd_uri
from blockdev.targets.filesystem import SAFE, WITHOUT_JOURNAL, FileSystem, find, run

from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError, Busy, InvalidArgument, NotFound, ToolFailed
from blockdev.home import Home

START_SECONDS_MAX = 300  # guestmount boots a small machine, without KVM slowly
END_SECONDS_MAX = 30
POLL_SECONDS = 0.02
IMAGE = "image"  # the file that nbdfuse shows

Tool = Literal["guestmount", "nbdfuse"]
TOOLS: tuple[Tool, ...] = ("guestmount", "nbdfuse")
PACKAGES = {"guestmount": "guestmount", "nbdfuse": "libnbd-bin"}  # of Debian 12


class MountPoint(NamedTuple):
    """A row of the kernel's mount table."""

    path: Path
    kind: str
    source: str


@dataclass(frozen=True)
class Wanted:
    """What to mount: exports of one snapshot, and which partition when there is one export."""

    exports: Sequence[str]
    partition: int | None
    directory: Path


@dataclass(frozen=True)
class Mounted:
    """What is mounted now."""

    tool: Tool
    file_system: FileSystem | None  # None: guestmount chose


class Mounts:
    """The mounts of snapshots of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._above = Path(os.path.realpath(home.run / "mounts"))  # as the kernel's tables call it

    def tool(self, wanted: Tool | None = None) -> Tool | None:
        """The first one that can be used here, by this person; only this one when one is wanted."""
        usable: list[Tool] = [one for one in TOOLS if shutil.which(one) and (one != "nbdfuse" or os.geteuid() == 0)]
        return next((one for one in usable if wanted in (None, one)), None)

    def commands(self, tool: Tool, wanted: Wanted) -> list[str]:
        """What a person would type to do the same."""
        directory = shlex.quote(str(wanted.directory))
        install = f"apt install {PACKAGES[tool]}"
        if tool == "guestmount":
            choices = [shlex.join(self._guestmount(wanted, choice)) for choice in self._choices(wanted)]
            others = [f"{words}  # instead, where no operating system is on it" for words in choices[1:]]
            return [install, choices[0], *others, f"guestunmount {directory}"]
        above, image = "/run/blockdev-disk", f"/run/blockdev-disk/{IMAGE}"
        if wanted.partition is None:
            begin = f"partx {image}; START=0  # or, of a partition, where it says that it begins"
        else:
            begin = f"START=$(partx --noheadings --raw --output START --nr {wanted.partition} {image})"
        options = "; ".join(f"{kind}: {','.join((*SAFE, *more))}" for kind, more in WITHOUT_JOURNAL.items())
        return [
            install,
            f"mkdir -p {above}",
            f"nbdfuse --readonly {image} {shlex.quote(self._uri(wanted.exports[0]))} & until test -e {image}; do sleep 1; done",
            begin,
            f"mount -o loop,{','.join(SAFE)},noload,offset=$((512 * START)) {image} {directory}  # {options}; others: {','.join(SAFE)}",
            f"umount {directory} && until umount {above}; do sleep 1; done; rmdir {above}",  # a loop device lets go a moment later
        ]

    def mount(self, wanted: Wanted, tool: Tool) -> Mounted:
        """InvalidArgument, Busy: the directory or the disk cannot be; ToolFailed: what a program said."""
        with self._alone():
            directory = _empty_directory(wanted.directory)
            state = self._state(directory)
            if self._is_ours(state):
                raise Busy(f"something is mounted at {directory} half: run blockdevctl snapshot unmount {directory} first")
            _remove(state)
            (state / "disk").mkdir(mode=0o700, parents=True)
            try:
                if tool == "guestmount":
                    self._mount_by_guestmount(wanted, state)
                    return Mounted(tool, None)
                return Mounted(tool, self._mount_by_nbdfuse(wanted, state, directory))
            except BaseException:
                self._take_back(state)
                raise

    def unmount(self, directory: Path) -> None:
        """End a mount, and its helper process.  NotFound: it is none of ours; Busy: somebody uses it."""
        directory = Path(os.path.realpath(directory))
        with self._alone():
            state = self._state(directory)
            point = _mounted_at(directory)
            if not self._is_ours(state, point):
                raise NotFound(f"no snapshot is mounted at {directory} by blockdevctl snapshot mount")
            if point is not None:
                _unmount(directory)
            self._take_back(state)

    def _is_ours(self, state: Path, point: MountPoint | None = None) -> bool:
        """Whether this state's helper shows something: a file, or at `point` a loop device on it, or all of itself."""
        if point is not None and point.source.startswith("/dev/loop"):
            backing = Path("/sys/class/block", Path(point.source).name, "loop/backing_file")
            with suppress(OSError):
                return backing.read_text().startswith(f"{state / 'disk'}/")
        if point is not None:
            return point.kind.startswith("fuse") and _helper(state) is not None
        return _mounted_at(state / "disk") is not None

    def _mount_by_nbdfuse(self, wanted: Wanted, state: Path, directory: Path) -> FileSystem:
        [export] = wanted.exports
        image = state / "disk" / IMAGE
        _start(["nbdfuse", "--readonly", "--pidfile", str(state / "pid"), str(image), self._uri(export)], state)
        found = find(image, export, wanted.partition)
        try:
            run(found.mount_words(image, directory))
        except ToolFailed as error:
            raise ToolFailed(f"{found.kind} of {export} cannot be mounted: {error.message}") from None
        return found

    def _mount_by_guestmount(self, wanted: Wanted, state: Path) -> None:
        """As its operating system mounts it; a disk without one as a whole."""
        failure: ToolFailed | None = None
        for choice in self._choices(wanted):
            try:
                _start([*self._guestmount(wanted, choice), "--pid-file", str(state / "pid"), "--no-fork"], state)
                return
            except ToolFailed as error:
                failure = failure or error
        assert failure is not None
        raise ToolFailed(
            f"{failure.message}; say which disk and partition (--disk D --partition N), see whether libguestfs-test-tool passes, "
            "or take nbdfuse as root (--tool nbdfuse)"
        )

    def _choices(self, wanted: Wanted) -> list[list[str]]:
        if wanted.partition is not None:
            return [["-m", f"/dev/sda{wanted.partition}"]]
        return [["-i"], ["-m", "/dev/sda"]] if len(wanted.exports) == 1 else [["-i"]]

    def _guestmount(self, wanted: Wanted, choice: list[str]) -> list[str]:
        drives = [word for export in wanted.exports for word in ("--format=raw", "-a", self._guest_uri(export))]
        return ["guestmount", "--ro", *drives, *choice, str(wanted.directory)]

    def _uri(self, export: str) -> str:
        return nbd_uri(export, self._home)

    def _guest_uri(self, export: str) -> str:
        """As guestfish(1) writes it."""
        return f"nbd:///{quote(export)}?socket={quote(str(self._home.nbd_socket))}"

    def _state(self, directory: Path) -> Path:
        return self._above / hashlib.blake2b(bytes(directory), digest_size=8).hexdigest()

    def _take_back(self, state: Path) -> None:
        """End the helper, and forget it."""
        if _mounted_at(state / "disk") is not None:
            _unmount(state / "disk")
        helper = _helper(state)
        if helper is not None:
            _wait_for_end(helper)
        _remove(state)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time."""
        self._above.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self._above / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _empty_directory(directory: Path) -> Path:
    if not directory.is_dir():
        raise InvalidArgument(f"{directory} is no directory: make it first")
    found = Path(os.path.realpath(directory))
    if _mounted_at(found) is not None:
        raise Busy(f"something is mounted at {directory} already: choose another directory")
    if any(found.iterdir()):
        raise InvalidArgument(f"{directory} is not empty: choose another directory")
    return found


def _mounted_at(path: Path) -> MountPoint | None:
    """What is mounted there, the uppermost; see proc(5), /proc/pid/mountinfo."""
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:  # any other control character is part of a name
        before, _, after = line.partition(b" - ")
        point = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), before.split(b" ")[4])
        if point == bytes(path):
            kind, source, *_ = map(os.fsdecode, after.split(b" "))
            found = MountPoint(path, kind, source)
    return found


def _start(words: list[str], state: Path) -> None:
    """A helper that stays; returns when it serves, which it says by writing its pid."""
    with open(state / "log", "wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")
    deadline = monotonic_seconds() + START_SECONDS_MAX
    try:
        while not (state / "pid").exists():
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
                raise ToolFailed(f"{words[0]}: {_reason(state, words[0])}")
            if monotonic_seconds() > deadline:
                raise ToolFailed(f"{words[0]} was not ready in {START_SECONDS_MAX} s")
    except BaseException:
        process.kill()
        process.wait()
        raise


def _reason(state: Path, program: str) -> str:
    """The first line that says what was wrong: guestmount has advice behind it."""
    said = (state / "log").read_text(errors="replace").strip().splitlines()
    errors = [line for line in said if line.startswith((f"{program}: ", "libguestfs: error: "))]
    line = next(iter([*errors, *said[-1:]]), "it ended and said nothing")
    return line.removeprefix(f"{program}: ").removeprefix("libguestfs: error: ")


def _helper(state: Path) -> int | None:
    """The process of this state, while it lives; another one may have its number since a reboot."""
    try:
        pid = int((state / "pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(state / "pid") in words else None


def _wait_for_end(pid: int) -> None:
    """It ends by itself once nothing of it is mounted; what does not is killed."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(END_SECONDS_MAX * 1000):
            os.kill(pid, 9)
            poller.poll(END_SECONDS_MAX * 1000)
    finally:
        os.close(descriptor)


def _unmount(path: Path) -> None:
    """A loop device lets go of its file a moment after its file system was unmounted, so a refusal is tried again."""
    words = ["umount", str(path)]
    if os.geteuid() != 0:
        words = ["fusermount3" if shutil.which("fusermount3") else "fusermount", "-u", str(path)]
    deadline = monotonic_seconds() + (1 if path.name != "disk" else END_SECONDS_MAX)
    while True:
        try:
            run(words)
            return
        except ToolFailed as error:
            if monotonic_seconds() > deadline:
                raise Busy(f"{path} cannot be unmounted, somebody uses it: {error.message}") from None
        time.sleep(POLL_SECONDS)


def _remove(state: Path) -> None:
    """Files that mean nothing any more; never what is mounted below."""
    for name in ("pid", "log"):
        (state / name).unlink(missing_ok=True)
    try:
        for path in (state / "disk", state):
            if path.exists():
                path.rmdir()
    except OSError as error:
        raise BlockdevError(f"{state} cannot be removed: {error.strerror}; look what is in it") from None
