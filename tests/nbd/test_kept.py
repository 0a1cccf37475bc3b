"""Export names that ask for more than a disk: writes that survive the engine's death, and no end; and how clients name themselves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess

import pytest

import nbd
from blockdev.engine import clients
from blockdev.engine.clients import ENDLESS_BYTES, client_of_socket, device_client, is_device_client
from blockdev.errors import NotFound, Unavailable
from blockdev.transfer.nbd import CAN_MULTI_CONN, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, shake_hands
from tests.nbd.conftest import DISK, DISK_BYTES, MEBIBYTE, Server

BLOCK = 4096
CLIENT = device_client("/dev/nbd7")


def kill_and_start_again(server: Server) -> None:
    assert server.engine is not None
    os.kill(server.engine.process.pid, signal.SIGKILL)
    server.engine.process.wait()
    server.start()


@pytest.mark.parametrize("prefix", [clients.KEPT, clients.DEVICE])
def test_what_was_replied_to_is_there_after_the_engine_was_killed(server: Server, prefix: str) -> None:
    before = server.connect()
    before.pwrite(b"o" * 16 * BLOCK, 0)
    before.flush()
    handle, other = server.connect(f"{prefix}{DISK}"), server.connect()
    handle.trim(4 * BLOCK, 0)
    handle.zero(4 * BLOCK + 512, 4 * BLOCK)
    written = os.urandom(3 * BLOCK + 512)
    handle.pwrite(written, MEBIBYTE)
    found_there = os.urandom(BLOCK)
    other.pwrite(found_there, 2 * MEBIBYTE)
    handle.pwrite(found_there, 2 * MEBIBYTE)  # which appends nothing, and must be there all the same
    kill_and_start_again(server)
    after = server.connect()
    assert after.pread(16 * BLOCK, 0) == bytes(8 * BLOCK + 512) + b"o" * (8 * BLOCK - 512)
    assert after.pread(len(written), MEBIBYTE) == written
    assert after.pread(BLOCK, 2 * MEBIBYTE) == found_there


def test_qemu_with_a_reconnect_delay_finds_its_unflushed_write_behind_the_engine_s_death(server: Server) -> None:
    where = f"driver=nbd,server.type=unix,server.path={server.home.nbd_socket},export={clients.KEPT}{DISK},reconnect-delay=60"
    command = ["qemu-io", "--cache", "writeback", "--image-opts", where]
    qemu = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert qemu.stdin is not None and qemu.stdout is not None
        qemu.stdin.write("write -P 7 0 64k\n")
        qemu.stdin.flush()
        said = ""
        while "ops" not in said:  # the second line of what it says of a write
            line = qemu.stdout.readline()
            assert line, said
            said += line
        assert "wrote 65536/65536" in said
        kill_and_start_again(server)
        said, _ = qemu.communicate("read -P 7 0 64k\n", timeout=60)
    finally:
        qemu.kill()
        qemu.wait()
    assert "read 65536/65536" in said and "verification failed" not in said, said


def refusal(handle: nbd.NBD, offset: int) -> int:
    with pytest.raises(nbd.Error) as caught:
        handle.pwrite(bytes(512), offset)
    return caught.value.errnum


def test_a_device_is_told_no_end_and_follows_the_disk_s(server: Server) -> None:
    handle = server.connect(f"{clients.DEVICE}{DISK}")
    assert handle.get_size() == ENDLESS_BYTES
    handle.pwrite(bytes(512), DISK_BYTES - 512)
    assert refusal(handle, DISK_BYTES) == errno.EINVAL
    control = server.control()
    control.resize(control.find(DISK).id, DISK_BYTES + MEBIBYTE)
    handle.pwrite(b"x" * 512, DISK_BYTES)
    assert handle.pread(512, DISK_BYTES) == b"x" * 512
    assert refusal(handle, DISK_BYTES + MEBIBYTE) == errno.EINVAL
    assert server.connect(f"{clients.KEPT}{DISK}").get_size() == DISK_BYTES + MEBIBYTE


def test_a_device_reads_parts_of_sectors_and_others_do_not(server: Server) -> None:
    device, other = server.connect(f"{clients.DEVICE}{DISK}"), server.connect()
    data = os.urandom(2 * BLOCK)
    device.pwrite(data, DISK_BYTES - 2 * BLOCK)
    for offset, length in ((0, 200), (100, 700), (BLOCK - 3, 5), (2 * BLOCK - 1, 1)):
        assert device.pread(length, DISK_BYTES - 2 * BLOCK + offset) == data[offset : offset + length]
    with pytest.raises(nbd.Error) as caught:
        device.pread(200, DISK_BYTES - 100)
    assert caught.value.errnum == errno.EINVAL
    assert refusal(device, 200) == errno.EINVAL  # a write of one sector, at 200
    with pytest.raises(nbd.Error):
        other.pread(200, 0)


def test_a_handed_over_connection_names_its_client_and_says_what_the_export_is(server: Server) -> None:
    control = server.control()
    control.snapshot([control.find(DISK).id], [f"{DISK}@s"], [b""])
    link = shake_hands(server.home.nbd_socket, f"{clients.DEVICE}{DISK}", CLIENT)
    frozen = shake_hands(server.home.nbd_socket, f"{clients.DEVICE}{DISK}@s", CLIENT)  # the same name, twice at once
    with link.connection, frozen.connection:
        assert [(name, client) for _id, name, client in control.attachments()] == [(DISK, CLIENT), (f"{DISK}@s", CLIENT)]
        assert link.flags & (SEND_FLUSH | SEND_FUA | SEND_TRIM | CAN_MULTI_CONN | READ_ONLY) == (
            SEND_FLUSH | SEND_FUA | SEND_TRIM | CAN_MULTI_CONN
        )
        assert frozen.flags & READ_ONLY
    with pytest.raises(NotFound, match="demo/none"):
        shake_hands(server.home.nbd_socket, f"{clients.DEVICE}demo/none", CLIENT)
    server.stop()
    with pytest.raises(Unavailable, match="serve"):
        shake_hands(server.home.nbd_socket, f"{clients.DEVICE}{DISK}", CLIENT)


def test_a_client_that_says_nothing_readable_is_shown_as_its_process() -> None:
    pid = os.getpid()
    process = clients.client_of_process(pid)
    said = [b"", b"\0", b"/a/path", clients.client_address("a\nb"), clients.client_address(""), b"\0blockdev-client:\xff#1"]
    assert [client_of_socket(address, pid) for address in said] == [process] * len(said)
    assert client_of_socket(clients.client_address(CLIENT), pid) == CLIENT
    assert is_device_client(CLIENT) and not is_device_client(process)
