"""Images in and out: identical, sparse both ways, deduplicated, and nothing left behind when it fails."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cli.served import SECONDS_MAX, Home, run_tool, until

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx")
MIB = 1 << 20


def data_bytes(home: Home) -> int:
    """What the pool's log holds."""
    return int(home.json("pool", "status")["engine"]["stats"]["segment_bytes"])


def test_real_file_system_comes_out_identical_and_clean(home: Home, name: str, images: Path, scratch: Path) -> None:
    vm = home.json("vm", "create", name, "--image", f"root={images / 'fs.qcow2'}")
    assert vm["disks"][0]["size_bytes"] == 256 * MIB
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", images / "fs.raw", home.uri(f"{name}/root"))
    home("disk", "export", f"{name}/root", scratch / "out.raw")
    assert (scratch / "out.raw").read_bytes() == (images / "fs.raw").read_bytes()
    assert (scratch / "out.raw").stat().st_mode & 0o077 == 0
    run_tool("e2fsck", "-fn", scratch / "out.raw")
    assert (scratch / "out.raw").stat().st_blocks * 512 < 200 * MIB


def test_same_image_twice_adds_less_than_one_percent(home: Home, name: str, images: Path) -> None:
    home("vm", "create", name, "--image", f"root={images / 'fs.qcow2'}")
    before = data_bytes(home)
    home("disk", "import", f"{name}/again", images / "fs.raw")
    assert data_bytes(home) - before < before * 0.01


def test_imported_disk_has_the_holes_of_its_image(home: Home, name: str, scratch: Path) -> None:
    run_tool("truncate", "-s", "1G", scratch / "sparse.raw")
    run_tool("qemu-io", "-f", "raw", "-c", "write -P 3 512M 1M", scratch / "sparse.raw")
    home("vm", "create", name, "--image", f"root={scratch / 'sparse.raw'}")
    extents = json.loads(run_tool("nbdinfo", "--json", "--map", home.uri(f"{name}/root")))
    assert [(e["offset"], e["length"], e["type"]) for e in extents if e["type"] == 0] == [(512 * MIB, MIB, 0)]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_goes_in_and_out(home: Home, name: str, images: Path, scratch: Path, format: str) -> None:
    source = scratch / f"in.{format}"
    run_tool("qemu-img", "convert", "-O", format, images / "fs.qcow2", source)
    home("vm", "create", name, "--image", f"root={source}")
    made = home.json("disk", "export", f"{name}/root", scratch / f"out.{format}")
    assert made["format"] == format and made["used_bytes"] > 0
    info = json.loads(run_tool("qemu-img", "info", "--output=json", scratch / f"out.{format}"))
    assert info["format"] == format
    run_tool("qemu-img", "compare", "-f", format, "-F", "raw", scratch / f"out.{format}", images / "fs.raw")


def test_disk_larger_than_its_image_ends_in_zeros(home: Home, name: str, images: Path) -> None:
    home("vm", "create", name, "--disk", "root=300M", "--image", f"root={images / 'fs.qcow2'}")
    assert run_tool("nbdinfo", "--size", home.uri(f"{name}/root")).strip() == str(300 * MIB)
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", images / "fs.raw", home.uri(f"{name}/root"))
    refused = home.run("vm", "create", f"{name}-x", "--disk", "root=100M", "--image", f"root={images / 'fs.qcow2'}")
    assert refused.status == 2 and "smaller than its image" in refused.error


def test_import_replaces_only_when_told_to(home: Home, name: str, images: Path) -> None:
    home("vm", "create", name, "--disk", "root=256M")
    assert home.run("disk", "import", f"{name}/root", images / "fs.raw").status == 4
    assert "--yes" in home.run("disk", "import", f"{name}/root", images / "fs.raw", "--replace").error
    home("disk", "import", f"{name}/root", images / "fs.raw", "--replace", "--yes")
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", images / "fs.raw", home.uri(f"{name}/root"))


def test_snapshot_is_exported_as_it_was(home: Home, name: str, images: Path, scratch: Path) -> None:
    home("vm", "create", name, "--image", f"root={images / 'fs.qcow2'}")
    home("snapshot", "create", name, "--name", "s")
    run_tool("qemu-io", "-f", "raw", "-c", "write -P 9 0 1M", home.uri(f"{name}/root"))
    home("disk", "export", f"{name}/root@s", scratch / "s.qcow2")
    run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", scratch / "s.qcow2", images / "fs.raw")
    assert [s["name"] for s in home.json("snapshot", "list", name)["snapshots"]] == ["s"]


def test_existing_files_are_kept_unless_told_otherwise(home: Home, name: str, scratch: Path) -> None:
    home("vm", "create", name, "--disk", "root=1M")
    (scratch / "there.raw").write_text("mine")
    assert home.run("disk", "export", f"{name}/root", scratch / "there.raw").status == 4
    assert (scratch / "there.raw").read_text() == "mine"
    home("disk", "export", f"{name}/root", scratch / "there.raw", "--overwrite", "--yes")
    assert (scratch / "there.raw").read_bytes() == bytes(MIB)
    assert [entry.name for entry in scratch.iterdir()] == ["there.raw"]


def test_whole_vm_is_exported_with_its_configuration(home: Home, name: str, images: Path, scratch: Path) -> None:
    (scratch / "config").write_text("<domain/>")
    image = f"root={images / 'fs.qcow2'}"
    home("vm", "create", name, "--image", image, "--disk", "data=1M", "--config", scratch / "config")
    made = home.json("vm", "export", name, scratch / "out")
    assert {disk["name"] for disk in made["disks"]} == {"root", "data"}
    about = json.loads((scratch / "out/vm.json").read_text())
    assert about["config"] == "<domain/>" and about["vm"] == name
    run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", scratch / "out/root.qcow2", images / "fs.raw")
    assert home.json("snapshot", "list", name) == {"snapshots": []}
    assert home.run("vm", "export", name, scratch / "out").status == 4


def test_progress_goes_to_standard_error_as_plain_lines(home: Home, name: str, images: Path) -> None:
    result = home.run("vm", "create", name, "--image", f"root={images / 'fs.qcow2'}")
    assert "100% (256 MiB of 256 MiB" in result.stderr and "\r" not in result.stderr


def test_failed_export_leaves_nothing(home: Home, name: str, images: Path, scratch: Path) -> None:
    """A VDI of an odd size is fine; a destination that fills up is not: a file system of 4 MiB stands in for a full disk."""
    home("vm", "create", name, "--image", f"root={images / 'fs.qcow2'}")
    small = scratch / "small"
    small.mkdir()
    run_tool("mount", "-t", "tmpfs", "-o", "size=4M", "none", small)
    try:
        result = home.run("disk", "export", f"{name}/root", small / "out.raw")
        assert result.status != 0 and "No space left" in result.stderr
        assert list(small.iterdir()) == []
        assert home.json("snapshot", "list", name) == {"snapshots": []}
    finally:
        run_tool("umount", small)


def test_interrupted_import_leaves_nothing(home: Home, name: str, scratch: Path) -> None:
    image = scratch / "large.raw"
    run_tool("dd", "if=/dev/urandom", f"of={image}", "bs=1M", "count=400", "status=none")
    before = home.state()
    running = home.start_command("vm", "create", name, "--image", f"root={image}")
    with home.rest() as rest:
        job = until(lambda: [j for j in rest.get("/jobs").json()["jobs"] if j["subject"] == name], "the job")[0]
        until(lambda: rest.get(f"/jobs/{job['id']}").json()["fraction"] > 0, "progress")
        home.hold_transfer()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=SECONDS_MAX)
        assert running.returncode == 130 and errors.splitlines()[-1].startswith("error: "), errors
        assert rest.get(f"/jobs/{job['id']}").json()["state"] == "cancelled"
    assert home.state() == before


def test_import_into_a_full_pool_leaves_nothing(fresh: Home, scratch: Path) -> None:
    fresh.path = fresh.above / "small"
    fresh.init("256M")
    fresh.serve()
    run_tool("dd", "if=/dev/urandom", f"of={scratch / 'large.raw'}", "bs=1M", "count=300", "status=none")
    before = fresh.state()
    result = fresh.run("vm", "create", "web", "--image", f"root={scratch / 'large.raw'}")
    assert result.status == 7 and "the pool is full" in result.stderr
    assert fresh.state() == before


def test_unaligned_sizes_survive_every_format(home: Home, name: str, scratch: Path) -> None:
    size = 3 * MIB + 512
    (scratch / "odd.raw").write_bytes(b"q" * (size - 100))  # rounded up with zeros, as qemu does
    home("vm", "create", name, "--image", f"root={scratch / 'odd.raw'}")
    assert home.json("vm", "show", name)["disks"][0]["size_bytes"] == size
    for format in FORMATS:
        home("disk", "export", f"{name}/root", scratch / f"odd-out.{format}")
        run_tool("qemu-img", "compare", "-f", format, "-F", "raw", scratch / f"odd-out.{format}", scratch / "odd.raw")
