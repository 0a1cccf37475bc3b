"""Target `engine-client`: what the control plane's client makes of any answer to its requests.

The first byte chooses the call; then come messages as of target `engine`: bodies of answers with good headers, or bytes sent
as they are.  Whatever the engine's end says, the call returns or raises an operating error.
"""

from __future__ import annotations

import random
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from blockdev.accounting import Group, PoolUsage
from blockdev.engine import protocol
from blockdev.engine.client import EngineClient
from blockdev.engine.protocol import HEADER_BYTES, Kind
from blockdev.errors import BlockdevError
from blockdev.policies import PoolPolicy
from tests.fuzz import frames
from tests.fuzz.engine import join, messages, receive
from tests.fuzz.harness import Harness

CALLS: list[Callable[[EngineClient], Any]] = [
    lambda client: client.lead(),
    lambda client: client.hello(),
    lambda client: client.status(),
    lambda client: client.attachments(),
    lambda client: client.objects(),
    lambda client: client.get(1),
    lambda client: list(client.diff(None, 5)),
    lambda client: client.count_changes(None, 5),
    lambda client: client.inspection(1),
    lambda client: client.compaction(1),
    lambda client: client.findings(),
    lambda client: client.create([(512, "a", b"")]),
    lambda client: client.delete([1]),
    lambda client: client.policy(),
    lambda client: client.account([Group([1], [[(5, None)]])]),
    lambda client: client.statistics().latency(),
]
HELLO = {"instance": bytes(16), "uuid": "2b1d5a0c-7c44-4c3e-9d5e-0f6a3b1c2d4e", "pid": 1}
ROW = [5, 1, "web/root@s", b"s", 4 << 20, 77, None, None]
ANSWERS: list[dict[str, Any]] = [
    {"uuid": HELLO["uuid"]},
    HELLO,
    {"version": "0.1.0", "stats": {"poisoned": 0}},
    {"attachments": [[1, "web/root", "pid 7 (qemu)"]]},
    {"objects": [ROW], "cursor": 1},
    {"object": ROW},
    {"extents": [[0, 4096, True], [4096, 512, False]], "rest": None},
    {"bytes": 4608, "extents": 2},
    frames.INSPECTION,
    {"running": None, "check": None, "scrub": None, "findings": [frames.FINDING], "dropped": 0},
    {"made": [[9, None, 512, None]]},
    {},
    {},
    {"policy": PoolPolicy()._asdict()},
    {"pool": dict.fromkeys(PoolUsage._fields, 4096), "rows": [[4096, 0, 4096, 0], [8192, 0]], "cursor": None},
    frames.STATISTICS,
]
ERROR = 0x40  # in the first byte: answers are error frames


class Answering(threading.Thread):
    """The engine's end: answers each request with the next message, and leaves when there is none."""

    def __init__(self, path: str) -> None:
        super().__init__(name="answering", daemon=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen()
        self.kind = Kind.ANSWER
        self.script: list[tuple[bool, bytes]] = []

    def run(self) -> None:
        while True:
            stream, _ = self._listener.accept()
            with stream, suppress(OSError):
                while self._answer(stream):
                    pass

    def _answer(self, stream: socket.socket) -> bool:
        head = receive(stream, HEADER_BYTES)
        if head is None or not self.script:
            return False
        header = protocol.decode_header(head)
        receive(stream, header.body_bytes)
        raw, message = self.script.pop(0)
        if not raw:
            message = protocol.HEADER.pack(
                protocol.MAGIC, protocol.VERSION, self.kind, 0, header.request_id, len(message)
            ) + message
        stream.sendall(message)
        return not raw


class Clients(Harness):
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="answering-")
        self._path = str(Path(self._directory.name, "engine.sock"))
        self._engine = Answering(self._path)
        self._engine.start()

    def one_input(self, data: bytes) -> None:
        first = data[0] if data else 0
        hello = protocol.encode(Kind.ANSWER, 1, HELLO)[HEADER_BYTES:]
        self._engine.kind = Kind.ERROR if first & ERROR else Kind.ANSWER
        script = list(messages(data[1:]))
        self._engine.script = script if first & 0x80 else [(False, hello), *script]
        client = EngineClient(self._path, "a fuzzer")
        try:
            CALLS[first % 16 % len(CALLS)](client)
        except BlockdevError as error:
            assert error.message
        finally:
            client.close()

    def seeds(self) -> dict[str, bytes]:
        bodies = [protocol.encode(Kind.ANSWER, 1, answer)[HEADER_BYTES:] for answer in ANSWERS]
        made = {f"{number:02}": bytes([number]) + join([(False, body)] * 2) for number, body in enumerate(bodies)}
        error = protocol.encode_error(1, BlockdevError("what went wrong"))[HEADER_BYTES:]
        made["error"] = bytes([ERROR]) + join([(False, error)])
        made["raw"] = b"\0" + join([(True, protocol.encode(Kind.ANSWER, 2, ANSWERS[0]))])
        return made

    def mutate(self, data: bytes, chance: random.Random) -> bytes | None:
        found = list(messages(data[1:]))
        if not found:
            return None
        at = chance.randrange(len(found))
        body = frames.change_body(found[at][1], chance)
        if body is None:
            return None
        found[at] = (found[at][0], body)
        return data[:1] + join(found)

    def close(self) -> None:
        self._directory.cleanup()


def make(name: str) -> Harness:
    return Clients()
