"""Damage as a program: one byte that chooses a pool, then edits of 16 bytes each.  Inputs of the pool targets are these.

An edit names a structure by its kind and number, a place in it, and what to do there.  When all are done, the structures
that were changed are signed again, but for those that an edit says are to stay wrong.
"""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from typing import NamedTuple

from tests.fuzz.base_pools import Files
from tests.fuzz.layout import BATCH_HEADER_BYTES, DATA, ENTRY, RECORD, SLOT, Place, Sign, places

EDIT = struct.Struct("<BBHHHQ")  # kind and UNSIGNED, operation, number, offset, extra, value
UNSIGNED = 0x80
EDITS_MAX = 16
ENTRIES_MAX = 124  # of a batch
REFERENCE = 2
FILE_BYTES_MAX = 1 << 44  # of a file stretched: sparse
SLOTS_MAX = 1 << 11  # that a trailer moved claims; the pools have room for 256 in a segment
WIDTHS = (1, 2, 4, 8)
VALUES = (0, 1, 2, 3, 4, 5, 7, 8, 123, 124, 125, 126, 255, 256, 257, 511, 512, 4095, 4096, 0xFFFF, 1 << 31, 1 << 32,
          (1 << 32) | 1, (1 << 32) - 1, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1)  # fmt: skip


class Edit(NamedTuple):
    kind: int
    operation: int
    number: int
    offset: int
    extra: int
    value: int


class Damage:
    """Files after a program, with what cannot be in memory: sizes of sparse files."""

    def __init__(self, files: Files, known: list[Place], kinds: list[str]) -> None:
        self.files = {path: bytearray(content) for path, content in files.items()}
        self.sizes: dict[str, int] = {}
        self._of_kind = {kind: [place for place in known if place.kind == kind] for kind in kinds}
        self._kinds = kinds
        self._to_sign: dict[Sign, None] = {}

    def run(self, program: bytes) -> None:
        for at in range(0, min(len(program), EDITS_MAX * EDIT.size) - EDIT.size + 1, EDIT.size):
            self._run_edit(Edit(*EDIT.unpack_from(program, at)))
        for sign in self._to_sign:
            with suppress(KeyError):  # its file was removed
                sign(self.files)

    def _run_edit(self, edit: Edit) -> None:
        candidates = self._of_kind[self._kinds[(edit.kind & ~UNSIGNED) % len(self._kinds)]]
        if not candidates:
            return
        place = candidates[edit.number % len(candidates)]
        if place.path not in self.files:
            return
        if place.kind == "file":
            FILE_OPERATIONS[edit.operation % len(FILE_OPERATIONS)](self, place, edit)
            return
        OPERATIONS[edit.operation % len(OPERATIONS)](self, place, edit, candidates)
        for sign in () if edit.kind & UNSIGNED else place.sign:
            self._to_sign.pop(sign, None)
            self._to_sign[sign] = None  # in the order of the last change

    # --- in a structure ---

    def _put(self, place: Place, edit: Edit, _others: list[Place]) -> None:
        self._store(place, edit, lambda _old: edit.value)

    def _add(self, place: Place, edit: Edit, _others: list[Place]) -> None:
        self._store(place, edit, lambda old: old + edit.value)

    def _flip(self, place: Place, edit: Edit, _others: list[Place]) -> None:
        self._store(place, edit, lambda old: old ^ 1 << edit.value % 64)

    def _store(self, place: Place, edit: Edit, change) -> None:
        width = WIDTHS[edit.extra % 4]
        content = self.files[place.path]
        at = place.offset + edit.offset % max(1, place.length - width + 1)
        if at + width <= len(content):
            old = int.from_bytes(content[at : at + width], "little")
            content[at : at + width] = (change(old) % (1 << 8 * width)).to_bytes(width, "little")

    def _fill(self, place: Place, edit: Edit, _others: list[Place]) -> None:
        start = place.offset + edit.offset % max(1, place.length)
        end = min(start + edit.extra, place.offset + place.length, len(self.files[place.path]))
        if start < end:
            self.files[place.path][start:end] = bytes([edit.value & 0xFF]) * (end - start)

    def _copy(self, place: Place, edit: Edit, others: list[Place]) -> None:
        """All of another structure of its kind."""
        other = others[edit.value % len(others)]
        content = self.files.get(other.path, bytearray())[other.offset : other.offset + other.length]
        end = min(place.offset + len(content), len(self.files[place.path]))
        if place.offset < end:
            self.files[place.path][place.offset : end] = content[: end - place.offset]

    def _agree(self, place: Place, edit: Edit, others: list[Place]) -> None:
        """A batch's counts become what its entries say; without that, most entries that change make it no batch."""
        content, header = self.files[place.path], place.offset // SLOT * SLOT
        if not place.kind.startswith("batch") or header + SLOT > len(content):
            self._copy(place, edit, others)
            return
        payload = lsns = 0
        for number in range(min(struct.unpack_from("<H", content, header + 56)[0], ENTRIES_MAX)):
            entry = header + BATCH_HEADER_BYTES + number * ENTRY.size
            _a, blocks, _block, slots, kind = ENTRY.unpack_from(content, entry)
            payload += {DATA: 1, RECORD: slots}.get(kind, 0)
            lsns += blocks if kind == REFERENCE else 1
        struct.pack_into("<HI", content, header + 58, payload % (1 << 16), lsns % (1 << 32))

    # --- to a file ---

    def _cut(self, place: Place, edit: Edit) -> None:
        content = self.files[place.path]
        step = (1, 16, 512, SLOT)[edit.extra % 4]
        del content[edit.value * step % (len(content) + 1) :]

    def _stretch(self, place: Place, edit: Edit) -> None:
        self.sizes[place.path] = max(len(self.files[place.path]), edit.value % FILE_BYTES_MAX)

    def _remove(self, place: Place, _edit: Edit) -> None:
        del self.files[place.path]

    def _rename(self, place: Place, edit: Edit) -> None:
        self._name_again(place, edit, self.files.pop(place.path))

    def _duplicate(self, place: Place, edit: Edit) -> None:
        self._name_again(place, edit, bytearray(self.files[place.path]))

    def _name_again(self, place: Place, edit: Edit, content: bytearray) -> None:
        directory, _, name = place.path.rpartition("/")
        if directory == "segments":
            name = f"{edit.value & 0xFFFFFFFF:08x}.{edit.value >> 32 << edit.extra % 16}"
        elif "-" in name:
            name = f"{name.rpartition('-')[0]}-{edit.value}"
        else:
            name += str(edit.value)
        self.files[f"{directory}/{name}" if directory else name] = content

    def _zero_slot(self, place: Place, edit: Edit) -> None:
        content = self.files[place.path]
        start = edit.value % max(1, len(content) // SLOT) * SLOT
        end = min(start + SLOT, len(content))
        content[start:end] = bytes(end - start)

    def _seal_far(self, place: Place, edit: Edit) -> None:
        """A segment's trailer, if it has one, speaks of more slots than there is room for, in a file as large as that."""
        content = self.files[place.path]
        if content[-SLOT : 7 - SLOT] != b"BLDEND1":
            return
        trailer = bytearray(content[-SLOT:])
        slots = edit.value % SLOTS_MAX
        content[-SLOT:] = bytes(SLOT)
        content.extend(bytes(max(0, slots * SLOT - len(content))))
        del content[slots * SLOT :]
        content.extend(bytes(-(-slots * 16 // SLOT) * SLOT))
        struct.pack_into("<I", trailer, 40, slots)
        content.extend(trailer)
        known = places({place.path: content})
        for sign in next((found.sign for found in known if found.kind == "trailer"), ()):
            self._to_sign[sign] = None


OPERATIONS = (Damage._put, Damage._add, Damage._flip, Damage._fill, Damage._copy, Damage._agree)
FILE_OPERATIONS = (
    Damage._cut,
    Damage._stretch,
    Damage._remove,
    Damage._rename,
    Damage._duplicate,
    Damage._zero_slot,
    Damage._seal_far,
)


def random_edit(chance: random.Random) -> bytes:
    """One that is likely to say something: a field at its alignment, a value at a limit."""
    value = chance.choice(VALUES) if chance.random() < 0.7 else chance.getrandbits(chance.choice((8, 16, 32, 64)))
    width = chance.randrange(4)
    offset = chance.randrange(0, 512, WIDTHS[width])
    unsigned = UNSIGNED if chance.random() < 0.1 else 0
    return EDIT.pack(
        chance.randrange(16) | unsigned,
        chance.randrange(len(FILE_OPERATIONS)),
        chance.randrange(1 << 8),
        offset,
        width if chance.random() < 0.8 else chance.randrange(1 << 12),
        value % (1 << 64),
    )


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Another edit: in the place of one, behind all, or one fewer."""
    head, edits = data[:1] or b"\0", [data[at : at + EDIT.size] for at in range(1, len(data), EDIT.size)]
    edits = [edit for edit in edits if len(edit) == EDIT.size]
    what = chance.random()
    if what < 0.15 and len(edits) > 1:
        del edits[chance.randrange(len(edits))]
    elif what < 0.55 and edits:
        edits[chance.randrange(len(edits))] = random_edit(chance)
    elif what < 0.7 and edits:
        edits[chance.randrange(len(edits))] = _change_edit(chance.choice(edits), chance)
    else:
        edits.append(random_edit(chance))
    if chance.random() < 0.1:
        head = bytes([chance.randrange(2)])
    return head + b"".join(edits[:EDITS_MAX])


def _change_edit(edit: bytes, chance: random.Random) -> bytes:
    """One field of it."""
    fields = list(EDIT.unpack(edit))
    other = EDIT.unpack(random_edit(chance))
    which = chance.randrange(len(fields))
    fields[which] = other[which]
    return EDIT.pack(*fields)
