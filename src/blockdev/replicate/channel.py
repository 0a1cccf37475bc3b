"""One SSH channel as a thread sees it: whole messages come out, frames go in, and both may have to wait.

Threads: `send`, `received`, `receive` and `close` are for one thread that may block, `interrupt` and `send_last` for any; the
rest is the loop's.  `_changed` guards what both sides see.  Memory: INCOMING_BYTES_MAX of messages, in memory at most twice as large
(frames.py), and the SSH window on one side, OUTGOING_BYTES_MAX and a frame on the other, then Wire.HIGH_WATER_BYTES: whatever
the other end does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError, Unavailable
from blockdev.replicate.frames import (
    ROOM_BYTES,
    Frame,
    Frames,
    Message,
    ProtocolError,
    room_around,
    with_room,
)
from blockdev.replicate.gate import UNHELD_BYTES_MAX, Gate
from blockdev.replicate.halt import Halted
from blockdev.replicate.wire import Wire

logger = logging.getLogger(__name__)
WINDOW_BYTES = 16 << 20  # of SSH: what may be on the way and unread; 400 MB/s at 40 ms
PACKET_BYTES = 1 << 19  # of SSH: each costs some calls of Python, whatever its size; larger ones leave the caches
INCOMING_BYTES_MAX = 4 << 20
OUTGOING_BYTES_MAX = 2 << 20
SILENCE_SECONDS_MAX = 60.0  # in the middle of a message
STUCK_SECONDS_MAX = 300.0  # in which the other end takes nothing: its engine may be busy with a flush


class Cut(Unavailable):
    """The channel, or the connection below it, has ended."""


class SshChannel(Protocol):
    """What is used of asyncssh's channels."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Channel:
    """One end.  Made in the loop's thread."""

    def __init__(self, wire: Wire, gate: Gate | None = None) -> None:
        """gate: holds what is sent to a throttle."""
        self._wire = wire
        self._gate = gate or Gate()
        self._loop = asyncio.get_running_loop()
        self._ssh: SshChannel | None = None
        self._takes_more = asyncio.Event()  # SSH does
        self._takes_more.set()
        self._frames = Frames()
        self._queue: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None
        self._is_paused = False
        self._changed = threading.Condition()
        self._incoming: deque[Message] = deque()
        self._incoming_bytes = 0
        self._outgoing_bytes = 0
        self._heard_at = monotonic_seconds()
        self._end: BlockdevError | None = None  # why nothing more comes or goes
        self._is_interrupted = False

    # for a thread

    def send(self, frame: bytes | Frame) -> None:
        """Have a frame written; waits while enough is on its way out.  Cut; Halted."""
        made = frame if isinstance(frame, memoryview) else with_room(frame)
        with self._changed:
            while self._outgoing_bytes >= OUTGOING_BYTES_MAX and self._end is None and not self._is_interrupted:
                self._changed.wait()
            self._check()
            self._outgoing_bytes += len(frame)
        self._call(lambda: self._queue.put_nowait(made))

    def received(self) -> list[Message]:
        """The messages that are here already."""
        with self._changed:
            return [self._next() for _ in range(len(self._incoming))]

    def receive(self, seconds: float | None = None) -> Message:
        """The next message.  Cut, also when none begins in `seconds`, or one does not go on; ProtocolError; Halted."""
        deadline = None if seconds is None else monotonic_seconds() + seconds
        with self._changed:
            while not self._incoming:
                self._check()
                if not self._frames.is_between:
                    until = self._heard_at + SILENCE_SECONDS_MAX
                else:
                    until = float("inf") if deadline is None else deadline
                now = monotonic_seconds()
                if now >= until:
                    raise Cut("the other end fell silent: it is tried again")
                self._changed.wait(min(until - now, SILENCE_SECONDS_MAX))
            return self._next()

    def interrupt(self) -> None:
        """Whoever waits here, or is about to, gets Halted."""
        with self._changed:
            self._is_interrupted = True
            self._changed.notify_all()

    def send_last(self, frame: Frame) -> None:
        """Have a frame written after what was sent, then end; whoever sends meanwhile gets Cut.  For any thread; does not wait."""
        with self._changed:
            if self._end is not None:
                return
            self._end = Cut("the channel was given up")
            self._outgoing_bytes += len(frame)
            self._changed.notify_all()
        self._call(lambda: self._queue.put_nowait(frame))
        self.close()

    def close(self) -> None:
        """Write what was sent, then end.  Does not wait for that."""
        self._call(lambda: self._queue.put_nowait(None))

    def abort(self) -> None:
        """End at once."""
        self._call(lambda: self.end(Cut("the channel was given up")))

    def _call(self, act: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:  # the loop is closed: so is every channel
            raise Cut("replication is being stopped") from None

    def _check(self) -> None:
        if self._is_interrupted:
            raise Halted
        if self._end is not None and not self._incoming:
            raise self._end

    def _next(self) -> Message:
        message = self._incoming.popleft()
        self._incoming_bytes -= len(message)
        if self._is_paused and self._incoming_bytes < INCOMING_BYTES_MAX // 2:
            self._is_paused = False
            self._call(self._resume)
        return message

    # for the loop

    def opened(self, ssh: SshChannel) -> None:
        """The channel is there."""
        self._ssh = ssh
        self._wire.packets.opened(ssh, self._frames)
        self._writer = self._loop.create_task(self._write())

    def data_received(self, data: bytes | memoryview) -> None:
        """data: for as long as the call."""
        try:
            messages = self._frames.feed(data)
        except ProtocolError as error:
            self.end(error)
            return
        with self._changed:
            self._heard_at = monotonic_seconds()
            self._incoming.extend(messages)
            self._incoming_bytes += sum(map(len, messages))
            pauses = self._incoming_bytes >= INCOMING_BYTES_MAX and not self._is_paused
            self._is_paused = self._is_paused or pauses
            if messages:
                self._changed.notify_all()
        if pauses and self._ssh is not None:
            self._ssh.pause_reading()

    def pause_writing(self) -> None:
        self._takes_more.clear()

    def resume_writing(self) -> None:
        self._takes_more.set()

    def end(self, error: BlockdevError) -> None:
        """Nothing more comes or goes; the first reason is the one that is told."""
        with self._changed:
            if self._end is None:
                self._end = error
            self._changed.notify_all()
        self._takes_more.set()
        if self._writer is not None:
            self._writer.cancel()
        if self._ssh is not None:
            ssh, self._ssh = self._ssh, None
            self._wire.packets.ended(ssh)
            ssh.abort()

    def _resume(self) -> None:
        if self._ssh is not None:
            self._ssh.resume_reading()

    async def _write(self) -> None:
        while (frame := await self._queue.get()) is not None:
            try:
                await self._write_frame(frame)
            except TimeoutError:
                self.end(Cut(f"the other end took nothing for {STUCK_SECONDS_MAX:g} s: it is tried again"))
                return
            except OSError as error:
                self.end(Cut(f"the connection was cut: {error}"))
                return
            except Exception as error:  # a bug: who waits to send must not wait for ever
                logger.exception("a channel could not be written to")
                self.end(Cut(f"the channel could not be written to: {type(error).__name__}; see the log of blockdevd"))
                return
            with self._changed:
                self._outgoing_bytes -= len(frame)
                self._changed.notify_all()
        if self._ssh is not None:
            self._ssh.close()

    async def _write_frame(self, frame: Frame) -> None:
        memory, first, end = room_around(frame), ROOM_BYTES, ROOM_BYTES + len(frame)
        is_small = len(frame) <= UNHELD_BYTES_MAX
        while first < end:
            await self._room()
            count = min(self._gate.piece_bytes, PACKET_BYTES, end - first)
            await self._gate.pass_through(count, is_small)
            if self._ssh is None:
                return
            self._wire.packets.write(self._ssh, memory, first, count)
            first += count
        await asyncio.sleep(0)  # others have their turn

    async def _room(self) -> None:
        """Until SSH and the socket take more.  TimeoutError."""
        if not self._takes_more.is_set():
            await asyncio.wait_for(self._takes_more.wait(), STUCK_SECONDS_MAX)
        if not self._wire.is_writable:
            await asyncio.wait_for(self._wire.writable(), STUCK_SECONDS_MAX)
