"""The HTTP servers of one control plane, in one event loop: the Unix socket's and TCP's.

Two, because TLS is a matter of a whole uvicorn server.  SIGTERM and SIGINT end both: no new requests, those under way have
DRAIN_SECONDS; a second SIGINT does not wait for them.  The handlers stay when `run` returns.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

DRAIN_SECONDS = 5
CONNECTIONS_MAX = 256  # over TCP, with those in the middle of their TLS handshake, which take 300 KiB each (measured)
IDLE_SECONDS = 5  # for the handshake, and before the first request; uvicorn has as much between two


class Servers:
    """Call `add` for each socket, then `run`."""

    def __init__(self, serving: Callable[[], None], stopping: Callable[[], None]) -> None:
        """serving: called when all of them do; stopping: when they are told to stop, perhaps more than once."""
        self._serving = serving
        self._stopping = stopping
        self._servers: list[tuple[_Server, socket.socket]] = []
        self._started_count = 0

    def add(self, app: ASGIApp, listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Serve `app` to who comes to `listener`, with TLS if there is a context."""
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            ws="none",
            http=H11Protocol if listener.family == socket.AF_UNIX else _Stranger,
            lifespan="off",
            proxy_headers=False,  # nobody is believed to be somebody else
            timeout_graceful_shutdown=DRAIN_SECONDS,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )
        bounded = listener if listener.family == socket.AF_UNIX else _Listener(fileno=listener.detach())
        self._servers.append((_Server(config, self._started), bounded))

    def run(self) -> None:
        """Serve until a signal came."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for server, listener in self._servers:
                group.create_task(server.serve([listener]))

    def _started(self) -> None:
        self._started_count += 1
        if self._started_count == len(self._servers):
            self._serving()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping()
        for server, _ in self._servers:
            server.handle_exit(number, frame)


class _Loop(asyncio.SelectorEventLoop):
    """Gives handshakes IDLE_SECONDS; asyncio would wait for one for a minute, and uvicorn does not say otherwise."""

    async def create_server(self, *given: Any, **named: Any) -> asyncio.Server:
        if named.get("ssl") is not None:
            named |= {"ssl_handshake_timeout": IDLE_SECONDS, "ssl_shutdown_timeout": IDLE_SECONDS}
        return await super().create_server(*given, **named)


class _Listener(socket.socket):
    """A socket that whoever likes connects to: CONNECTIONS_MAX connections at a time, those above it are closed at once.

    Before TLS: else those who begin no handshake would take the memory and the files of the process, which the owner's
    socket needs, too.
    """

    def __init__(self, *, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self._accepted: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if len(self._accepted) >= CONNECTIONS_MAX:
            self._accepted = [one for one in self._accepted if one.fileno() >= 0]
        if len(self._accepted) >= CONNECTIONS_MAX:
            connection.close()
            raise BlockingIOError  # to asyncio: nobody more is there now
        self._accepted.append(connection)
        return connection, address


class _Stranger(H11Protocol):
    """A connection of whoever reaches the port, with a token or without.

    One that sends no request in IDLE_SECONDS goes: else those who have no token could keep those out who have one.
    Who is refused for want of a token is disconnected (guard.py).
    """

    _idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle = self.loop.call_later(IDLE_SECONDS, self._leave_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()  # a TLS transport that was lost cannot be aborted any more
        super().connection_lost(exc)

    def _leave_if_idle(self) -> None:
        if self.cycle is None:  # no request has begun
            self.transport.abort()


class _Server(uvicorn.Server):
    """Says when it serves, and leaves the signals to Servers."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """TLS is closed from both ends, and a client that waits for nothing answers that only when it is used again."""
        for connection in list(self.server_state.connections):
            assert isinstance(connection, H11Protocol)
            if self.config.is_ssl and (connection.cycle is None or connection.cycle.response_complete):
                connection.transport.abort()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
