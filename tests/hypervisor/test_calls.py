"""A libvirt that does not answer keeps nobody waiting for longer than was said."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockdev.errors import InvalidArgument, NotFound, Unavailable
from blockdev.hypervisor import calls
from blockdev.hypervisor.calls import Line, within

LIMIT_S = 0.3


@pytest.fixture
def silent() -> Iterator[str]:
    """Where something takes connections and never says a word."""
    with tempfile.TemporaryDirectory(prefix="bd-") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory, "libvirt-sock")
        listener.bind(str(path))
        listener.listen()
        yield f"qemu+unix:///system?socket={path}"
        listener.close()


def test_a_call_ends_at_its_limit_and_what_it_raises_is_raised() -> None:
    released = threading.Event()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="the thing did not answer within 0.1 s"):
        within(0.1, "the thing", lambda: released.wait(30))
    assert time.monotonic() - began < 5
    released.set()
    assert within(5, "the thing", lambda: 7) == 7

    def fail() -> None:
        raise InvalidArgument("no")

    with pytest.raises(InvalidArgument, match="no"):
        within(5, "the thing", fail)


def test_a_silent_libvirt_is_left_alone_for_a_while(silent: str) -> None:
    line = Line("far", silent)
    with pytest.raises(Unavailable, match=r"hypervisor far .* did not answer within 0.3 s"):
        line.call(lambda connection: connection.version(), LIMIT_S)
    assert line.is_out()
    began = time.monotonic()
    for _ in range(1000):
        with pytest.raises(Unavailable, match="left alone for up to 60 s"):
            line.call(lambda connection: connection.version(), LIMIT_S)
    assert time.monotonic() - began < LIMIT_S * 10
    with pytest.raises(Unavailable, match="did not answer|a connection is being tried"):
        line.call(lambda connection: connection.version(), LIMIT_S, insist=True)
    opening = [thread for thread in threading.enumerate() if thread.name == "libvirt-call"]
    assert len(opening) <= 2, "one connection is tried at a time"


def test_a_libvirt_that_is_not_there_says_so() -> None:
    with pytest.raises(Unavailable, match="libvirt at qemu.unix.* cannot be reached: Failed to connect socket"):
        Line("none", "qemu+unix:///system?socket=/nowhere/libvirt-sock").call(lambda connection: None, 30)


def test_without_libvirts_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise ImportError("libvirt.so.0: cannot open shared object file")

    monkeypatch.setattr(calls.importlib, "import_module", missing)
    with pytest.raises(Unavailable, match=r"libvirt.so.0.* install Debian's libvirt0"):
        Line("kvm", "test:///default").call(lambda connection: None, 30)


def test_what_libvirt_refuses_leaves_the_hypervisor_in() -> None:
    line = Line("test", "test:///default")
    with pytest.raises(NotFound):
        line.call(lambda connection: connection.start("11111111-3c11-4c4e-9a39-0b6f6d2f3b11"), 30)
    with pytest.raises(InvalidArgument):
        line.call(lambda connection: connection.define("<domain type='test'/>"), 30)
    assert not line.is_out() and line.call(lambda connection: connection.domain_count(), 30) == 1
    line.close()
