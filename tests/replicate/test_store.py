"""The real ends, over two homes: who may send what, who has a receipt, and what becomes of a base that goes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockdev.errors import Gone, NotAllowed, NotFound, PoolFull, Unavailable
from blockdev.replicate import control
from blockdev.replicate.frames import LENGTH_BYTES
from blockdev.replicate.messages import Kind
from blockdev.replicate.negotiation import own_hello
from blockdev.replicate.receiver import Receiver
from blockdev.replicate.saving import RunApart, in_a_thread
from blockdev.replicate.sender import Sender
from blockdev.replicate.source import SnapshotSource
from blockdev.replicate.space import COUNT_SECONDS_MIN, PeerSpace
from blockdev.replicate.store import PeerStore
from blockdev.vmmap.catalog_replication import PeerRow, Purpose
from tests.replicate.homes import Home
from tests.replicate.pools import BLOCK, MEBIBYTE, Link
from tests.replicate.simulate import small_messages
from tests.replicate.world import Later, read

NOW = "2026-11-22T12:00:00.000Z"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Home]:
    home = Home(str(tmp_path / "here"))
    home.vms.create_vm("web", [("root", 4 * MEBIBYTE), ("data", BLOCK)], "<web/>")
    home.pool.find("web/root").write(0, random.Random(1).randbytes(2 * MEBIBYTE))
    home.vms.create_snapshot("web", "s1")
    yield home
    home.stop()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Home]:
    home = Home(str(tmp_path / "there"))
    allow(home, '["web*"]', None)
    yield home
    home.stop()


def allow(home: Home, vms: str, space_bytes: int | None) -> None:
    with home.catalog.transaction():
        home.catalog.put_peer("here", "ssh-ed25519 here", vms, space_bytes, NOW)


def sender_of(home: Home, snapshot: str, purpose: Purpose = "protect", name: str | None = None) -> Sender:
    vm = home.catalog.vm("web")
    assert vm is not None
    source = SnapshotSource(home.vms, home.engine, vm.id, home.vms.show_snapshot("web", snapshot).uuid)
    return Sender(source.begin(purpose, 3600, 60, name), source)


def receiver_of(home: Home, run_apart: RunApart = in_a_thread) -> Receiver:
    peer = home.catalog.peer("here")
    assert peer is not None
    parts = home.vms, home.engine, peer.id, home.space, home.holds
    return Receiver(PeerStore(*parts, lambda what, arguments: {}, run_apart))


def send(here: Home, there: Home, snapshot: str, purpose: Purpose = "protect", name: str | None = None) -> Link:
    link = Link(sender_of(here, snapshot, purpose, name), receiver_of(there))
    link.run()
    assert link.sender.is_done
    return link


def begun(sender: Sender, receiver: Receiver) -> bytes:
    """As far as the first message of data, which is returned: it is on its way."""
    sender.start()
    while (made := sender.next()) is not None and made[LENGTH_BYTES] != Kind.DATA:
        for answer in receiver.handle(made[LENGTH_BYTES:]):
            sender.handle(answer[LENGTH_BYTES:])
    assert made is not None and receiver.error is None
    return made[LENGTH_BYTES:]


def go_on(sender: Sender, receiver: Receiver, message: bytes | None) -> None:
    """From there to the end.  Raises what the receiver refuses with."""
    while message is not None:
        for answer in receiver.handle(message):
            sender.handle(answer[LENGTH_BYTES:])
        made = sender.next()
        message = None if made is None else made[LENGTH_BYTES:]


def same(here: Home, there: Home, name: str) -> bool:
    [row] = [one for one in there.catalog.snapshots() if one.name == name]
    [own] = [one for one in here.catalog.snapshots() if one.name == name]
    return read(here, own) == read(there, row)


def test_snapshots_arrive_with_what_is_known_of_them(here: Home, there: Home) -> None:
    send(here, there, "s1")
    here.pool.find("web/root").write(0, b"new" * 1024 + bytes(1024))
    here.vms.create_snapshot("web", "s2", "the second")
    link = send(here, there, "s2")
    assert link.sent_bytes < 3 * BLOCK and same(here, there, "s1") and same(here, there, "s2")
    made, own = there.vms.show_snapshot("web", "s2"), here.vms.show_snapshot("web", "s2")
    assert (made.uuid, made.created, made.description, made.config) == (own.uuid, own.created, "the second", "<web/>")
    assert made.origin == "replication" and made.expires is not None
    assert send(here, there, "s2").sender.progress.was_present
    [received] = there.catalog.received_vms()
    assert received.rpo_seconds == 60


def test_a_copy_becomes_a_VM_of_its_own(here: Home, there: Home) -> None:
    send(here, there, "s1", "copy", "web-2")
    assert same(here, there, "s1") and [disk.name for disk in there.vms.show_vm("web-2").disks] == ["root", "data"]
    assert there.catalog.received_vms() == [] == there.catalog.receipts()


@pytest.mark.parametrize("purpose, name", [("protect", None), ("copy", "db"), ("copy", "web-2")])
def test_a_peer_sends_only_what_it_may(here: Home, there: Home, purpose: Purpose, name: str | None) -> None:
    allow(there, '["db", "other*"]', None)
    with pytest.raises(NotAllowed, match="may not send VM web"):
        send(here, there, "s1", purpose, name)
    assert there.catalog.receipts() == []


def test_a_peer_that_may_not_any_more_is_stopped_under_way(here: Home, there: Home) -> None:
    sender, receiver = sender_of(here, "s1"), receiver_of(there)
    message = begun(sender, receiver)
    allow(there, "[]", None)
    with pytest.raises(NotAllowed):
        go_on(sender, receiver, message)
    assert there.vms.list_vms() == []
    there.vms.forget_peer(there.catalog.peers()[0].id)
    another = Receiver(PeerStore(there.vms, there.engine, 1, there.space, there.holds, lambda what, arguments: {}))
    another.handle(control.encode_hello(own_hello())[LENGTH_BYTES:])
    another.handle(control.encode_begin(sender._begin)[LENGTH_BYTES:])
    assert isinstance(another.error, NotFound)


def test_a_peer_takes_no_more_than_its_space_and_goes_on_when_it_gets_more(here: Home, there: Home) -> None:
    allow(there, '["web"]', MEBIBYTE)
    with pytest.raises(PoolFull, match="it may take 1048576"):
        send(here, there, "s1")
    assert len(there.catalog.receipts()) == 1 and there.vms.list_vms() == []
    allow(there, '["web"]', 8 * MEBIBYTE)
    again = send(here, there, "s1")
    assert same(here, there, "s1") and again.sender.progress.data_bytes <= MEBIBYTE + 512


def test_a_peer_whose_space_is_made_smaller_under_way_keeps_what_it_brought(here: Home, there: Home) -> None:
    sender, receiver = sender_of(here, "s1"), receiver_of(there)
    message = begun(sender, receiver)
    receiver.handle(message)
    allow(there, '["web"]', 100)
    with pytest.raises(PoolFull):
        while (made := sender.next()) is not None:
            for answer in receiver.handle(made[LENGTH_BYTES:]):
                sender.handle(answer[LENGTH_BYTES:])
    assert there.catalog.receipts()[0].data_bytes >= MEBIBYTE


def test_what_a_peer_takes_is_counted_again_before_it_is_refused() -> None:
    now, used = 0.0, 900
    counted = []

    def count(peer_id: int) -> int:
        counted.append(peer_id)
        return used

    space = PeerSpace(count, lambda: now)
    peer = PeerRow(5, "p", "k", "[]", 1000, NOW)
    space.take(peer._replace(space_bytes=None), 1 << 60)
    space.take(peer, 0)
    space.take(peer, 100)
    assert counted == [5]
    with pytest.raises(PoolFull):
        space.take(peer, 1)
    assert counted == [5], "who tries again and again does not make the pool be walked each time"
    now, used = COUNT_SECONDS_MIN, 100
    space.take(peer, 900)
    assert counted == [5, 5]


def test_a_newer_channel_takes_the_receipt_from_an_older_one(here: Home, there: Home) -> None:
    older = sender_of(here, "s1"), receiver_of(there)
    message = begun(*older)
    send(here, there, "s1", "protect")
    older[1].handle(message)
    assert isinstance(older[1].error, Gone) and older[1].is_closed
    assert same(here, there, "s1") and there.catalog.receipts() == []


def test_an_older_channel_writes_nothing_into_the_disk_that_a_copy_became(here: Home, there: Home) -> None:
    older, newer = (sender_of(here, "s1", "copy", "web-2"), receiver_of(there)), sender_of(here, "s1", "copy", "web-2")
    message = begun(*older)
    Link(newer, receiver_of(there)).run()
    head = there.pool.find("web-2/root")
    head.write(0, bytes(4 * MEBIBYTE))
    older[1].handle(message)
    assert isinstance(older[1].error, Gone) and not any(head.read(0, 4 * MEBIBYTE))


def test_a_base_that_is_deleted_on_either_side_is_left_for_an_older_one(here: Home, there: Home) -> None:
    send(here, there, "s1")
    here.vms.create_snapshot("web", "s2")
    send(here, there, "s2")
    here.pool.find("web/root").write(MEBIBYTE, random.Random(2).randbytes(MEBIBYTE))
    here.vms.create_snapshot("web", "s3")
    sender, receiver = sender_of(here, "s3"), receiver_of(there)
    begun(sender, receiver)
    assert sender.progress.base_uuid == here.vms.show_snapshot("web", "s2").uuid
    receiver.close()
    here.vms.delete_snapshot("web", "s2")
    there.vms.delete_snapshot("web", "s1")
    send(here, there, "s3")
    assert same(here, there, "s3") and there.catalog.receipts() == []


def test_a_base_that_is_deleted_at_the_receiver_under_way_does_not_matter(here: Home, there: Home) -> None:
    send(here, there, "s1")
    here.pool.find("web/root").write(MEBIBYTE, random.Random(2).randbytes(MEBIBYTE))
    here.vms.create_snapshot("web", "s2")
    link = Link(sender_of(here, "s2"), receiver_of(there))
    deleted: list[str] = []

    def alter(message: bytes) -> bytes:
        if message[0] == Kind.OFFER and not deleted:
            deleted.append(there.vms.delete_snapshot("web", "s1").name)
        return message

    link.run(alter)
    assert deleted and link.sender.is_done and same(here, there, "s2")


def test_a_receipt_whose_vdisk_somebody_else_deletes_is_begun_anew(here: Home, there: Home) -> None:
    sender, receiver = sender_of(here, "s1"), receiver_of(there)
    message = begun(sender, receiver)
    [lost, *_] = there.catalog.receipt_disks()
    there.engine.delete([lost.object_id])
    with pytest.raises(NotFound):
        go_on(sender, receiver, message)
    assert not there.vms._journal.agreed
    send(here, there, "s1")
    assert same(here, there, "s1") and there.catalog.receipts() == []


def test_a_receipt_that_was_dropped_under_way_costs_no_agreement(here: Home, there: Home) -> None:
    """Else a peer could have as many as it likes, by beginning snapshots and leaving them for newer ones."""
    sender, receiver = sender_of(here, "s1"), receiver_of(there)
    message = begun(sender, receiver)
    there.vms.drop_receipt(there.catalog.receipts()[0].id)
    with pytest.raises(NotFound):
        go_on(sender, receiver, message)
    assert there.vms._journal.agreed


def test_an_engine_that_is_restarted_under_way_saves_nothing_that_may_be_lost(here: Home, there: Home) -> None:
    sender, receiver = sender_of(here, "s1"), receiver_of(there)
    message = begun(sender, receiver)
    there.kill_engine(loses_unsynced=False)
    there.start_engine()
    with pytest.raises(Unavailable, match="restarted"):
        go_on(sender, receiver, message)
    assert [disk.next_block for disk in there.catalog.receipt_disks()] == [0, 0]
    send(here, there, "s1")
    assert same(here, there, "s1")


def test_what_comes_while_a_save_is_made_durable_is_not_saved_with_it(here: Home, tmp_path: Path) -> None:
    there = Home(str(tmp_path / "there"), keeps_durable=True)
    allow(there, '["web"]', None)
    saves = Later()
    sender, receiver = sender_of(here, "s1"), receiver_of(there, saves)
    flushed = messages = 0

    def until_kept(message: bytes) -> bytes | None:
        nonlocal flushed, messages
        messages += 1
        if not flushed and saves.run():  # the first part of it
            flushed = messages
        if flushed and messages == flushed + 20:
            saves.run()  # the second
            there.kill_engine(loses_unsynced=True)
            there.start_engine()
            return None
        return message

    with small_messages():
        Link(sender, receiver).run(until_kept)
        assert [disk.next_block for disk in there.catalog.receipt_disks()][0] > 0
        send(here, there, "s1")
    assert same(here, there, "s1")
    there.stop()
