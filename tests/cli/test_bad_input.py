"""Bad input: one line on standard error, a non-zero exit status, and nothing changed."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest
import xxhash

from tests.cli.served import BLOCKDEVCTL, SECONDS_MAX, Home, run_tool

LONG_NAME = "n" * 64


@pytest.fixture(scope="module")
def vm(home: Home) -> str:
    home("vm", "create", "bad-input", "--disk", "root=1M")
    home("snapshot", "create", "bad-input", "--name", "s")
    return "bad-input"


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("vm create x --disk root=1000", 2, "multiple of 512: use 512 or 1024"),
        ("vm create x --disk root=1000000000000T", 2, "64T"),
        ("vm create x --disk root=0", 2, "from 512 bytes"),
        ("vm create x --disk root=large", 2, "20G"),
        ("vm create x --disk root", 2, "NAME=SIZE"),
        ("vm create x", 2, "--disk NAME=SIZE"),
        ("vm create x --disk root=1M --disk root=2M", 2, "twice"),
        ("vm create bad/name --disk root=1M", 2, "VM"),
        ("vm create bad@name --disk root=1M", 2, "VM"),
        ("vm create .. --disk root=1M", 2, "name"),
        ("vm create bäd --disk root=1M", 2, "letters"),
        (f"vm create {LONG_NAME} --disk root=1M", 2, "63"),
        ("vm create x --disk ro/ot=1M", 2, "disk name"),
        ("vm create VM --disk root=1M", 4, "already"),
        ("vm create x --image root=/none.qcow2", 3, "does not exist"),
        ("vm create x --disk root=1M --config /none.xml", 3, "/none.xml"),
        ("vm config VM --set /dev/zero", 2, "too long"),
        ("vm show none", 3, "none"),
        ("vm rename none other", 3, "none"),
        ("vm rename VM VM", 4, "VM"),
        ("vm rename VM a/b", 2, "VM"),
        ("vm delete none --yes", 3, "none"),
        ("vm config none", 3, "none"),
        ("vm create x --disk root=1M --dedup maybe", 2, "pool"),
        ("vm policy none --dedup off", 3, "none"),
        ("vm policy VM --compression hot", 2, "inline"),
        ("vm usage none", 3, "none"),
        ("pool policy --level 20", 2, "19"),
        ("pool policy --dedup pool", 2, "off"),
        ("pool policy --compaction-rate 0", 2, "auto"),
        ("pool policy --compaction-rate fast", 2, "20G"),
        ("vm frobnicate", 2, "--help"),
        ("vm show", 2, "--help"),
        ("disk add none/data 1M", 3, "none"),
        ("disk add VM/root 1M", 4, "root"),
        ("disk add VM/data 1000", 2, "512"),
        ("disk add VM 1M", 2, "VM/DISK"),
        ("disk resize VM/none 2M", 3, "none"),
        ("disk resize VM/root 1025", 2, "512"),
        ("disk remove VM/none --yes", 3, "none"),
        ("disk import VM/root /etc/hostname", 4, "--replace"),
        ("disk import VM/none /etc/hostname --replace --yes", 3, "none"),
        ("disk export VM/none /tmp/blockdev-none.raw", 3, "none"),
        ("disk export VM/root@none /tmp/blockdev-none.raw", 3, "none"),
        ("disk export VM/root /none/at/all.raw", 2, "/none/at"),
        ("disk export VM/root /tmp/blockdev-none.xyz", 2, "--format"),
        ("disk export VM/root /proc/blockdev-none.raw", 14, "exporting to /proc/blockdev-none.raw failed"),
        ("vm export VM /proc/blockdev-none", 14, "exporting to /proc/blockdev-none failed"),
        ("snapshot create none", 3, "none"),
        ("snapshot create VM --name s", 4, "s"),
        ("snapshot create VM --name a/b", 2, "name"),
        ("snapshot delete VM@none --yes", 3, "none"),
        ("snapshot show VM", 2, "VM@SNAPSHOT"),
        ("snapshot create VM --keep 3", 2, "90s, 30m, 12h, 3d or 2w"),
        ("snapshot create VM --keep 2s", 2, "a minute at least"),
        ("snapshot create VM --lock soon", 2, "3d"),
        ("snapshot create VM --consistency perfect", 2, "crash"),
        ("snapshot lock VM@s", 2, "--release"),
        ("snapshot lock VM@s --for 1d --release", 2, "either"),
        ("snapshot lock VM@none --for 1d", 3, "none"),
        ("snapshot keep VM@s", 2, "DURATION|forever"),
        ("snapshot keep VM@s 3", 2, "3d"),
        ("snapshot keep VM@none 3d", 3, "none"),
        ("schedule show none", 3, "none"),
        ("schedule set VM", 2, "NAME"),
        ("schedule set VM daily", 2, "--at"),
        ("schedule set VM daily --at hourly", 2, "--keep DURATION"),
        ("schedule set VM daily --at sometimes --keep 3d", 2, "daily 02:30"),
        ("schedule set VM daily --at hourly --keep 3d --zone Here", 2, "Europe/Zurich"),
        ("schedule set VM daily --at hourly --keep 30s", 2, "a minute at least"),
        ("schedule set VM a/b --at hourly --keep 3d", 2, "schedule name"),
        ("schedule set VM daily --remove", 3, "daily"),
        ("schedule set VM daily --keep 3d --remove", 2, "--remove alone"),
        ("schedule set VM daily --none", 2, "--none stands alone"),
        ("schedule set VM daily --default", 2, "--default stands alone"),
        ("schedule set VM --none --default", 2, "--default stands alone"),
        ("schedule default --keep 3d", 2, "NAME"),
        ("schedule default daily --remove", 3, "default set"),
        ("schedule preview none", 3, "none"),
        ("schedule preview VM --for 99w99", 2, "3d"),
        ("schedule preview VM --for 1000w", 2, "ten years"),
        ("schedule run VM none", 3, "none"),
        ("schedule run VM a/b", 2, "schedule name"),
        ("schedule cap 0", 2, "10000"),
        ("schedule cap many", 2, "integer"),
        ("events --level worst", 2, "warning"),
        ("events --count 0", 2, "1000"),
        ("snapshot diff VM@s VM@none", 3, "none"),
        ("snapshot diff VM@s --disk none", 3, "none"),
        ("clone VM@none x", 3, "none"),
        ("clone VM VM", 4, "VM"),
        ("clone VM --count 2", 2, "--prefix"),
        ("clone VM --count 501 --prefix x", 2, "500"),
        ("clone VM x --user-data /none --customize", 3, "/none"),
        ("restore VM@none --yes", 3, "none"),
        ("restore VM@none --as x", 3, "none"),
        ("restore VM@s --as VM", 4, "VM"),
        ("restore VM@s --disk none --yes", 3, "none"),
        ("restore VM@s --disk none", 3, "snapshot VM@s has no disk none"),
        ("snapshot import /etc/passwd", 2, "no stream file"),
        ("snapshot inspect /etc/passwd", 2, "blockdevctl snapshot export wrote"),
        ("attach VM/none", 3, "none"),
        ("attach VM/root --as floppy", 2, "nbd-client"),
        ("vm stats VM --count 3", 2, "--watch"),
        ("attach VM/root --port 1234", 2, "--host HOST"),
        ("attach VM/root --tls psk", 2, "--host HOST"),
        ("attach VM/root --host 192.0.2.7:10809", 2, "--port 10809"),
        ("disk resize VM/root 512", 2, "--shrink"),
        ("schedule set VM daily --at weekly --keep 3d", 2, "lacks a time of day"),
        ("pool resize --capacity 1M", 2, "16 MiB"),
        ("pool resize --capacity 0", 2, "16 MiB"),
        ("replicate peer add x --key nonsense", 3, "neither a public key"),
        ("pool resize --capacity 99999999T", 2, "64T"),
        ("pool check --rate 0", 2, "100M"),
        ("replicate peer invite a --for 2d", 2, "1d"),
        ("hypervisor add a/b test:///default", 2, "hypervisor name"),
    ],
)
def test_bad_argument_changes_nothing(home: Home, vm: str, command: str, status: int, says: str) -> None:
    before = home.state()
    result = home.run(*command.replace("VM", vm).split())
    assert result.status == status, result
    assert says.replace("VM", vm) in result.error or says in result.error
    assert home.state() == before
    assert not Path("/tmp/blockdev-none.raw").exists()


@pytest.mark.parametrize("content", ["text", "short", "empty", "directory", "qcow2", "vmdk", "vdi", "vhdx"])
def test_image_that_is_none_leaves_nothing_behind(home: Home, name: str, images: Path, scratch: Path, content: str) -> None:
    file = scratch / "image"
    if content == "directory":
        file.mkdir()
    elif content in ("qcow2", "vmdk", "vdi", "vhdx"):  # cut short
        run_tool("qemu-img", "convert", "-O", content, images / "fs.qcow2", file)
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.write_bytes({"text": b"no image at all\n" * 1000, "short": b"x", "empty": b""}[content])
    home("vm", "create", name, "--disk", "root=1M")
    before = home.state()
    for command in (["vm", "create", f"{name}-new", "--image", f"root={file}"], ["disk", "import", f"{name}/d", file]):
        result = home.run(*command)
        assert result.status != 0 and str(file) in result.error
    assert home.state() == before


def test_bytes_are_an_image_when_somebody_says_raw(home: Home, name: str, scratch: Path) -> None:
    (scratch / "bytes").write_bytes(b"z" * 1000)
    vm = home.json("vm", "create", name, "--image", f"root={scratch / 'bytes'}", "--format", "raw")
    assert vm["disks"][0]["size_bytes"] == 1024


def test_image_that_refers_to_files_elsewhere_is_refused(home: Home, name: str, scratch: Path) -> None:
    run_tool("qemu-img", "create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", scratch / "evil.qcow2", "1M")
    assert "/etc/passwd" in home.run("vm", "create", name, "--image", f"root={scratch / 'evil.qcow2'}").error


def test_commands_without_a_server_say_how_to_start_it(fresh: Home) -> None:
    result = fresh.run("vm", "list")
    assert result.status == 11 and "serve" in result.error


def test_home_that_is_none_is_named(fresh: Home) -> None:
    fresh.path = fresh.above / "other"
    for command in (["serve"], ["vm", "list"]):
        result = fresh.run(*command)
        assert result.status == 3 and "init" in result.error
    assert not fresh.path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_home_of_another_user_is_named_by_each_command(fresh: Home) -> None:
    fresh.above.chmod(0o755)
    fresh.path.chmod(0o700)
    other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", BLOCKDEVCTL, "--home", str(fresh.path)]
    for arguments in (["serve"], ["vm", "list"], ["pool", "check", "--offline"]):
        done = subprocess.run([*other, *arguments], capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
        assert done.returncode in (11, 14) and "become" in done.stderr and done.stderr.count("\n") == 1, (arguments, done)


def test_init_refuses_what_it_cannot_make(fresh: Home) -> None:
    assert fresh.run("init").status == 4
    fresh.path = fresh.above / "small"
    assert "16 MiB" in fresh.run("init", "--capacity", "1M").error
    fresh.path = Path("/proc/none")
    assert fresh.run("init", "--capacity", "1G").status != 0
    fresh.path = fresh.above / ("long" * 25)
    assert "107 bytes" in fresh.run("init", "--capacity", "1G").error
    assert sorted(entry.name for entry in fresh.above.iterdir()) == ["home"]


def contents(home: Home) -> dict[str, bytes]:
    """Every file at rest."""
    return {
        str(path.relative_to(home.path)): path.read_bytes()
        for path in home.path.rglob("*")
        if path.is_file() and "run" not in path.parts and path.name != "LOCK"
    }


def refuses_to_serve(home: Home, *options: str) -> str:
    """What serve says when it must not serve; at rest nothing may change."""
    before = contents(home)
    result = home.run("serve", *options)
    assert contents(home) == before
    return result.error


def test_served_home_is_not_served_twice(home: Home) -> None:
    assert "already" in home.run("serve").error
    assert home.json("pool", "status")["engine_running"]


def test_pool_open_elsewhere_is_not_served(fresh: Home) -> None:
    from blockdev import Pool

    pool = Pool.open(str(fresh.path / "pool"))
    try:
        result = fresh.run("serve")
        assert result.status == 5 and result.error
    finally:
        pool.close()


def test_ports_that_are_taken_are_named(fresh: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option in ("--nbd", "--api"):
            assert str(port) in refuses_to_serve(fresh, option, f"127.0.0.1:{port}")


def test_addresses_that_others_could_reach_are_refused(fresh: Home) -> None:
    assert "loopback" in refuses_to_serve(fresh, "--api", "0.0.0.0:18080", "--api-plain")
    assert "--api" in refuses_to_serve(fresh, "--api-plain")
    assert "--insecure-nbd" in refuses_to_serve(fresh, "--nbd", "0.0.0.0:18080")
    assert "ADDR:PORT" in refuses_to_serve(fresh, "--nbd", "nowhere")
    assert "--nbd" in refuses_to_serve(fresh, "--tls-psk", "/none")


def superblocks(home: Home) -> list[Path]:
    found = sorted((home.path / "pool").glob("superblock-*"))
    assert len(found) == 2
    return found


def test_truncated_superblocks_are_reported(fresh: Home) -> None:
    for superblock in superblocks(fresh):
        os.truncate(superblock, 100)
    assert "superblock" in refuses_to_serve(fresh)


def test_pool_of_an_unknown_format_version_is_refused(fresh: Home) -> None:
    raise_format_version(superblocks(fresh))
    assert "version 77" in refuses_to_serve(fresh)


def raise_format_version(paths: list[Path]) -> None:
    """The format version is at byte 16, under a checksum of all from there on (docs/format/pool.md)."""
    for path in paths:
        body = struct.pack("<I", 77) + path.read_bytes()[20:]
        path.write_bytes(b"BLOCKDEV" + xxhash.xxh3_64_digest(body)[::-1] + body)


def test_interrupted_start_ends_cleanly(fresh: Home) -> None:
    serving = fresh.start_serving()
    serving.terminate()
    serving.communicate(timeout=SECONDS_MAX)
    assert serving.returncode in (0, -15)  # -15: before it could listen to signals
