"""A network of our own: namespaces that reach each other through a switch which delays and loses packets, and is only so fast.

Kernels without netem can do it in user space: each namespace has a TUN device as its only way out, and one process carries
IP packets between them.  Each end has one port with a rate each way and a queue of a bandwidth-delay product and 50 ms; what
does not fit is dropped, as a router drops it.  A packet that arrives takes `delay_seconds`, and is lost with the chance
`loss`; so a round trip takes twice that, and TCP is the kernel's with everything that it makes of loss.  Needs root.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES_MAX = 1500
NETWORK = "10.83.0"
QUEUE_SECONDS = 0.05  # beyond the delay
PRIORITY = -15  # nice(2): a network is not slower because the machines at its ends have much to do
BURST = 64  # packets taken from one device before the others have their turn


def missing() -> str | None:
    """Why it cannot be made here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None if os.path.exists("/dev/net/tun") else "there is no /dev/net/tun"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Fabric:
    """`count` namespaces; number N has the address 10.83.0.(N + 1).  Gone with the `with` block, whatever runs in them."""

    def __init__(self, count: int, delay_seconds: float, loss: float, bytes_per_second: float, seed: int) -> None:
        self.names = [f"bd{os.getpid()}-{number}" for number in range(count)]
        plan = {"names": self.names, "delay": delay_seconds, "loss": loss, "rate": bytes_per_second, "seed": seed}
        self._switch: subprocess.Popen[str] | None = None
        try:
            for name in self.names:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            command = [sys.executable, "-m", "bench.replication.fabric", json.dumps(plan)]
            self._switch = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            assert self._switch.stdout is not None
            if self._switch.stdout.readline() != "ready\n":
                raise RuntimeError("the switch did not start")
        except BaseException:
            self.close()
            raise

    def address(self, number: int) -> str:
        return f"{NETWORK}.{number + 1}"

    def inside(self, number: int) -> list[str]:
        """What runs a command there."""
        return ["ip", "netns", "exec", self.names[number]]

    def close(self) -> dict[str, Any]:
        """What went through: packets, bytes, lost, dropped (queue full), late (the switch itself was behind, seconds)."""
        told: dict[str, Any] = {}
        if self._switch is not None:
            self._switch.send_signal(signal.SIGTERM)
            output, _ = self._switch.communicate(timeout=30)
            told = json.loads(output or "{}")
            self._switch = None
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        return told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Port:
    """One end's way in and out of the switch."""

    def __init__(self, namespace: str, number: int) -> None:
        self.device = _device_in(namespace, number)
        self.free_in = self.free_out = 0.0  # when the port has carried what it was given, each way


def _device_in(namespace: str, number: int) -> int:
    """A TUN device that was moved to a namespace; its descriptor stays here."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"bdt{os.getpid() % 100000}-{number}"
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    _ip("link", "set", name, "netns", namespace)
    _ip("-n", namespace, "address", "add", f"{NETWORK}.{number + 1}/24", "dev", name)
    _ip("-n", namespace, "link", "set", name, "mtu", str(PACKET_BYTES_MAX), "txqueuelen", "1000", "up")
    return device


class _Switch:
    """Carries packets until it is told to stop."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._delay: float = plan["delay"]
        self._loss: float = plan["loss"]
        self._rate: float = plan["rate"]
        self._queue_seconds = self._delay + QUEUE_SECONDS
        self._chance = random.Random(plan["seed"]).random
        self._ports = [_Port(name, number) for number, name in enumerate(plan["names"])]
        self._due: list[tuple[float, int, int, bytes]] = []  # (when, order, port, packet)
        self._order = 0
        self.counts = {"packets": 0, "bytes": 0, "lost": 0, "dropped": 0, "late_seconds_max": 0.0}
        self.is_stopped = False

    def run(self) -> None:
        poll = select.epoll()
        numbers = {}
        for number, port in enumerate(self._ports):
            poll.register(port.device, select.EPOLLIN)
            numbers[port.device] = number
        while not self.is_stopped:
            timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else 1.0
            # epoll counts in ms and rounds up: below one it would be late, so it only looks.
            for device, _events in poll.poll(timeout if timeout > 0.001 else 0):
                self._take(numbers[device])
            self._give()

    def _take(self, number: int) -> None:
        port = self._ports[number]
        for _ in range(BURST):
            try:
                packet = os.read(port.device, PACKET_BYTES_MAX + 100)
            except BlockingIOError:
                return
            target = packet[19] - 1 if packet[0] >> 4 == 4 else -1
            if 0 <= target < len(self._ports):
                self._carry(port, target, packet)

    def _carry(self, source: _Port, target: int, packet: bytes) -> None:
        now, seconds = time.monotonic(), len(packet) / self._rate
        sink = self._ports[target]
        out = max(now, source.free_out) + seconds
        arrived = max(out, sink.free_in) + seconds
        if arrived - now > self._queue_seconds:
            self.counts["dropped"] += 1
            return
        source.free_out, sink.free_in = out, arrived
        if self._chance() < self._loss:
            self.counts["lost"] += 1
            return
        self._order += 1
        heapq.heappush(self._due, (arrived + self._delay, self._order, target, packet))

    def _give(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            when, _order, target, packet = heapq.heappop(self._due)
            self.counts["late_seconds_max"] = max(self.counts["late_seconds_max"], now - when)
            self.counts["packets"] += 1
            self.counts["bytes"] += len(packet)
            try:
                os.write(self._ports[target].device, packet)
            except OSError:
                self.counts["dropped"] += 1


def serve(plan: dict[str, Any]) -> None:
    switch = _Switch(plan)

    def stop(_signal: int, _frame: object) -> None:
        switch.is_stopped = True

    signal.signal(signal.SIGTERM, stop)
    os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    print("ready", flush=True)
    switch.run()
    print(json.dumps(switch.counts))


RECEIVE = """
import socket, sys, time
listener = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
taken, _ = listener.accept()
total, begun = 0, time.monotonic()
while data := taken.recv(1 << 20):
    total += len(data)
print(total / (time.monotonic() - begun))
"""
SEND = """
import socket, sys, time
made = socket.create_connection((sys.argv[1], int(sys.argv[2])))
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    made.sendall(bytes(65536))
"""
PLAIN_PORT = 7000  # and those above it, one for each connection


def throughput(fabric: Fabric, pairs: Sequence[tuple[int, int]], seconds: float) -> list[float]:
    """Bytes a second of a plain TCP connection for each (source, target), all at once: what the network itself can do."""
    receivers, senders = [], []
    for port, (_source, target) in enumerate(pairs, PLAIN_PORT):
        command = [*fabric.inside(target), sys.executable, "-c", RECEIVE, str(port)]
        receivers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    for receiver in receivers:
        assert receiver.stdout is not None
        receiver.stdout.readline()
    for port, (source, target) in enumerate(pairs, PLAIN_PORT):
        command = [*fabric.inside(source), sys.executable, "-c", SEND, fabric.address(target), str(port), str(seconds)]
        senders.append(subprocess.Popen(command))
    rates = [float(receiver.communicate()[0]) for receiver in receivers]
    for sender in senders:
        sender.wait()
    return rates


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
