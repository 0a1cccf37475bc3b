"""The programs that people use: nbdcopy, qemu-img, qemu-io, on real images."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.nbd.conftest import DISK, DISK_BYTES, MEBIBYTE, Server


def sparse_image(path: Path, seed: int, size_bytes: int = DISK_BYTES) -> Path:
    """Noise, repeats and holes, of `size_bytes`."""
    source = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for start in range(0, size_bytes, 8 * MEBIBYTE):
            file.seek(start + source.randrange(0, 2 * MEBIBYTE, 512))
            file.write(source.randbytes(source.randrange(512, MEBIBYTE, 512)))
            file.seek(start + 4 * MEBIBYTE)
            file.write(source.randbytes(4096) * 64)
    return path


def test_nbdcopy_in_and_out_again_is_identical(server: Server, run, work: Path, seed: int) -> None:
    image, back = sparse_image(work / "in.raw", seed), work / "out.raw"
    run("nbdcopy", "--flush", "--connections=4", image, server.uri())
    back.touch()
    run("nbdcopy", "--connections=4", server.uri(), back)
    run("cmp", image, back)
    assert back.stat().st_blocks * 512 < DISK_BYTES // 2, "holes came out as data"


def test_nbdcopy_from_one_export_to_another(idle_server: Server, run, work: Path, seed: int) -> None:
    idle_server.create(root=DISK_BYTES, copy=DISK_BYTES)
    idle_server.start()
    image = sparse_image(work / "in.raw", seed)
    run("nbdcopy", image, idle_server.uri())
    run("nbdcopy", "--destination-is-zero", idle_server.uri(), idle_server.uri("demo/copy"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, idle_server.uri("demo/copy"))


def test_qemu_img_converts_in_compares_and_converts_out(server: Server, run, work: Path, seed: int) -> None:
    image = sparse_image(work / "in.raw", seed)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, work / "in.qcow2")
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", work / "in.qcow2", server.uri())
    assert "identical" in run("qemu-img", "compare", "-F", "raw", work / "in.qcow2", server.uri())
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri(), work / "out.qcow2")
    run("qemu-img", "compare", work / "in.qcow2", work / "out.qcow2")
    run("qemu-img", "check", work / "out.qcow2")


def test_qemu_img_compare_finds_one_changed_sector(server: Server, run, work: Path, seed: int) -> None:
    image = sparse_image(work / "in.raw", seed)
    run("nbdcopy", image, server.uri())
    server.connect().pwrite(b"!" * 512, DISK_BYTES - 512)
    text = run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, server.uri(), status=1)
    assert f"offset {DISK_BYTES - 512}" in text


def test_qemu_img_map_shows_the_extents(server: Server, run) -> None:
    handle = server.connect()
    handle.pwrite(b"m" * MEBIBYTE, 16 * MEBIBYTE)
    handle.flush()
    found = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", server.uri()))
    shown = [(part["start"], part["length"], part["data"], part["zero"]) for part in found]
    assert shown == [
        (0, 16 * MEBIBYTE, False, True),
        (16 * MEBIBYTE, MEBIBYTE, True, False),
        (17 * MEBIBYTE, DISK_BYTES - 17 * MEBIBYTE, False, True),
    ]


def test_qemu_io_writes_zeroes_discards_and_verifies_patterns(server: Server, run) -> None:
    commands = [
        "write -P 0xaa 0 4M",
        "write -z 1M 64k",
        "write -z -u 2M 64k",
        "write -f -P 0xbb 3M 512",
        "discard 3584k 64k",
        "aio_write -P 0xcc 5M 1M",
        "aio_flush",
        "flush",
        "read -P 0xaa 0 1M",
        "read -P 0 1M 64k",
        "read -P 0xaa 1088k 64k",
        "read -P 0 2M 64k",
        "read -P 0xbb 3M 512",
        "read -P 0xaa 3146240 512",
        "read -P 0 3584k 64k",
        "read -P 0xcc 5M 1M",
        "read -P 0 6M 1M",
    ]
    arguments = [word for command in commands for word in ("-c", command)]
    text = run("qemu-io", "-f", "raw", *arguments, server.uri())
    assert "Pattern verification failed" not in text and "failed" not in text, text
    holes = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", server.uri()))
    at = {part["start"]: part["length"] for part in holes if part["zero"]}
    assert (at[MEBIBYTE], at[2 * MEBIBYTE], at[3584 * 1024]) == (65536, 65536, 65536)


def test_qemu_io_cannot_write_to_a_snapshot(server: Server, run) -> None:
    control = server.control()
    control.lead()
    control.snapshot([control.find(DISK).id], [f"{DISK}@s"], [b""])
    control.close()
    text = run("qemu-io", "-f", "raw", "-c", "write 0 512", server.uri(f"{DISK}@s"), status=1)
    assert "Permission denied" in text
