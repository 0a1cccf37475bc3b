"""What is known to be wrong with a pool, as values and as the file that keeps it (docs/format/findings.md).

The file is replaced as a whole, by a rename, after each check and scrub.  It is no part of the pool: without it, or when
it does not verify, the pool is what it was, and only what was found is not known any more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import xxhash

from blockdev import _medium
from blockdev._check import block_verifies, map_ids
from blockdev._pool import VDisk, VDiskSnapshot
from blockdev.constants import BLOCK_BYTES, VDISK_BYTES_MAX
from blockdev.records import MAP_HEIGHT_MAX
from blockdev.superblock import SEGMENT_SLOTS

FINDINGS_MAX = 256  # that are kept and told of; the rest is counted
DISK_FINDINGS_MAX = 32  # of one disk or snapshot, so that others are named too
MAGIC = "blockdev findings 1"
FILE_BYTES_MAX = 4 << 20
FINISHED_END = 1 << 40  # seconds since 1970

InspectionKind = Literal["check", "scrub"]
FindingKind = Literal["block", "node", "map", "rest", "pool"]


class Finding(NamedTuple):
    """One thing that is wrong: bytes of a disk or snapshot that cannot be read, or something of the pool itself."""

    kind: FindingKind
    reason: str  # a name of _check.Reason, or "" for what a check does not find in maps and segments
    what: str
    by_scrub: bool = False  # a check cannot tell that it is gone
    object_id: int = 0  # 0: of the pool
    name: str = ""  # of the object: VM/DISK or VM/DISK@SNAPSHOT
    offset: int = 0  # bytes of the object
    length: int = 0
    address: int = 0  # block: of the first one, the others are behind it; node: its id
    level: int = 0  # of a node

    def line(self) -> str:
        if not self.object_id:
            return self.what
        place = f": bytes {self.offset} to {self.offset + self.length - 1}" if self.length else ""
        return f"{self.name or f'object {self.object_id}'}{place}: {self.what}"


class Ran(NamedTuple):
    """When an inspection ended last, and how."""

    finished: float  # seconds since 1970
    done_bytes: int
    finding_count: int
    healed_count: int


class Known(NamedTuple):
    """What the last check and the last scrub found and is still there."""

    check: Ran | None = None
    scrub: Ran | None = None
    findings: tuple[Finding, ...] = ()
    dropped: int = 0  # findings beyond FINDINGS_MAX


def bounded(findings: Iterable[Finding], dropped: int) -> tuple[tuple[Finding, ...], int]:
    """The first FINDINGS_MAX, each once, and how many are left out."""
    each = tuple(dict.fromkeys(findings))
    return each[:FINDINGS_MAX], dropped + len(each[FINDINGS_MAX:])


def of_fault(reason: str, healed: bool, where: int, place: int, count: int) -> Finding:
    """A finding of the pool itself; what was healed is told in the same words."""
    first_slot = f"segment {where:08x} slot {place}"
    texts = {
        "NODE_TWICE": f"map node {where} is in two places of the maps",
        "NODE_FREE": f"map node {where} is in use and on the list of free ones",
        "COPY_LOST": f"map node {where}: {'both copies' if count == 2 else 'one of two copies'} did not verify",
        "HEADER_LOST": f"segment {where:08x}: its header slot did not verify",
        "BATCH_LOST": f"{first_slot}: a batch header does not verify in either copy, {count} slots are not described",
        "BATCH_COPY_LOST": f"{first_slot}: one of two copies of a batch header did not verify",
        "INDEX_LOST": f"segment {where:08x}: its index or trailer did not verify",
        "INDEX_WRONG": f"{first_slot}: index and batch header do not say the same",
        "SEGMENT_LOST": f"segment {where:08x} cannot be opened",
        "SLOT_LISTED_TWICE": f"map node {where} is twice on the lists of free and retired ones",
    }
    return Finding("pool", reason, texts[reason] + (": written anew" if healed else ""))


def of_block(reason: str, address: int, count: int) -> str:
    """What is wrong with `count` blocks from an address on."""
    place, slot = f"segment {address >> 32:08x}", address & 0xFFFFFFFF
    one, many = {
        "NO_SEGMENT": ("is not there", "are not there"),
        "BEYOND_SEGMENT": ("is beyond the end of the segment", "are beyond the end of the segment"),
        "NO_BLOCK": ("holds no block", "hold no blocks"),
        "BAD_BLOCK": ("does not verify", "do not verify"),
        "UNREADABLE_BLOCK": ("cannot be read", "cannot be read"),
    }[reason]
    return f"{place} slot {slot} {one}" if count == 1 else f"{place} slots {slot} to {slot + count - 1} {many}"


def blocks_of(finding: Finding) -> range:
    """Numbers of the blocks that a finding is about."""
    return range(finding.offset // BLOCK_BYTES, -(-(finding.offset + finding.length) // BLOCK_BYTES))


# --- what is still there ---

Objects: TypeAlias = "Mapping[int, VDisk | VDiskSnapshot]"


def still_there(found: Iterable[Finding], objects: Objects) -> tuple[Finding, ...]:
    """Those findings, or parts of them, that a map still reaches: what was deleted or overwritten is gone.

    objects: by id, all there are.  Reads maps only.
    """
    left: list[Finding] = []
    for finding in found:
        thing = objects.get(finding.object_id)
        if not finding.object_id:
            left.append(finding)
        elif thing is not None:
            left += _still_reached(finding._replace(name=thing.name or ""), thing)
    return tuple(left)


def _still_reached(finding: Finding, thing: VDisk | VDiskSnapshot) -> list[Finding]:
    if finding.kind == "node":
        ids, _address = map_ids(thing, finding.offset // BLOCK_BYTES)
        return [finding] if ids[finding.level] == finding.address else []
    if finding.kind == "block":
        return _parts(finding, lambda block, address: map_ids(thing, block)[1] == address)
    return [finding]


def still_damaged(found: Iterable[Finding], objects: Objects) -> tuple[Finding, ...]:
    """Those findings about blocks, or parts of them, that still cannot be read, and all others."""
    left: list[Finding] = []
    for finding in found:
        if finding.kind == "block":
            left += _parts(finding, partial(_is_damaged, objects[finding.object_id]))
        else:
            left.append(finding)
    return tuple(left)


def _is_damaged(thing: VDisk | VDiskSnapshot, _block: int, address: int) -> bool:
    return not block_verifies(thing, address)


def _parts(finding: Finding, keep: Callable[[int, int], bool]) -> list[Finding]:
    """The runs of a finding's blocks for which keep(block number, address) holds."""
    blocks = blocks_of(finding)
    runs: list[range] = []
    for block in blocks:
        if keep(block, finding.address + block - blocks.start):
            if runs and runs[-1].stop == block:
                runs[-1] = range(runs[-1].start, block + 1)
            else:
                runs.append(range(block, block + 1))
    if runs == [blocks]:
        return [finding]
    return [_part(finding, run) for run in runs]


def _part(finding: Finding, run: range) -> Finding:
    skipped = run.start - finding.offset // BLOCK_BYTES
    address = finding.address + skipped
    length = min(len(run) * BLOCK_BYTES, finding.offset + finding.length - run.start * BLOCK_BYTES)
    what = of_block(finding.reason, address, len(run))
    return finding._replace(what=what, offset=run.start * BLOCK_BYTES, length=length, address=address)


# --- the file ---


def path_of(pool_path: str) -> str:
    return f"{pool_path}/findings"


def save(pool_path: str, known: Known) -> None:
    """Replace the file; durable on return.  MediumError when that cannot be: the old one stays."""
    text = json.dumps(_to_json(known), separators=(",", ":"), ensure_ascii=False) + "\n"
    content = text.encode(errors="replace")
    head = f"{MAGIC} {xxhash.xxh3_64_hexdigest(content)}\n".encode()
    new = path_of(pool_path) + ".new"
    if os.path.exists(new):
        _medium.unlink_file(new)
    _medium.write_file(new, [head + content], create=True, durable=True)
    _medium.rename_file(new, path_of(pool_path))
    _medium.sync_directory(pool_path)


def load(pool_path: str) -> Known:
    """What the file holds; nothing when there is none.  One that does not verify is a finding itself."""
    path = path_of(pool_path)
    if not os.path.exists(path):
        return Known()
    try:
        head, content = _medium.read_file(path, FILE_BYTES_MAX).split(b"\n", 1)
        if head.decode() != f"{MAGIC} {xxhash.xxh3_64_hexdigest(content)}":
            raise ValueError(head)
        return _from_json(json.loads(content))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # a checksum does not say who wrote it
        lost = f"{path} does not verify: what earlier checks and scrubs found is not known; scrub the pool"
        return Known(findings=(Finding("pool", "", lost, by_scrub=True),))


def _to_json(known: Known) -> dict[str, Any]:
    return {
        "check": known.check and known.check._asdict(),
        "scrub": known.scrub and known.scrub._asdict(),
        "findings": [finding._asdict() for finding in known.findings],
        "dropped": known.dropped,
    }


def _from_json(document: Any) -> Known:
    ran = {kind: _ran(document[kind]) if document[kind] else None for kind in get_args(InspectionKind)}
    found = tuple(_finding(row) for row in document["findings"])
    return Known(ran["check"], ran["scrub"], found, _number(document["dropped"], 1 << 63))


def _ran(row: Any) -> Ran:
    ran = Ran(**row)
    if type(ran.finished) not in (int, float) or not 0 <= ran.finished < FINISHED_END:
        raise ValueError(ran.finished)
    return Ran(ran.finished, *(_number(count, 1 << 63) for count in ran[1:]))


def _finding(row: Any) -> Finding:
    """ValueError for what no inspection finds."""
    found = Finding(**row)
    if found.kind not in get_args(FindingKind) or type(found.by_scrub) is not bool:
        raise ValueError(found)
    if not all(type(text) is str for text in (found.reason, found.what, found.name)):
        raise ValueError(found)
    if (found.kind == "pool") != (found.object_id == 0):
        raise ValueError(found)
    for number, end in ((found.object_id, 1 << 32), (found.address, 1 << 64), (found.level, MAP_HEIGHT_MAX)):
        _number(number, end)
    _number(found.offset, VDISK_BYTES_MAX)
    _number(found.length, VDISK_BYTES_MAX + 1)
    if found.kind == "block":  # a run of slots of one segment
        of_block(found.reason, found.address, 1)
        _number(found.length, SEGMENT_SLOTS.stop * BLOCK_BYTES)
    return found


def _number(value: Any, end: int) -> int:
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(value)
    return value
