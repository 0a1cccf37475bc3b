"""blockdevctl snapshot mount: a guest's files out of a snapshot, while the VM is written to, and not a bit of it changes."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbd
from tests.cli.served import Home, run_tool, until
from tests.nbd.file_system import MAKERS, unmount

MEBIBYTE = 1 << 20
IMAGE_BYTES = {"ext4": 16 * MEBIBYTE, "xfs": 300 * MEBIBYTE}  # the least that XFS takes
BEGIN = 2048 * 512  # of the first partition
TEXT = "what the guest wrote\n"
MOUNT = ("snapshot", "mount", "--tool", "nbdfuse")  # guestmount may be installed, too
SHOWN = "/run/blockdev-disk"  # where what is printed says that a disk is to be shown


@pytest.fixture
def directory(home: Home) -> Iterator[Path]:
    """Where to mount; nothing is left mounted there."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    made = Path(os.path.realpath("/tmp"), f"blockdev-mount-{os.getpid()}", "with a space")
    made.mkdir(parents=True)
    yield made
    for point in (made, *home.path.glob("run/mounts/*/disk")):
        while os.path.ismount(point):
            unmount(point)
    shutil.rmtree(made.parent)


def partition_table(sizes: list[int]) -> bytes:
    """An MBR with partitions of Linux, one behind the other from BEGIN on."""
    entries, at = b"", BEGIN // 512
    for size in sizes:
        entries += struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", at, size // 512)
        at += size // 512
    return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"


def image_of_running_guest(scratch: Path, kind: str, partitioned: bool) -> Path:
    """A file system copied while it is mounted: one file is in its place, what was written since is in the journal only."""
    image, point = scratch / "fs.raw", scratch / "guest"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES[kind])
    run_tool(*MAKERS[kind], image)
    run_tool("mount", "-o", "loop", image, point)
    try:
        (point / "hello").write_text(TEXT)
        for action in ("--freeze", "--unfreeze"):
            run_tool("fsfreeze", action, point)
        for number in range(100):
            (point / f"new-{number}").write_text(TEXT)
        run_tool("sync", "--file-system", point)
        run_tool("cp", "--sparse=always", image, scratch / "copy.raw")
    finally:
        unmount(point)
    copy = scratch / "copy.raw"
    if partitioned:
        run_tool("cp", "--sparse=always", copy, image)
        run_tool("truncate", "-s", "0", copy)
        with copy.open("r+b") as file:
            file.write(partition_table([IMAGE_BYTES[kind], 4 * MEBIBYTE]))
        run_tool("dd", f"if={image}", f"of={copy}", "bs=1M", f"seek={BEGIN // MEBIBYTE}", "conv=notrunc,sparse", "status=none")
        run_tool("truncate", "-s", str(BEGIN + IMAGE_BYTES[kind] + 4 * MEBIBYTE), copy)
    return copy


def digest(home: Home, export: str, scratch: Path) -> str:
    run_tool("nbdcopy", home.uri(export), scratch / "read.raw")
    found = run_tool("sha256sum", scratch / "read.raw").split()[0]
    (scratch / "read.raw").unlink()
    return found


def helpers(home: Home) -> list[int]:
    """The nbdfuse processes of a home that live."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if words.startswith(b"nbdfuse\0") and bytes(home.path) in words:
                found.append(int(process.name))
    return found


@pytest.mark.parametrize("partitioned", [False, True], ids=["whole", "partitioned"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_files_are_read_while_the_vm_is_written_to(
    home: Home, name: str, scratch: Path, directory: Path, kind: str, partitioned: bool
) -> None:
    image = image_of_running_guest(scratch, kind, partitioned)
    home("vm", "create", name, "--image", f"root={image}", "--format", "raw", "--disk", "data=1M")
    home("snapshot", "create", name, "--name", "s")
    before = digest(home, f"{name}/root@s", scratch)
    said = home.json(*MOUNT, f"{name}@s", directory, "--disk", "root")
    assert (said["tool"], said["file_system"], said["partition"]) == ("nbdfuse", kind, 1 if partitioned else None)
    guest = nbd.NBD()
    guest.connect_uri(home.uri(f"{name}/root"))
    for offset in range(0, IMAGE_BYTES[kind], MEBIBYTE):
        guest.pwrite(b"\xee" * 4096, offset)
    assert (directory / "hello").read_text() == TEXT
    with pytest.raises(OSError):
        (directory / "mine").write_text("no")
    assert len(helpers(home)) == 1
    assert "nbdfuse" in home.run("snapshot", "delete", f"{name}@s", "--yes").error
    assert home("snapshot", "unmount", directory) == f"unmounted {directory}\n"
    assert not os.path.ismount(directory) and helpers(home) == []
    assert [entry.name for entry in (home.path / "run/mounts").iterdir()] == ["lock"]
    assert digest(home, f"{name}/root@s", scratch) == before
    assert home.json("snapshot", "show", f"{name}@s")["disks"][0]["clients"] == []


@pytest.fixture
def vm(home: Home, name: str, scratch: Path) -> str:
    """With two partitions that hold a file system each, a third that holds none, a disk without any, and a snapshot s."""
    small = scratch / "small.raw"
    run_tool("truncate", "-s", "8M", small)
    run_tool(*MAKERS["ext4"], small)
    disk = scratch / "disk.raw"
    data = small.read_bytes()
    disk.write_bytes(partition_table([len(data)] * 2 + [MEBIBYTE]).ljust(BEGIN, b"\0") + data * 2 + bytes(MEBIBYTE))
    home("vm", "create", name, "--image", f"root={disk}", "--disk", "empty=1M")
    home("snapshot", "create", name, "--name", "s")
    return name


def test_what_cannot_be_mounted_is_refused_and_leaves_nothing(home: Home, vm: str, directory: Path) -> None:
    (directory.parent / "full").mkdir()
    (directory.parent / "full/file").touch()
    for words, status, told in (
        ([directory], 2, "--disk"),
        ([directory, "--disk", "none"], 3, "root"),
        ([directory, "--disk", "empty"], 2, "no file system"),
        ([directory, "--disk", "root"], 2, "1 (ext4), 2 (ext4), 3 (unknown)"),
        ([directory, "--disk", "root", "--partition", "3"], 2, "no file system"),
        ([directory, "--disk", "root", "--partition", "4"], 2, "no partition 4"),
        ([directory, "--disk", "empty", "--partition", "1"], 2, "no partition table"),
        ([directory / "none", "--disk", "root"], 2, "make it first"),
        ([directory.parent / "full", "--disk", "root"], 2, "not empty"),
    ):
        result = home.run(*MOUNT, f"{vm}@s", *words)
        assert result.status == status and told in result.error, result
    assert home.run("snapshot", "unmount", directory).status == 3
    assert helpers(home) == [] and not os.path.ismount(directory)


def test_a_mount_in_use_stays_and_a_second_one_is_refused(home: Home, vm: str, directory: Path) -> None:
    home(*MOUNT, f"{vm}@s", directory, "--disk", "root", "--partition", "2")
    assert home.run(*MOUNT, f"{vm}@s", directory, "--disk", "root", "--partition", "1").status == 5
    with os.scandir(directory) as held:
        refused = home.run("snapshot", "unmount", directory)
        assert refused.status == 5 and "uses it" in refused.error
        assert {entry.name for entry in held} == {"lost+found"}
    home("snapshot", "unmount", directory)
    assert helpers(home) == []


def test_what_a_kill_left_half_done_is_taken_back(home: Home, vm: str, directory: Path) -> None:
    """The helper shows the disk, and nothing is mounted at the directory yet; and the other way round."""
    home(*MOUNT, f"{vm}@s", directory, "--disk", "root", "--partition", "1")
    unmount(directory)
    refused = home.run(*MOUNT, f"{vm}@s", directory, "--disk", "root", "--partition", "1")
    assert refused.status == 5 and "unmount" in refused.error
    home("snapshot", "unmount", directory)
    assert helpers(home) == []
    home(*MOUNT, f"{vm}@s", directory, "--disk", "root", "--partition", "1")
    [helper] = helpers(home)
    os.kill(helper, signal.SIGKILL)
    until(lambda: helpers(home) == [], "the end of the helper")
    home("snapshot", "unmount", directory)
    home(*MOUNT, f"{vm}@s", directory, "--disk", "root", "--partition", "1")
    home("snapshot", "unmount", directory)


def test_a_mount_is_found_whatever_its_home_and_others_are_called(home: Home, vm: str, directory: Path) -> None:
    link, odd = directory.parent / "home", directory.parent / "line\x0cfeed\rreturn"
    link.symlink_to(home.path)
    odd.mkdir()
    run_tool("mount", "-t", "tmpfs", "none", odd)
    try:
        home("--home", link, *MOUNT, f"{vm}@s", directory, "--disk", "root", "--partition", "1")
        home("--home", link, "snapshot", "unmount", directory)
    finally:
        unmount(odd)
    assert helpers(home) == []


def test_a_leftover_of_an_earlier_boot_means_nothing(home: Home, vm: str, directory: Path) -> None:
    """Directories and a pid that is another process's by now."""
    state = home.path / "run/mounts" / hashlib.blake2b(bytes(directory), digest_size=8).hexdigest()
    (state / "disk").mkdir(parents=True)
    (state / "pid").write_text(f"{os.getpid()}\n")
    assert home.run("snapshot", "unmount", directory).status == 3
    home(*MOUNT, f"{vm}@s", directory, "--disk", "root", "--partition", "1")
    home("snapshot", "unmount", directory)
    assert not state.exists()


def test_what_is_printed_does_it_when_it_is_typed(home: Home, vm: str, scratch: Path, directory: Path) -> None:
    """All but what to install, in a place of our own; of a disk with partitions, and of one without."""
    place = home.path / "run/mounts/typed/disk"
    home("disk", "import", f"{vm}/empty", scratch / "small.raw", "--replace", "--yes")
    home("snapshot", "create", vm, "--name", "s2")
    for words in (["--disk", "root", "--partition", "2"], ["--disk", "empty"]):
        printed = home.json("snapshot", "mount", f"{vm}@s2", directory, *words, "--print")["ways"]
        install, *typed, end = printed["nbdfuse"]
        assert install == "apt install libnbd-bin"
        lines = "\n".join([*typed, f"ls {shlex.quote(str(directory))}", end])
        said = run_tool("bash", "-c", lines.replace(SHOWN, str(place)))
        assert said.splitlines()[-1] == "lost+found"
        assert not os.path.ismount(directory)
        until(lambda: helpers(home) == [], "the end of nbdfuse")
    place.parent.rmdir()


def test_what_to_type_is_printed_where_nothing_can_mount(home: Home, vm: str, directory: Path) -> None:
    words = ["snapshot", "mount", f"{vm}@s", str(directory), "--disk", "root"]
    printed = home(*words, "--print")
    for part in ("apt install guestmount", "apt install libnbd-bin", "guestunmount", "noload", "norecovery", f"{vm}/root@s"):
        assert part in printed
    assert set(home.json(*words, "--print")["ways"]) == {"guestmount", "nbdfuse"}
    result = home.run(*words, environment={"PATH": str(directory)})  # with nothing on it
    assert result.status == 13 and result.stdout == printed
    assert "nothing was mounted" in result.stderr and not os.path.ismount(directory)



def test_why_guestmount_failed_is_its_own_reason_and_not_its_advice(home: Home, vm: str, directory: Path) -> None:
    """Its words, as guestmount 1.48 said them of a disk without an operating system; it takes 139 packages itself."""
    program = directory.parent / "guestmount"
    program.write_text(
        "#!/bin/sh\n"
        "echo 'guestmount: no operating system was found on this disk' >&2\n"
        "echo 'into a bug report or message to the libguestfs mailing list.' >&2\n"
        "exit 1\n"
    )
    program.chmod(0o755)
    path = f"{directory.parent}:{os.environ['PATH']}"
    result = home.run("snapshot", "mount", f"{vm}@s", directory, "--disk", "root", environment={"PATH": path})
    assert result.status == 13 and "guestmount: no operating system was found on this disk; say which disk" in result.error
    home(*MOUNT, f"{vm}@s", directory, "--disk", "root", "--partition", "1")
    home("snapshot", "unmount", directory)
