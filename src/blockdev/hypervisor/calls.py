"""Calls to libvirt that end: each has a limit in seconds, whatever libvirt, ssh or the network do.

A call runs in a thread of its own, which is left behind when it does not answer in time; libvirt's keepalive ends it later.  At most
one connection to a hypervisor is being opened at a time.  One that did not answer is *out* for OUT_SECONDS: meanwhile only those
who insist ask it again, so that a round over a thousand VMs waits once.  Locks: a line's own, which is never held across a call.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError, Unavailable

if TYPE_CHECKING:
    from blockdev.hypervisor.connection import Connection

T = TypeVar("T")
OUT_SECONDS = 60.0
NO_LIBRARY = "libvirt's library for Python is not there ({error}): install Debian's libvirt0 and PyPI's libvirt-python"


def load() -> ModuleType:
    """connection.py, with libvirt; Unavailable where that is not installed.  The first time it costs 50 ms."""
    try:
        return importlib.import_module("blockdev.hypervisor.connection")
    except ImportError as error:
        raise Unavailable(NO_LIBRARY.format(error=error)) from error


def within(limit_s: float, what: str, work: Callable[[], T]) -> T:
    """What `work` returns or raises; Unavailable when the time is over first, while it goes on in its thread."""
    outcome: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((True, work()))
        except BaseException as error:
            outcome.put((False, error))

    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    try:
        is_done, value = outcome.get(timeout=limit_s)
    except Empty:
        raise Unavailable(f"{what} did not answer within {limit_s:.3g} s") from None
    if is_done:
        return value
    raise value


class Line:
    """The way to one hypervisor: its connection, made when it is needed, and whether it is out."""

    def __init__(self, name: str, uri: str) -> None:
        self._name = name
        self._uri = uri
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._connection: Connection | None = None
        self._out_until = 0.0
        self._why = ""

    def call(self, work: Callable[[Connection], T], limit_s: float, insist: bool = False) -> T:
        """`work` on the open connection.  Unavailable at once while it is out, unless the caller insists."""
        with self._lock:
            if not insist and monotonic_seconds() < self._out_until:
                raise Unavailable(f"hypervisor {self._name} is left alone for up to {OUT_SECONDS:g} s, as it did not answer: {self._why}")
        try:
            return within(limit_s, f"hypervisor {self._name} ({self._uri})", lambda: work(self._open(limit_s)))
        except Unavailable as error:
            if not is_of_the_guest(error):
                self._fail(error)
            raise
        except BlockdevError:
            if self._connection is not None and not self._connection.is_alive():
                lost = Unavailable(f"the connection to hypervisor {self._name} ({self._uri}) was lost")
                self._fail(lost)
                raise lost from None
            raise

    def is_out(self) -> bool:
        with self._lock:
            return monotonic_seconds() < self._out_until

    def close(self) -> None:
        """Let the connection go.  libvirt closes it with the last call on it: under one, that would free what it uses.

        That may wait for the other side, so it is done by a thread of its own, which has the last reference but for those calls.
        """
        with self._lock:
            held, self._connection = [self._connection], None
        threading.Thread(target=held.clear, name="libvirt-close", daemon=True).start()

    def _fail(self, error: Unavailable) -> None:
        with self._lock:
            self._out_until = monotonic_seconds() + OUT_SECONDS
            self._why = error.message
        self.close()

    def _open(self, limit_s: float) -> Connection:
        with self._lock:
            known = self._connection
        if known is not None and known.is_alive():
            return known
        if not self._opening.acquire(timeout=limit_s):
            raise Unavailable(f"hypervisor {self._name} ({self._uri}) does not answer: a connection is being tried still")
        try:
            with self._lock:
                known = self._connection
            if known is None or not known.is_alive():
                self.close()
                known = load().Connection(self._uri)
            with self._lock:
                self._connection = known
                self._out_until = 0.0
            return known
        finally:
            self._opening.release()


def is_of_the_guest(error: Unavailable) -> bool:
    """Whether it is a guest's agent that does not answer, and not libvirt."""
    return type(error) is not Unavailable
