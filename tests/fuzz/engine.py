"""Target `engine`: what a client sends to the engine socket of a real pool.

An input is messages: u16 length, then bytes.  They are sent as bodies of requests with good headers; from the first one
that has the highest bit of its length set, as they are, because then nobody knows where frames begin.  Each request is answered by a frame, or the connection ends; the engine lives on.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from blockdev.engine import protocol
from blockdev.engine.protocol import CHANGES, HEADER_BYTES, Kind
from blockdev.errors import BY_CODE
from tests.fuzz import frames
from tests.fuzz.harness import Harness
from tests.fuzz.homes import ServedHome

RAW = 0x8000
ANSWER_SECONDS_MAX = 60
MESSAGES_MAX = 12
LENGTH = struct.Struct("<H")
HELLO = protocol.encode(Kind.REQUEST, 1, frames.REQUESTS[0])


class Engine(Harness):
    def __init__(self) -> None:
        self._served = ServedHome()
        self._served.start()

    def one_input(self, data: bytes) -> None:
        changed = only_raw = False
        with self._connect() as stream:
            self._say_hello(stream)
            for number, (raw, message) in enumerate(messages(data)):
                only_raw |= raw
                if only_raw:
                    with suppress(BrokenPipeError):  # it has ended the connection
                        stream.sendall(message)
                    continue
                header = protocol.HEADER.pack(protocol.MAGIC, 1, Kind.REQUEST, 0, number, len(message))
                stream.sendall(header + message)
                answer = receive_frame(stream)
                if answer is None:
                    break
                changed |= check_answer(answer, number, message)
            with suppress(OSError):
                stream.shutdown(socket.SHUT_WR)
            while (answer := receive_frame(stream)) is not None:
                check_error(answer)
                changed = True  # nobody knows what was asked
        with self._connect() as stream:
            self._say_hello(stream)
        if changed:
            self._served.restart()

    def _connect(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(ANSWER_SECONDS_MAX)
        stream.connect(str(self._served.home.engine_socket))
        return stream

    def _say_hello(self, stream: socket.socket) -> None:
        stream.sendall(HELLO)
        answer = receive_frame(stream)
        assert answer is not None and answer[0].kind is Kind.ANSWER, "the engine does not say hello any more"

    def seeds(self) -> dict[str, bytes]:
        bodies = [protocol.encode(Kind.REQUEST, 1, body)[HEADER_BYTES:] for body in frames.REQUESTS[1:]]
        names = [f"{number:02}-{body['op']}" for number, body in enumerate(frames.REQUESTS)][1:]
        made = {name: join([(False, body)]) for name, body in zip(names, bodies, strict=True)}
        made["all"] = join([(False, body) for body in bodies[:MESSAGES_MAX]])
        made["raw"] = join([(True, HELLO), (True, HELLO[:7])])
        return made

    def mutate(self, data: bytes, chance: random.Random) -> bytes | None:
        found = list(messages(data))
        if not found:
            return None
        at = chance.randrange(len(found))
        if chance.random() < 0.1:
            found.insert(at, chance.choice(found))
        elif chance.random() < 0.3:
            body = protocol.encode(Kind.REQUEST, 1, chance.choice(frames.REQUESTS))[HEADER_BYTES:]
            found.insert(chance.randrange(len(found) + 1), (False, body))
        else:
            raw, message = found[at]
            body = frames.change_body(message, chance)
            if body is None:
                return None
            found[at] = (raw, body)
        return join(found[:MESSAGES_MAX])

    def close(self) -> None:
        self._served.close()


def make(name: str) -> Harness:
    return Engine()


def messages(data: bytes) -> Iterator[tuple[bool, bytes]]:
    """(whether it is sent as it is, the message) of an input."""
    place = count = 0
    while place + LENGTH.size <= len(data) and count < MESSAGES_MAX:
        length = LENGTH.unpack_from(data, place)[0]
        place += LENGTH.size
        yield bool(length & RAW), data[place : place + (length & ~RAW)]
        place += length & ~RAW
        count += 1


def join(parts: list[tuple[bool, bytes]]) -> bytes:
    return b"".join(LENGTH.pack(len(message) % RAW | (RAW if raw else 0)) + message for raw, message in parts)


def receive_frame(stream: socket.socket) -> tuple[protocol.Header, dict] | None:
    """The next frame of the engine, which must be a good one; None when the connection has ended."""
    head = receive(stream, HEADER_BYTES)
    if head is None:
        return None
    header = protocol.decode_header(head)
    body = receive(stream, header.body_bytes)
    assert body is not None, "a frame of the engine is cut short"
    return header, protocol.decode_body(body)


def receive(stream: socket.socket, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        try:
            part = stream.recv(count - len(data))
        except ConnectionResetError:
            return None
        if not part:
            return None
        data += part
    return data


def check_answer(answer: tuple[protocol.Header, dict], number: int, message: bytes) -> bool:
    """Whether the pool may have been changed."""
    assert answer[0].request_id == number
    return not check_error(answer) and protocol.decode_body(message)["op"] in CHANGES


def check_error(answer: tuple[protocol.Header, dict]) -> bool:
    """Whether it is an error: then it has a code we know, and is none that the engine calls a bug."""
    header, body = answer
    assert header.kind in (Kind.ERROR, Kind.ANSWER)
    if header.kind is Kind.ERROR:
        assert body["code"] in BY_CODE and not body["message"].startswith("bug in the engine"), body
    return header.kind is Kind.ERROR
