"""A stock kernel's own NBD client (nbd.ko, nbd-client) as the second way to attach a disk and a snapshot.

The guest runs what `blockdevctl attach --as nbd-client` prints.
"""

import json
import shlex
import subprocess
from pathlib import Path

from tests.guest.conftest import ServedHome
from tests.lab.guest import SERVICE_ADDRESS, Guest, Machine

PORT = 10809
SCRIPT = Path(__file__).with_name("kernel_nbd.sh")
MEBIBYTE = 1 << 20
JOURNAL_BYTES = 64 << 10  # what the file system may write about the removal itself


def allocated_bytes(home: ServedHome, export: str) -> int:
    command = ["nbdinfo", "--map", "--json", home.uri(export)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(extent["length"] for extent in json.loads(shown) if extent["type"] == 0)


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


def test_the_kernels_client_makes_a_file_system_trims_it_and_reads_a_snapshot(
    served_home: ServedHome, tmp_path: Path
) -> None:
    home, disk = served_home, "bare/disk"
    files = image_with_small_blocks(tmp_path)
    home.ctl("vm", "create", "bare", "--disk", "disk=64M", "--image", f"files={files}")
    home.ctl("snapshot", "create", "bare", "--name", "blank")
    attach = [attach_command(home, export) for export in (disk, "bare/disk@blank", "bare/files")]
    attach[1] = attach[1].replace("@blank", "@after")  # which is not there yet
    services = [(PORT, str(home.nbd_socket))]
    machine = Machine(services=services, modules=["nbd"], time_limit_s=200)
    with Guest(["bash", str(SCRIPT), *attach], machine) as guest:
        guest.await_file("written")
        written = allocated_bytes(home, disk)
        (guest.share / "written-seen").touch()
        guest.await_file("trimmed")
        trimmed = allocated_bytes(home, disk)
        (guest.share / "trimmed-seen").touch()
        guest.await_file("detached")
        home.ctl("snapshot", "create", "bare", "--name", "after")
        (guest.share / "detached-seen").touch()
        result = guest.wait()
    assert result.status == 0, result.describe()
    assert written >= 5 * MEBIBYTE
    assert MEBIBYTE <= trimmed <= written - 4 * MEBIBYTE + JOURNAL_BYTES
    kept, is_read_only, kept_in_snapshot, greeting = result.stdout.decode().splitlines()
    assert kept == kept_in_snapshot
    assert (is_read_only, greeting) == ("1", "hello")
