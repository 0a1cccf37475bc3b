"""The engine socket on a real pool: what it does, what it refuses, and what no client can do to it."""

from __future__ import annotations

import os
import random
import socket
import stat
import threading
from pathlib import Path

import msgpack
import pytest

from blockdev import Pool
from blockdev.accounting import Group
from blockdev.compaction import Compaction, CompactionReport
from blockdev.engine import client as client_module
from blockdev.engine import operations, protocol, server
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import AnswerLost, EngineClient, EngineRestarted
from blockdev.engine.protocol import HEADER, MAGIC, VERSION, EngineObject, Kind
from blockdev.engine.server import EngineServer
from blockdev.errors import (
    AlreadyExists,
    BlockdevError,
    Busy,
    Corrupt,
    InvalidArgument,
    MediumError,
    NotFound,
    Unavailable,
)
from blockdev.policies import AS_POOL, DiskPolicy, PoolPolicy
from blockdev.runner import Outcome
from blockdev.types import Extent
from tests.engine.content import distinct_blocks
from tests.engine.test_space import bytes_on_disk
from tests.engine_socket.conftest import StartEngine
from tests.engine_socket.engine_main import DIED_AS_TOLD

DEADLINE_S = 120.0


def test_operations_mirror_the_pool(client: EngineClient, pool: Pool) -> None:
    [root] = client.create([(1 << 20, "web/root", b"tag")])
    assert root == EngineObject(pool.find("web/root").id, None, "web/root", b"tag", 1 << 20, None)
    pool.find("web/root").write(4096, b"a" * 4096)
    [before] = client.snapshot([root.id], ["web/root@a"], [b"of a"])
    pool.find("web/root").write(8192, b"b" * 4096)
    [after] = client.snapshot([root.id], ["web/root@b"], [b""])
    assert before.lsn is not None and after.lsn is not None and before.lsn < after.lsn
    assert (before.vdisk_id, before.tag) == (root.id, b"of a")
    assert list(client.diff(before.id, after.id)) == [Extent(8192, 4096, "data")]
    assert list(client.diff(None, after.id)) == [Extent(4096, 8192, "data")]
    assert client.count_changes(before.id, after.id) == (4096, 1)
    assert client.count_changes(None, after.id) == (8192, 1)
    assert client.extents(root.id, 0, 16384) == pool.find("web/root").extents(0, 16384)
    client.restore([(root.id, before.id)])
    assert pool.find("web/root").read(8192, 4096) == bytes(4096)
    [clone] = client.clone([(after.id, "b/root", b"c")])
    assert pool.find("b/root").read(8192, 4096) == b"b" * 4096
    client.relabel([(clone.id, "c/root", b"d")])
    assert (
        client.get(clone.id)
        == client.find("c/root")
        == EngineObject(clone.id, None, "c/root", b"d", 1 << 20, None)
    )
    client.resize(clone.id, 2 << 20)
    assert client.get(clone.id).size_bytes == 2 << 20
    client.delete([clone.id])
    assert sorted(thing.name or "" for thing in client.objects()) == ["web/root", "web/root@a", "web/root@b"]
    client.flush()
    client.checkpoint()
    for kind in ("check", "scrub"):
        run = client.inspect(kind)
        while (found := client.inspection(run, 1.0)).state == "running":
            pass
        assert found.report is not None and found.report.findings == found.report.healed == []


def test_status_says_who_serves_what(client: EngineClient, pool: Pool) -> None:
    status = client.status()
    assert status["pid"] == os.getpid()
    assert status["plugin"] == "none"
    assert status["uuid"] == pool.uuid
    assert status["stats"]["vdisk_count"] == 0
    assert client.hello()["uuid"] == pool.uuid


def test_policies_are_set_and_told(client: EngineClient, pool: Pool) -> None:
    assert client.policy() == PoolPolicy() == pool.policy
    policy = PoolPolicy("inline", 9, "off", 20 << 20)
    client.set_policy(policy)
    assert client.policy() == policy == pool.policy
    root, data, kept = client.create([(512, f"web/{name}", b"") for name in ("root", "data", "kept")])
    assert root.policy == AS_POOL
    [snapshot] = client.snapshot([root.id], ["web/root@a"], [b""])
    client.set_disk_policies([(root.id, DiskPolicy("off", None)), (data.id, DiskPolicy(None, "on"))])
    assert client.get(root.id).policy == DiskPolicy("off", None)
    assert {thing.name: thing.policy for thing in client.objects()} == {
        "web/root": DiskPolicy("off", None),
        "web/data": DiskPolicy(None, "on"),
        "web/kept": AS_POOL,
        "web/root@a": AS_POOL,
    }
    with pytest.raises(InvalidArgument, match="is a snapshot"):
        client.set_disk_policies([(kept.id, DiskPolicy("off", "off")), (snapshot.id, AS_POOL)])
    with pytest.raises(NotFound):
        client.set_disk_policies([(kept.id, DiskPolicy("off", "off")), (999, AS_POOL)])
    assert client.get(kept.id).policy == AS_POOL
    [clone] = client.clone([(snapshot.id, "b/root", b"")])
    assert clone.policy == client.get(clone.id).policy == AS_POOL
    with pytest.raises(InvalidArgument):
        client.set_policy(policy._replace(compression_level=20))
    assert client.policy() == policy


def test_a_usage_answers_for_each_group_in_order(
    client: EngineClient, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "USAGE_PAGE_MAX", 2)
    root, data = client.create([(1 << 20, "web/root", b""), (1 << 20, "db/root", b"")])
    pool.find("web/root").write(0, distinct_blocks(0, 8))
    [first] = client.snapshot([root.id], ["web/root@a"], [b""])
    pool.find("web/root").write(0, distinct_blocks(100, 3))
    [second] = client.snapshot([root.id], ["web/root@b"], [b""])
    groups = [Group([data.id], []), Group([root.id], [[(first.id, None)], [(second.id, first.id)]]), Group([], [])]
    usage = client.account(groups)
    assert usage == pool.account(groups)
    assert [len(group.snapshots) for group in usage.groups] == [0, 2, 0]
    assert client.account([]).groups == []
    assert client.account([Group([999], [])]).groups[0].data_bytes == 0
    with pytest.raises(InvalidArgument, match="counted twice"):
        client.account([Group([root.id], []), Group([root.id], [])])
    with pytest.raises(InvalidArgument, match="ask for one VM"):
        client.account([Group([root.id] * (protocol.ITEMS_MAX + 1), [])])


def test_errors_travel_by_code(client: EngineClient) -> None:
    client.create([(512, "a/b", b"")])
    with pytest.raises(NotFound):
        client.get(999)
    with pytest.raises(NotFound):
        client.find("no/such")
    with pytest.raises(AlreadyExists):
        client.create([(512, "a/b", b"")])
    with pytest.raises(InvalidArgument):
        client.create([(511, "a/c", b"")])


def test_an_operation_changes_all_or_nothing(client: EngineClient) -> None:
    with pytest.raises(AlreadyExists):
        client.create([(512, "a/b", b""), (512, "a/b", b"")])
    assert client.objects() == []
    [one] = client.create([(512, "a/b", b"")])
    with pytest.raises(NotFound):
        client.delete([one.id, 999])
    assert len(client.objects()) == 1
    client.delete([one.id, 999], missing_ok=True)
    assert client.objects() == []


def test_what_is_attached_is_not_renamed_deleted_or_restored(
    client: EngineClient, pool: Pool, attachments: Attachments
) -> None:
    [disk] = client.create([(1 << 20, "web/root", b"")])
    [snapshot] = client.snapshot([disk.id], ["web/root@a"], [b""])
    token = attachments.attach(pool.get(disk.id), "pid 9 (qemu)")
    assert client.attachments() == [(disk.id, "web/root", "pid 9 (qemu)")]
    refused = "web/root is attached by pid 9 .qemu."
    with pytest.raises(Busy, match=refused):
        client.delete([disk.id])
    with pytest.raises(Busy, match=refused):
        client.relabel([(disk.id, "b/root", b"")])
    with pytest.raises(Busy, match=refused):
        client.restore([(disk.id, snapshot.id)])
    with pytest.raises(Busy, match=refused):
        client.resize(disk.id, 512, shrink=True)
    client.relabel([(disk.id, "web/root", b"another tag alone")])
    client.resize(disk.id, 2 << 20)
    client.relabel([(disk.id, "b/root", b"")], force=True)
    assert client.attachments() == [(disk.id, "b/root", "pid 9 (qemu)")]
    client.restore([(disk.id, snapshot.id)], force=True)
    client.delete([disk.id], force=True)
    attachments.detach(token)


def test_shrinking_must_be_said(client: EngineClient) -> None:
    [disk] = client.create([(1 << 20, "web/root", b"")])
    with pytest.raises(InvalidArgument, match="would cut off"):
        client.resize(disk.id, 512)
    client.resize(disk.id, 512, shrink=True)
    assert client.get(disk.id).size_bytes == 512


def test_a_snapshot_is_no_vdisk_and_the_other_way_round(client: EngineClient) -> None:
    [disk] = client.create([(1 << 20, "web/root", b"")])
    [snapshot] = client.snapshot([disk.id], ["web/root@a"], [b""])
    for refused in (
        lambda: client.resize(snapshot.id, 2 << 20),
        lambda: client.snapshot([snapshot.id], ["b"], [b""]),
        lambda: client.restore([(snapshot.id, snapshot.id)]),
        lambda: client.restore([(disk.id, disk.id)]),
        lambda: client.clone([(disk.id, "b", b"")]),
    ):
        with pytest.raises(InvalidArgument, match="is a snapshot|is not a snapshot"):
            refused()


def test_long_answers_come_in_pages(
    client: EngineClient, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "OBJECTS_PAGE_MAX", 3)
    monkeypatch.setattr(operations, "CHUNK_EXTENTS_MAX", 2)
    made = client.create([(1 << 20, f"vm{number}/d", b"t") for number in range(10)])
    assert client.objects() == made
    vdisk = pool.get(made[0].id)
    for number in range(9):
        vdisk.write(number * 16384, b"x" * 4096)
    assert client.extents(made[0].id, 0, 1 << 20) == vdisk.extents()
    client.snapshot([made[0].id], ["vm0/d@a"], [b""])
    newer = client.find("vm0/d@a").id
    found = [Extent(number * 16384, 4096, "data") for number in range(9)]
    monkeypatch.setattr(client_module, "CHUNK_EXTENTS_MAX", 2)
    assert list(client.diff(None, newer)) == found
    assert client.changes(None, newer, 4096, 3) == (found[1:4], found[4].offset)
    assert client.changes(None, newer, found[6].offset, 3) == (found[6:], None)


def test_a_long_operation_does_not_hold_up_others(
    client: EngineClient, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    flush = pool.flush

    def slow_flush() -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        flush()

    monkeypatch.setattr(pool, "flush", slow_flush)
    flushing = threading.Thread(target=client.flush)
    flushing.start()
    assert begun.wait(DEADLINE_S)
    client.create([(512, "a/b", b"")])
    assert client.find("a/b").size_bytes == 512
    go_on.set()
    flushing.join(DEADLINE_S)


def test_many_threads_share_one_client(client: EngineClient) -> None:
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(20):
                [made] = client.create([(512, f"t{thread}/{number}", b"")])
                assert client.get(made.id).name == f"t{thread}/{number}"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not errors
    assert len(client.objects()) == 240


# compaction


STAYS = distinct_blocks(0, 1024)


@pytest.fixture
def littered(client: EngineClient, pool: Pool) -> int:
    """The pool with 4 MiB on a disk, between 12 MiB that were deleted.  The id of the disk."""
    [stays, gone] = client.create([(4 << 20, "web/root", b""), (12 << 20, "web/gone", b"")])
    for number in range(4):
        piece = slice(number << 20, (number + 1) << 20)
        pool.get(stays.id).write(piece.start, STAYS[piece])
        pool.get(gone.id).write(3 * piece.start, distinct_blocks((1 << 20) + number * 1000, 768))
    client.delete([gone.id])
    client.flush()
    return stays.id


def ended(client: EngineClient, run: int) -> Outcome[CompactionReport]:
    while (found := client.compaction(run, 1.0)).state == "running":
        pass
    return found


def test_a_compaction_gives_space_back_and_what_stays_reads_the_same(
    client: EngineClient, pool: Pool, pool_path: str, littered: int
) -> None:
    before, used_before = bytes_on_disk(pool_path), client.status()["stats"]["used_bytes"]
    found = ended(client, client.compact())
    report = found.report
    assert found.state == "done" and found.error is None and report is not None and report.kept == ()
    assert report.live_bytes == len(STAYS) and report.segments_removed + report.segments_rewritten > 0
    assert found.progress.kind == "compact" and found.progress.done_bytes == found.progress.total_bytes > 0
    assert used_before - client.status()["stats"]["used_bytes"] > 11 << 20
    assert before - bytes_on_disk(pool_path) > 11 << 20
    assert pool.get(littered).read(0, len(STAYS)) == STAYS
    assert pool.scrub() == []


def test_a_compaction_is_seen_joined_and_cancelled(client: EngineClient, pool: Pool, littered: int) -> None:
    run = client.compact(rate_bytes=1)
    assert client.compact() == run
    assert client.compaction(run).state == "running" and client.compaction(run).report is None
    progress = client.status()["compaction"]
    assert progress["run"] == run and progress["kind"] == "compact"
    client.cancel_compaction(run)
    found = ended(client, run)
    assert found.state == "cancelled" and found.report is None and found.error is None
    assert client.status()["compaction"] is None
    assert pool.get(littered).read(0, len(STAYS)) == STAYS
    again = client.compact()
    assert again != run and ended(client, again).state == "done"
    assert pool.get(littered).read(0, len(STAYS)) == STAYS
    assert client.compaction(run).state == "cancelled"
    with pytest.raises(NotFound):
        client.compaction(again + 1)


def test_a_compaction_that_fails_says_why(
    client: EngineClient, littered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mark(_compaction: Compaction) -> None:
        raise Corrupt("map node 3 does not verify in either copy")

    monkeypatch.setattr(Compaction, "mark", mark)
    found = ended(client, client.compact())
    assert found.state == "failed" and type(found.error) is Corrupt and "map node 3" in found.error.message
    with pytest.raises(InvalidArgument, match="rate_bytes"):
        client.compact(rate_bytes=0)


# the lead: one client changes the pool


def test_only_the_client_that_leads_changes_the_pool(client: EngineClient, socket_path: str) -> None:
    other = EngineClient(socket_path, "another daemon")
    other.create([(512, "a/a", b"")])
    client.lead()
    with pytest.raises(Busy, match="the test has taken over"):
        other.create([(512, "a/b", b"")])
    assert len(other.objects()) == 1
    other.lead()
    other.create([(512, "a/b", b"")])
    with pytest.raises(Busy, match="another daemon has taken over"):
        client.delete([1])
    other.close()


def test_the_lead_ends_with_the_connections_of_who_had_it(
    client: EngineClient, socket_path: str, server: EngineServer
) -> None:
    other = EngineClient(socket_path)
    other.lead()
    other.close()
    deadline = threading.Event()
    for _ in range(10_000):
        try:
            client.create([(512, "a/a", b"")])
            return
        except Busy:  # its connection has not ended yet
            deadline.wait(0.01)
    pytest.fail("the lead was kept by a client that has left")


def test_a_change_waiting_when_the_lead_is_taken_is_refused_or_done_before(
    server: EngineServer, pool: Pool, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an old control plane had sent cannot happen after the new one has looked."""
    begun, go_on = threading.Event(), threading.Event()
    create_vdisks = pool.create_vdisks

    def slow_create(specs: list) -> list:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        return create_vdisks(specs)

    monkeypatch.setattr(pool, "create_vdisks", slow_create)
    old, new = EngineClient(socket_path, "old"), EngineClient(socket_path, "new")
    old.lead()
    creating = threading.Thread(target=lambda: old.create([(512, "a/a", b"")]))
    creating.start()
    assert begun.wait(DEADLINE_S)
    seen: list[int] = []

    def take_over() -> None:
        new.lead()
        seen.append(len(new.objects()))

    leading = threading.Thread(target=take_over)
    leading.start()
    leading.join(0.2)
    assert leading.is_alive(), "the lead was given while a change was under way"
    go_on.set()
    creating.join(DEADLINE_S)
    leading.join(DEADLINE_S)
    assert seen == [1]
    old.close()
    new.close()


# an engine that is away


def test_no_engine_is_a_clear_error(socket_path: str) -> None:
    with pytest.raises(Unavailable, match="is not running.*blockdevctl serve"):
        EngineClient(socket_path).status()


def test_a_client_reconnects_after_the_engine_was_restarted(
    start_engine: StartEngine, socket_path: str
) -> None:
    client = EngineClient(socket_path)
    engine = start_engine()
    [made] = client.create([(512, "a/b", b"")])
    engine.kill()
    engine.wait()
    with pytest.raises(Unavailable):
        client.get(made.id)
    start_engine()
    assert client.get(made.id) == made
    client.close()


def test_a_leading_client_sends_no_change_to_another_engine(
    start_engine: StartEngine, socket_path: str
) -> None:
    client = EngineClient(socket_path)
    engine = start_engine()
    client.lead()
    engine.kill()
    engine.wait()
    start_engine()
    with pytest.raises(EngineRestarted):
        client.create([(512, "a/b", b"")])
    assert client.objects() == []
    client.lead()
    client.create([(512, "a/b", b"")])
    client.close()


@pytest.mark.parametrize(("die_at", "objects"), [("create:before", 0), ("create:after", 1)])
def test_an_engine_that_dies_in_a_change_leaves_it_in_doubt(
    start_engine: StartEngine, socket_path: str, die_at: str, objects: int
) -> None:
    client = EngineClient(socket_path)
    engine = start_engine(die_at)
    with pytest.raises(AnswerLost):
        client.create([(512, "a/b", b"")])
    assert engine.wait(DEADLINE_S) == DIED_AS_TOLD
    start_engine()
    assert len(client.objects()) == objects
    client.close()


# the socket file


def test_the_socket_is_for_its_owner_alone(server: EngineServer, socket_path: str) -> None:
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600


def test_a_dead_engines_socket_is_replaced_a_living_ones_is_not(pool: Pool, socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(socket_path)
    first = EngineServer(pool, Attachments(), socket_path)
    first.start()
    with pytest.raises(Busy, match="another engine"):
        EngineServer(pool, Attachments(), socket_path).start()
    first.stop()
    assert not os.path.exists(socket_path)


def test_another_file_in_the_sockets_place_stays(pool: Pool, socket_path: str) -> None:
    Path(socket_path).write_text("precious")
    with pytest.raises(AlreadyExists, match="not a socket"):
        EngineServer(pool, Attachments(), socket_path).start()
    assert Path(socket_path).read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_an_error(pool: Pool, tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(MediumError, match="cannot listen"):
        EngineServer(pool, Attachments(), os.path.join(tmp_path, "x" * 120)).start()


def test_stop_answers_what_runs_and_leaves_no_thread(
    pool: Pool, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    begun, go_on = threading.Event(), threading.Event()

    def slow_flush() -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)

    monkeypatch.setattr(pool, "flush", slow_flush)
    stopping = EngineServer(pool, Attachments(), socket_path)
    stopping.start()
    client = EngineClient(socket_path)
    client.status()
    answered: list[bool] = []

    def flush() -> None:
        client.flush()
        answered.append(True)

    flushing = threading.Thread(target=flush)
    flushing.start()
    assert begun.wait(DEADLINE_S)
    stop = threading.Thread(target=stopping.stop)
    stop.start()
    go_on.set()
    stop.join(DEADLINE_S)
    flushing.join(DEADLINE_S)
    assert answered == [True]
    assert threading.active_count() == before
    with pytest.raises(Unavailable):
        client.status()


# clients that are no friends


def connect(path: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(DEADLINE_S)
    stream.connect(path)
    return stream


def receive(stream: socket.socket, byte_count: int) -> bytes:
    """What comes, up to so many bytes; an end with bytes of ours unread is a reset."""
    try:
        return stream.recv(byte_count)
    except ConnectionResetError:
        return b""


def answer_of(stream: socket.socket) -> tuple[Kind, dict] | None:
    data = b""
    while len(data) < 16:
        part = receive(stream, 16 - len(data))
        if not part:
            return None
        data += part
    header = protocol.decode_header(data)
    body = b""
    while len(body) < header.body_bytes:
        body += stream.recv(header.body_bytes - len(body))
    return header.kind, protocol.decode_body(body)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HEADER.pack(MAGIC, VERSION + 1, Kind.REQUEST, 0, 1, 0),
        HEADER.pack(MAGIC, VERSION, Kind.ANSWER, 0, 1, 0),
        HEADER.pack(MAGIC, VERSION, Kind.REQUEST, 0, 1, protocol.BODY_BYTES_MAX + 1),
    ],
)
def test_a_stranger_is_told_so_and_left(server: EngineServer, socket_path: str, data: bytes) -> None:
    with connect(socket_path) as stream:
        stream.sendall(data)
        answer = answer_of(stream)
        assert answer is not None and answer[0] is Kind.ERROR
        assert answer_of(stream) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb({"op": "format"}),
        msgpack.packb({"op": "get"}),
        msgpack.packb({"op": "lead"}),
    ],
)
def test_a_bad_request_is_answered_and_the_connection_goes_on(
    server: EngineServer, socket_path: str, body: bytes
) -> None:
    with connect(socket_path) as stream:
        for _ in range(3):
            stream.sendall(HEADER.pack(MAGIC, VERSION, Kind.REQUEST, 0, 5, len(body)) + body)
            answer = answer_of(stream)
            assert answer is not None and answer[0] is Kind.ERROR
            assert answer[1]["code"] == "invalid_argument"


def test_noise_ends_connections_but_never_the_engine(
    client: EngineClient, socket_path: str, seed: int
) -> None:
    noise = random.Random(seed)
    good = protocol.encode(Kind.REQUEST, 1, {"op": "hello", "session": b"s" * 16, "client": "noise"})
    for _ in range(200):
        with connect(socket_path) as stream:
            data = bytearray(good + protocol.encode(Kind.REQUEST, 2, {"op": "get", "id": 1}))
            for _ in range(noise.randrange(1, 6)):
                data[noise.randrange(len(data))] = noise.randrange(256)
            stream.sendall(bytes(data[: noise.randrange(1, len(data) + 1)]))
            if noise.random() < 0.5:
                stream.shutdown(socket.SHUT_WR)
                while receive(stream, 65536):
                    pass
    assert client.status()["pid"] == os.getpid()


def test_too_many_connections_are_refused_not_queued(
    client: EngineClient, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)
    client.status()
    with connect(socket_path), connect(socket_path) as late:
        answer = answer_of(late)
        assert answer is not None and answer[1]["code"] == "busy"
        assert client.status()["pid"] == os.getpid()


def test_a_bug_in_the_engine_is_told_and_the_engine_goes_on(
    client: EngineClient, pool: Pool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pool, "flush", lambda: 1 // 0)
    with pytest.raises(BlockdevError, match="bug in the engine: ZeroDivisionError") as caught:
        client.flush()
    assert caught.value.code == "error"
    assert "Traceback" in capfd.readouterr().err
    assert client.status()["pid"] == os.getpid()


def test_an_engine_that_talks_nonsense_is_an_error(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        listener.listen()

        def answer_nonsense() -> None:
            stream, _ = listener.accept()
            with stream:
                stream.recv(65536)
                stream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer_nonsense)
        thread.start()
        with pytest.raises(InvalidArgument, match="not a frame of the engine socket"):
            EngineClient(socket_path).status()
        thread.join(DEADLINE_S)


def test_an_engine_that_does_not_answer_is_unavailable(
    socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "HELLO_SECONDS_MAX", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        listener.listen()
        with pytest.raises(Unavailable, match="does not answer"):
            EngineClient(socket_path).status()
