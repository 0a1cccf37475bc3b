"""A TCP proxy that stands for a long line: each byte takes its time, only so many come through in a second, and it can be cut.

Threads of this process carry the bytes.  The queue of a direction holds what is on the line, and QUEUE_SECONDS of it more.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from typing import Self

CHUNK_BYTES = 1 << 16
QUEUE_SECONDS = 0.02


class _Direction:
    """Bytes on their way from one socket to another."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay_seconds: float, rate_bytes: float, flows: threading.Event) -> None:
        self._source, self._sink = source, sink
        self._delay, self._rate, self._flows = delay_seconds, rate_bytes, flows
        self._bytes_max = rate_bytes * (delay_seconds + QUEUE_SECONDS)
        self._changed = threading.Condition()
        self._line: deque[tuple[float, bytes]] = deque()
        self._on_line = 0
        self.threads = [threading.Thread(target=one, daemon=True) for one in (self._enter, self._leave)]

    def _enter(self) -> None:
        free_at = 0.0  # when the line takes the next byte
        data = b"?"
        while data:
            try:
                data = self._source.recv(CHUNK_BYTES)
            except OSError:
                data = b""
            free_at = max(free_at, time.monotonic()) + len(data) / self._rate
            with self._changed:
                while self._on_line > self._bytes_max:
                    self._changed.wait()
                self._line.append((free_at + self._delay, data))
                self._on_line += len(data)
                self._changed.notify_all()

    def _leave(self) -> None:
        data = b"?"
        while data:
            with self._changed:
                while not self._line:
                    self._changed.wait()
                due, data = self._line[0]
            time.sleep(max(due - time.monotonic(), 0.0))
            self._flows.wait()
            with contextlib.suppress(OSError):
                if data:
                    self._sink.sendall(data)
                else:
                    self._sink.shutdown(socket.SHUT_WR)
            with self._changed:
                self._line.popleft()
                self._on_line -= len(data)
                self._changed.notify_all()


class SlowLink:
    """From a port of its own on loopback to another one; close it, or use it as a context."""

    def __init__(self, port: int, delay_seconds: float = 0.0, rate_bytes: float = float("1e12")) -> None:
        """delay_seconds: one way; rate_bytes: a second, each way."""
        self._target, self._delay, self._rate = port, delay_seconds, rate_bytes
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Nothing more comes through, and nobody is told: a cable that was pulled somewhere."""
        self._flows.clear()

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        with self._lock:
            cut, self._open = self._open, []
        for connection in cut:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RD)  # whoever reads it lets go
                connection.close()
        return len(cut) // 2

    def close(self) -> None:
        self._listener.close()
        self.cut()
        self._flows.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                for thread in _Direction(source, sink, self._delay, self._rate, self._flows).threads:
                    thread.start()
