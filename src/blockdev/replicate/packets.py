"""The SSH packets that carry a channel's data, made and read with as few copies of the bytes as can be.

asyncssh does all of SSH: it connects, authenticates, exchanges keys, opens and closes channels, and says every other packet.
On two cores its own way with data leaves nothing of them for an engine at either end (docs/replication.md, "Measured").  So
where a packet is data of an open channel and the cipher is AES-GCM, this does the same as asyncssh would: RFC 4253 section 6,
RFC 4254 section 5.2, RFC 5647 section 7.3; in all other cases asyncssh does it itself.  What is used of its inside is named
here and nowhere else, and tests/replicate/test_packets.py holds it to asyncssh as it comes, as either end.

Threads: the loop's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

from asyncssh.encryption import Encryption, GCMEncryption
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from blockdev.clock import monotonic_seconds
from blockdev.replicate.frames import Frames

MSG_CHANNEL_DATA = 94
LENGTH = struct.Struct(">I")
DATA_HEAD = struct.Struct(">BBII")  # of a packet, when it is plain: padding length, kind, channel, length of the data
TAG_BYTES = 16
BLOCK_BYTES = 16  # packets are padded to
PADDING_BYTES_MIN = 4
SLACK_BYTES = 64  # of room that the cipher asks for behind what it writes
FIRST_BYTES = 16  # of a packet, that asyncssh takes apart from the others
BUFFER_BYTES = 1 << 16  # to begin with
READ_BYTES = 1 << 20  # of room for the socket, once there are large packets
HEARD_SECONDS = 0.1  # between tellings: each makes and drops a timer
LARGE_BYTES = 1 << 14  # packets of so many and more are opened where the channel's messages are made


class Gcm(Encryption):
    """AES-GCM of one direction, from the state that asyncssh's own has reached."""

    def __init__(self, key: bytes, nonce: bytes) -> None:
        """nonce: of the next packet."""
        self._cipher = AESGCM(key)
        self._algorithm = AES(key)
        self._fixed, self._count = nonce[:4], int.from_bytes(nonce[4:], "big")
        self._opened: bytes | None = None

    def _nonce(self) -> bytes:
        nonce = self._fixed + self._count.to_bytes(8, "big")
        self._count = (self._count + 1) & 0xFFFFFFFFFFFFFFFF
        return nonce

    def seal(self, length: memoryview, packet: memoryview, out: memoryview) -> None:
        """out: of as many bytes as the packet, and SLACK_BYTES; after the packet TAG_BYTES of these are the tag."""
        sealing = Cipher(self._algorithm, GCM(self._nonce())).encryptor()
        sealing.authenticate_additional_data(length)
        end = sealing.update_into(packet, out)
        sealing.finalize()
        out[end : end + TAG_BYTES] = sealing.tag

    def open(self, packet: memoryview, out: memoryview) -> bool:
        """False: it is forged, or damaged."""
        try:
            self._cipher.decrypt_into(self._nonce(), packet[LENGTH.size :], packet[: LENGTH.size], out)
        except InvalidTag:
            return False
        return True

    def leave(self, plain: bytes) -> None:
        """What the packet that asyncssh is given next was opened to; empty: it could not be."""
        self._opened = plain

    # what asyncssh calls

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        return header, self._cipher.encrypt(self._nonce(), packet, header)

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        return first_block, first_block[:header_len]

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        if self._opened is not None:
            opened, self._opened = self._opened, None
            return opened or None
        try:
            return self._cipher.decrypt(self._nonce(), first[header_len:] + rest + mac, first[:header_len])
        except InvalidTag:
            return None


class Packets:
    """Of one connection."""

    def __init__(self, connection: Any, unsent_bytes: Callable[[], int]) -> None:
        """connection: an asyncssh.SSHConnection; unsent_bytes: of what it has sent, those that its transport still has."""
        self._connection = connection
        self._unsent_bytes = unsent_bytes
        self._sealed = bytearray()  # what goes to the socket
        self._buffer = bytearray(BUFFER_BYTES)  # what came from the socket, of which
        self._begin = self._end = 0  # this was not read yet
        self._opened = bytearray()  # a packet that came
        self._frames: dict[Any, Frames] = {}  # of channels that are open
        self._heard_at = 0.0  # when asyncssh was told that the other end lives
        self._latest: Frames | None = None  # of the channel that the latest large packet was for

    def opened(self, channel: Any, frames: Frames) -> None:
        """Who cuts the channel's data into messages."""
        self._frames[channel] = frames

    def ended(self, channel: Any) -> None:
        if self._frames.pop(channel, None) is self._latest:
            self._latest = None

    # sending

    def write(self, channel: Any, memory: memoryview, first: int, count: int) -> None:
        """As SSHChannel.write, of `count` bytes of the memory, around which there are frames.ROOM_BYTES.

        They are written to, and are what they were when this returns.
        """
        cipher = self._sealer(channel, count)
        if cipher is None:
            channel.write(bytes(memory[first : first + count]))  # asyncssh may keep it
            return
        connection, begin, end = self._connection, first - DATA_HEAD.size, first + count
        padding = -(DATA_HEAD.size + count) % BLOCK_BYTES
        if padding < PADDING_BYTES_MIN:
            padding += BLOCK_BYTES
        length = DATA_HEAD.size + count + padding
        whole = LENGTH.size + length + TAG_BYTES
        if len(self._sealed) < whole + SLACK_BYTES:
            self._sealed = bytearray(whole + SLACK_BYTES)
        LENGTH.pack_into(self._sealed, 0, length)
        before, behind = bytes(memory[begin:first]), bytes(memory[end : end + padding])
        DATA_HEAD.pack_into(memory, begin, padding, MSG_CHANNEL_DATA, channel._send_chan, count)
        memory[end : end + padding] = os.urandom(padding)
        with memoryview(self._sealed) as sealed:
            cipher.seal(sealed[: LENGTH.size], memory[begin : end + padding], sealed[LENGTH.size :])
            memory[begin:first], memory[end : end + padding] = before, behind
            channel._send_window -= count
            connection._send_seq = (connection._send_seq + 1) & 0xFFFFFFFF
            connection._rekey_bytes_sent += length
            connection._send(sealed[:whole])
        if self._unsent_bytes():  # the transport may go on with these very bytes
            self._sealed = bytearray()

    def _sealer(self, channel: Any, byte_count: int) -> Gcm | None:
        """Of the next packet, if it may be one of data, now, of so many bytes."""
        connection = self._connection
        if (
            channel._send_state != "open"
            or channel._send_buf
            or not 0 < byte_count <= min(channel._send_window, channel._send_pktsize)
            or not (connection._kex_complete and connection._auth_complete)
            or connection._compressor is not None
            or connection._rekey_bytes_sent >= connection._rekey_bytes
            or (connection._rekey_seconds and monotonic_seconds() >= connection._rekey_time)
        ):
            return None
        cipher = _taken_over(connection._send_encryption)
        if cipher is not None:
            connection._send_encryption = cipher
        return cipher

    # receiving

    def room(self) -> memoryview:
        """Where the socket is to put what comes next."""
        if self._begin == self._end:
            self._begin = self._end = 0
        wanted = self._wanted()
        if self._begin + wanted > len(self._buffer) or self._end == len(self._buffer):
            rest = self._buffer[self._begin : self._end]
            if wanted > len(self._buffer):
                self._buffer = bytearray(wanted + READ_BYTES)
            self._buffer[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
        return memoryview(self._buffer)[self._end :]

    def _wanted(self) -> int:
        """The size of the packet that has begun to come."""
        if self._end - self._begin < LENGTH.size or self._opener() is None:
            return 0
        [length] = LENGTH.unpack_from(self._buffer, self._begin)
        return min(LENGTH.size + length, int(self._connection._max_recv_pktlen)) + TAG_BYTES

    def came(self, byte_count: int) -> None:
        """So many bytes are there."""
        self._end += byte_count
        connection = self._connection
        while self._begin < self._end and connection._transport is not None and self._advance():
            pass

    def _advance(self) -> bool:
        """Read a packet, or hand bytes over to asyncssh; False: more must come before."""
        connection, there = self._connection, self._end - self._begin
        cipher = self._opener()
        if cipher is None:
            self._hand_over(min(there, self._lacking() or there))
            return True
        if there < FIRST_BYTES:
            return False
        [length] = LENGTH.unpack_from(self._buffer, self._begin)
        if length > connection._max_recv_pktlen or length < FIRST_BYTES:
            self._hand_over(there)  # who says what is wrong
            return True
        whole = LENGTH.size + length + TAG_BYTES
        if there < whole:
            return False
        self._read(cipher, length)
        return True

    def _lacking(self) -> int:
        """How many bytes of the packet that it has begun to read asyncssh lacks."""
        connection = self._connection
        if not connection._auth_complete or connection._recv_handler != connection._recv_packet:
            return 0
        rest = LENGTH.size + connection._pktlen + connection._recv_macsize - connection._recv_blocksize
        return int(max(rest - len(connection._inpbuf), 0))

    def _opener(self) -> Gcm | None:
        """Of the next packet, if asyncssh waits for one and none of it is with asyncssh."""
        connection = self._connection
        if not connection._auth_complete or connection._inpbuf or connection._recv_handler != connection._recv_pkthdr:
            return None
        cipher = _taken_over(connection._recv_encryption)
        if cipher is not None:
            connection._recv_encryption = cipher
        return cipher

    def _hand_over(self, byte_count: int) -> None:
        begin, self._begin = self._begin, self._begin + byte_count
        self._connection.data_received(bytes(self._buffer[begin : self._begin]))

    def _read(self, cipher: Gcm, length: int) -> None:
        whole = LENGTH.size + length + TAG_BYTES
        frames = self._latest if length >= LARGE_BYTES else None
        opened = self._own_room(length) if frames is None else frames.room(DATA_HEAD.size, length)
        with memoryview(self._buffer) as came:
            is_sound = cipher.open(came[self._begin : self._begin + whole], opened)
        head, body = bytes(opened[: DATA_HEAD.size]), opened[DATA_HEAD.size :]
        if frames is not None:
            frames.uncover()
        if is_sound and self._deliver(head, body, frames):
            self._begin += whole
            return
        cipher.leave(head + body if is_sound else b"")
        self._hand_over(whole)

    def _own_room(self, length: int) -> memoryview:
        if len(self._opened) < length:
            self._opened = bytearray(length)
        return memoryview(self._opened)[:length]

    def _deliver(self, head: bytes, body: memoryview, made_for: Frames | None) -> bool:
        """False: it is no data of a channel that takes it.  made_for: in whose room the body is; None: in our own."""
        connection = self._connection
        padding, kind, number, byte_count = DATA_HEAD.unpack(head)
        channel = connection._channels.get(number) if kind == MSG_CHANNEL_DATA else None
        if (
            channel is None
            or connection._decompressor is not None
            or padding < PADDING_BYTES_MIN
            or byte_count + padding != len(body)
            or channel._recv_state != "open"
            or not 0 < byte_count <= channel._recv_window
        ):
            return False
        frames, data = self._frames.get(channel), body[:byte_count]
        connection._auth_final = True
        connection._recv_seq = (connection._recv_seq + 1) & 0xFFFFFFFF
        if (now := monotonic_seconds()) >= self._heard_at + HEARD_SECONDS:
            self._heard_at = now
            connection._reset_keepalive_timer()
        if made_for is not None and made_for is frames:
            made_for.made(data)
        if byte_count >= LARGE_BYTES:
            self._latest = frames
        try:
            channel._accept_data(bytes(data) if channel._recv_paused else data)  # a paused one keeps it
        except Exception:
            connection.internal_error()
        return True


def _taken_over(cipher: object) -> Gcm | None:
    """Our own for asyncssh's; None: it is another cipher."""
    if isinstance(cipher, Gcm):
        return cipher
    return Gcm(cipher._cipher._key, cipher._cipher._iv) if type(cipher) is GCMEncryption else None
