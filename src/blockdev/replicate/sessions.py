"""What an SSH session does with what comes over it, at either end: it hands it to its channel.  In the loop's thread."""

from __future__ import annotations

from blockdev.replicate.channel import Channel, Cut


class Handing:
    """The part of asyncssh's SSHClientSession and SSHServerSession that is about data."""

    _channel: Channel | None = None  # None: it is not for anything yet

    def data_received(self, data: bytes, datatype: object) -> None:
        if self._channel is not None:
            self._channel.data_received(data)

    def pause_writing(self) -> None:
        if self._channel is not None:
            self._channel.pause_writing()

    def resume_writing(self) -> None:
        if self._channel is not None:
            self._channel.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._channel is not None:
            self._channel.end(Cut(f"the connection was cut: {exc}" if exc else "the other end closed the channel"))
