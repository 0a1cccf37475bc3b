"""Single blocks over the engine socket: what one pool offers, another takes or is given."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from blockdev import Pool
from blockdev.engine import protocol
from blockdev.engine.client import EngineClient
from blockdev.engine.room import ROOM_BYTES, SEALS, make_room
from blockdev.engine.server import EngineServer
from blockdev.engine.stream import receive, send
from blockdev.errors import BlockdevError, InvalidArgument, NotFound

BLOCK = 4096
MEBIBYTE = 1 << 20


def numbers(offers: bytes) -> bytes:
    return b"".join(offers[at : at + 8] for at in range(0, len(offers), 24))


def test_a_snapshot_is_brought_to_another_disk_by_offers_proofs_and_bytes(client: EngineClient, pool: Pool) -> None:
    choice = random.Random(1)
    source, target = pool.create_vdisk(MEBIBYTE), pool.create_vdisk(MEBIBYTE)
    source.write(0, choice.randbytes(40 * BLOCK))
    [older] = pool.snapshot([source])
    base = client.digest(None, b"", older.id)
    source.write(10 * BLOCK, choice.randbytes(2 * BLOCK))
    [newer] = pool.snapshot([source])
    offers, rest = client.offers(None, newer.id, 0, 30)
    assert rest == 30 and len(offers) == 30 * 24
    more, rest = client.offers(None, newer.id, rest, 30)
    assert rest is None and len(more) == 10 * 24
    changed, _ = client.offers(older.id, newer.id, 0, 100)
    assert numbers(changed) == struct.pack("<2Q", 10, 11)
    assert client.known(target.id, offers) == b"\1" * 30
    proofs = client.prove(newer.id, numbers(offers))
    assert client.take(target.id, offers, proofs) == b"\1" * 30
    client.put(target.id, more, client.fetch(newer.id, numbers(more), bytes))
    assert target.read(0, MEBIBYTE) == newer.read(0, MEBIBYTE)
    digest = client.digest(older.id, base, newer.id)
    assert digest == client.digest(None, b"", newer.id) == client.digest(None, b"", target.id) != base


def test_what_cannot_be_done_is_an_error_and_the_connection_goes_on(client: EngineClient, pool: Pool) -> None:
    source = pool.create_vdisk(MEBIBYTE)
    source.write(0, b"a" * BLOCK)
    [snapshot] = pool.snapshot([source])
    offers, _ = client.offers(None, snapshot.id, 0, 1)
    for refused in (
        lambda: client.put(snapshot.id, offers, b"a" * BLOCK),
        lambda: client.known(snapshot.id, offers),
        lambda: client.fetch(999, numbers(offers), bytes),
    ):
        with pytest.raises(NotFound):
            refused()
    with pytest.raises(BlockdevError, match="verify"):
        client.put(source.id, offers, b"b" * BLOCK)
    assert client.fetch(snapshot.id, numbers(offers), bytes) == b"a" * BLOCK


def test_runs_of_blocks_become_holes_with_what_is_behind_the_end_of_the_disk(client: EngineClient, pool: Pool) -> None:
    disk = pool.create_vdisk(10 * BLOCK)
    content = random.Random(3).randbytes(10 * BLOCK)
    disk.write(0, content)
    client.clear(disk.id, struct.pack("<4Q", 1, 2, 5, 1))
    wanted = content[:BLOCK] + bytes(2 * BLOCK) + content[3 * BLOCK : 5 * BLOCK] + bytes(BLOCK) + content[6 * BLOCK :]
    assert disk.read(0, 10 * BLOCK) == wanted
    client.resize(disk.id, 8 * BLOCK + 512, shrink=True)
    client.clear(disk.id, struct.pack("<2Q", 0, 9))
    empty = pool.create_vdisk(8 * BLOCK + 512)
    assert client.digest(None, b"", disk.id) == client.digest(None, b"", empty.id)
    for runs in ((9, 1), (0, 10), (8, 1 << 63), ((1 << 64) - 1, 1)):
        with pytest.raises(InvalidArgument, match="beyond its end"):
            client.clear(disk.id, struct.pack("<2Q", *runs))


def test_a_room_that_could_shrink_or_is_none_is_refused_and_the_connection_goes_on(
    server: EngineServer, socket_path: str, tmp_path: Path
) -> None:
    del server
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, ROOM_BYTES)
    short = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    os.ftruncate(short, ROOM_BYTES - 4096)
    fcntl.fcntl(short, fcntl.F_ADD_SEALS, SEALS)
    (tmp_path / "file").write_bytes(bytes(ROOM_BYTES))
    file = os.open(tmp_path / "file", os.O_RDWR)
    pipe = os.pipe()
    given = [None, loose, short, file, *pipe]
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(socket_path)
        ask(stream, {"op": "hello", "session": bytes(16), "client": "test"})
        for descriptor in given:
            assert ask(stream, {"op": "share"}, descriptor)["code"] == "invalid_argument"
        assert ask(stream, {"op": "fetch", "id": 1, "blocks": bytes(8)})["code"] == "invalid_argument"  # there is no room
        room, descriptor = make_room()
        assert ask(stream, {"op": "share"}, descriptor) == {}
        assert ask(stream, {"op": "fetch", "id": 1, "blocks": bytes(8)})["code"] == "not_found"
        os.close(descriptor)
        room.close()
    for one in given[1:]:
        os.close(one)  # type: ignore[arg-type]


def test_descriptors_that_nobody_asked_for_are_closed(server: EngineServer, socket_path: str) -> None:
    del server
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(socket_path)
        ask(stream, {"op": "hello", "session": bytes(16), "client": "test"}, 0)
        for _ in range(20):
            ask(stream, {"op": "status"}, 0)
        assert len(os.listdir("/proc/self/fd")) <= before + 3  # both ends of the connection, and the latest descriptor


def ask(stream: socket.socket, body: dict[str, Any], descriptor: int | None = None) -> dict[str, Any]:
    send(stream, protocol.encode(protocol.Kind.REQUEST, 1, body), descriptor)
    head = receive(stream, protocol.HEADER_BYTES)
    assert head is not None
    answer = receive(stream, protocol.decode_header(head).body_bytes)
    assert answer is not None
    return protocol.decode_body(answer)
