"""What is between an SSH connection and its socket: it reads and writes packets of data, and knows when the socket takes no more.

asyncssh writes to its transport without asking whether that is full, as the peer's windows are to bound it; a peer may open
these as wide as it likes.  So whoever writes much waits for `writable` first.  All in the loop's thread.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from blockdev.replicate.packets import Packets

HIGH_WATER_BYTES = 1 << 20  # in the process, on the way to the socket
UNSENT_BYTES_MAX = 32 << 20  # likewise, of all channels: more only comes of answers of SSH's own to a peer that never reads


class Wire(asyncio.BufferedProtocol):
    """One connection: the protocol of its socket, and the transport of the SSH connection above."""

    def __init__(
        self, above: asyncio.Protocol, ended: Callable[[asyncio.Transport], object] = lambda transport: None
    ) -> None:
        self.above = above
        self.packets = Packets(above, self._unsent_bytes)
        self._ended = ended
        self.socket: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def is_writable(self) -> bool:
        return self._writable.is_set()

    async def writable(self) -> None:
        """Until the socket has taken most of what was written; at once when the connection is gone."""
        await self._writable.wait()

    # the protocol of the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.socket = transport
        transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self.above.connection_made(self)  # type: ignore[arg-type]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.packets.room()

    def buffer_updated(self, nbytes: int) -> None:
        self.packets.came(nbytes)

    def eof_received(self) -> bool | None:
        return self.above.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if self.socket is not None:
            self._ended(self.socket)
        self.above.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # the transport of the SSH connection

    def write(self, data: bytes | memoryview) -> None:
        assert self.socket is not None
        self.socket.write(data)
        if self._unsent_bytes() > UNSENT_BYTES_MAX:
            self.socket.abort()

    def _unsent_bytes(self) -> int:
        return 0 if self.socket is None else self.socket.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As that of the socket; "wire" is this."""
        if name == "wire":
            return self
        return default if self.socket is None else self.socket.get_extra_info(name, default)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()

    def abort(self) -> None:
        if self.socket is not None:
            self.socket.abort()


class Dialer:
    """What asyncssh.connect takes as a tunnel: it makes the connection that SSH runs over."""

    async def create_connection(self, factory: Callable[[], asyncio.Protocol], host: str, port: int) -> tuple[Any, Any]:
        loop = asyncio.get_running_loop()
        transport, wire = await loop.create_connection(lambda: Wire(factory()), host, port)
        return transport, wire.above


class Doorkeeper:
    """What asyncssh.listen takes as a tunnel: connections on a listening socket, as far as `admit` lets them in."""

    def __init__(
        self,
        listener: socket.socket,
        admit: Callable[[asyncio.Transport], bool],
        ended: Callable[[asyncio.Transport], object],
    ) -> None:
        self._listener = listener
        self._admit = admit
        self._ended = ended

    async def create_server(
        self, factory: Callable[[str, int], asyncio.Protocol], _host: str, _port: int
    ) -> asyncio.Server:
        def make() -> asyncio.Protocol:
            return _Entrance(lambda: factory("", 0), self._admit, self._ended)

        return await asyncio.get_running_loop().create_server(make, sock=self._listener, backlog=128)


class _Entrance(asyncio.Protocol):
    """A connection of which is not known yet whether it comes in: nothing of SSH is made for one that does not."""

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        admit: Callable[[asyncio.Transport], bool],
        ended: Callable[[asyncio.Transport], object],
    ) -> None:
        self._factory = factory
        self._admit = admit
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if not self._admit(transport):
            transport.abort()
            return
        wire = Wire(self._factory(), self._ended)
        transport.set_protocol(wire)
        wire.connection_made(transport)
