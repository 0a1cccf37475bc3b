"""Reading a stream file from its first byte to its last, and what its bytes are when one is written.

A reader takes no byte for good before it was verified; that nothing is missing is known when `records` has ended.
Memory: one record.  One thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import xxhash

from blockdev.errors import Corrupt, InvalidArgument, MediumError, UnknownFormat
from blockdev.transfer import stream_format as format
from blockdev.transfer.stream_format import Head, Malformed, NoStream, OtherVersion, Packed
from blockdev.vmmap.copies import SnapshotCopy


class Record(NamedTuple):
    """A data record, or a hole."""

    at: int  # byte of the file
    disk: int  # index in the metadata
    offset: int  # bytes of the disk
    length: int
    packed: Packed | None  # None: a hole


class StreamReader:
    """A stream file, opened for reading.  Every method raises Corrupt, MediumError; making one InvalidArgument, UnknownFormat, too."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Reads the header and the metadata; `name` is what messages call the file.  InvalidArgument: it is no stream."""
        self._file = file
        self._name = name
        self.position = 0  # bytes that were read
        self._digest = xxhash.xxh3_128()
        self._record_count = self._data_bytes = 0
        try:
            format.decode_header(self._take(format.HEADER_BYTES))
            head = format.decode_head(self._take(format.HEAD_BYTES))
            if head.type != format.METADATA:
                raise Malformed("the first record is not the metadata")
            content = self._take(head.stored_bytes)
            if format.digest_of(content) != head.digest:
                raise Malformed("the metadata does not verify")
            self.copy: SnapshotCopy = format.decode_metadata(content)
        except NoStream as error:
            raise InvalidArgument(f"{name} is no stream file: {error}; name one that blockdevctl snapshot export wrote") from None
        except OtherVersion as error:
            raise UnknownFormat(f"{name} cannot be read: {error}") from None
        except Malformed as error:
            raise self.damaged(self.position, error) from None

    def records(self) -> Iterator[Record]:
        """In the order of disks and offsets; when it has ended, the file is whole and has nothing behind its end.

        The content of data records is still to be verified: `plain`.
        """
        disk, end = 0, 0
        while True:
            at = self.position
            so_far = self._digest.digest()
            try:
                head = format.decode_head(self._take(format.HEAD_BYTES))
                if head.type == format.TRAILER:
                    self._check_trailer(head, so_far)
                    return
                if head.type == format.METADATA or head.disk < disk or head.disk >= len(self.copy.disks):
                    raise Malformed("a record that is out of its order")
                disk, end = head.disk, end if head.disk == disk else 0
                format.check_place(head, end, self.copy.disks[disk])
            except Malformed as error:
                raise self.damaged(at, error) from None
            end = head.offset + head.length
            self._record_count += 1
            packed = None
            if head.type == format.DATA:
                self._data_bytes += head.length
                packed = Packed(head.codec, self._take(head.stored_bytes), head.length, head.digest)
            yield Record(at, disk, head.offset, head.length, packed)

    def plain(self, record: Record) -> bytes:
        """The verified bytes of a data record.  Any thread."""
        assert record.packed is not None
        try:
            return format.unpack(record.packed)
        except Malformed as error:
            raise self.damaged(record.at, error) from None

    def damaged(self, at: int, why: object) -> Corrupt:
        return Corrupt(f"{self._name} is damaged at byte {at}: {why}; get a whole copy of it")

    def _check_trailer(self, head: Head, so_far: bytes) -> None:
        if (head.offset, head.length) != (self._record_count, self._data_bytes) or head.digest != so_far:
            raise Malformed("what came before the trailer is not what was written")
        if self._read(1):
            raise Malformed("there is more behind the end")

    def _take(self, byte_count: int) -> bytes:
        data = self._read(byte_count)
        if self.position == 0:
            format.check_magic(data)
        if len(data) < byte_count:
            raise Corrupt(f"{self._name} is cut off at byte {self.position + len(data)}: get a whole copy of it")
        self.position += byte_count
        self._digest.update(data)
        return data

    def _read(self, byte_count: int) -> bytes:
        try:
            return self._file.read(byte_count)
        except OSError as error:
            raise MediumError(f"{self._name} cannot be read at byte {self.position}: {error.strerror}", error.errno or 0) from None


class StreamEncoder:
    """What the bytes of a stream are; whoever calls writes what each method returns, in this order."""

    def __init__(self, copy: SnapshotCopy) -> None:
        self._copy = copy
        self._digest = xxhash.xxh3_128()
        self._record_count = self._data_bytes = 0

    def begin(self) -> list[bytes]:
        content = format.encode_metadata(self._copy)
        head = Head(format.METADATA, format.RAW, 0, len(content), 0, len(content), format.digest_of(content))
        return self._count(format.encode_header(), format.encode_head(head), content)

    def data(self, disk: int, offset: int, packed: Packed) -> list[bytes]:
        self._record_count += 1
        self._data_bytes += packed.length
        head = Head(format.DATA, packed.codec, disk, len(packed.stored), offset, packed.length, packed.digest)
        return self._count(format.encode_head(head), packed.stored)

    def hole(self, disk: int, offset: int, length: int) -> list[bytes]:
        self._record_count += 1
        return self._count(format.encode_head(Head(format.HOLE, format.RAW, disk, 0, offset, length, bytes(16))))

    def end(self) -> list[bytes]:
        head = Head(format.TRAILER, format.RAW, 0, 0, self._record_count, self._data_bytes, self._digest.digest())
        return self._count(format.encode_head(head))

    def _count(self, *parts: bytes) -> list[bytes]:
        for part in parts:
            self._digest.update(part)
        return list(parts)
