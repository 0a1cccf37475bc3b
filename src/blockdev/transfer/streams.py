"""Stream files made of exports, and exports filled from stream files, with several requests under way at once.

A file appears whole and synced, or not at all.  What was imported is durable when `read_stream` returned.
Threads: THREADS of them read, compress, verify and write, each with a connection of its own; the caller's reads or writes
the file.  Memory: WAITING_MAX pieces of work of about 1 MiB each, whatever the size of disks and file.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

from blockdev import _medium
from blockdev.errors import InvalidArgument, MediumError, NotFound, PoolFull
from blockdev.transfer.disk import check_file, directory_beside
from blockdev.transfer.nbd import Export
from blockdev.transfer.stream_file import Record, StreamEncoder, StreamReader
from blockdev.transfer.stream_format import DATA_BYTES_MAX, Packed, pack
from blockdev.types import Extent
from blockdev.vmmap.copies import SnapshotCopy
from blockdev.vmmap.copy_fields import DISKS_MAX
from blockdev.watching import Cancelled, Watcher

THREADS = 4
WAITING_MAX = 8
PIECES_MAX = 256  # in one piece of work
FILE_BUFFER_BYTES = 1 << 20

T = TypeVar("T")
R = TypeVar("R")


class Source(NamedTuple):
    """One disk to write into a stream."""

    export: str
    extents: Iterator[Extent]  # that the stream is to hold: data, or holes that were made


@dataclass
class DiskCount:
    """What a stream holds of one disk."""

    data_bytes: int = 0
    hole_bytes: int = 0


@dataclass
class Counts:
    """What a stream holds."""

    file_bytes: int = 0
    disks: list[DiskCount] = field(default_factory=list)


class Piece(NamedTuple):
    """A part of an extent that one record holds."""

    offset: int
    length: int
    is_data: bool


class Connections:
    """One export, for THREADS threads at once."""

    def __init__(self, socket: str | os.PathLike[str], name: str) -> None:
        self._stack = ExitStack()
        self._free: SimpleQueue[Export] = SimpleQueue()
        with ExitStack() as opened:
            for _ in range(THREADS):
                self._free.put(opened.enter_context(Export(socket, name)))
            self._stack = opened.pop_all()

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    @contextmanager
    def one(self) -> Iterator[Export]:
        """A connection that no other thread has meanwhile."""
        export = self._free.get()
        try:
            yield export
        finally:
            self._free.put(export)


# --- writing a stream ---


def write_stream(
    socket: str | os.PathLike[str],
    copy: SnapshotCopy,
    sources: list[Source],
    path: str,
    overwrite: bool,
    level: int,
    total_bytes: int,
    watcher: Watcher,
) -> Counts:
    """Write the file `path`; `total_bytes` of extents are expected.

    InvalidArgument, AlreadyExists: the path; MediumError: its file system; Gone, Corrupt, ToolFailed, Unavailable: the engine.
    """
    if len(copy.disks) > DISKS_MAX:
        raise InvalidArgument(f"a stream file holds at most {DISKS_MAX} disks, and {copy.vm_name} has {len(copy.disks)}")
    check_file(path, overwrite)
    counts = Counts(disks=[DiskCount() for _ in sources])
    with directory_beside(Path(path)) as above:
        made = str(above / "stream")
        try:
            with closing(_bytes_of(socket, copy, sources, level, total_bytes, watcher, counts)) as content:
                _medium.write_file(made, content, create=True, durable=True)
            check_file(path, overwrite)
            _medium.rename_file(made, path)
            _medium.sync_directory(os.path.dirname(path))
        except MediumError as error:
            raise MediumError(f"exporting to {path} failed: {os.strerror(error.errno)}", error.errno) from None
    return counts


def _bytes_of(
    socket: str | os.PathLike[str],
    copy: SnapshotCopy,
    sources: list[Source],
    level: int,
    total_bytes: int,
    watcher: Watcher,
    counts: Counts,
) -> Generator[bytes, None, None]:
    """The file, a part of a record at a time."""
    encoder = StreamEncoder(copy)
    done_bytes = 0

    def passed(parts: list[bytes]) -> list[bytes]:
        counts.file_bytes += sum(map(len, parts))
        return parts

    yield from passed(encoder.begin())
    for disk, source in enumerate(sources):
        for piece, packed in _packed(socket, source, level):
            if packed is None:
                counts.disks[disk].hole_bytes += piece.length
                yield from passed(encoder.hole(disk, piece.offset, piece.length))
            else:
                counts.disks[disk].data_bytes += piece.length
                yield from passed(encoder.data(disk, piece.offset, packed))
            done_bytes += piece.length
            _tell(watcher, done_bytes, total_bytes)
    yield from passed(encoder.end())


def _packed(
    socket: str | os.PathLike[str], source: Source, level: int
) -> Iterator[tuple[Piece, Packed | None]]:
    """The disk's pieces in order, data read and packed."""
    with Connections(socket, source.export) as connections:

        def work(pieces: list[Piece]) -> list[tuple[Piece, Packed | None]]:
            with connections.one() as export:
                return [
                    (piece, pack(export.read(piece.offset, piece.length), level) if piece.is_data else None)
                    for piece in pieces
                ]

        for done in _in_order(work, _batches(_pieces(source.extents), lambda piece: piece.length * piece.is_data)):
            yield from done


def _pieces(extents: Iterable[Extent]) -> Iterator[Piece]:
    """Extents cut into what one record holds."""
    for extent in extents:
        if extent.state == "hole":
            yield Piece(extent.offset, extent.length, False)
            continue
        end = extent.offset + extent.length
        for offset in range(extent.offset, end, DATA_BYTES_MAX):
            yield Piece(offset, min(DATA_BYTES_MAX, end - offset), True)


# --- reading one ---


@contextmanager
def open_stream(path: str) -> Iterator[StreamReader]:
    """A file that a client named.  NotFound, InvalidArgument; Corrupt, UnknownFormat: what is in it."""
    check_readable(path)
    try:
        file = open(path, "rb", buffering=FILE_BUFFER_BYTES)  # noqa: SIM115
    except OSError as error:
        raise InvalidArgument(f"stream file {path} cannot be opened: {error.strerror}") from None
    with file:
        yield StreamReader(file, path)


def check_readable(path: str) -> int:
    """The size in bytes of a stream file, if it can be one."""
    if not os.path.isabs(path):
        raise InvalidArgument(f"path {path!r} of the stream file is not absolute")
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise NotFound(f"stream file {path} does not exist") from None
    except OSError as error:
        raise InvalidArgument(f"stream file {path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgument(f"{path} is not a file")
    if not os.access(path, os.R_OK):
        raise InvalidArgument(f"{path} cannot be read: give the blockdev daemon's user permission to read it")
    return found.st_size


def read_stream(
    reader: StreamReader,
    file_bytes: int,
    watcher: Watcher,
    socket: str | os.PathLike[str] = "",
    exports: list[str] | None = None,
) -> Counts:
    """Verify the rest of a stream; with `exports`, one for each disk, write it there.

    Corrupt: the file is damaged or cut off; PoolFull, Gone, Unavailable: the engine.
    """
    counts = Counts(disks=[DiskCount() for _ in reader.copy.disks])
    for disk, records in _by_disk(reader.records()):

        def counted(records: Iterator[Record] = records, count: DiskCount = counts.disks[disk]) -> Iterator[Record]:
            for record in records:
                if record.packed is None:
                    count.hole_bytes += record.length
                else:
                    count.data_bytes += record.length
                _tell(watcher, reader.position, file_bytes)
                yield record

        if exports is None:
            _drain(_in_order(lambda batch: [reader.plain(one) for one in batch if one.packed], _batches(counted(), _plain_bytes)))
        else:
            _fill(reader, counted(), socket, exports[disk])
    counts.file_bytes = reader.position
    return counts


def _fill(reader: StreamReader, records: Iterator[Record], socket: str | os.PathLike[str], name: str) -> None:
    """Write one disk; durable on return."""
    with Connections(socket, name) as connections:

        def work(batch: list[Record]) -> None:
            with connections.one() as export:
                for record in batch:
                    if record.packed is None:
                        export.zero(record.offset, record.length)
                    else:
                        export.write(record.offset, reader.plain(record))

        try:
            _drain(_in_order(work, _batches(records, _plain_bytes)))
            with connections.one() as export:
                export.flush()
        except PoolFull:
            raise PoolFull("the pool is full: the snapshot does not fit; delete VMs or snapshots, or use a larger pool") from None


def _by_disk(records: Iterator[Record]) -> Iterator[tuple[int, Iterator[Record]]]:
    """The records of each disk that has any; each must be taken to its end before the next."""
    ahead = next(records, None)

    def of(disk: int) -> Iterator[Record]:
        nonlocal ahead
        while ahead is not None and ahead.disk == disk:
            yield ahead
            ahead = next(records, None)

    while ahead is not None:
        yield ahead.disk, of(ahead.disk)


def _plain_bytes(record: Record) -> int:
    return record.packed.length if record.packed else 0


# --- work in threads ---


def _batches(items: Iterable[T], bytes_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Neighbours that together are about DATA_BYTES_MAX."""
    batch: list[T] = []
    batch_bytes = 0
    for item in items:
        if batch and (batch_bytes + bytes_of(item) > DATA_BYTES_MAX or len(batch) == PIECES_MAX):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(item)
        batch_bytes += bytes_of(item)
    if batch:
        yield batch


def _in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `work` makes of each item, several at once, in their order.  The first failure ends it, after those that run."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="stream") as threads:
        try:
            for item in items:
                waiting.append(threads.submit(work, item))
                if len(waiting) == WAITING_MAX:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _drain(results: Iterator[object]) -> None:
    for _ in results:
        pass


def _tell(watcher: Watcher, done: int, total: int) -> None:
    """How far it is.  Cancelled."""
    if watcher.is_cancelled():
        raise Cancelled
    watcher.advance(min(done / total, 1.0) if total else 1.0)
