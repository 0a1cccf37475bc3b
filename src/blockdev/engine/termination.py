"""How the engine process ends on a signal although clients are connected and idle.

nbdkit (1.32) stops accepting on SIGTERM, but a worker that waits for the next request of a connected client is not
woken: with one guest attached, nbdkit would run on for as long as the guest.  So the signals come here first: the watching
thread asks nbdkit to quit, and closes the receiving side of every NBD connection.  A worker in the middle of a request
finishes it and replies; then each connection ends, nbdkit calls its cleanup callback, and the engine closes the pool.

Threads: `start` and `stop` belong to the main thread (Python sets signal handlers there only).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

QUIT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # those that nbdkit quits on
LOOK_AGAIN_S = 0.1  # a connection may have been accepted just before nbdkit stopped accepting
PATIENCE_S = 5.0  # after this long, clients that do not read their replies lose their connections at once
NO_SIGNAL = b"\0"


class Termination:
    """Watches for the signals that end this process, from `start` to `stop`."""

    def __init__(self, request_quit: Callable[[], None], private_socket: str) -> None:
        """`request_quit` tells nbdkit to stop serving; `private_socket` is the one listening socket that is not NBD."""
        self._request_quit = request_quit
        self._private_socket = private_socket
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="termination", daemon=True)

    def start(self) -> None:
        self._wake_writer.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for number in QUIT_SIGNALS:
            # The handler has nothing to do: the wakeup descriptor, which C code writes at once, is what counts.
            signal.signal(number, _ignore)
        self._watcher.start()

    def stop(self) -> None:
        """Every connection has ended.  Later signals do nothing: what runs now is the end."""
        self._stopped.set()
        signal.set_wakeup_fd(-1)
        self._wake_writer.send(NO_SIGNAL)
        self._watcher.join()
        self._wake_reader.close()
        self._wake_writer.close()

    def _watch(self) -> None:
        if self._wake_reader.recv(1) == NO_SIGNAL:
            return
        self._request_quit()
        waited_s = 0.0
        while not self._stopped.is_set():
            for connection in nbd_connections(self._private_socket):
                _end(connection, socket.SHUT_RD if waited_s < PATIENCE_S else socket.SHUT_RDWR)
            self._stopped.wait(LOOK_AGAIN_S)
            waited_s += LOOK_AGAIN_S


def nbd_connections(private_socket: str) -> list[socket.socket]:
    """New descriptors of this process's connected sockets that came in by a listening socket other than the private one.

    nbdkit does not tell a plugin which descriptor a connection has, so they are looked for in /proc/self/fd.
    """
    found = [opened for name in os.listdir("/proc/self/fd") if (opened := _as_socket(int(name))) is not None]
    doors = {_door(opened) for opened in found if _is_listening(opened)} - {private_socket}
    kept = [opened for opened in found if not _is_listening(opened) and _door(opened) in doors]
    for opened in set(found) - set(kept):
        opened.close()
    return kept


def _as_socket(descriptor: int) -> socket.socket | None:
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


def _is_listening(opened: socket.socket) -> bool:
    return opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def _door(opened: socket.socket) -> str | int | None:
    """What an accepted socket has in common with the listening one: a path, or a port."""
    name = opened.getsockname()
    if opened.family == socket.AF_UNIX:
        return os.fsdecode(name) or None
    return name[1] if opened.family in (socket.AF_INET, socket.AF_INET6) else None


def _end(connection: socket.socket, how: int) -> None:
    try:
        connection.shutdown(how)
    except OSError:
        pass  # the client was faster
    finally:
        connection.close()


def _ignore(_number: int, _frame: object) -> None:
    pass
