"""LIO over anything that is not ours, made in configfs by hand: what LIO does by itself, to compare with.  Runs in the guest.

No rtslib and none of the product: a fault of theirs must not be in both sides of a comparison.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

CONFIGFS = Path("/sys/kernel/config")
CORE = CONFIGFS / "target/core"
ISCSI = CONFIGFS / "target/iscsi"
DEMO_MODE = {
    "authentication": "0",
    "generate_node_acls": "1",
    "demo_mode_write_protect": "0",
    "cache_dynamic_acls": "1",
}


def load_lio() -> None:
    """The modules, configfs, and the directory without which persistent reservations fail."""
    subprocess.run(["modprobe", "-a", "configfs", "target_core_mod", "target_core_iblock", "target_core_file", "iscsi_target_mod"], check=True)
    if not (CONFIGFS / "target").exists():
        subprocess.run(["mount", "-t", "configfs", "configfs", CONFIGFS], check=True)
    root = Path((CONFIGFS / "target/dbroot").read_text().strip())
    for name in ("pr", "alua"):
        (root / name).mkdir(parents=True, exist_ok=True)


def ram_disk(size_bytes: int) -> Path:
    """A RAM disk of the kernel (brd)."""
    subprocess.run(["modprobe", "brd", "rd_nr=1", f"rd_size={size_bytes >> 10}"], check=True)
    return Path("/dev/ram0")


def sparse_file(path: Path, size_bytes: int) -> Path:
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return path


def thin_ram_disk(size_bytes: int) -> Path:
    """A loop device over a file in memory: unlike brd it can discard."""
    subprocess.run(["modprobe", "loop"], check=True)
    command = ["losetup", "--find", "--show", sparse_file(Path("/dev/shm/thin"), size_bytes)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(found.stdout.strip())


def block_backstore(name: str, device: Path) -> Path:
    made = CORE / "iblock_77" / name
    made.mkdir(parents=True)
    (made / "control").write_text(f"udev_path={device}")
    return _enabled(made, name)


def file_backstore(name: str, file: Path) -> Path:
    made = CORE / "fileio_77" / name
    made.mkdir(parents=True)
    (made / "control").write_text(f"fd_dev_name={file},fd_dev_size={file.stat().st_size},fd_buffered_io=1")
    return _enabled(made, name)


def _enabled(made: Path, name: str) -> Path:
    (made / "enable").write_text("1")
    (made / "wwn/vpd_unit_serial").write_text(name)
    with contextlib.suppress(OSError):  # a device that cannot discard
        for attribute in ("emulate_tpu", "emulate_tpws"):
            (made / "attrib" / attribute).write_text("1")
    return made


def target(iqn: str, backstores: list[Path], *portals: str) -> None:
    """For anybody who comes, with write access; LUNs in the order of `backstores`."""
    group = ISCSI / iqn / "tpgt_1"
    group.mkdir(parents=True)
    for number, backstore in enumerate(backstores):
        lun = group / f"lun/lun_{number}"
        lun.mkdir()
        (lun / "backstore").symlink_to(backstore)
    for portal in portals:
        (group / "np" / portal).mkdir()
    for name, value in DEMO_MODE.items():
        (group / "attrib" / name).write_text(value)
    (group / "enable").write_text("1")
