"""The instruments of bench/replication are true: the proxy, the network, the peers and what they send."""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.replication import fabric, guest, images, sshd
from bench.replication.cuts import KINDS, places
from bench.replication.images import BLOCK_BYTES, Case
from bench.replication.proxy import Proxy
from bench.replication.wire_peers import WIRE_PEERS, RsyncFuzzyZ, WirePeer
from bench.server import Server

from tests.cli.served import run_tool, until

DISK_BYTES = 8 << 20
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


class Echo:
    """A server that answers with what it gets, and keeps how each connection ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
                self.ends.append("closed")
            except ConnectionResetError:
                self.ends.append("reset")


def exchange(client: socket.socket, count: int) -> None:
    client.sendall(b"x" * count)
    while count:
        count -= len(client.recv(count))


def test_proxy_counts_what_goes_each_way() -> None:
    echo = Echo()
    with Proxy(echo.port) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        exchange(client, 100_000)
        assert (proxy.sent_bytes, proxy.answered_bytes) == (100_000, 100_000)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        assert proxy.connection_count == 1


def test_cut_resets_both_ends_and_the_next_connection_works() -> None:
    echo = Echo()
    with Proxy(echo.port) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            exchange(client, 10)
            assert proxy.cut() == 1
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            exchange(client, 10)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    assert echo.ends == ["reset", "closed"]


def test_cut_ends_a_connection_whose_reader_has_stopped() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        Proxy(deaf.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as client,
    ):
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.sendall(b"x" * (64 << 20))
        client.settimeout(30)
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            client.sendall(b"x" * (64 << 20))


def test_places_of_cuts_follow_from_the_seed_and_have_all_kinds() -> None:
    made = places(5, 200, 10 << 30)
    assert made == places(5, 200, 10 << 30) != places(6, 200, 10 << 30)
    assert {place.kind for place in made} == set(KINDS)
    assert [place.sent_bytes for place in made] == sorted(place.sent_bytes for place in made)


@pytest.mark.skipif(fabric.missing() is not None, reason="network namespaces need root")
def test_network_delays_each_packet_and_loses_its_share() -> None:
    with fabric.Fabric(2, 0.03, 0.0, 10e6, 1) as net:
        assert 0.3 < fabric.throughput(net, [(0, 1)], 1.5)[0] / 10e6 <= 1.01
        told = net.close()
    assert told["lost"] == 0 and told["packets"] > 1000
    with fabric.Fabric(2, 0.0, 0.05, 10e6, 1) as net:
        assert min(fabric.throughput(net, [(0, 1), (1, 0)], 1.0)) > 0
        told = net.close()
    sent = told["lost"] + told["packets"]
    assert sent > 100 and abs(told["lost"] - 0.05 * sent) < 5 * math.sqrt(0.05 * 0.95 * sent)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Small disks: random bytes at the beginning, holes behind them."""
    folder = tmp_path_factory.mktemp("disks")
    before, after = folder / "before.raw", folder / "after.raw"
    images.random_file(before, DISK_BYTES // 2, seed=1)
    os.truncate(before, DISK_BYTES)
    images.changed_at_random(before, after, 0.02, seed=2)
    return {"known": Case("known", "", None, before, before), "random": Case("random", "", before, after)}


def test_changed_blocks_are_those_that_differ(cases: dict[str, Case]) -> None:
    before, after = cases["known"].after.read_bytes(), cases["random"].after.read_bytes()
    found = dict(images.changed_blocks(cases["known"].after, cases["random"].after))
    assert len(found) == round(0.02 * DISK_BYTES / BLOCK_BYTES)
    made = bytearray(before)
    for block, data in found.items():
        made[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = data
    assert bytes(made) == after


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    if sshd.missing() is not None:
        pytest.skip("no SSH server is installed for the peers of bench.replication.wire")
    with sshd.Sshd(tmp_path_factory.mktemp("ssh") / "d") as made:
        yield made


@pytest.mark.parametrize("kind", WIRE_PEERS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["known", "random"])
def test_peer_brings_the_disk_over_and_pays_for_it(
    kind: type[WirePeer], name: str, cases: dict[str, Case], server: sshd.Sshd, tmp_path: Path
) -> None:
    if name not in kind.cases:
        return
    with Proxy(server.port) as proxy:
        peer = kind(tmp_path / "p", server, proxy)
        peer.prepare(cases[name])
        assert proxy.total_bytes == 0
        peer.send(cases[name])
        assert peer.is_right(cases[name])
        least = 0.02 * DISK_BYTES
        assert proxy.sent_bytes < least if kind is RsyncFuzzyZ else proxy.sent_bytes >= least


class ServedImage:
    """What stands for a home: one disk over NBD."""

    name = "stand"

    def __init__(self, image: Path) -> None:
        self._socket = image.with_suffix(".sock")
        self.server = Server(["nbdkit", "-f", "-U", str(self._socket), "file", str(image)], self._socket, image.with_suffix(".log"))

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self._socket}"


@AS_ROOT
def test_clone_is_held_to_every_file_that_was_synced(tmp_path: Path) -> None:
    image = tmp_path / "fs.raw"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    run_tool("mkfs.ext4", "-q", "-F", image)
    with images.loop_mounted(image) as root:
        writer = guest.Writer(root, 1, 1e9)
        until(lambda: len(writer.synced) >= 5, "files")
        writer.stop()
    served = ServedImage(image)
    try:
        assert guest.check_clone(served, "web/root", tmp_path / "a", writer.synced) == len(writer.synced)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="1 of .* files that were synced are not there"):
            guest.check_clone(served, "web/root", tmp_path / "b", [*writer.synced, "999999-00"])  # type: ignore[arg-type]
        lying = [f"{writer.synced[0][:-1]}x"]
        with guest.FileSystem(served, "web/root", tmp_path / "c") as mounted:  # type: ignore[arg-type]
            (mounted.root / "work" / writer.synced[0]).rename(mounted.root / "work" / lying[0])
        with pytest.raises(RuntimeError, match="has other bytes than were synced"):
            guest.check_clone(served, "web/root", tmp_path / "d", lying)  # type: ignore[arg-type]
    finally:
        served.server.stop()
