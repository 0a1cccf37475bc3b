"""What a bare asyncssh channel moves from one process to another over loopback: the ceiling for replication in Python.

`python -m bench.replication.channel [--size MIB] [--rounds N]`, or `measure` from the others.  Both ends have the algorithms
that replication has, and nothing above the channel: the sender writes one buffer over and over and waits when asyncssh asks
it to, the receiver counts.  As it comes, the channel has asyncssh's own window and packet size; tuned, it has replication's,
and the processes keep freed memory as blockdevd does.  MB are 10^6 bytes, seconds are from the first byte to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import asyncssh

from blockdev.api.allocator import keep_freed_memory
from blockdev.replicate import ssh
from blockdev.replicate.channel import PACKET_BYTES, WINDOW_BYTES
from blockdev.replicate.keys import TYPE

DEFAULT_WINDOW_BYTES, DEFAULT_PACKET_BYTES = 2 << 20, 1 << 15  # asyncssh's own
DONE = b"done"
BUSY_BYTES = 4 << 30  # of each: some seconds


class _Sink(asyncssh.SSHServerSession):
    """Counts what comes, and says when that is all."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes

    def connection_made(self, chan: asyncssh.SSHServerChannel) -> None:
        self._channel = chan

    def exec_requested(self, command: str) -> bool:
        return True

    def data_received(self, data: bytes, datatype: object) -> None:
        self._left -= len(data)
        if self._left <= 0:
            self._channel.write(DONE)
            self._channel.exit(0)


class _Server(asyncssh.SSHServer):
    def __init__(self, size_bytes: int, limits: dict[str, int]) -> None:
        self._size = size_bytes
        self._limits = limits

    def begin_auth(self, username: str) -> bool:
        return False

    def session_requested(self) -> tuple[asyncssh.SSHServerChannel, _Sink]:
        return self._connection.create_server_channel(encoding=None, **self._limits), _Sink(self._size)

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn


class _Source(asyncssh.SSHClientSession):
    """Told when it may write, and when all has come."""

    def __init__(self) -> None:
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.is_done = asyncio.Event()

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def data_received(self, data: bytes, datatype: object) -> None:
        self.is_done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_done.set()


def _limits(tuned: bool) -> dict[str, int]:
    if tuned:
        return {"window": WINDOW_BYTES, "max_pktsize": PACKET_BYTES}
    return {"window": DEFAULT_WINDOW_BYTES, "max_pktsize": DEFAULT_PACKET_BYTES}


async def _serve(size_bytes: int, limits: dict[str, int]) -> None:
    key = asyncssh.generate_private_key(TYPE)
    server = await asyncssh.listen("127.0.0.1", 0, server_factory=lambda: _Server(size_bytes, limits), server_host_keys=[key], **ssh.options())
    print(server.get_port(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until who started us is done
    server.close()


async def _send(port: int, size_bytes: int, limits: dict[str, int]) -> float:
    """Bytes a second."""
    async with asyncssh.connect("127.0.0.1", port, known_hosts=None, client_keys=None, username="x", agent_path=None, **ssh.options()) as made:
        channel, source = await made.create_session(_Source, "x", encoding=None, **limits)
        piece, begun = bytes(limits["max_pktsize"]), time.perf_counter()
        for _ in range(0, size_bytes, len(piece)):
            channel.write(piece)
            await source.may_write.wait()
            await asyncio.sleep(0)  # or nothing is read meanwhile
        await source.is_done.wait()
        return size_bytes / (time.perf_counter() - begun)


def measure(size_bytes: int, tuned: bool = True) -> float:
    """Bytes a second between two new processes; `size_bytes`: whole MiB."""
    command = [sys.executable, "-m", "bench.replication.channel", "--size", str(size_bytes >> 20), *(["--tuned"] if tuned else [])]
    with subprocess.Popen([*command, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        port = server.stdout.readline().strip()
        sent = subprocess.run([*command, "--send", port], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        server.stdin.close()
    return float(sent.stdout)


@contextmanager
def busy() -> Iterator[None]:
    """Channels as they come, one after the other, all the while."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            measure(BUSY_BYTES, tuned=False)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        time.sleep(1.0)  # past the start of its processes
        yield
    finally:
        over.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.replication.channel", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--send", type=int, metavar="PORT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve or given.send:
        size_bytes, limits = given.size << 20, _limits(given.tuned)
        if given.tuned:
            keep_freed_memory()
        asyncio.run(_serve(size_bytes, limits)) if given.serve else print(asyncio.run(_send(given.send, size_bytes, limits)))
        return
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(given.rounds):
        for tuned in found:
            found[tuned].append(measure(given.size << 20, tuned))
    for tuned, rates in found.items():
        name = "that is tuned" if tuned else "as it comes"
        print(f"a bare asyncssh channel {name}: {statistics.median(rates) / 1e6:.0f} MB/s ({', '.join(f'{one / 1e6:.0f}' for one in rates)})")


if __name__ == "__main__":
    main()
