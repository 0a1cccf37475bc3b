"""One client, one request at a time: every command, flag, limit and refusal of the protocol."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

import nbd
from blockdev import Pool
from tests.nbd.conftest import DISK, DISK_BYTES, MEBIBYTE, Server

HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
BLOCK = 4096


def extents(handle: nbd.NBD, count: int, offset: int, flags: int = 0) -> list[tuple[int, int]]:
    """(length, state) of each extent that one block status request tells of."""
    found: list[tuple[int, int]] = []

    def collect(context: str, at: int, entries: list[int], error: object) -> None:
        assert (context, at) == ("base:allocation", offset)
        found.extend(zip(entries[::2], entries[1::2], strict=True))

    handle.block_status(count, offset, collect, flags)
    return found


def errno_of(call, *arguments, **keywords) -> int | None:
    with pytest.raises(nbd.Error) as caught:
        call(*arguments, **keywords)
    return caught.value.errnum


def snapshot_of(server: Server, name: str) -> str:
    control = server.control()
    control.lead()
    disk = control.find(DISK)
    control.snapshot([disk.id], [name], [b""])
    control.close()
    return name


def test_what_was_written_is_read_at_sector_granularity(server: Server, seed: int) -> None:
    source = random.Random(seed)
    handle = server.connect()
    data = source.randbytes(3 * BLOCK)
    handle.pwrite(data, 512)
    handle.pwrite(data[:512], BLOCK + 1024)
    expected = bytearray(data)
    expected[BLOCK + 512 : BLOCK + 1024] = data[:512]
    assert handle.pread(3 * BLOCK, 512) == expected
    assert handle.pread(512, 0) == bytes(512)
    assert handle.pread(512, 512 + BLOCK + 512) == data[:512]


@pytest.mark.parametrize("flag", [0, nbd.CMD_FLAG_FUA])
def test_write_of_the_largest_size(server: Server, flag: int) -> None:
    handle = server.connect()
    data = random.Random(flag).randbytes(MEBIBYTE) * 32
    handle.pwrite(data, MEBIBYTE, flag)
    assert handle.pread(len(data), MEBIBYTE) == data


def test_structured_replies_are_negotiated_and_a_read_may_ask_for_one_chunk(server: Server) -> None:
    handle = server.connect()
    assert handle.get_structured_replies_negotiated()
    handle.pwrite(b"a" * BLOCK, 0)
    chunks = []
    handle.pread_structured(
        2 * BLOCK, 0, lambda data, at, kind, error: chunks.append((len(data), at)), nbd.CMD_FLAG_DF
    )
    assert chunks == [(2 * BLOCK, 0)]


def test_block_status_tells_data_from_holes(server: Server) -> None:
    handle = server.connect()
    handle.pwrite(b"x" * 2 * BLOCK, 8 * BLOCK)
    handle.pwrite(b"y" * BLOCK, 20 * BLOCK)
    handle.pwrite(bytes(BLOCK), 30 * BLOCK)  # zeros are never stored
    expected = [(8, HOLE), (2, 0), (10, HOLE), (1, 0), (DISK_BYTES // BLOCK - 21, HOLE)]
    assert extents(handle, DISK_BYTES, 0) == [(count * BLOCK, state) for count, state in expected]


def test_block_status_for_one_extent_and_from_its_middle(server: Server) -> None:
    handle = server.connect()
    handle.pwrite(b"x" * 4 * BLOCK, 8 * BLOCK)
    assert extents(handle, 12 * BLOCK, 0, nbd.CMD_FLAG_REQ_ONE) == [(8 * BLOCK, HOLE)]
    first = extents(handle, 2 * BLOCK, 9 * BLOCK + 512)[0]
    assert first[1] == 0 and first[0] >= 2 * BLOCK
    assert extents(handle, 512, 0)[0][1] == HOLE


def test_block_status_of_a_scattered_disk_is_answered_in_bounded_parts(idle_server: Server) -> None:
    """More extents than one answer may hold: the client asks on, and gets them all."""
    count = 70_000
    idle_server.create(root=2 * count * BLOCK)
    pool = Pool.open(str(idle_server.home.pool))
    disk = pool.find(DISK)
    stripe = b"".join((index % 97 + 1).to_bytes(8, "little") * 512 + bytes(BLOCK) for index in range(1000))
    for start in range(0, count, 1000):
        disk.write(2 * start * BLOCK, stripe)
    pool.close()
    idle_server.start()
    handle = idle_server.connect()
    found: list[tuple[int, int]] = []
    position = 0
    while position < 2 * count * BLOCK:
        part = extents(handle, 2 * count * BLOCK - position, position)
        assert 0 < len(part) <= 65_536
        found += part
        position += sum(length for length, _ in part)
    assert found == [(BLOCK, 0), (BLOCK, HOLE)] * count


@pytest.mark.parametrize("flag", [0, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO])
def test_zeroed_ranges_read_as_zeros_and_are_holes(server: Server, flag: int) -> None:
    handle = server.connect()
    handle.pwrite(b"z" * 16 * BLOCK, 0)
    handle.zero(4 * BLOCK, 4 * BLOCK, flag)
    assert handle.pread(16 * BLOCK, 0) == b"z" * 4 * BLOCK + bytes(4 * BLOCK) + b"z" * 8 * BLOCK
    assert extents(handle, 16 * BLOCK, 0)[:3] == [(4 * BLOCK, 0), (4 * BLOCK, HOLE), (8 * BLOCK, 0)]


@pytest.mark.parametrize("flag", [0, nbd.CMD_FLAG_FUA])
def test_trimmed_sectors_read_as_zeros(server: Server, flag: int) -> None:
    handle = server.connect()
    handle.pwrite(b"t" * 4 * BLOCK, 0)
    handle.trim(2 * BLOCK, 512, flag)
    assert handle.pread(4 * BLOCK, 0) == b"t" * 512 + bytes(2 * BLOCK) + b"t" * (2 * BLOCK - 512)


def test_a_zero_of_a_whole_large_disk_in_one_request(idle_server: Server) -> None:
    size = (4 << 30) - 512  # the longest that a request can say, on the sector grid
    idle_server.create(root=size)
    idle_server.start()
    handle = idle_server.connect()
    for offset in range(0, size - MEBIBYTE, 512 * MEBIBYTE):
        handle.pwrite(b"q" * MEBIBYTE, offset)
    handle.zero(size, 0)
    assert extents(handle, size, 0) == [(size, HOLE)]


def test_flush_and_cache_succeed(server: Server) -> None:
    handle = server.connect()
    handle.pwrite(b"c" * MEBIBYTE, 0)
    handle.cache(8 * MEBIBYTE, 0)
    handle.flush()
    assert handle.pread(MEBIBYTE, 0) == b"c" * MEBIBYTE


@pytest.mark.parametrize(("count", "offset"), [(512, 1), (511, 0), (513, 512), (4096, 256), (1, 0)])
def test_what_is_off_the_sector_grid_is_einval(server: Server, count: int, offset: int) -> None:
    handle = server.connect()
    assert errno_of(handle.pread, count, offset) == errno.EINVAL
    assert errno_of(handle.pwrite, b"e" * count, offset) == errno.EINVAL
    assert errno_of(handle.zero, count, offset) == errno.EINVAL
    assert errno_of(handle.trim, count, offset) == errno.EINVAL
    assert errno_of(handle.cache, count, offset) == errno.EINVAL
    assert errno_of(extents, handle, count, offset) == errno.EINVAL
    assert handle.pread(BLOCK, 0) == bytes(BLOCK)


def test_what_is_past_the_end_or_too_long_is_refused(server: Server) -> None:
    handle = server.connect()
    assert errno_of(handle.pread, 1024, DISK_BYTES - 512) == errno.EINVAL
    assert errno_of(handle.pwrite, bytes(1024), DISK_BYTES - 512) == errno.ENOSPC
    assert errno_of(handle.pread, 512, (1 << 63) - 512) == errno.EINVAL
    assert errno_of(handle.pread, 32 * MEBIBYTE + 512, 0) == errno.EINVAL
    assert errno_of(handle.pwrite, b"l" * (32 * MEBIBYTE + 512), 0) == errno.EINVAL
    assert handle.pread(512, DISK_BYTES - 512) == bytes(512)


def test_a_write_to_a_snapshot_is_eperm(server: Server) -> None:
    handle = server.connect()
    handle.pwrite(b"before" * 512, 0)
    frozen = server.connect(snapshot_of(server, f"{DISK}@now"))
    handle.pwrite(b"after!" * 512, 0)
    assert frozen.is_read_only()
    for refused in (
        lambda: frozen.pwrite(b"w" * 512, 0),
        lambda: frozen.zero(512, 0),
        lambda: frozen.trim(512, 0),
    ):
        assert errno_of(refused) == errno.EPERM
    assert frozen.pread(3072, 0) == b"before" * 512
    assert handle.pread(3072, 0) == b"after!" * 512
    frozen.flush()
    assert extents(frozen, BLOCK, 0)[0] == (BLOCK, 0)


def test_connections_see_each_other_at_once_and_one_flush_covers_all(server: Server) -> None:
    handles = [server.connect() for _ in range(8)]
    assert all(handle.can_multi_conn() for handle in handles)
    for index, handle in enumerate(handles):
        handle.pwrite(bytes([index + 1]) * BLOCK, index * BLOCK)
    handles[0].flush()
    expected = b"".join(bytes([index + 1]) * BLOCK for index in range(8))
    assert all(handle.pread(8 * BLOCK, 0) == expected for handle in handles)


def test_attachments_name_the_client_until_it_leaves(server: Server) -> None:
    control = server.control()
    assert control.attachments() == []
    handle = nbd.NBD()
    handle.connect_uri(server.uri())
    ((_, name, client),) = control.attachments()
    comm = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert (name, client) == (DISK, f"pid {os.getpid()} ({comm})")
    handle.shutdown()
    while (
        control.attachments()
    ):  # the server sees the end of the connection a moment later; pytest-timeout bounds this
        pass
    control.close()


def test_requests_to_a_deleted_disk_are_eshutdown(server: Server) -> None:
    handle = server.connect()
    handle.pwrite(b"d" * BLOCK, 0)
    control = server.control()
    control.lead()
    control.delete([control.find(DISK).id], force=True)
    for request in (
        lambda: handle.pread(512, 0),
        lambda: handle.pwrite(bytes(512), 0),
        lambda: handle.zero(512, 0),
        handle.flush,
    ):
        assert errno_of(request) == errno.ESHUTDOWN
    control.close()


def test_a_renamed_disk_stays_attached(server: Server) -> None:
    handle = server.connect()
    handle.pwrite(b"r" * BLOCK, 0)
    control = server.control()
    control.lead()
    control.relabel([(control.find(DISK).id, "demo/renamed", b"")], force=True)
    assert handle.pread(BLOCK, 0) == b"r" * BLOCK
    assert [row[1] for row in control.attachments()] == ["demo/renamed"]
    assert server.connect("demo/renamed").pread(BLOCK, 0) == b"r" * BLOCK
    control.close()


def test_a_disk_that_shrank_refuses_what_is_past_its_new_end(server: Server) -> None:
    """Restoring a snapshot brings its size back too."""
    control = server.control()
    control.lead()
    disk = control.find(DISK)
    (small,) = control.snapshot([disk.id], [f"{DISK}@small"], [b""])
    control.resize(disk.id, 2 * DISK_BYTES)
    handle = server.connect()
    handle.pwrite(b"s" * BLOCK, 2 * DISK_BYTES - BLOCK)
    control.restore([(disk.id, small.id)], force=True)
    control.close()
    assert errno_of(handle.pread, BLOCK, 2 * DISK_BYTES - BLOCK) == errno.EINVAL
    assert errno_of(handle.pwrite, bytes(BLOCK), DISK_BYTES) == errno.EINVAL
    assert errno_of(extents, handle, BLOCK, DISK_BYTES) == errno.EINVAL
    assert handle.pread(BLOCK, DISK_BYTES - BLOCK) == bytes(BLOCK)


def test_a_disk_that_grew_has_its_new_size_for_new_connections(server: Server) -> None:
    handle = server.connect()
    control = server.control()
    control.lead()
    control.resize(control.find(DISK).id, 2 * DISK_BYTES)
    control.close()
    assert handle.get_size() == DISK_BYTES
    grown = server.connect()
    assert grown.get_size() == 2 * DISK_BYTES
    grown.pwrite(b"g" * 512, 2 * DISK_BYTES - 512)
    assert grown.pread(512, 2 * DISK_BYTES - 512) == b"g" * 512


def test_nbdsh_reads_what_it_wrote(server: Server, run) -> None:
    script = (
        "h.pwrite(b'n' * 4096, 8192, nbd.CMD_FLAG_FUA); assert h.pread(4096, 8192) == b'n' * 4096; "
        "h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO); assert h.pread(4096, 8192) == bytes(4096); print(h.get_size())"
    )
    # nbdsh runs the python3 of the PATH, and Debian's is the one that has libnbd
    shown = run("env", "PATH=/usr/bin:/bin", "nbdsh", "-u", server.uri(), "-c", script)
    assert shown.strip() == str(DISK_BYTES)
