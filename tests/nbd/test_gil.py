"""The native plugin's data path takes no GIL: seen in the generated C, and in a running engine whose GIL is held.

In the generated C a callback for data could reach Python only by a call whose name begins with Py or __Pyx; none has one.
What it calls are _disk's functions, by pointers that Cython type-checked as nogil.  Cython refuses to compile a nogil function
that touches a Python object, so the first test guards against what it allows: `with gil` blocks and functions.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockdev.targets.nbdkit import plugin_arguments

import blockdev
from blockdev.clock import monotonic_seconds
from blockdev.engine.protocol import BODY_BYTES_MAX, HEADER, MAGIC, VERSION, Kind
from blockdev.home import Home
from tests.nbd.conftest import Server

HOT = {
    *(
        "blockdev_pread",
        "blockdev_pwrite",
        "blockdev_flush",
        "blockdev_zero",
        "blockdev_extents",
        "blockdev_cache",
    ),
    *(
        "blockdev_get_size",
        "blockdev_block_size",
        "blockdev_can_write",
        "blockdev_can_fua",
        "blockdev_can_cache",
    ),
    *("blockdev_yes", "blockdev_no"),
}
CALL = re.compile(r"\b(\w+)\s*\(")
PYTHON = re.compile(r"_*Py|__pyx_pw|.*[gG][iI][lL]")
TRIES_MAX = 3
LISTS = 4_000_000  # about a second to unpack, in one C call that never lets go of the GIL


def functions(source: str) -> dict[str, str]:
    """Name -> body of each function; Cython ends each with a brace in the first column."""
    found = re.finditer(r"^(?:static|__PYX)[^;{}=]*?\b(\w+)\([^;{}]*\) \{\n(.*?)^\}", source, re.M | re.S)
    return {match[1]: re.sub(r"/\*.*?\*/", "", match[2], flags=re.S) for match in found}


def test_the_generated_data_callbacks_call_nothing_of_python() -> None:
    (directory,) = blockdev.__path__
    bodies = functions(Path(directory, "_nbdkit.c").read_text())
    assert set(bodies) >= HOT
    handed_over = {name for name in bodies if name.endswith("_add_extent")}  # called through a pointer
    assert len(handed_over) == 1
    seen, waiting = set(), HOT | handed_over
    while waiting:
        name = waiting.pop()
        seen.add(name)
        calls = set(CALL.findall(bodies[name]))
        assert not [call for call in calls if PYTHON.match(call)], f"{name} calls into Python"
        waiting |= {call for call in calls if call in bodies} - seen
    assert any(name.endswith("_refuse") for name in seen)
    assert PYTHON.match(next(call for call in CALL.findall(bodies["blockdev_open"]) if "Ensure" in call))


@pytest.fixture
def native(home: Home) -> Iterator[Server]:
    assert plugin_arguments("native")[0].endswith(".so")
    server = Server(home, "native")
    server.create()
    server.start()
    yield server
    server.stop()


def hold_the_gil(server: Server) -> None:
    """Sends the engine one request that takes it long to unpack, and waits for the answer (a refusal)."""
    body = b"\x82\xa2op\xa1x\xa4junk\xdd" + LISTS.to_bytes(4, "big") + b"\x90" * LISTS
    assert len(body) < BODY_BYTES_MAX
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.home.engine_socket))
        connection.sendall(HEADER.pack(MAGIC, VERSION, Kind.REQUEST, 0, 1, len(body)) + body)
        connection.recv(1)


def longest(ask, until: threading.Thread) -> float:
    """The longest time that one of many calls took, in seconds, while the thread runs."""
    worst = 0.0
    while until.is_alive():
        before = monotonic_seconds()
        ask()
        worst = max(worst, monotonic_seconds() - before)
    return worst


def test_reads_and_writes_go_on_while_python_holds_the_gil(native: Server) -> None:
    """Control requests, which need the GIL, wait for as long as it is held; reads and writes do not.

    One of some tries shows it: a busy machine may hold anybody up.
    """
    handle, control = native.connect(), native.control()
    handle.pwrite(b"g" * 65536, 0)

    def read_and_write() -> None:
        handle.pwrite(handle.pread(4096, 4096), 8192)

    tries: list[tuple[float, float]] = []  # the longest read and write, and for how long the GIL was held
    while len(tries) < TRIES_MAX and not any(worst < held / 3 for worst, held in tries):
        waits: list[float] = []
        holder = threading.Thread(target=hold_the_gil, args=(native,))
        pinger = threading.Thread(target=lambda holder=holder, waits=waits: waits.append(longest(control.hello, holder)))
        holder.start()
        pinger.start()
        worst = longest(read_and_write, holder)
        pinger.join()
        tries.append((worst, waits[0]))
    control.close()
    assert any(worst < held / 3 and held > 0.3 for worst, held in tries), tries  # held for less, it shows nothing
