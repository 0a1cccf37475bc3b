"""Places on the loopback where nobody listens, and nobody will who asks here, too.

The kernel gives ports of its own range to whoever connects or asks for any: what is chosen there may be taken before it is
used.  These are below it, and a name in the abstract namespace, which ends with the process, keeps each from the others.
"""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

FIRST_PORT = 10_000
TRIES_MAX = 1000
_kept: list[socket.socket] = []


def free_port() -> int:
    """For this process until it ends, and for those that it starts."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chosen = random.SystemRandom()
    for _ in range(TRIES_MAX):
        port = chosen.randrange(FIRST_PORT, lowest)
        name = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            name.bind(f"\0blockdev-port-{port}")
            socket.create_server(("127.0.0.1", port)).close()
            _kept.append(name)
            return port
        name.close()
    raise AssertionError(f"no port is free below {lowest}")


def free_ports(count: int) -> list[int]:
    """Each another one."""
    return [free_port() for _ in range(count)]


def free_address() -> str:
    """ADDR:PORT."""
    return f"127.0.0.1:{free_port()}"
