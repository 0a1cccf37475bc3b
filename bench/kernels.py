"""`python -m bench.kernels`: the engine's kernels alone, in nanoseconds a call; and all its functions in instructions.

Timed, they are called as C functions through the pointers that Cython exports for other extensions; a pointer tells its own
signature, so a kernel that changed is called with the arguments it has now or refused, never with the wrong ones.  What
the call from Python costs is measured with a C function that does nothing, and taken off.

Instructions are counted by callgrind while the engine writes, overwrites after a snapshot and reads in process: exactly,
and the same on each run.  valgrind hides AVX-512, so the fingerprint counted there is that of AVX2.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench import machine
from blockdev import Pool

BLOCK_BYTES = 4096
CALLS = 20_000
CALLS_AT_ONCE = 500  # that are timed together, in turns with as many that do nothing
COUNTED_BLOCKS = 2_000  # under callgrind, which is 50 times slower
COUNT_SECONDS_MAX = 300
BLOCKS_WARM = 64  # that take turns in being fingerprinted: what a client sent a moment ago is in the cache
KNOWN_PER_CALL = 12  # fingerprints in the index: 240,000, more than the caches hold
DEDUP_BUDGET_BYTES = 64 << 20
LEAF_BLOCKS = 512
MAP_HEIGHT = 3
READ_BLOCKS = 256  # of a read of 1 MiB
SEGMENT_SLOTS = 64 << 20 >> 12
OWNER, NEXT_OWNER = 1 << 32 | 1, 1 << 32 | 2  # vdisk 1 before and after a snapshot
ENTRY_DATA = 1
STRUCT_BYTES = 4096  # more than any structure that is made here has
SEED = 1

Arguments = tuple[Any, ...]


class Fingerprint(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))


PLAIN_TYPES = {
    "int": ctypes.c_int,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "struct __pyx_t_8blockdev_6_dedup_Fingerprint": Fingerprint,
    "enum __pyx_t_8blockdev_9_segments_EntryKind": ctypes.c_int,
    "void": None,
}
_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _type_of(text: str) -> Any:
    return ctypes.c_void_p if text.endswith("*") else PLAIN_TYPES[text]


def _prototype(signature: str) -> Any:
    """"int (void const *, uint64_t)" as a type of ctypes."""
    found = re.fullmatch(r"(.*?) ?\((.*)\)", signature)
    assert found, signature
    arguments = [_type_of(text) for text in found[2].split(", ")]
    return ctypes.PYFUNCTYPE(_type_of(found[1]), *(each for each in arguments if each is not None))


class Function:
    """A cdef function of one of blockdev's extensions."""

    def __init__(self, module: str, name: str) -> None:
        capsule = importlib.import_module(f"blockdev.{module}").__pyx_capi__[name]
        signature = _capsule_name(capsule)
        prototype = _prototype(signature.decode())
        self.call = prototype(_capsule_pointer(capsule, signature))
        # The same call from Python, of a C function that returns at once.
        self.call_nothing = prototype(ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p).value)

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


# Each yields the arguments of `count` calls, in a state that was made for them and goes away with them.


@contextmanager
def _blocks(count: int, scratch: Path) -> Iterator[list[Arguments]]:
    data = ctypes.create_string_buffer(random.Random(SEED).randbytes(BLOCKS_WARM * BLOCK_BYTES))
    yield [(ctypes.addressof(data) + number % BLOCKS_WARM * BLOCK_BYTES,) for number in range(count)]


@contextmanager
def _index(count: int) -> Iterator[tuple[int, list[Fingerprint], list[Fingerprint]]]:
    """An index, fingerprints that it knows in another order than they came, and as many that it does not know."""
    chance, index = random.Random(SEED), ctypes.c_void_p()
    Function("_dedup", "dedup_create")(ctypes.addressof(index), DEDUP_BUDGET_BYTES)
    insert = Function("_dedup", "dedup_insert")
    known = [Fingerprint(*chance.choices(range(1, 1 << 63), k=2)) for _ in range(count * KNOWN_PER_CALL)]
    unknown = [Fingerprint(*chance.choices(range(1, 1 << 63), k=2)) for _ in range(count)]
    for number, fingerprint in enumerate(known):
        insert(index, fingerprint, number + 1)
    yield index.value or 0, chance.sample(known, count), unknown
    Function("_dedup", "dedup_destroy")(index)


@contextmanager
def _known_fingerprints(count: int, scratch: Path) -> Iterator[list[Arguments]]:
    with _index(count) as (index, known, _):
        yield [(index, fingerprint) for fingerprint in known]


@contextmanager
def _unknown_fingerprints(count: int, scratch: Path) -> Iterator[list[Arguments]]:
    with _index(count) as (index, _, unknown):
        yield [(index, fingerprint) for fingerprint in unknown]


@contextmanager
def _new_fingerprints(count: int, scratch: Path) -> Iterator[list[Arguments]]:
    with _index(count) as (index, _, unknown):
        yield [(index, fingerprint, number + 1) for number, fingerprint in enumerate(unknown)]


@contextmanager
def _map(leaf_count: int, owner: int = OWNER) -> Iterator[tuple[int, int]]:
    """A store of nodes, and a map with a block in each of its leaves, as `owner` sees it."""
    store = Function("_nodes", "nodes_create")(-1, -1, bytes(16), 1, 1)
    init, update = Function("_cow", "map_init"), Function("_cow", "map_update")
    map = ctypes.create_string_buffer(STRUCT_BYTES)
    init(map, 0, MAP_HEIGHT, OWNER)
    for leaf in range(leaf_count):
        update(store, map, leaf * LEAF_BLOCKS, 1 << 32 | leaf + 1)
    if owner != OWNER:
        root = ctypes.c_uint64.from_buffer(map).value  # its first field
        init(map, root, MAP_HEIGHT, owner)
    yield store, ctypes.addressof(map)
    Function("_nodes", "nodes_destroy")(store)


@contextmanager
def _lookups(count: int, scratch: Path, blocks: int = 1) -> Iterator[list[Arguments]]:
    chance, addresses = random.Random(SEED), (ctypes.c_uint64 * blocks)()
    with _map(count) as (store, map):
        places = [chance.randrange(count) * LEAF_BLOCKS for _ in range(count)]
        yield [(store, map, place, blocks, ctypes.addressof(addresses)) for place in places]


def _long_lookups(count: int, scratch: Path) -> AbstractContextManager[list[Arguments]]:
    return _lookups(count, scratch, READ_BLOCKS)


@contextmanager
def _updates(count: int, scratch: Path, owner: int = OWNER) -> Iterator[list[Arguments]]:
    """Each in a leaf of its own."""
    with _map(count, owner) as (store, map):
        leaves = random.Random(SEED).sample(range(count), count)
        yield [(store, map, leaf * LEAF_BLOCKS, 2 << 32 | leaf + 1) for leaf in leaves]


def _updates_after_snapshot(count: int, scratch: Path) -> AbstractContextManager[list[Arguments]]:
    return _updates(count, scratch, NEXT_OWNER)


@contextmanager
def _appends(count: int, scratch: Path) -> Iterator[list[Arguments]]:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    path = ctypes.create_string_buffer(os.fsencode(folder))
    segments = Function("_segments", "segments_create")(path, bytes(16), SEGMENT_SLOTS, 16)
    log = Function("_log", "log_create")(segments, 1, 1)
    out = ctypes.create_string_buffer(STRUCT_BYTES)
    address, end_lsn = ctypes.addressof(out), ctypes.addressof(out) + 8
    with _blocks(count, scratch) as blocks:
        yield [
            (log, ENTRY_DATA, 1, number, number, number, block, 1, address, end_lsn)
            for number, (block,) in enumerate(blocks)
        ]
    Function("_log", "log_close")(log)
    Function("_log", "log_destroy")(log)
    Function("_segments", "segments_destroy")(segments)
    shutil.rmtree(folder)


class Kernel(NamedTuple):
    title: str
    module: str
    function: str
    prepare: Callable[[int, Path], AbstractContextManager[list[Arguments]]]


KERNELS = {
    "fingerprint": Kernel("fingerprint of a block", "_dedup", "fingerprint_block", _blocks),
    "index-hit": Kernel("index probe, known", "_dedup", "dedup_lookup", _known_fingerprints),
    "index-miss": Kernel("index probe, unknown", "_dedup", "dedup_lookup", _unknown_fingerprints),
    "index-insert": Kernel("index insert", "_dedup", "dedup_insert", _new_fingerprints),
    "map-lookup": Kernel("map lookup of a block", "_cow", "map_lookup", _lookups),
    "map-lookup-256": Kernel("map lookup of 256 blocks", "_cow", "map_lookup", _long_lookups),
    "map-update": Kernel("map update", "_cow", "map_update", _updates),
    "map-update-copy": Kernel("map update that copies its leaf", "_cow", "map_update", _updates_after_snapshot),
    "append": Kernel("append of a block, its share of writing the batch", "_log", "log_append", _appends),
}


@dataclass(frozen=True)
class Timing:
    """Of one call: the median, and the quartiles."""

    kernel: str
    title: str
    nanoseconds: float
    nanoseconds_low: float
    nanoseconds_high: float


@dataclass(frozen=True)
class Count:
    """Instructions of one call of a function, with and without those of what it calls."""

    function: str
    calls: int
    instructions: float
    instructions_own: float


def _nanoseconds(call: Callable[..., Any], calls: Sequence[Arguments]) -> float:
    """Of this thread's own time, each."""
    began = time.thread_time_ns()
    for arguments in calls:
        call(*arguments)
    return (time.thread_time_ns() - began) / len(calls)


def measure(name: str, scratch: Path, calls: int = CALLS) -> Timing:
    """Time `calls` calls of a kernel."""
    kernel = KERNELS[name]
    function = Function(kernel.module, kernel.function)
    nothing, something = [], []
    with kernel.prepare(calls, scratch) as prepared:
        for first in range(0, calls, CALLS_AT_ONCE):
            at_once = prepared[first : first + CALLS_AT_ONCE]
            nothing.append(_nanoseconds(function.call_nothing, at_once))
            something.append(_nanoseconds(function.call, at_once))
    low, median, high = (each - statistics.median(nothing) for each in statistics.quantiles(something))
    return Timing(name, kernel.title, median, low, high)


def _drive_engine(scratch: Path) -> None:
    """Write distinct blocks, the same again elsewhere, overwrite them after a snapshot, and read."""
    chance = random.Random(SEED)
    end = COUNTED_BLOCKS * LEAF_BLOCKS * BLOCK_BYTES
    places = [number * LEAF_BLOCKS * BLOCK_BYTES for number in range(COUNTED_BLOCKS)]
    with closing(Pool.create(str(scratch / "pool"), 1 << 40)) as pool:
        vdisk = pool.create_vdisk(end)
        blocks = [chance.randbytes(BLOCK_BYTES) for _ in places]
        for shift in (0, BLOCK_BYTES):
            for place, block in zip(places, blocks, strict=True):
                vdisk.write(place + shift, block)
        pool.snapshot([vdisk])
        for place in places:
            vdisk.write(place, chance.randbytes(BLOCK_BYTES))
        for place in chance.sample(places, len(places)):
            vdisk.read(place, BLOCK_BYTES)


def count_instructions(scratch: Path) -> list[Count]:
    """Of every function of the engine that was called, the costliest first.  Raises CalledProcessError."""
    output = scratch / "callgrind.out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}"]
    command += [sys.executable, "-m", "bench.kernels", "--drive-engine", f"--scratch={scratch}"]
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=COUNT_SECONDS_MAX)
    return read_counts(output.read_text())


def read_counts(text: str) -> list[Count]:
    """Of callgrind's format: costs below `fn=`, and below `calls=` the one line of what the callee took."""
    names: dict[str, str] = {}
    calls, own, inclusive = Counter[str](), Counter[str](), Counter[str]()
    caller, callee = "", ""
    for line in text.splitlines():
        if named := re.match(r"(c?fn)=(\(\d+\))(?: (.*))?", line):
            names.setdefault(named[2], named[3])
            if named[1] == "fn":
                caller = names[named[2]]
            else:
                callee = names[named[2]]
        elif line.startswith("calls="):
            calls[callee] += int(line[6:].split()[0])
        elif re.match(r"[0-9+*-]", line):
            cost = int(line.split()[1])
            inclusive[callee or caller] += cost if callee else 0
            own[caller] += 0 if callee else cost
            callee = ""
    found = {name: re.fullmatch(r"__pyx_f_8blockdev_\d+(_[a-z]+)_\d*(\w+)", name) for name in calls}
    counts = [
        Count(f"{parts[1]}.{parts[2]}", calls[name], inclusive[name] / calls[name], own[name] / calls[name])
        for name, parts in found.items()
        if parts
    ]
    return sorted(counts, key=lambda count: -count.instructions_own * count.calls)


def text(timings: Sequence[Timing], counts: Sequence[Count]) -> str:
    lines = [f"{'kernel':52} {'ns a call':>10} {'quartiles':>17}"]
    for each in timings:
        span = f"{each.nanoseconds_low:,.0f} - {each.nanoseconds_high:,.0f}"
        lines.append(f"{each.title:52} {each.nanoseconds:10,.0f} {span:>17}")
    if counts:
        lines += ["", f"{'function':40} {'calls':>10} {'instructions a call':>20} {'its own':>10}"]
    for each in counts:
        if each.calls < COUNTED_BLOCKS:  # the rest is of opening and closing, and in the JSON
            continue
        own = f"{each.instructions_own:10,.0f}"
        lines.append(f"{each.function:40} {each.calls:10,} {each.instructions:20,.0f} {own}")
    return "\n".join(lines)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.kernels", description="the engine's kernels alone")
    parser.add_argument("--kernel", action="append", choices=list(KERNELS), metavar="NAME", help=", ".join(KERNELS))
    parser.add_argument("--no-instructions", action="store_true", help="time only: callgrind takes a minute")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"), metavar="DIR", help="for the log")
    parser.add_argument("--drive-engine", action="store_true", help=argparse.SUPPRESS)  # what callgrind runs
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    arguments = _arguments(given)
    if arguments.drive_engine:
        _drive_engine(arguments.scratch)
        return 0
    if not arguments.no_instructions and shutil.which("valgrind") is None:
        print("bench: valgrind is not installed: --no-instructions, or apt-get install valgrind", file=sys.stderr)
        return 1
    scratch = Path(tempfile.mkdtemp(prefix="bench-kernels-", dir=arguments.scratch))
    try:
        timings = [measure(name, scratch) for name in arguments.kernel or KERNELS]
        counts = [] if arguments.no_instructions else count_instructions(scratch)
    except subprocess.CalledProcessError as error:
        print(f"bench: {error}: {error.stderr.strip()[-500:]}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch)
    print(text(timings, counts))
    if arguments.json:
        result = {
            "machine": machine.describe(arguments.scratch),
            "timings": [asdict(each) for each in timings],
            "counts": [asdict(each) for each in counts],
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
