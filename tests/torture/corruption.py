"""Damage to every part of a pool at rest: harmless, healed, or named; never wrong data, a crash or a hang.

A case is (seed, kind of pool, number): seed and kind give the pool and its files, the number chooses the damage: a flipped bit, a
sector of 512 or 4096 bytes that reads as zeros or garbage, a file cut short or gone.  Then
  - the pool opens, except where docs/format/pool.md says that it is refused, and then its files are as they were;
  - every block reads as the model says, or it is one whose only copy was hit, and cannot be read;
  - scrub names exactly these, for every disk and snapshot, and no others; what has a second copy is healed: a second
    scrub finds nothing to heal, and the bytes that were hit are again what they were;
  - damaged blocks can be overwritten, and the pool goes on: snapshot, delete, close, open, and all is there.
Works with any build:
  .venv/bin/python -m tests.torture.corruption --cases 100000                   at random
  .venv/bin/python -m tests.torture.corruption --every-byte                     one flip in each byte of metadata
  .venv/bin/python -m tests.torture.corruption --seed 1 --kind closed --case 5  one again
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

from blockdev import Pool, VDisk
from blockdev.errors import Corrupt
from blockdev.findings import Finding, blocks_of
from tests.engine.content import distinct_blocks
from tests.torture.regions import Region, regions
from tests.torture.specimens import BLOCK, KINDS, SMALL, Specimen, State, Tree, make, write_tree

CASE_SECONDS = 120  # a case takes a tenth of a second; a hang ends the process with a traceback
READ_BLOCKS = 128
ZERO = bytes(BLOCK)
ZEROS = bytes(READ_BLOCKS * BLOCK)
SECTORS = (512, 4096)
# what is there twice, and must be there twice again after a scrub; superblocks and tables are replaced meanwhile
COPIES = {"live node", "segment header", "batch header", "second batch header", "index", "trailer"}
COPIES |= {"compacted header", "index page"}
Place = tuple[str, int]  # object name, block number


class Wrong(AssertionError):
    """The pool did what it must not."""


class Damage(NamedTuple):
    """What becomes of one file."""

    file: str
    offset: int
    length: int  # 0: the file ends at `offset`; -1: it is gone
    data: bytes
    told: str

    def apply(self, content: bytes) -> bytes | None:
        if self.length < 0:
            return None
        if self.length == 0:
            return content[: self.offset]
        return content[: self.offset] + self.data + content[self.offset + self.length :]


# --- choosing --------------------------------------------------------------------------------------------------------


class Ground:
    """A specimen and its regions, to choose damage from."""

    def __init__(self, specimen: Specimen) -> None:
        self.specimen = specimen
        self.regions = regions(specimen.tree)
        self._kinds = sorted({region.kind for region in self.regions})
        self._of_kind = {kind: [r for r in self.regions if r.kind == kind] for kind in self._kinds}

    def choose(self, rng: random.Random) -> Damage:
        region = rng.choice(self._of_kind[rng.choice(self._kinds)])
        how = rng.choices(("flip", "sector", "cut", "gone"), (70, 24, 5, 1))[0]
        if how == "flip":
            return flip(self.specimen.tree, region.file, region.offset + _inside(rng, region), 1 << rng.randrange(8))
        if how == "sector":
            return self._sector(rng, region)
        if how == "gone":
            return Damage(region.file, 0, -1, b"", f"{region.file} is gone")
        at = region.offset + rng.randrange(region.length)
        return Damage(region.file, at, 0, b"", f"{region.file} ends at byte {at} ({region.kind})")

    def _sector(self, rng: random.Random, region: Region) -> Damage:
        size = rng.choice(SECTORS)
        at = (region.offset + rng.randrange(region.length)) // size * size
        length = min(size, len(self.specimen.tree[region.file]) - at)
        name = rng.choice(("zeros", "ones", "garbage"))
        data = {"zeros": bytes(length), "ones": b"\xff" * length, "garbage": rng.randbytes(length)}[name]
        return Damage(region.file, at, length, data, f"{region.file} bytes {at}+{length} are {name} ({region.kind})")

    def every_byte(self, rng: random.Random) -> Iterator[Damage]:
        """A flip in each byte of all that is not a block."""
        for region in self.regions:
            if region.kind not in ("block", "padding", "LOCK", "dead node"):
                for at in range(region.offset, region.end):
                    yield flip(self.specimen.tree, region.file, at, 1 << rng.randrange(8))

    def hit(self, damage: Damage) -> list[Region]:
        """The regions that are not what they were."""
        content = self.specimen.tree[damage.file]
        damaged = damage.apply(content) or b""
        return [
            region
            for region in self.regions
            if region.file == damage.file
            and content[region.offset : region.end] != damaged[region.offset : region.end]
        ]


def _inside(rng: random.Random, region: Region) -> int:
    """A byte of a region; the first ones have the fields."""
    if rng.random() < 0.5:
        return rng.randrange(min(region.length, 192))
    return rng.randrange(region.length)


def flip(tree: Tree, file: str, at: int, mask: int) -> Damage:
    data = bytes([tree[file][at] ^ mask])
    return Damage(file, at, 1, data, f"{file} byte {at} bit {mask.bit_length() - 1} is flipped")


# --- what must come of it --------------------------------------------------------------------------------------------


class Expected(NamedTuple):
    """What damage may do, by docs/format/pool.md."""

    may_refuse: bool
    unreadable: set[Place]  # with the last state
    ends: list[int]  # LSNs at which the log may end instead
    exact: bool  # False: any block of these files may be lost too


def expected(ground: Ground, damage: Damage, hit: list[Region]) -> Expected:
    specimen = ground.specimen
    unreadable: set[Place] = set()
    ends: list[int] = []
    for region in hit:
        if region.kind == "block":
            unreadable |= specimen.holders.get(region.address, set())
        if region.last and region.kind in ("block", "record"):
            ends.append(region.lsn)
    whole_file = damage.length <= 0 and damage.file.startswith("segments/")
    if whole_file:
        ends = sorted({region.lsn for region in hit if region.lsn >= 0})  # what told of them may be gone as well
    return Expected(whole_file and specimen.kind.startswith("killed"), unreadable, ends, not whole_file)


# --- one case --------------------------------------------------------------------------------------------------------


class Trial:
    """One damaged pool in `path`."""

    def __init__(self, ground: Ground, damage: Damage, path: str, rng: random.Random) -> None:
        self.ground = ground
        self.damage = damage
        self.path = path
        self.rng = rng
        self.hit = ground.hit(damage)
        self.expected = expected(ground, damage, self.hit)
        self.state: State = ground.specimen.state
        self.unreadable: set[Place] = set()

    def run(self) -> str:
        """How it went, in a word; Wrong."""
        tree = {**self.ground.specimen.tree}
        damaged = self.damage.apply(tree.pop(self.damage.file))
        if damaged is not None:
            tree[self.damage.file] = damaged
        write_tree(tree, self.path)
        try:
            pool = Pool.open(self.path, **SMALL)
        except Corrupt as refusal:
            self._check_refused(tree, str(refusal))
            return "refused"
        with pool:
            self._recognise(pool)
            self._look(pool)
            self._inspect(pool)
            self._check_healed()
            self._go_on(pool)
        with Pool.open(self.path, **SMALL) as pool:
            self._look(pool)
            self._inspect(pool)
            return "unreadable" if self.unreadable else "harmless or healed"

    def _check_refused(self, tree: Tree, why: str) -> None:
        if not self.expected.may_refuse:
            raise Wrong(f"the pool was refused: {why}")
        for name, content in tree.items():
            with open(f"{self.path}/{name}", "rb") as file:
                if name != "LOCK" and file.read() != content:
                    raise Wrong(f"the pool was refused, and {name} was changed")

    def _recognise(self, pool: Pool) -> None:
        """Which of the states that may be it is."""
        names = {thing.name for thing in pool.things()}
        for lsn in self.expected.ends:
            before = self.ground.specimen.states[lsn]
            if names == before.keys() and all(self._agrees(pool, name, before[name]) for name in before):
                self.state = {name: dict(blocks) for name, blocks in before.items()}
                return
        if names != self.state.keys():
            raise Wrong(f"there are {names}, not {self.state.keys()}")
        self.state = {name: dict(blocks) for name, blocks in self.state.items()}

    def _agrees(self, pool: Pool, name: str, blocks: dict[int, bytes]) -> bool:
        found, bad = read(pool.find(name))
        return found == {number: data for number, data in blocks.items() if number not in bad}

    def _look(self, pool: Pool) -> None:
        """Every block of every disk."""
        unreadable: set[Place] = set()
        for name, blocks in self.state.items():
            found, bad = read(pool.find(name))
            wanted = {number: data for number, data in blocks.items() if number not in bad}
            if found != wanted:
                numbers = [n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n)]
                raise Wrong(f"{name}: wrong data in blocks {numbers[:10]}")
            unreadable |= {(name, number) for number in bad}
        extra = unreadable - self.expected.unreadable - self.unreadable
        if extra and self.expected.exact:
            raise Wrong(f"cannot be read although it was not hit: {sorted(extra)[:10]}")
        self.unreadable = unreadable

    def _inspect(self, pool: Pool) -> None:
        """Check and scrub name what cannot be read, and only that, and heal the rest."""
        pool.inspector.run("check")
        first = pool.inspector.run("scrub")
        named = named_blocks(first.findings)
        if first.dropped == 0 and not any(finding.kind == "rest" for finding in first.findings):
            if named != self.unreadable:
                raise Wrong(f"scrub names {sorted(named ^ self.unreadable)[:10]} wrongly or not at all")
        elif not named <= self.unreadable:
            raise Wrong("scrub names what can be read")
        others = [finding.line() for finding in first.findings if finding.kind == "pool"]
        if others and self.expected.exact:
            raise Wrong(f"not healed: {others}")
        again = pool.inspector.run("scrub")
        if again.healed:
            raise Wrong(f"a second scrub has something to heal: {again.healed}")
        if again.findings != first.findings or pool.inspector.known().findings != first.findings:
            raise Wrong("a second scrub finds something else")

    def _check_healed(self) -> None:
        """What is there twice is as it was."""
        if self.ground.specimen.kind.startswith("killed") or not self.expected.exact:
            return
        for region in self.hit:
            if region.kind in COPIES:
                with open(f"{self.path}/{region.file}", "rb") as file:
                    file.seek(region.offset)
                    content = file.read(region.length)
                if content != self.ground.specimen.tree[region.file][region.offset : region.end]:
                    raise Wrong(f"the {region.kind} at {region.offset} is not healed")

    def _go_on(self, pool: Pool) -> None:
        """Overwrite what is damaged in vdisks, and some more; make and delete snapshots."""
        for name, number in sorted(self.unreadable):
            disk = pool.find(name)
            if isinstance(disk, VDisk):
                self._write(disk, number)
        self.unreadable = {place for place in self.unreadable if "@" in place[0]}
        for name in [name for name in self.state if "@" not in name]:
            self._write(pool.find(name), self.rng.randrange(400))
        pool.delete(pool.find("web/root@tuesday"))
        del self.state["web/root@tuesday"]
        self.unreadable = {place for place in self.unreadable if place[0] != "web/root@tuesday"}
        pool.snapshot([pool.find("web/root")], ["web/root@after"])
        self.state["web/root@after"] = dict(self.state["web/root"])

    def _write(self, disk: Any, number: int) -> None:
        data = distinct_blocks(self.rng.randrange(1 << 40, 1 << 41), 1)
        disk.write(number * BLOCK, data)
        self.state[disk.name][number] = data


def read(disk: Any) -> tuple[dict[int, bytes], set[int]]:
    """The blocks of a disk that are not zero, and the numbers of those that cannot be read."""
    found: dict[int, bytes] = {}
    bad: set[int] = set()
    for first in range(0, disk.size_bytes // BLOCK, READ_BLOCKS):
        try:
            _take(found, first, disk.read(first * BLOCK, READ_BLOCKS * BLOCK))
        except Corrupt:
            for number in range(first, first + READ_BLOCKS):
                try:
                    _take(found, number, disk.read(number * BLOCK, BLOCK))
                except Corrupt:
                    bad.add(number)
    return found, bad


def _take(found: dict[int, bytes], first: int, data: bytes) -> None:
    if data == ZEROS:
        return
    for at in range(0, len(data), BLOCK):
        if data[at : at + BLOCK] != ZERO:
            found[first + at // BLOCK] = data[at : at + BLOCK]


def named_blocks(findings: tuple[Finding, ...]) -> set[Place]:
    return {(f.name, number) for f in findings if f.kind in ("block", "node") for number in blocks_of(f)}


# --- running ---------------------------------------------------------------------------------------------------------


def case(ground: Ground, seed: int, number: int) -> tuple[Damage, random.Random]:
    rng = random.Random(f"corruption {seed} {ground.specimen.kind} {number}")
    return ground.choose(rng), rng


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.corruption", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="all of them unless told")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=1000, help="how many, of each kind")
    parser.add_argument("--case", type=int, help="this one only")
    parser.add_argument("--every-byte", action="store_true", help="each byte of metadata, from --first on")
    return parser.parse_args()


def cases(asked: argparse.Namespace, ground: Ground) -> Iterator[tuple[int, Damage, random.Random]]:
    if asked.every_byte:
        rng = random.Random(f"every byte {asked.seed}")
        first, end = (asked.first, asked.first + asked.cases) if asked.case is None else (asked.case, asked.case + 1)
        for number, damage in enumerate(ground.every_byte(rng)):
            if first <= number < end:
                yield number, damage, random.Random(f"{asked.seed} {number}")
        return
    numbers = range(asked.first, asked.first + asked.cases) if asked.case is None else [asked.case]
    for number in numbers:
        yield number, *case(ground, asked.seed, number)


def main() -> int:
    asked = arguments()
    faulthandler.enable()
    failures = 0
    directory = tempfile.mkdtemp(prefix="blockdev-corruption-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        for kind in [asked.kind] if asked.kind else KINDS:
            ground = Ground(make(directory, kind, asked.seed))
            failures += _run_kind(asked, ground, f"{directory}/pool")
    finally:
        shutil.rmtree(directory)
    return 1 if failures else 0


def _run_kind(asked: argparse.Namespace, ground: Ground, path: str) -> int:
    outcomes: dict[str, int] = {}
    failures = 0
    kind = ground.specimen.kind
    for number, damage, rng in cases(asked, ground):
        again = f".venv/bin/python -m tests.torture.corruption --seed {asked.seed} --kind {kind} --case {number}"
        again += " --every-byte" if asked.every_byte else ""
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        os.write(2, f"case {number}: {damage.told}; again: {again}\n".encode())  # for whoever sees us die
        try:
            outcome = Trial(ground, damage, path, rng).run()
        except Exception:
            outcome = "WRONG"
            failures += 1
            print(f"FAILED {kind} case {number}: {damage.told}\n{traceback.format_exc()}again: {again}", flush=True)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{kind}: {outcomes}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
