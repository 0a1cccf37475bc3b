"""The engine's end of the engine socket: threads in the engine process, one for each connection.

Runs inside nbdkit's interpreter, so with plain sockets and threads.  A connection's requests are answered in order;
connections do not wait for each other, except that changes of the pool run one at a time (operations.py).
Invariant: whatever a client sends, the answer is a frame or the end of that connection, never of the engine.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress

from blockdev import Pool, diagnostics
from blockdev.engine import protocol
from blockdev.engine.attachments import Attachments
from blockdev.engine.exchange import BEHIND_GUESTS
from blockdev.engine.operations import Operations, Session
from blockdev.engine.protocol import HEADER_BYTES, Kind, ProtocolError
from blockdev.engine.stream import receive, receive_with_descriptor, send
from blockdev.errors import AlreadyExists, BlockdevError, Busy, MediumError
from blockdev.priority import give_way_to_guests

CONNECTIONS_MAX = 64  # a control plane uses a handful
BACKLOG = 16
ANSWER_SECONDS_MAX = 60.0  # a client that takes no byte of its answer for so long is gone
STOP_SECONDS_MAX = 30.0


class EngineServer:
    """Listens on one socket file, mode 0600, from `start` to `stop`."""

    def __init__(
        self,
        pool: Pool,
        attachments: Attachments,
        socket_path: str,
        *,
        plugin: str = "",
        at_step: Callable[[str], None] | None = None,
    ) -> None:
        """`plugin` is what `status` shows; `at_step` see Operations."""
        self._path = os.fspath(socket_path)
        self._operations = Operations(pool, attachments, plugin, at_step)
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopping = False  # under _lock, as is what follows
        self._connections: dict[threading.Thread, socket.socket] = {}

    def start(self) -> None:
        """Begin to answer.  Busy: an engine answers there already; a dead engine's socket file is replaced."""
        self._listener = _listen(self._path)
        self._accepting = threading.Thread(target=self._accept, name="engine-socket", daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """Let running requests be answered, end all connections, remove the socket file."""
        if self._listener is None or self._accepting is None:
            return
        with self._lock:
            self._stopping = True
            open_now = dict(self._connections)
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        _shut(self._listener, socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for connection in open_now.values():
            _shut(connection, socket.SHUT_RD)
        for thread in open_now:
            thread.join(STOP_SECONDS_MAX)
        self._listener = self._accepting = None

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                with self._lock:
                    if self._stopping:
                        return
                continue  # the client left before it was accepted
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        thread = threading.Thread(target=self._serve, args=(connection,), name="engine-client", daemon=True)
        with self._lock:
            refused = self._stopping or len(self._connections) >= CONNECTIONS_MAX
            if not refused:
                self._connections[thread] = connection
        if refused:
            _try_send(connection, protocol.encode_error(0, Busy("the engine socket has too many connections")))
            connection.close()
        else:
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        session = Session()
        try:
            while self._serve_one(connection, session):
                pass
        finally:
            with self._lock:
                del self._connections[threading.current_thread()]
            self._operations.forget(session)
            session.close()
            connection.close()

    def _serve_one(self, connection: socket.socket, session: Session) -> bool:
        """Answer one request; False when the connection is over."""
        try:
            data, descriptor = _receive_header(connection)
            session.offer(descriptor)
            if data is None:
                return False
            header = protocol.decode_header(data)
            if header.kind is not Kind.REQUEST:
                raise ProtocolError("a client sends requests only")
            body = _receive(connection, header.body_bytes)
        except ProtocolError as error:  # where the next frame begins is not known any more
            _try_send(connection, protocol.encode_error(0, error))
            return False
        if body is None:
            return False
        return _try_send(connection, self._answer(session, header.request_id, body))

    def _answer(self, session: Session, request_id: int, body: bytearray) -> bytes:
        try:
            request = protocol.check_request(protocol.decode_body(body))
            if request.operation in BEHIND_GUESTS:
                give_way_to_guests()
            answer = self._operations.perform(session, request)
            return protocol.encode(Kind.ANSWER, request_id, answer)
        except BlockdevError as error:
            return protocol.encode_error(request_id, error)
        except Exception as error:
            diagnostics.report_bug(error)
            text = f"bug in the engine: {type(error).__name__}: {error}; its log has the trace"
            return protocol.encode_error(request_id, BlockdevError(text))


def _listen(path: str) -> socket.socket:
    """A listening socket at `path`, for its owner only from its first moment."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # Linux gives the file the mode that the socket has at bind
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise MediumError(f"cannot listen on {path}: {error}", error.errno or MediumError.errno) from error
    return listener


def _remove_stale(path: str) -> None:
    """Remove the socket file of an engine that is dead."""
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AlreadyExists(f"{path} is not a socket: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
    raise Busy(f"another engine answers at {path}: stop it first")


def _receive_header(connection: socket.socket) -> tuple[bytearray | None, int | None]:
    """A header and the descriptor that came with it; no header when the client has left."""
    try:
        return receive_with_descriptor(connection, HEADER_BYTES)
    except OSError:
        return None, None


def _receive(connection: socket.socket, byte_count: int) -> bytearray | None:
    """Exactly so many bytes, or None when the client has left."""
    try:
        return receive(connection, byte_count)
    except OSError:
        return None


def _try_send(connection: socket.socket, frame: bytes) -> bool:
    """False when the client has left, or does not take its answer."""
    try:
        connection.settimeout(ANSWER_SECONDS_MAX)
        send(connection, frame)
        connection.settimeout(None)
    except OSError:
        return False
    return True


def _shut(connection: socket.socket, how: int) -> None:
    with suppress(OSError):
        connection.shutdown(how)
