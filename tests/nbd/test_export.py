"""transfer.nbd: the control plane's own connection to an export."""

from __future__ import annotations

import os

import pytest

from blockdev.errors import BlockdevError, InvalidArgument, NotFound, PoolFull, ReadOnly, Unavailable
from blockdev.transfer import nbd as transfer_nbd
from blockdev.transfer.nbd import Export
from tests.nbd.conftest import DISK, DISK_BYTES, MEBIBYTE, Server


def test_what_is_written_in_several_requests_is_read_back_and_zeroed(
    server: Server, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_nbd, "REQUEST_BYTES_MAX", 3 * 4096)
    data = bytes(range(1, 257 - 1)) * 512
    with Export(server.home.nbd_socket, DISK) as export:
        assert export.size_bytes == DISK_BYTES
        export.write(1024, data)
        export.flush()
        assert export.read(512, len(data) + 1024) == bytes(512) + data + bytes(512)
        export.zero(1536, 40_960)
    with Export(server.home.nbd_socket, DISK) as export:
        assert export.read(1024, len(data)) == data[:512] + bytes(40_960) + data[41_472:]


def fails(export: Export, offset: int) -> BlockdevError:
    with pytest.raises(BlockdevError) as caught:
        export.write(offset, b"x" * 4096)
    assert DISK in caught.value.message
    return caught.value


def test_failures_say_what_they_are(server: Server) -> None:
    with pytest.raises(NotFound, match="no export demo/none"):
        Export(server.home.nbd_socket, "demo/none")
    control = server.control()
    control.snapshot([control.find(DISK).id], [f"{DISK}@s"], [b""])
    with Export(server.home.nbd_socket, f"{DISK}@s") as export:
        assert isinstance(fails(export, 0), ReadOnly)
    with Export(server.home.nbd_socket, DISK) as export:
        assert isinstance(fails(export, DISK_BYTES), InvalidArgument)
        control.set_capacity(16 * MEBIBYTE)
        with pytest.raises(PoolFull):
            export.write(0, os.urandom(32 * MEBIBYTE))
    with Export(server.home.nbd_socket, DISK) as export:
        assert server.engine is not None
        server.stop()
        assert isinstance(fails(export, 0), Unavailable)
    with pytest.raises(Unavailable, match="serve"):
        Export(server.home.nbd_socket, DISK)
