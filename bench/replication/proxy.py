"""A TCP proxy that counts what goes through it, and cuts it when told to.

It counts payload bytes, as both ends handed them to TCP, in both directions.  A cut resets every connection (RST), as a
router that lost its state does; the next one is taken as if nothing had been.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from types import TracebackType
from typing import Self

CHUNK_BYTES = 1 << 18
NO_ADDRESS = ctypes.create_string_buffer(16)  # family AF_UNSPEC
_libc = ctypes.CDLL(None, use_errno=True)


def reset(connection: socket.socket) -> None:
    """End it at once with RST, whoever reads or writes it: what connecting a TCP socket to nowhere does (connect(2))."""
    if connection.fileno() >= 0 and _libc.connect(connection.fileno(), NO_ADDRESS, len(NO_ADDRESS)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Proxy:
    """From a port of its own on loopback to HOST:PORT; close it, or use it as a context."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """It need not listen there yet."""
        self.sent_bytes = 0  # from who connects to who is connected to
        self.answered_bytes = 0
        self.connection_count = 0
        self._target = (host, port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._closing = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def total_bytes(self) -> int:
        return self.sent_bytes + self.answered_bytes

    def cut(self) -> int:
        """Reset all connections; how many pairs there were."""
        with self._lock:
            cut, self._open = self._open, set()
            for connection in cut:
                reset(connection)
        return len(cut) // 2

    def close(self) -> None:
        self._closing = True
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                reset(client)
                client.close()
                continue
            server.settimeout(None)
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            self.connection_count += 1
            threading.Thread(target=self._join, args=(client, server), daemon=True).start()

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        """Carry both directions until one ends for good; half-closed ones stay."""
        threads = [
            threading.Thread(target=self._copy, args=pair, daemon=True)
            for pair in ((client, server, "sent_bytes"), (server, client, "answered_bytes"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._lock:  # nobody resets a number that is another's by then
            self._open -= {client, server}
            client.close()
            server.close()

    def _copy(self, source: socket.socket, sink: socket.socket, counter: str) -> None:
        buffer = bytearray(CHUNK_BYTES)
        view = memoryview(buffer)
        try:
            while count := source.recv_into(buffer):
                with self._lock:
                    setattr(self, counter, getattr(self, counter) + count)
                sink.sendall(view[:count])
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            # The other end shall know that this one was reset, too.
            with contextlib.suppress(OSError):
                reset(source)
            with contextlib.suppress(OSError):
                reset(sink)
