"""A peer that is let in and means harm: it gets an error, and neither more than it may have, nor what is somebody else's."""

from __future__ import annotations

import random
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from blockdev.constants import DURATION_SECONDS_MAX
from blockdev.engine import client
from blockdev.errors import Corrupt, InvalidArgument, NotAllowed, PoolFull
from blockdev.replicate import control, inbound, messages
from blockdev.replicate.control import Begin
from blockdev.replicate.frames import LENGTH_BYTES, ProtocolError
from blockdev.replicate.inbound import Reception
from blockdev.replicate.messages import Kind
from blockdev.replicate.negotiation import own_hello
from blockdev.vmmap import receipts
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.copy_fields import DISKS_MAX
from blockdev.vmmap.model import Terms
from blockdev.vmmap.names import UNFINISHED
from blockdev.vmmap.receipts import Receipt
from tests.cli.served import until
from tests.replicate.direct import Net
from tests.replicate.two_homes import Site

MEBIBYTE = 1 << 20


class Quiet:
    """Nobody who waits."""

    def is_cancelled(self) -> bool:
        return False

    def expect(self, total_bytes: int) -> None:
        pass

    def advance(self, part: float) -> None:
        pass


class Sites:
    """here sends what it likes; there lets it send web*."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.net = Net()
        self.here, self.there = (
            Site(stack, folder / name, self.net, number) for number, name in enumerate(("here", "there"), 1)
        )
        self.here.service.add_path("far", "there.example", key=self.there.key)
        self.there.service.add_peer("origin", self.here.key, ["web*"])

    def channel(self) -> Reception:
        """A new one to `there`, that has said HELLO."""
        doors = self.net.homes[self.there.key].doors
        peer = doors.find_peer(self.here.key)
        assert peer is not None
        channel = doors.open(peer)
        channel.handle(control.encode_hello(own_hello())[LENGTH_BYTES:])
        return channel

    def begin(self, begin: Begin) -> Reception:
        """A channel on which a transfer has begun; raises what it is refused with."""
        channel = self.channel()
        say(channel, control.encode_begin(begin))
        return channel


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with ExitStack() as stack:
        yield Sites(stack, tmp_path)


def say(channel: Reception, frame: bytes) -> list[bytes]:
    """Its answers; raises what it refuses with."""
    answers = [answer[LENGTH_BYTES:] for answer in channel.handle(frame[LENGTH_BYTES:])]
    for answer in answers:
        if answer[0] == Kind.REFUSE:
            raise control.decode_refuse(memoryview(answer)[1:])
    return answers


def ask(channel: Reception, what: str, **arguments: object) -> dict[str, object]:
    [answer] = say(channel, control.encode_request(what, arguments))
    return control.decode_answer(memoryview(answer)[1:])


def a_begin(
    vm: str = "web", vm_uuid: str | None = None, disks: int = 1, size_bytes: int = MEBIBYTE, keep_seconds: int | None = None
) -> Begin:
    copy = SnapshotCopy(
        uuid=str(uuid4()),
        name="s1",
        description="",
        created="2026-11-28T12:00:00.000Z",
        lsn=7,
        terms=Terms("replication"),
        config="",
        disks=[CopiedDisk(f"disk{number}", size_bytes, False) for number in range(disks)],
        vm_uuid=vm_uuid or str(uuid4()),
        vm_name=vm,
        base_uuid=None,
        base_name="",
    )
    return Begin("protect", copy, [], keep_seconds, None, None)


def a_vm(site: Site, name: str, seed: int) -> None:
    """Of a MiB that does not become smaller, with a snapshot s1."""
    site.vms.create_vm(name, [("root", MEBIBYTE)], "")
    site.pool.find(f"{name}/root").write(0, random.Random(seed).randbytes(MEBIBYTE))
    site.vms.create_snapshot(name, "s1")


def test_copies_count_as_space_that_the_peer_takes(sites: Sites) -> None:
    sites.there.service.change_peer("origin", {"space_bytes": 2 * MEBIBYTE + MEBIBYTE // 2})
    for number in range(3):
        a_vm(sites.here, f"web{number}", number)
    for number in range(2):
        sites.here.service.copy(f"web{number}", "s1", "far", f"web-copy-{number}", Quiet())
    used_bytes = sites.there.service.show_peer("origin").used_bytes
    assert used_bytes is not None and used_bytes >= 2 * MEBIBYTE
    with pytest.raises(PoolFull, match="may take"):
        sites.here.service.copy("web2", "s1", "far", "web-copy-2", Quiet())
    sites.there.vms.delete_vm("web-copy-0")
    assert sites.there.service.show_peer("origin").used_bytes == used_bytes // 2


def test_clones_that_a_peer_had_made_count_as_space_that_it_takes(sites: Sites) -> None:
    a_vm(sites.here, "web", 1)
    sites.here.service.protect("web", "far")
    until(lambda: sites.here.status("web").state == "up to date", "web to be there", seconds=30)
    sites.here.service.clone_there("web", None, "far", "web-clone")
    sites.there.vms.delete_vm("web", force=True)
    used_bytes = sites.there.service.show_peer("origin").used_bytes
    assert used_bytes is not None and used_bytes >= MEBIBYTE


def test_half_received_snapshots_and_vms_of_a_peer_are_bounded(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "RECEIPTS_OF_PEER_MAX", 3)
    begins = [a_begin() for _ in range(4)]
    for begin in begins[:3]:
        sites.begin(begin)
    with pytest.raises(NotAllowed, match="half-received"):
        sites.begin(begins[3])
    sites.begin(begins[0])  # goes on
    monkeypatch.setattr(receipts, "RECEIPTS_OF_PEER_MAX", 9)
    monkeypatch.setattr(receipts, "VMS_OF_PEER_MAX", 2)
    a_vm(sites.here, "web", 1)
    for number in range(2):
        sites.here.service.copy("web", "s1", "far", f"web-{number}", Quiet())
    for ask_for in (begins[3], begins[3]._replace(purpose="copy", vm_name="web-3")):
        with pytest.raises(NotAllowed, match="2 VMs"):
            sites.begin(ask_for)


def test_a_retention_that_no_clock_can_reach_is_refused(sites: Sites) -> None:
    for keep_seconds in (1 << 40, DURATION_SECONDS_MAX + 1):
        with pytest.raises(InvalidArgument):
            sites.begin(a_begin(keep_seconds=keep_seconds))
    longest = a_begin(keep_seconds=DURATION_SECONDS_MAX)
    channel = sites.begin(longest)
    digests = sites.there.vms.receipt_digests(receipt_of(sites, longest))
    say(channel, control.encode_end(control.End(digests, [MEBIBYTE])))
    [made] = sites.there.vms.list_snapshots("web")
    assert made.expires is not None


def test_a_vm_whose_peer_is_forgotten_is_adopted_by_none_that_may_not_send_its_name(sites: Sites) -> None:
    a_vm(sites.here, "web-old", 1)
    sites.here.service.protect("web-old", "far")
    until(lambda: sites.here.status("web-old").state == "up to date", "web-old to be there", seconds=30)
    sites.there.vms.rename_vm("web-old", "db")
    sites.there.service.remove_peer("origin", force=True)
    sites.there.service.add_peer("origin", sites.here.key, ["web*"])
    vm_uuid = sites.there.vms.show_vm("db").uuid
    with pytest.raises(NotAllowed, match="may not send VM db"):
        sites.begin(a_begin("web", vm_uuid))
    sites.there.service.change_peer("origin", {"vms": ["web*", "db"]})
    sites.begin(a_begin("web", vm_uuid))


def receipt_of(sites: Sites, begin: Begin) -> Receipt:
    receipt = sites.there.vms.begin_receipt(1, begin.purpose, begin.snapshot, begin.ancestors)
    assert receipt is not None
    return receipt


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd" + struct.pack(">I", 2_000_000) + b"\x90" * 2_000_000,
        (b"\xdc" + struct.pack(">H", 4096) + b"\x90" * 4096) * 400,
        (b"\xdd" + struct.pack(">I", 2_000_000)) * 500,
        (b"\xdd" + struct.pack(">I", 4096)) * 500,
        (b"\xdf" + struct.pack(">I", 2_000_000)) * 500,
        b"\x80" * 2_000_000,
        b"\x91" * 2_000_000,
    ],
    ids=["many lists", "lists of lists", "lists that say they are long", "deep lists", "deep maps", "many maps", "very deep"],
)
def test_a_message_of_lists_and_maps_is_refused_before_it_takes_much_memory(bomb: bytes) -> None:
    body = b"\x82\xa4what\xa4test\xa9arguments\x81\xa1a\xdc\x01\xf4" + bomb
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            control.decode_request(memoryview(body))
        assert tracemalloc.get_traced_memory()[1] < 24 * MEBIBYTE
    finally:
        tracemalloc.stop()


def test_a_message_of_as_many_disks_as_there_may_be_is_understood() -> None:
    begin = a_begin(disks=DISKS_MAX)
    assert control.decode_begin(memoryview(control.encode_begin(begin))[LENGTH_BYTES + 1 :]) == begin


def test_beginning_with_as_many_disks_as_there_may_be_asks_the_engine_no_more_than_with_one(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it: nobody else changes anything while a receipt is begun."""
    asked: list[str] = []
    ask_engine = client._Connection.ask

    def ask(self: client._Connection, operation: str, *arguments: Any) -> dict[str, Any]:
        if threading.current_thread() is threading.main_thread():
            asked.append(operation)
        return ask_engine(self, operation, *arguments)

    monkeypatch.setattr(client._Connection, "ask", ask)
    counts = []
    for begin in (a_begin(), a_begin(disks=DISKS_MAX)):
        for _ in range(2):  # it begins, and goes on
            asked.clear()
            sites.begin(begin)
            counts.append(len(asked))
    assert counts[2] <= counts[0] and counts[3] <= counts[1], counts


def test_vms_that_were_begun_and_are_no_more_are_forgotten(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "FLOWS_MAX", 3)
    going_on = sites.begin(a_begin())
    for _ in range(9):
        begin = a_begin()
        channel = sites.begin(begin)
        with pytest.raises(Corrupt):
            say(channel, control.encode_end(control.End([bytes(15) + b"x"], [MEBIBYTE])))
    flows = going_on._inbound.flows()
    assert len(flows) <= 3 and going_on._flow in flows


def test_maps_of_blocks_that_are_here_already_count_as_space(sites: Sites) -> None:
    """One block of the receiver's own, named 2,048 times, each far from the others: no byte of it moves."""
    a_vm(sites.there, "local", 1)
    [snapshot] = sites.there.vms.list_snapshots("local")
    object_id = sites.there.pool.find(snapshot.disks[0].export).id
    offers, _ = sites.there.engine.offers(None, object_id, 0, 1)
    count = 2048
    data = np.repeat(np.frombuffer(offers, messages.OFFER), count)
    data["block"] = np.arange(count) * 512
    channel = sites.begin(a_begin(size_bytes=count * 512 * 4096))
    [want, *_saved] = say(channel, messages.encode_offer(0, 0, count * 512, data, np.empty(0, messages.RUN)))
    assert not messages.decode_marks(memoryview(want)[1:]).mask.any()
    proof = sites.there.engine.prove(object_id, struct.pack("<Q", 0))
    say(channel, messages.encode_proofs(0, proof * count))
    sites.there.pool.checkpoint()
    used_bytes = sites.there.service.show_peer("origin").used_bytes
    assert used_bytes is not None and used_bytes >= count * 9216


def test_text_of_an_answer_does_nothing_to_a_terminal() -> None:
    answer = {"name": "\x1b[2Jweb", "vms": ["a\nb", {"c": "\x07"}], "space_bytes": 7}
    made = control.decode_answer(memoryview(control.encode_answer(answer))[LENGTH_BYTES + 1 :])
    assert made == {"name": " [2Jweb", "vms": ["a b", {"c": " "}], "space_bytes": 7}


def test_a_snapshot_that_says_it_is_to_go_by_itself_is_refused(sites: Sites) -> None:
    begin = a_begin()
    with pytest.raises(InvalidArgument, match="not whole"):
        sites.begin(begin._replace(snapshot=begin.snapshot._replace(description=f"{UNFINISHED} of a job")))
