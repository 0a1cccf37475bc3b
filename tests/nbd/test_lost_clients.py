"""A client that dies, or speaks nonsense, costs nobody else anything.

nbdkit 1.32 by itself does not survive this: see src/blockdev/_nbdkit_guard.pyx.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import nbd
from tests.nbd.conftest import DISK, Server

ROOT = Path(__file__).parents[2]
CLIENTS = 60
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, count
MAGIC = 0x25609513
READ, WRITE, DISCONNECT = 0, 1, 2


def lose_clients(uri: str, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.nbd.lost_client", uri, str(CLIENTS), str(seed)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_until_alone(server: Server, clients: int) -> None:
    """Every lost connection is closed and forgotten; pytest-timeout bounds this."""
    control = server.control()
    while len(control.attachments()) > clients:
        pass
    control.close()


@pytest.mark.parametrize("threads", [1, 16], ids=["1-thread", "16-threads"])
def test_clients_killed_with_requests_in_flight_disturb_nobody(
    idle_server: Server, seed: int, threads: int
) -> None:
    idle_server.create()
    idle_server.start(threads=threads)
    handle = idle_server.connect()
    lost = [lose_clients(idle_server.uri(), seed + index) for index in range(2)]
    count = 0
    while any(client.poll() is None for client in lost):
        handle.pwrite(count.to_bytes(8, "little") * 64, 32 << 20)
        assert handle.pread(512, 32 << 20) == count.to_bytes(8, "little") * 64
        count += 1
    for client in lost:
        assert client.wait() == 0, client.communicate()[1]
    wait_until_alone(idle_server, 1)
    assert idle_server.engine is not None and idle_server.engine.poll() is None
    assert idle_server.stop() == 0


def test_clients_killed_over_tls_disturb_nobody(idle_server: Server, seed: int, tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    subprocess.run(["psktool", "-u", "alice", "-p", keys], check=True, capture_output=True)
    idle_server.create()
    engine = idle_server.start(tcp=("127.0.0.1", 0), tls_psk=keys)
    assert engine.tcp is not None
    client = lose_clients(f"nbds://alice@127.0.0.1:{engine.tcp[1]}/{DISK}?tls-psk-file={keys}", seed)
    assert client.wait() == 0, client.communicate()[1]
    wait_until_alone(idle_server, 0)
    assert idle_server.stop() == 0


def raw_connection(server: Server) -> socket.socket:
    """A connection past its handshake, for sending anything: libnbd negotiates, and its descriptor is taken over."""
    handle = nbd.NBD()
    handle.set_request_structured_replies(False)
    handle.connect_uri(server.uri())
    connection = socket.socket(fileno=socket.dup(handle.aio_get_fd()))
    connection.setblocking(True)
    return connection


def read_to_the_end(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 16):
            pass
    except (ConnectionResetError, BrokenPipeError):
        pass


def reads(count: int) -> bytes:
    return b"".join(REQUEST.pack(MAGIC, 0, READ, index, index * 4096, 4096) for index in range(count))


@pytest.mark.parametrize(
    "last",
    [
        b"\xff" * 28,
        REQUEST.pack(MAGIC, 0, WRITE, 99, 0, 0xFFFFFE00),
        REQUEST.pack(MAGIC, 0, WRITE, 99, 0, 1 << 20) + b"w" * 5000,
        REQUEST.pack(MAGIC, 0, DISCONNECT, 99, 0, 0),
        REQUEST.pack(MAGIC, 0, 77, 99, 0, 0),
        REQUEST.pack(MAGIC, 0xFFFF, READ, 99, 0, 512),
        REQUEST.pack(MAGIC, 0, READ, 99, 0, 512)[:20],
        b"",
    ],
    ids=[
        "bad-magic",
        "huge-write",
        "cut-write",
        "disconnect",
        "bad-command",
        "bad-flags",
        "cut-request",
        "end",
    ],
)
def test_nonsense_behind_a_deep_queue_ends_that_connection_only(server: Server, last: bytes) -> None:
    handle = server.connect()
    for _ in range(40):
        with raw_connection(server) as connection:
            connection.sendall(reads(32) + last)
            connection.shutdown(socket.SHUT_WR)
            read_to_the_end(connection)
    assert handle.pread(512, 0) == bytes(512)
    wait_until_alone(server, 1)
    assert server.stop() == 0
