"""Small pools that have one of everything, for tests of damage: their files, and what they must hold.

A specimen is the same for the same seed, byte for byte.  Contents are told by object name and block number; a block that
is absent is zero.
"""

from __future__ import annotations

import os
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from blockdev import Pool, _check
from tests.engine.content import distinct_blocks

BLOCK = 4096
CAPACITY_BYTES = 256 << 20
SEGMENT_BYTES = 1 << 20  # the smallest: 256 slots
SMALL = {"dedup_bytes": 1 << 20, "map_cache_bytes": 1 << 16, "background": False}
HOME_BYTES = 2 << 20  # one leaf
WIDE_BYTES = 10 << 20  # five leaves under a root
BATCH_BLOCKS = 124  # in a batch that is full
KINDS = ("closed", "killed", "killed-unflushed", "compacted")

Tree = dict[str, bytes]  # path below the pool -> content
Blocks = dict[int, bytes]
State = dict[str, Blocks]  # object name -> what it holds


@dataclass
class Specimen:
    """A pool at rest."""

    kind: str
    tree: Tree
    states: dict[int, State]  # by the LSN after what made it; the last is what there is
    # address -> (object name, block number) of all that reach it
    holders: dict[int, set[tuple[str, int]]] = field(default_factory=dict)

    @property
    def state(self) -> State:
        return self.states[max(self.states)]


class Maker:
    """Does the same to a pool and to a model of it, and keeps a copy of the model for each LSN."""

    def __init__(self, path: str, seed: int) -> None:
        self.path = path
        self.rng = random.Random(f"specimen {seed}")
        self.state: State = {}
        self.states: dict[int, State] = {}  # since the pool was opened
        self._next_block = seed % 1000 * 100_000
        self.pool: Any = None

    def open(self) -> None:
        self.pool = Pool.open(self.path, **SMALL)
        self.states = {}
        self.keep()

    def keep(self) -> None:
        """The state as it is is that at the next LSN."""
        self.pool.flush()
        self.states[self._lsn()] = {name: dict(blocks) for name, blocks in self.state.items()}

    def _lsn(self) -> int:
        return int(self.pool.stats()["next_lsn"])

    def create(self, name: str, size_bytes: int) -> None:
        self.pool.create_vdisk(size_bytes, name, b"tag of " + name.encode())
        self.state[name] = {}
        self.keep()

    def write(self, name: str, first: int, count: int, content: bytes | None = None, flush: bool = True) -> None:
        """Each block takes one LSN, so none may be there already."""
        if content is None:
            content = distinct_blocks(self._next_block, count)
            self._next_block += count
        lsn = self._lsn()
        self.pool.find(name).write(first * BLOCK, content)
        assert self._lsn() == lsn + count
        for number in range(count):
            self.state[name][first + number] = content[number * BLOCK : (number + 1) * BLOCK]
            self.states[lsn + number + 1] = {name: dict(blocks) for name, blocks in self.state.items()}
        if flush:
            self.keep()

    def discard(self, name: str, first: int, count: int) -> None:
        self.pool.find(name).discard(first * BLOCK, count * BLOCK)
        self.state[name] = {at: data for at, data in self.state[name].items() if not first <= at < first + count}
        self.keep()

    def snapshot(self, *names: str, suffix: str) -> None:
        self.pool.snapshot([self.pool.find(name) for name in names], [f"{name}@{suffix}" for name in names])
        for name in names:
            self.state[f"{name}@{suffix}"] = dict(self.state[name])
        self.keep()

    def clone(self, snapshot: str, name: str) -> None:
        self.pool.clone(self.pool.find(snapshot), name)
        self.state[name] = dict(self.state[snapshot])
        self.keep()

    def delete(self, name: str) -> None:
        self.pool.delete(self.pool.find(name))
        del self.state[name]
        self.keep()


def make(directory: str, kind: str, seed: int) -> Specimen:
    """A specimen of one of KINDS, made in `directory`, which is left empty."""
    path = f"{directory}/making"
    with _same_every_time(seed):
        Pool.create(path, CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES).close()
        maker = Maker(path, seed)
        maker.open()
        _first_life(maker)
        maker.pool.close()
        maker.open()
        specimen = _killed(maker, kind) if kind.startswith("killed") else _closed(maker, kind)
    shutil.rmtree(path)
    return specimen


def _first_life(maker: Maker) -> None:
    """Several segments, a snapshot, a clone, blocks that several disks share, and a checkpoint in the middle."""
    maker.create("web/root", HOME_BYTES)
    maker.create("web/data", WIDE_BYTES)
    maker.write("web/root", 0, 200)
    for leaf in range(4):
        maker.write("web/data", leaf * 512 + 100, 40)
    maker.snapshot("web/root", "web/data", suffix="monday")
    maker.pool.checkpoint()
    maker.write("web/root", 50, 60)
    maker.write("web/data", 100, 20, b"".join(maker.state["web/root"][number] for number in range(20)))  # a reference
    maker.clone("web/root@monday", "test/root")
    maker.write("test/root", 190, 20)
    maker.create("old/root", HOME_BYTES)
    maker.write("old/root", 0, 30)


def _second_life(maker: Maker) -> None:
    """Node slots that become free, holes, a deleted disk, and small batches."""
    maker.snapshot("web/root", suffix="tuesday")
    maker.pool.checkpoint()
    maker.write("web/root", 150, 100)
    maker.discard("web/root", 10, 5)
    maker.pool.checkpoint()
    maker.delete("old/root")
    for number in range(6):
        maker.write("web/data", 1900 + number * 7, 2)


def _closed(maker: Maker, kind: str) -> Specimen:
    _second_life(maker)
    if kind == "compacted":
        # frames of both kinds, and segments that are as the log wrote them
        words = b"".join(bytes(maker.rng.choices(b"abcd \n", k=BLOCK)) for _ in range(20))
        maker.write("web/root", 400, 20, words)
        maker.pool.compact()
        maker.write("web/root", 20, 30)
    maker.pool.check()  # there is a file of findings
    maker.pool.close()
    return _at_rest(maker, kind, {0: maker.state})


def _killed(maker: Maker, kind: str) -> Specimen:
    """Killed with a log behind the checkpoint: its last batch flushed, or one more that was not."""
    _second_life(maker)
    maker.pool.checkpoint()
    maker.write("web/root", 300, 130)
    maker.snapshot("web/root", suffix="wednesday")
    maker.clone("web/root@wednesday", "third/root")
    maker.write("third/root", 0, 3)
    maker.discard("third/root", 100, 50)
    maker.write("web/data", 100, 4)
    if kind == "killed-unflushed":
        lsn = maker.pool.stats()["next_lsn"]
        maker.write("web/data", 2200, 130, flush=False)  # one batch is full and written, the rest is in memory
        for lost in range(lsn + BATCH_BLOCKS + 1, max(maker.states) + 1):
            del maker.states[lost]
    copy = f"{maker.path}-killed"
    shutil.copytree(maker.path, copy)
    maker.pool.close()
    shutil.rmtree(maker.path)
    os.rename(copy, maker.path)
    return _at_rest(maker, kind, maker.states)


def _at_rest(maker: Maker, kind: str, states: dict[int, State]) -> Specimen:
    tree = {
        str(file.relative_to(maker.path)): file.read_bytes() for file in sorted(Path(maker.path).rglob("*")) if file.is_file()
    }
    return Specimen(kind, tree, states, _holders(maker.path, states[max(states)]))


def _holders(path: str, state: State) -> dict[int, set[tuple[str, int]]]:
    holders: dict[int, set[tuple[str, int]]] = {}
    with Pool.open(path, **SMALL) as pool:
        for name, blocks in state.items():
            for number in blocks:
                _ids, address = _check.map_ids(pool.find(name), number)
                holders.setdefault(address, set()).add((name, number))
    return holders


@contextmanager
def _same_every_time(seed: int) -> Iterator[None]:
    rng = random.Random(f"uuids {seed}")

    def same_uuid() -> uuid.UUID:
        return uuid.UUID(int=rng.getrandbits(128), version=4)

    same_time: Callable[[], float] = lambda: 1_800_000_000.0  # noqa: E731
    with (
        mock.patch("blockdev.directory.uuid_module.uuid4", same_uuid),
        mock.patch("blockdev.directory.now_seconds", same_time),
        mock.patch("blockdev.inspection.now_seconds", same_time),
    ):
        yield


def write_tree(tree: Tree, path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)
    for name, content in tree.items():
        file = os.path.join(path, name)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as opened:
            opened.write(content)
