"""The kernel's generic netlink family `nbd`: block devices /dev/nbdN whose requests go to sockets that we hand over.

Every call names a device by its number.  One that changes a device also names its backend identifier, and the kernel refuses it
for another's, who may have taken the number between a look and a call; only a disconnect goes by the number alone.  Attribute numbers: include/uapi/linux/
nbd-netlink.h and genetlink.h of Linux 6.1.  A Family is for one thread at a time; a Listener for another.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

NETLINK_GENERIC = 16
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NLM_F_REQUEST, NLM_F_ACK = 1, 4
NLMSG_ERROR = 2
NESTED = 0x8000
TYPE_MASK = 0x3FFF
CTRL_FAMILY, CTRL_GETFAMILY = 16, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME, CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
CTRL_ATTR_MCAST_GRP_NAME, CTRL_ATTR_MCAST_GRP_ID = 1, 2
COMMAND_CONNECT, COMMAND_DISCONNECT, COMMAND_RECONFIGURE, COMMAND_LINK_DEAD = 1, 2, 3, 4
ATTR_INDEX, ATTR_SIZE_BYTES, ATTR_BLOCK_SIZE_BYTES, ATTR_TIMEOUT, ATTR_SERVER_FLAGS = 1, 2, 3, 4, 5
ATTR_SOCKETS, ATTR_DEAD_CONN_TIMEOUT, ATTR_BACKEND_IDENTIFIER = 7, 8, 10
SOCKET_ITEM, SOCKET_FD = 1, 1
MULTICAST_GROUP = "nbd_mc_group"
SECTOR_BYTES = 512
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
GENERIC = struct.Struct("=BBH")  # command, version, reserved
ATTRIBUTE = struct.Struct("=HH")  # length, type
RECEIVE_BYTES = 1 << 16
SYSFS = Path("/sys/block")


def _attribute(kind: int, payload: bytes) -> bytes:
    length = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _u64(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=Q", value))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & TYPE_MASK, data[at + ATTRIBUTE.size : at + length]
        at += length + -length % 4


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence, payload) of each message in what one recv returned."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, _flags, sequence, _port = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            return
        yield kind, sequence, data[at + HEADER.size : at + length]
        at += length + -length % 4


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
    opened.bind((0, 0))
    return opened


class Family:
    """The family, as it is called.  OSError with errno ENOENT when the kernel has none: nbd.ko is not loaded."""

    def __init__(self) -> None:
        self._sequence = itertools.count(1)
        self._socket = _open()
        try:
            answer = dict(self._call(CTRL_FAMILY, CTRL_GETFAMILY, _attribute(CTRL_ATTR_FAMILY_NAME, b"nbd\0")))
            (self._id,) = struct.unpack("=H", answer[CTRL_ATTR_FAMILY_ID])
            self._groups = _groups(answer.get(CTRL_ATTR_MCAST_GROUPS, b""))
        except BaseException:
            self._socket.close()
            raise

    def connect(
        self, index: int, backend: str, sockets: Sequence[socket.socket], size_bytes: int, block_bytes: int,
        server_flags: int, dead_link_seconds: int,
    ) -> None:  # fmt: skip
        """Make a device.  Its requests have no time limit of the driver's own (ATTR_TIMEOUT 0; Device.set_limits says why).

        OSError: EBUSY when there is a device of this number in use; EPERM without CAP_SYS_ADMIN.
        """
        self._call_nbd(
            COMMAND_CONNECT,
            _u32(ATTR_INDEX, index),
            _backend(backend),
            _u64(ATTR_SIZE_BYTES, size_bytes),
            _u64(ATTR_BLOCK_SIZE_BYTES, block_bytes),
            _u64(ATTR_SERVER_FLAGS, server_flags),
            _u64(ATTR_TIMEOUT, 0),
            _u64(ATTR_DEAD_CONN_TIMEOUT, dead_link_seconds),
            _sockets(sockets),
        )

    def resize(self, index: int, backend: str, size_bytes: int, block_bytes: int) -> None:
        """OSError: EINVAL when the device is not connected, or is another's; ENOENT when there is none."""
        size = _u64(ATTR_SIZE_BYTES, size_bytes)
        self._call_nbd(COMMAND_RECONFIGURE, _u32(ATTR_INDEX, index), _backend(backend), size, _u64(ATTR_BLOCK_SIZE_BYTES, block_bytes))

    def offer(self, index: int, backend: str, sockets: Sequence[socket.socket], dead_link_seconds: int) -> None:
        """Give each link that is dead one of the sockets; the kernel leaves those that it has no use for.  No sockets: only ask
        whether the device is connected.  OSError as of resize."""
        dead = _u64(ATTR_DEAD_CONN_TIMEOUT, dead_link_seconds)
        self._call_nbd(COMMAND_RECONFIGURE, _u32(ATTR_INDEX, index), _backend(backend), dead, *([_sockets(sockets)] if sockets else []))

    def disconnect(self, index: int) -> None:
        """Let go of a device: what is under way in it fails.  The caller has looked whose it is."""
        self._call_nbd(COMMAND_DISCONNECT, _u32(ATTR_INDEX, index))

    def listen(self) -> Listener:
        return Listener(self._id, self._groups[MULTICAST_GROUP])

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Family:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call_nbd(self, command: int, *attributes: bytes) -> None:
        self._call(self._id, command, b"".join(attributes))

    def _call(self, family: int, command: int, payload: bytes) -> list[tuple[int, bytes]]:
        """The attributes of the answer, if any; returns when the kernel has acknowledged the call."""
        sequence = next(self._sequence)
        body = GENERIC.pack(command, 1, 0) + payload
        self._socket.send(HEADER.pack(HEADER.size + len(body), family, NLM_F_REQUEST | NLM_F_ACK, sequence, 0) + body)
        answer: list[tuple[int, bytes]] = []
        while True:
            for kind, of, data in _messages(self._socket.recv(RECEIVE_BYTES)):
                if of != sequence:
                    continue  # what was left by a call that was interrupted
                if kind == NLMSG_ERROR:
                    (failure,) = struct.unpack_from("=i", data)
                    if failure:
                        raise OSError(-failure, os.strerror(-failure))
                    return answer
                answer = list(_attributes(data[GENERIC.size :]))


def _backend(backend: str) -> bytes:
    return _attribute(ATTR_BACKEND_IDENTIFIER, backend.encode() + b"\0")


def _sockets(sockets: Sequence[socket.socket]) -> bytes:
    items = (_attribute(SOCKET_ITEM | NESTED, _u32(SOCKET_FD, each.fileno())) for each in sockets)
    return _attribute(ATTR_SOCKETS | NESTED, b"".join(items))


def _groups(data: bytes) -> dict[str, int]:
    groups = {}
    for _number, group in _attributes(data):
        fields = dict(_attributes(group))
        (id,) = struct.unpack("=I", fields[CTRL_ATTR_MCAST_GRP_ID])
        groups[fields[CTRL_ATTR_MCAST_GRP_NAME].rstrip(b"\0").decode()] = id
    return groups


class Listener:
    """Hears of links that died, of anybody's devices.  fileno() becomes readable."""

    def __init__(self, family: int, group: int) -> None:
        self._family = family
        self._socket = _open()
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def dead_links(self) -> set[int] | None:
        """The numbers of the devices of which a link died since the last call; None: more than the kernel kept for us."""
        found: set[int] = set()
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return None
            for kind, _sequence, payload in _messages(data):
                if kind == self._family and payload[0] == COMMAND_LINK_DEAD:
                    found |= {struct.unpack("=I", value)[0] for name, value in _attributes(payload[GENERIC.size :]) if name == ATTR_INDEX}

    def close(self) -> None:
        self._socket.close()


class Device:
    """What sysfs tells of one nbd device, and the limits of its queue."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.path = Path(f"/dev/nbd{index}")
        self._directory = SYSFS / f"nbd{index}"

    @property
    def backend(self) -> str | None:
        """The identifier that its maker gave it; None: none, or it is not in use."""
        return self._read("backend")

    @property
    def in_use(self) -> bool:
        """Whether it is connected, or open still."""
        return (self._directory / "pid").exists() or self.backend is not None

    @property
    def size_bytes(self) -> int:
        return int(self._read("size") or 0) * SECTOR_BYTES

    @property
    def block_bytes(self) -> int:
        return int(self._read("queue/logical_block_size") or 0)

    def set_limits(self, limits: dict[str, str]) -> None:
        """Files below queue/ and what to write there; a kernel may lack one, or know better."""
        for name, value in limits.items():
            with suppress(OSError):
                path = self._directory / "queue" / name
                if path.read_text().strip() != value:
                    path.write_text(value)

    def _read(self, name: str) -> str | None:
        try:
            return (self._directory / name).read_text().strip()
        except OSError:
            return None


def devices() -> list[Device]:
    """All nbd devices that the kernel has, in use or not, by their numbers."""
    numbers = (path.name.removeprefix("nbd") for path in SYSFS.glob("nbd*"))
    return [Device(number) for number in sorted(int(text) for text in numbers if text.isdigit())]
