"""The oracle: what a pool must hold, kept in plain dictionaries, and which states a crash may leave.

A block that is absent is zero.  Every write gives the blocks it touches a new stamp: two contents that share a block's
stamp share its history, so a diff that reports the block is reporting something that did not change.

Crash rule: the surviving steps are a prefix of the order in which they were replied to.  The first step that did not
survive as a whole may have left any of its sectors, each old or new, never a mix inside a sector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from blockdev import Extent

BLOCK = 4096
SECTOR = 512
ZERO_BLOCK = bytes(BLOCK)
ZERO_SECTOR = bytes(SECTOR)


@dataclass
class Content:
    """What one vdisk or snapshot holds."""

    size_bytes: int
    blocks: dict[int, bytes] = field(default_factory=dict)  # block number -> 4096 bytes, never all zero
    stamps: dict[int, int] = field(default_factory=dict)  # block number -> the write that touched it last

    def copy(self) -> Content:
        return Content(self.size_bytes, dict(self.blocks), dict(self.stamps))

    def write(self, offset: int, data: bytes, stamp: int) -> None:
        done = 0
        while done < len(data):
            number, inside = divmod(offset + done, BLOCK)
            count = min(BLOCK - inside, len(data) - done)
            old = self.blocks.get(number, ZERO_BLOCK)
            self._put(number, old[:inside] + data[done : done + count] + old[inside + count :], stamp)
            done += count

    def zero(self, offset: int, length: int, stamp: int) -> None:
        end = offset + length
        first, last = offset // BLOCK, (end - 1) // BLOCK
        for edge in {first, last}:
            low, high = max(offset, edge * BLOCK), min(end, (edge + 1) * BLOCK)
            self.write(low, bytes(high - low), stamp)
        for number in [number for number in self.stamps if first < number < last]:
            self._put(number, ZERO_BLOCK, stamp)

    def resize(self, size_bytes: int, stamp: int) -> None:
        if size_bytes < self.size_bytes:
            self.zero(size_bytes, self.size_bytes - size_bytes, stamp)
        elif self.size_bytes % BLOCK and self.size_bytes // BLOCK in self.stamps:
            self.stamps[self.size_bytes // BLOCK] = stamp  # what a shrink left behind the end is cleared now
        self.size_bytes = size_bytes

    def certain_bytes(self) -> int:
        """How far the model knows extents: a last block cut by a shrink may hold data that cannot be seen."""
        last = self.size_bytes // BLOCK
        return self.size_bytes if last in self.blocks else last * BLOCK

    def visible(self, number: int, size_bytes: int) -> bytes:
        """A block up to the end of a disk of `size_bytes`."""
        return self.blocks.get(number, ZERO_BLOCK)[: size_bytes - number * BLOCK]

    def _put(self, number: int, block: bytes, stamp: int) -> None:
        self.stamps[number] = stamp
        if block == ZERO_BLOCK:
            self.blocks.pop(number, None)
        else:
            self.blocks[number] = block

    def touch(self, offset: int, length: int, stamp: int, all_blocks: bool) -> None:
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        touched = range(first, last + 1) if all_blocks else [n for n in self.stamps if first <= n <= last]
        self.stamps.update(dict.fromkeys(touched, stamp))

    def read(self, offset: int, length: int) -> bytes:
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        whole = b"".join(self.blocks.get(number, ZERO_BLOCK) for number in range(first, last + 1))
        return whole[offset - first * BLOCK : offset - first * BLOCK + length]

    def sector(self, number: int) -> bytes:
        block = self.blocks.get(number // 8)
        return block[number % 8 * SECTOR : (number % 8 + 1) * SECTOR] if block else ZERO_SECTOR

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Data where a block is not zero, hole elsewhere, cut to the range."""
        end, at, found = offset + length, offset, []
        numbers = sorted(
            number for number in self.blocks if (number + 1) * BLOCK > offset and number * BLOCK < end
        )
        for number in numbers:
            low, high = max(offset, number * BLOCK), min(end, (number + 1) * BLOCK)
            if low > at:
                found.append(Extent(at, low - at, "hole"))
            found.append(Extent(low, high - low, "data"))
            at = high
        if at < end:
            found.append(Extent(at, end - at, "hole"))
        return merged(found)


@dataclass(frozen=True)
class Step:
    """One change of one vdisk that is not yet known to be durable."""

    disk: int
    offset: int
    length: int
    data: bytes | None  # None: zeros
    stamp: int

    def apply(self, content: Content) -> None:
        if self.data is None:
            content.zero(self.offset, self.length, self.stamp)
        else:
            content.write(self.offset, self.data, self.stamp)

    def sectors(self, known: Iterable[int]) -> list[int]:
        """The sectors of `known` that this step covers."""
        first, end = self.offset // SECTOR, (self.offset + self.length) // SECTOR
        return [sector for sector in known if first <= sector < end]


def merged(extents: Iterable[Extent]) -> list[Extent]:
    """Neighbours of one state become one extent."""
    found: list[Extent] = []
    for extent in extents:
        last = found[-1] if found else None
        if last and last.state == extent.state and last.offset + last.length == extent.offset:
            found[-1] = Extent(last.offset, last.length + extent.length, last.state)
        else:
            found.append(extent)
    return found


def inside(extents: Iterable[Extent], offset: int, length: int) -> list[Extent]:
    """Joined and cut to a range: an engine may begin at the block that the range begins in."""
    found = []
    for extent in merged(extents):
        low, high = max(extent.offset, offset), min(extent.offset + extent.length, offset + length)
        if low < high:
            found.append(Extent(low, high - low, extent.state))
    return found


def blocks_of(disk: Any) -> dict[int, bytes]:
    """Every block of a vdisk or snapshot that is not zero, read through its extents."""
    found: dict[int, bytes] = {}
    for extent in disk.extents():
        if extent.state == "data":
            found.update(_blocks_in(disk, extent))
    return found


def _blocks_in(disk: Any, extent: Extent) -> Iterator[tuple[int, bytes]]:
    step = 1 << 20
    for offset in range(extent.offset, extent.offset + extent.length, step):
        data = disk.read(offset, min(step, extent.offset + extent.length - offset))
        for at in range(0, len(data), BLOCK):
            block = data[at : at + BLOCK].ljust(BLOCK, b"\0")
            if block != ZERO_BLOCK:
                yield (offset + at) // BLOCK, block


def different_sectors(content: Content, blocks: dict[int, bytes]) -> set[int]:
    found = set()
    for number in content.blocks.keys() | blocks.keys():
        mine, other = content.blocks.get(number, ZERO_BLOCK), blocks.get(number, ZERO_BLOCK)
        if mine != other:
            parts = range(0, BLOCK, SECTOR)
            found |= {
                number * 8 + at // SECTOR for at in parts if mine[at : at + SECTOR] != other[at : at + SECTOR]
            }
    return found


class NoLegalState(AssertionError):
    """What was read after a crash is the result of no prefix of the steps."""


def settle(contents: dict[int, Content], steps: list[Step], observed: dict[int, dict[int, bytes]]) -> int:
    """Change `contents` (the durable state) into the legal state after a crash that `observed` shows.

    `observed` has the blocks of every disk of `contents`.  Returns how many steps survived as a whole.
    """
    try:
        return _survivors(contents, steps, observed)
    finally:
        for step in steps:  # whether it survived or not, a diff may now report what it touched
            contents[step.disk].touch(step.offset, step.length, step.stamp, step.data is not None)


def _survivors(contents: dict[int, Content], steps: list[Step], observed: dict[int, dict[int, bytes]]) -> int:
    wrong = {disk: different_sectors(content, observed[disk]) for disk, content in contents.items()}
    for survived in range(len(steps) + 1):
        if not any(wrong.values()):
            return survived
        if survived == len(steps):
            break
        step = steps[survived]
        content, blocks = contents[step.disk], observed[step.disk]
        before = content.copy()
        step.apply(content)
        if _explained_by(step, wrong, content, blocks):
            _take_partly(step, before, wrong[step.disk], blocks)
            contents[step.disk] = before
            return survived
        wrong[step.disk] = _still_wrong(step, wrong[step.disk], content, blocks)
    raise NoLegalState(_complaint(wrong, steps))


def _explained_by(step: Step, wrong: dict[int, set[int]], after: Content, blocks: dict[int, bytes]) -> bool:
    """Is everything that differs a sector that this step already wrote?"""
    if any(sectors for disk, sectors in wrong.items() if disk != step.disk):
        return False
    mine = wrong[step.disk]
    observed = Content(after.size_bytes, blocks)
    return len(step.sectors(mine)) == len(mine) and all(observed.sector(s) == after.sector(s) for s in mine)


def _take_partly(step: Step, content: Content, sectors: set[int], blocks: dict[int, bytes]) -> None:
    observed = Content(content.size_bytes, blocks)
    for sector in sectors:
        content.write(sector * SECTOR, observed.sector(sector), step.stamp)


def _still_wrong(step: Step, wrong: set[int], after: Content, blocks: dict[int, bytes]) -> set[int]:
    observed = Content(after.size_bytes, blocks)
    touched = set(wrong)
    first, end = step.offset // BLOCK, (step.offset + step.length - 1) // BLOCK
    if end - first > 1 << 16:
        return different_sectors(after, blocks)
    touched |= {sector for block in range(first, end + 1) for sector in range(block * 8, block * 8 + 8)}
    return {sector for sector in touched if observed.sector(sector) != after.sector(sector)}


def _complaint(wrong: dict[int, set[int]], steps: list[Step]) -> str:
    parts = [
        f"disk {disk}: {len(sectors)} sectors, first at byte {min(sectors) * SECTOR}"
        for disk, sectors in wrong.items()
        if sectors
    ]
    return f"after all {len(steps)} steps still wrong: " + "; ".join(parts)
