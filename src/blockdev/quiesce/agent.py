"""A client of the QEMU guest agent, on the Unix socket of its channel.

The guest is not trusted: each answer is bounded in size and each call in time, bytes that mean nothing are a GuestFailed, and
what the guest says gets into messages only as short printable text.  A call that failed leaves the stream at an unknown place,
so the next one begins with guest-sync-delimited, which drops whatever an earlier call or client left; a lost connection is made anew by
the next call.  One thread.  Source: QEMU's docs/interop/qemu-ga-ref (qga/qapi-schema.json, seen with 7.2).
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType

from blockdev.clock import monotonic_seconds
from blockdev.errors import Busy, GuestFailed, InvalidArgument, Unavailable

ANSWER_BYTES_MAX = 256 << 10  # guest-info, the largest that is asked for, has 7 KiB
DRAIN_BYTES_MAX = 64 << 20  # an earlier client may have left an answer of guest-file-read: 48 MB, in base64
RECEIVE_BYTES = 64 << 10
SHOWN_CHARACTERS_MAX = 200
COUNT_MAX = 1 << 20
SENTINEL = b"\xff"  # in no JSON text: before a request it empties the agent's parser, before an answer it says where that begins
STATUS, FREEZE, THAW = "guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"


class Release:
    """The answer to a thaw."""

    def __init__(self, was_frozen: bool, count: int) -> None:
        self.was_frozen = was_frozen  # as the agent said, just before
        self.count = count  # of file systems that it thawed


class Agent:
    """The agent behind one socket, connected by the first call.

    Every call takes its limit in seconds, and raises Unavailable (nobody there, no answer in time, connection lost), Busy (the
    socket's queue is full) or GuestFailed (refused, or answered nonsense).
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        self.address = os.fspath(address)
        self._stream: socket.socket | None = None
        self._buffer = bytearray()  # received, not yet read
        self._is_synchronised = False

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._is_synchronised = False

    def ping(self, limit_s: float) -> None:
        self._ask("guest-ping", limit_s)

    def version(self, limit_s: float) -> str:
        """Of the agent, as it says (guest-info)."""
        answer = self._ask("guest-info", limit_s)
        if not isinstance(answer, dict) or not isinstance(answer.get("version"), str):
            raise self._nonsense("guest-info", answer)
        return _shown(answer["version"])

    def is_frozen(self, limit_s: float) -> bool:
        """What the agent believes: one that was started again without its state directory believes in a thawed guest."""
        return self._check_status(self._ask(STATUS, limit_s))

    def freeze(self, limit_s: float) -> int:
        """How many file systems were frozen.  After an error they may be, or become so: a thaw must follow."""
        return self._check_count(FREEZE, self._ask(FREEZE, limit_s))

    def thaw(self, limit_s: float) -> Release:
        """Thaw all file systems, those too that the agent does not know of.

        Everything is sent at once, before any answer: so it also undoes a freeze that the agent has not come to yet, whenever that is.
        """
        self._is_synchronised = False
        status, count = self._ask_all((STATUS, THAW), limit_s)
        was_frozen = not isinstance(status, GuestFailed) and self._check_status(status)
        if not isinstance(count, GuestFailed):
            return Release(was_frozen, self._check_count(THAW, count))
        if self.is_frozen(limit_s):
            raise count
        return Release(was_frozen, 0)  # thawed, and then the guest's own hook failed

    def _check_status(self, answer: object) -> bool:
        if answer not in ("frozen", "thawed"):
            raise self._nonsense(STATUS, answer)
        return answer == "frozen"

    def _check_count(self, command: str, answer: object) -> int:
        if type(answer) is not int or not 0 <= answer <= COUNT_MAX:
            raise self._nonsense(command, answer)
        return answer

    def _nonsense(self, command: str, answer: object) -> GuestFailed:
        self._is_synchronised = False
        return GuestFailed(f"the guest agent at {self.address} answered {command} with nonsense: {_shown(repr(answer))}")

    def _ask(self, command: str, limit_s: float) -> object:
        (answer,) = self._ask_all((command,), limit_s)
        if isinstance(answer, GuestFailed):
            raise answer
        return answer

    def _ask_all(self, commands: Sequence[str], limit_s: float) -> list[object]:
        """The answers in order; one that is a refusal is a GuestFailed, returned."""
        deadline = monotonic_seconds() + limit_s
        token = None if self._is_synchronised else int.from_bytes(os.urandom(4), "big")
        requests = b"" if token is None else SENTINEL + _request("guest-sync-delimited", {"id": token})
        self._is_synchronised = False
        try:
            stream = self._connected(limit_s)
            self._buffer.clear()
            self._send(stream, requests + b"".join(_request(command) for command in commands), deadline)
            if token is not None:
                self._await_token(stream, token, deadline)
            answers = [self._answer(stream, command, deadline) for command in commands]
        except TimeoutError:
            raise Unavailable(
                f"the guest agent at {self.address} did not answer {commands[0]} within {limit_s:.3g} s: see that "
                "qemu-guest-agent runs in the guest, and that no other program holds the socket"
            ) from None
        except OSError as error:
            self.close()
            raise Unavailable(
                f"cannot reach the guest agent at {self.address}: {error.strerror or error}; see that the VM runs and has this channel"
            ) from error
        self._is_synchronised = True
        return answers

    def _connected(self, limit_s: float) -> socket.socket:
        if self._stream is not None:
            return self._stream
        if len(os.fsencode(self.address)) > 107:
            raise InvalidArgument(f"the path {self.address} is too long for a Unix socket, which takes 107 bytes")
        stream = socket.socket(socket.AF_UNIX)
        try:
            # the kernel's own limit: with Python's, a full queue would be an error at once
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(limit_s))
            stream.connect(self.address)
        except BlockingIOError:
            stream.close()
            raise Busy(f"other programs wait for the guest agent's socket {self.address}, too: let them end") from None
        except OSError:
            stream.close()
            raise
        self._stream = stream
        return stream

    def _send(self, stream: socket.socket, data: bytes, deadline: float) -> None:
        stream.settimeout(_left(deadline))
        stream.sendall(data)

    def _receive(self, stream: socket.socket, deadline: float) -> int:
        stream.settimeout(_left(deadline))
        data = stream.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the connection was closed")
        self._buffer += data
        return len(data)

    def _await_token(self, stream: socket.socket, token: int, deadline: float) -> None:
        """Drop everything up to the answer to our sync."""
        dropped_bytes = 0
        while True:
            line = self._synchronising_line()
            if line is None:
                dropped_bytes += self._receive(stream, deadline)
            elif _parsed(line) == {"return": token}:
                return
            if dropped_bytes > DRAIN_BYTES_MAX:
                raise GuestFailed(f"the guest agent at {self.address} does not stop sending what nobody asked for")

    def _synchronising_line(self) -> bytes | None:
        """The next line that may answer a sync, once it is whole; what cannot become one is dropped."""
        start = self._buffer.find(SENTINEL)
        if start < 0:
            self._buffer.clear()
            return None
        end = self._buffer.find(b"\n", start)
        if end >= 0:
            line = bytes(self._buffer[start:end]).rpartition(SENTINEL)[2]
            del self._buffer[: end + 1]
            return line
        del self._buffer[:start]
        if len(self._buffer) > ANSWER_BYTES_MAX:
            del self._buffer[:1]  # no answer of ours is so long: a sentinel in the middle of something else
        return None

    def _answer(self, stream: socket.socket, command: str, deadline: float) -> object:
        while b"\n" not in self._buffer:
            if len(self._buffer) > ANSWER_BYTES_MAX:
                raise GuestFailed(f"the guest agent at {self.address} answered {command} with too much")
            self._receive(stream, deadline)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return self._check_answer(command, _parsed(line), line)

    def _check_answer(self, command: str, answer: object, line: bytes) -> object:
        if isinstance(answer, dict) and "return" in answer:
            return answer["return"]
        error = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(error, dict):
            raise self._nonsense(command, line[: SHOWN_CHARACTERS_MAX + 1])
        return GuestFailed(f"the guest agent at {self.address} refused {command}: {_shown(str(error.get('desc')))}")


def _request(command: str, arguments: dict[str, int] | None = None) -> bytes:
    body: dict[str, object] = {"execute": command}
    if arguments is not None:
        body["arguments"] = arguments
    return json.dumps(body).encode() + b"\n"


def _parsed(line: bytes) -> object:
    """None for what is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # the latter: a megabyte of brackets
        return None


def _left(deadline: float) -> float:
    left_s = deadline - monotonic_seconds()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _timeval(seconds: float) -> bytes:
    microseconds = max(1, int(seconds * 1e6))
    return struct.pack("ll", *divmod(microseconds, 1_000_000))


def _shown(text: str) -> str:
    """What a guest said, for a person's terminal: one line of bounded length, without control characters."""
    kept = "".join(character if character.isprintable() else "?" for character in text[: SHOWN_CHARACTERS_MAX + 1])
    return kept if len(kept) <= SHOWN_CHARACTERS_MAX else f"{kept[:SHOWN_CHARACTERS_MAX]}..."
