"""A stock kernel's own NBD client (nbd.ko, nbd-client) as the second way to attach a disk and a snapshot, and fstrim.

The guest runs what `blockdevctl attach --as nbd-client` prints; a third disk is its hypervisor's, for what fstrim gives back.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.conftest import ServedHome
from tests.lab.guest import Guest, Result
from tests.lab.qemu import SERVICE_ADDRESS, Drive, Machine

PORT = 10809
SCRIPT = Path(__file__).with_name("kernel_nbd.sh")
MEBIBYTE = 1 << 20
JOURNAL_BYTES = 64 << 10  # what the file system may write about the removal itself
FILLER_BYTES = 64 * MEBIBYTE  # that the guest writes to the virtio disk and deletes; nothing of it compresses
BESIDE_BYTES = 4 * MEBIBYTE  # what the file system and the pool may write about it


@dataclass
class History:
    """What was seen of one guest."""

    result: Result
    written_bytes: int  # allocated on the disk of the kernel's client, before its fstrim
    trimmed_bytes: int  # and behind it
    filled_bytes: int  # that a compacted pool takes while the virtio disk is full
    emptied_bytes: int  # and by one compaction after fstrim


def allocated_bytes(home: ServedHome, export: str) -> int:
    command = ["nbdinfo", "--map", "--json", home.uri(export)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(extent["length"] for extent in json.loads(shown) if extent["type"] == 0)


def compacted_bytes(home: ServedHome) -> int:
    """What the pool takes after a compaction."""
    home.ctl("pool", "compact")
    used_bytes: int = json.loads(home.ctl("pool", "status", "--json"))["engine"]["stats"]["used_bytes"]
    return used_bytes


def attach_command(home: ServedHome, export: str) -> str:
    place = ["--host", SERVICE_ADDRESS, "--port", str(PORT)]
    # unquoted by a shell that pastes it; the script's plain $word would keep the quotes
    return " ".join(shlex.split(home.ctl("attach", export, "--as", "nbd-client", *place)))


def image_with_small_blocks(directory: Path) -> Path:
    """An ext4 image of 1 KiB blocks: a device of 4 KiB sectors could not mount it."""
    tree = directory / "tree"
    tree.mkdir()
    (tree / "greeting").write_text("hello\n")
    image = directory / "files.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", tree, image, "16M"], check=True)
    return image


@pytest.fixture(scope="module")
def history(served_home: ServedHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    home, disk, directory = served_home, "bare/disk", tmp_path_factory.mktemp("bare")
    files, filler = image_with_small_blocks(directory), directory / "filler"
    filler.write_bytes(os.urandom(FILLER_BYTES))
    home.ctl("vm", "create", "bare", "--disk", "disk=64M", "--image", f"files={files}", "--disk", "filled=128M")
    home.ctl("snapshot", "create", "bare", "--name", "blank")
    attach = [attach_command(home, export) for export in (disk, "bare/disk@blank", "bare/files")]
    attach[1] = attach[1].replace("@blank", "@after")  # which is not there yet
    services, drives = [(PORT, str(home.nbd_socket))], [Drive(home.uri("bare/filled"))]
    machine = Machine(services=services, drives=drives, modules=["nbd"], time_limit_s=300)
    with Guest(["bash", str(SCRIPT), *attach, str(filler)], machine) as guest:
        guest.await_file("written")
        written_bytes = allocated_bytes(home, disk)
        (guest.share / "written-seen").touch()
        guest.await_file("trimmed")
        trimmed_bytes = allocated_bytes(home, disk)
        (guest.share / "trimmed-seen").touch()
        guest.await_file("detached")
        home.ctl("snapshot", "create", "bare", "--name", "after")
        (guest.share / "detached-seen").touch()
        guest.await_file("filled")
        filled_bytes = compacted_bytes(home)
        (guest.share / "filled-seen").touch()
        guest.await_file("emptied")
        emptied_bytes = compacted_bytes(home)
        (guest.share / "emptied-seen").touch()
        result = guest.wait()
    filler.unlink()  # pytest would keep those of three runs
    yield History(result, written_bytes, trimmed_bytes, filled_bytes, emptied_bytes)


def test_the_kernels_client_makes_a_file_system_trims_it_and_reads_a_snapshot(history: History) -> None:
    assert history.result.status == 0, history.result.describe()
    assert history.written_bytes >= 5 * MEBIBYTE
    assert MEBIBYTE <= history.trimmed_bytes <= history.written_bytes - 4 * MEBIBYTE + JOURNAL_BYTES
    kept, is_read_only, kept_in_snapshot, greeting = history.result.stdout.decode().splitlines()
    assert kept == kept_in_snapshot
    assert (is_read_only, greeting) == ("1", "hello")


def test_what_a_guest_trims_the_pool_gives_back_by_one_compaction(history: History) -> None:
    given_back = history.filled_bytes - history.emptied_bytes
    assert abs(given_back - FILLER_BYTES) <= BESIDE_BYTES, f"{given_back} of {FILLER_BYTES} bytes"
