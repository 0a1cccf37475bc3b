"""Moves messages between a state machine, whose calls block, and a channel: in the thread of whoever calls.

While a frame is written by the loop's thread, the machine makes the next one; Channel.send waits when it is too far ahead.
"""

from __future__ import annotations

from typing import Protocol

from blockdev.replicate.channel import Channel, Cut
from blockdev.replicate.engine_watch import Work
from blockdev.replicate.frames import Frame, Message, ProtocolError
from blockdev.replicate.halt import Halt

FIRST_SECONDS_MAX = 60.0  # until a channel that was opened says what it is for


class Sending(Protocol):
    """A Sender or a Requester."""

    def start(self) -> None: ...
    def handle(self, message: Message) -> None: ...
    def next(self) -> Frame | None: ...
    @property
    def is_done(self) -> bool: ...


class Receiving(Protocol):
    """A Receiver, or what is around one."""

    def handle(self, message: Message) -> list[Frame]: ...
    def close(self) -> None: ...
    @property
    def is_closed(self) -> bool: ...


def run_sender(machine: Sending, channel: Channel, halt: Halt) -> None:
    """Until it is done.  Halted; Cut; what the machine raises."""
    with halt.waking(channel.interrupt):
        _run_sender(machine, channel)


def _run_sender(machine: Sending, channel: Channel) -> None:
    machine.start()
    while not machine.is_done:
        for message in channel.received():
            machine.handle(message)
        if machine.is_done:
            break
        frame = machine.next()
        if frame is None:
            if not machine.is_done:
                machine.handle(channel.receive())
            continue
        try:
            channel.send(frame)
        except Cut:
            for message in channel.received():  # it may have said why
                machine.handle(message)
            if not machine.is_done:
                raise


def run_receiver(machine: Receiving, channel: Channel, work: Work) -> None:
    """Until it is closed, or the other end has gone; closes it.  The channel is closed when all that it said is written."""
    seconds: float | None = FIRST_SECONDS_MAX
    try:
        while not machine.is_closed:
            message = channel.receive(seconds)
            seconds = None
            with work:
                frames = machine.handle(message)
            for frame in frames:
                channel.send(frame)
    except (Cut, ProtocolError):
        channel.abort()
    finally:
        machine.close()
        channel.close()
