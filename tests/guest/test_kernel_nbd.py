"""A stock kernel's own NBD client (nbd.ko, nbd-client) as the second way to attach a disk and a snapshot."""

import json
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


def test_the_kernels_client_makes_a_file_system_trims_it_and_reads_a_snapshot(
    served_home: ServedHome,
) -> None:
    export = "bare/disk"
    served_home.ctl("vm", "create", "bare", "--disk", "disk=64M")
    command = ["bash", str(SCRIPT), SERVICE_ADDRESS, str(PORT), export]
    services = [(PORT, str(served_home.nbd_socket))]
    with Guest(command, Machine(services=services, modules=["nbd"], time_limit_s=90)) as guest:
        guest.await_file("written")
        written = allocated_bytes(served_home, export)
        (guest.share / "written-seen").touch()
        guest.await_file("trimmed")
        trimmed = allocated_bytes(served_home, export)
        (guest.share / "trimmed-seen").touch()
        guest.await_file("unmounted")
        served_home.ctl("snapshot", "create", "bare", "--name", "after")
        (guest.share / "unmounted-seen").touch()
        result = guest.wait()
    assert result.status == 0, result.describe()
    assert written >= 5 * MEBIBYTE
    assert MEBIBYTE <= trimmed <= written - 4 * MEBIBYTE + JOURNAL_BYTES
    kept, is_read_only, kept_in_snapshot = result.stdout.decode().splitlines()
    assert kept == kept_in_snapshot
    assert is_read_only == "1"
