"""Bytes that somebody made: every checksum is right and what they say cannot be.  Refused or an error, never a crash."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from blockdev import Pool, errors
from tests.engine.content import distinct_blocks

BLOCK = 4096
HEAD = "<8sQQIIQQIIQQ"
OBJECT = "<IBBHHHIIQQQ"
HUGE = (1 << 64) - 1


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A pool with a checkpoint, and behind it a log with an entry of each kind, as a kill leaves it."""
    path = str(tmp_path_factory.mktemp("hostile") / "pool")
    Pool.create(path, 256 << 20, segment_bytes=4 << 20).close()
    pool = Pool.open(path, background=False)
    vdisk = pool.create_vdisk(4 << 20, "a")
    vdisk.write(0, distinct_blocks(0, 64))
    pool.snapshot([vdisk], ["a@s"])
    for _ in range(3):
        vdisk.write(0, distinct_blocks(100, 8))
        pool.checkpoint()
    vdisk.write(0, distinct_blocks(1000, 2))
    vdisk.write(1 << 20, distinct_blocks(3, 2))
    vdisk.discard(8 * BLOCK, 8 * BLOCK)
    pool.flush()
    pool.create_vdisk(1 << 20, "b")
    pool.clone(pool.find("a@s"), "c")
    pool.restore([(vdisk, pool.find("a@s"))])
    pool.resize(pool.find("b"), 2 << 20)
    copy = f"{path}-killed"
    shutil.copytree(path, copy)
    pool.close()
    yield copy
    shutil.rmtree(Path(path).parent)


@pytest.fixture
def killed(pristine: str, pool_path: str) -> str:
    shutil.copytree(pristine, pool_path)
    return pool_path


def use(path: str) -> str:
    """Open, read everything, write, close: with an operating error at most."""
    try:
        pool = Pool.open(path, background=False)
    except (errors.Corrupt, errors.MediumError, errors.UnknownFormat):
        return "refused"
    outcome = "used"
    for thing in [*pool.vdisks(), *pool.snapshots()]:
        try:
            thing.read(0, min(thing.size_bytes, 4 << 20))
            thing.extents(0, min(thing.size_bytes, 4 << 20))
            if thing in pool.vdisks():
                thing.write(0, distinct_blocks(5000, 2))
                thing.discard(BLOCK, BLOCK)
        except errors.BlockdevError:
            outcome = "error"
    pool.check()
    try:
        pool.close()
    except errors.BlockdevError:
        outcome = "error"
    return outcome


def sign_tables(path: str, change: Callable[[bytearray], None]) -> None:
    """Change each checkpoint table, and sign it in the superblocks that name it."""
    for which in (0, 1):
        file = Path(path, f"superblock-{which}")
        block = bytearray(file.read_bytes())
        table = Path(path, "map", f"checkpoint-{struct.unpack_from('<Q', block, 56)[0]}")
        content = bytearray(table.read_bytes())
        change(content)
        table.write_bytes(content)
        struct.pack_into("<QQ", block, 64, len(content), xxhash.xxh3_64_intdigest(bytes(content)))
        struct.pack_into("<Q", block, 8, xxhash.xxh3_64_intdigest(bytes(block[16:])))
        file.write_bytes(block)


def put_field(layout: str, at: int, field: int, value: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        values = list(struct.unpack_from(layout, content, at))
        width = struct.calcsize("<" + layout[1:].replace("8s", "Q")[field])
        values[field] = value & ((1 << 8 * width) - 1)
        struct.pack_into(layout, content, at, *values)

    return change


@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 1 << 63, HUGE])
@pytest.mark.parametrize("field", range(1, 11))
def test_table_head(killed: str, field: int, value: int) -> None:
    sign_tables(killed, put_field(HEAD, 0, field, value))
    use(killed)


@pytest.mark.parametrize("value", [0, 1, 4, 5, 200, 1 << 40, HUGE])
@pytest.mark.parametrize("field", [0, 1, 2, 3, 4, 6, 7, 8, 9, 10])
def test_table_object(killed: str, field: int, value: int) -> None:
    sign_tables(killed, put_field(OBJECT, struct.calcsize(HEAD), field, value))
    use(killed)


@pytest.mark.parametrize(
    "field, value", [(2, 0), (2, 5), (2, 200), (1, 0), (1, 3), (8, 0), (8, 1 << 50), (0, 0)]
)
def test_an_object_that_cannot_be_is_refused(killed: str, field: int, value: int) -> None:
    sign_tables(killed, put_field(OBJECT, struct.calcsize(HEAD), field, value))
    assert use(killed) == "refused"


@pytest.mark.parametrize("value", [0, 1 << 40, HUGE])
def test_a_free_node_slot_that_was_never_used_is_refused(killed: str, value: int) -> None:
    def change(content: bytearray) -> None:
        head = struct.unpack_from(HEAD, content)
        put_field(HEAD, 0, 9, head[9] + 1)(content)
        at = len(content) - head[10] * 16
        content[at:at] = struct.pack("<Q", value)

    sign_tables(killed, change)
    assert use(killed) == "refused"


@pytest.mark.parametrize("slots", [0, 1, 2, 100, 1 << 20, 0xFFFFFFFF])
def test_a_segment_size_that_cannot_be_is_refused(killed: str, slots: int) -> None:
    for which in (0, 1):
        file = Path(killed, f"superblock-{which}")
        block = bytearray(file.read_bytes())
        struct.pack_into("<I", block, 80, slots)
        struct.pack_into("<Q", block, 8, xxhash.xxh3_64_intdigest(bytes(block[16:])))
        file.write_bytes(block)
    assert use(killed) == "refused"


def change_entries(path: str, kind: int, change: Callable[[list[int]], None]) -> int:
    """Change the last entry of a kind; returns how many there are.  An entry: [a, b, block, object, kind]."""
    file = Path(path, "segments", "00000001.0")
    raw = bytearray(file.read_bytes())
    found = []
    for at in first_headers(raw):
        count = struct.unpack_from("<H", raw, at + 56)[0]
        places = [at + 128 + 32 * i for i in range(count)]
        found += [(at, place) for place in places if raw[place + 28] == kind]
    at, place = found[-1]
    entry = list(struct.unpack_from("<QQQIB", raw, place))
    change(entry)
    struct.pack_into("<QQQIB", raw, place, *entry)
    sign_batch(raw, at)
    file.write_bytes(raw)
    return len(found)


def first_headers(raw: bytearray) -> list[int]:
    """Where the first copy of each batch's header is."""
    copies = [at for at in range(0, len(raw), BLOCK) if raw[at : at + 8] == b"BLDBAT1\0"]
    return copies[::2]


def sign_batch(raw: bytearray, at: int) -> None:
    """Make a changed header verify, and the second copy the same."""
    struct.pack_into("<Q", raw, at + 8, xxhash.xxh3_64_intdigest(bytes(raw[at + 16 : at + BLOCK])))
    copy = at + (1 + struct.unpack_from("<H", raw, at + 58)[0]) * BLOCK
    raw[copy : copy + BLOCK] = raw[at : at + BLOCK]


@pytest.mark.parametrize("value", [0, 3, 1025, (1 << 32) + 1, 1 << 52, HUGE])
@pytest.mark.parametrize("field", ["a", "b", "block", "object"])
@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_log_entry(killed: str, kind: int, field: str, value: int) -> None:
    place = ["a", "b", "block", "object"].index(field)

    def change(entry: list[int]) -> None:
        entry[place] = value & 0xFFFFFFFF if field == "object" else value

    assert change_entries(killed, kind, change)
    use(killed)


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("block", [1024, 512 * 512, 1 << 36, (1 << 36) + 5, HUGE])
def test_an_entry_beyond_the_end_of_its_disk_is_refused(killed: str, kind: int, block: int) -> None:
    change_entries(killed, kind, lambda entry: entry.__setitem__(2, block))
    assert use(killed) == "refused"


def test_an_entry_of_an_unknown_kind_is_refused(killed: str) -> None:
    change_entries(killed, 3, lambda entry: entry.__setitem__(4, 9))
    assert use(killed) == "refused"


def test_an_entry_that_writes_to_a_snapshot_is_refused(killed: str) -> None:
    change_entries(killed, 3, lambda entry: entry.__setitem__(3, 2))
    assert use(killed) == "refused"


def change_record(path: str, record_type: int, at: int, layout: str, value: int) -> None:
    """Change a number in the last record of a type, and sign the record and its batch."""
    file = Path(path, "segments", "00000001.0")
    raw = bytearray(file.read_bytes())

    def change(entry: list[int]) -> None:
        entry[0] = xxhash.xxh3_64_intdigest(bytes(raw[place : place + entry[2]]))

    for slot in reversed(first_headers(raw)):
        if raw[slot + 128 + 28] == 4:
            place = slot + BLOCK
            if raw[place] == record_type:
                break
    else:
        raise AssertionError("there is no such record")
    struct.pack_into(layout, raw, place + at, value)
    entry = list(struct.unpack_from("<QQQIB", raw, slot + 128))
    change(entry)
    struct.pack_into("<QQQIB", raw, slot + 128, *entry)
    sign_batch(raw, slot)
    file.write_bytes(raw)


@pytest.mark.parametrize(
    "record_type, at, layout, value",
    [
        (1, 16, "<Q", 0),  # a vdisk of no bytes
        (1, 16, "<Q", 1 << 60),
        (1, 16, "<Q", 4097),
        (1, 8, "<I", 1),  # one that is there
        (1, 8, "<I", 0),
        (3, 12, "<I", 1),  # a clone of a vdisk
        (3, 12, "<I", 77),
        (4, 12, "<I", 1),  # a vdisk restored from itself
        (4, 8, "<I", 2),  # a snapshot restored
        (7, 16, "<Q", 0),
        (7, 16, "<Q", 1 << 60),
        (7, 8, "<I", 2),  # a snapshot resized
        (7, 0, "<B", 99),
        (7, 4, "<I", 0xFFFFFFFF),
    ],
)
def test_a_record_that_cannot_be_is_refused(
    killed: str, record_type: int, at: int, layout: str, value: int
) -> None:
    change_record(killed, record_type, at, layout, value)
    assert use(killed) == "refused"


@pytest.mark.parametrize(
    "value", [1, 2, 3, 0xFFFFFFFF, 1 << 32, (1 << 32) + 5, 7 << 32, 1 << 50, 1 << 63, HUGE]
)
@pytest.mark.parametrize("level", [0, 1])
def test_map_nodes_that_name_what_is_not_there(killed: str, level: int, value: int) -> None:
    nodes = bytearray(Path(killed, "map", "nodes").read_bytes())
    for at in range(0, len(nodes), 4608):
        if nodes[at : at + 8] == b"BDNODE1\0" and struct.unpack_from("<I", nodes, at + 56)[0] == level:
            for i in range(300):
                struct.pack_into("<Q", nodes, at + 512 + 8 * i, (value + i) & HUGE)
            struct.pack_into("<Q", nodes, at + 8, xxhash.xxh3_64_intdigest(bytes(nodes[at + 16 : at + 4608])))
    for name in ("nodes", "nodes-mirror"):
        Path(killed, "map", name).write_bytes(nodes)
    use(killed)
