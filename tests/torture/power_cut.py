"""What survives a power cut: one choice among all that the file system might have done, by a named policy and a seed.

A policy says three things: what survives of the data written, of the files' sizes, and of the directories' changes, each
since the last sync of that file or directory.  The extremes are policies of their own, because chance rarely finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from random import Random
from typing import NamedTuple, TypeAlias

from tests.torture.file_system import (
    ROOT,
    SECTOR,
    FileSystem,
    Mask,
    Tree,
    Write,
    sector_count,
)

PAGE_SECTORS = 4096 // SECTOR

Choice: TypeAlias = list[bool]
DataChooser: TypeAlias = Callable[[list[Write], Random], list[Mask]]
CountChooser: TypeAlias = Callable[[int, Random], Choice]


# --- which of a number of changes, in the order they were made ----------------------------------------------------------


def nothing(count: int, _chosen: Random) -> Choice:
    return [False] * count


def everything(count: int, _chosen: Random) -> Choice:
    return [True] * count


def only_one(count: int, chosen: Random) -> Choice:
    survivor = chosen.randrange(count)
    return [number == survivor for number in range(count)]


def all_but_one(count: int, chosen: Random) -> Choice:
    return [not kept for kept in only_one(count, chosen)]


def only_the_last(count: int, _chosen: Random) -> Choice:
    return [False] * (count - 1) + [True]


def all_but_the_first(count: int, _chosen: Random) -> Choice:
    return [False] + [True] * (count - 1)


def all_but_the_last(count: int, _chosen: Random) -> Choice:
    return [True] * (count - 1) + [False]


def in_order(count: int, chosen: Random) -> Choice:
    end = chosen.randrange(count + 1)
    return [number < end for number in range(count)]


def in_reverse(count: int, chosen: Random) -> Choice:
    return in_order(count, chosen)[::-1]


def some(count: int, chosen: Random) -> Choice:
    share = chosen.choice((0.1, 0.5, 0.9))
    return [chosen.random() < share for _ in range(count)]


COUNT_CHOOSERS = (nothing, everything, only_one, all_but_one, only_the_last, all_but_the_first, in_order, some)


# --- of data ------------------------------------------------------------------------------------------------------------


def torn(write: Write, chosen: Random) -> Mask:
    """Some sectors of one write."""
    count = sector_count(write)
    way = chosen.randrange(7)
    if way < 3:
        return (in_order, in_reverse, some)[way](count, chosen)
    if way < 5:
        return (only_one, all_but_one)[way - 3](count, chosen)
    first_page = [number < PAGE_SECTORS for number in range(count)]
    return first_page if way == 5 else [not kept for kept in first_page]


def whole(choose: CountChooser) -> DataChooser:
    """Each write survives or does not."""

    def choose_writes(writes: list[Write], chosen: Random) -> list[Mask]:
        return list(choose(len(writes), chosen)) if writes else []

    return choose_writes


def torn_in_order(writes: list[Write], chosen: Random) -> list[Mask]:
    """Those before one of them, which is torn."""
    masks: list[Mask] = [False] * len(writes)
    if writes:
        number = chosen.randrange(len(writes))
        masks[:number] = [True] * number
        masks[number] = torn(writes[number], chosen)
    return masks


def torn_in_reverse(writes: list[Write], chosen: Random) -> list[Mask]:
    """Those after one of them, which is torn."""
    return torn_in_order(writes[::-1], chosen)[::-1]


def each_torn(writes: list[Write], chosen: Random) -> list[Mask]:
    return [chosen.choice((True, False, torn(write, chosen))) for write in writes]


def one_torn(writes: list[Write], chosen: Random) -> list[Mask]:
    masks: list[Mask] = [True] * len(writes)
    if writes:
        number = chosen.randrange(len(writes))
        masks[number] = torn(writes[number], chosen)
    return masks


def last_torn(writes: list[Write], chosen: Random) -> list[Mask]:
    return [True] * (len(writes) - 1) + [torn(write, chosen) for write in writes[-1:]]


def sectors(writes: list[Write], chosen: Random) -> list[Mask]:
    return [some(sector_count(write), chosen) for write in writes]


def some_files(writes: list[Write], chosen: Random) -> list[Mask]:
    numbers = sorted({write.file for write in writes})
    survives = dict(zip(numbers, some(len(numbers), chosen), strict=True))
    return [survives[write.file] for write in writes]


DATA_CHOOSERS: tuple[DataChooser, ...] = (
    *map(whole, COUNT_CHOOSERS),
    torn_in_order,
    torn_in_reverse,
    each_torn,
    one_torn,
    last_torn,
    sectors,
    some_files,
)


# --- of sizes: the index of one of those a file had ---------------------------------------------------------------------


def oldest_size(_count: int, _chosen: Random) -> int:
    return 0


def newest_size(count: int, _chosen: Random) -> int:
    return count - 1


def any_size(count: int, chosen: Random) -> int:
    return chosen.randrange(count)


SIZE_CHOOSERS = (oldest_size, newest_size, any_size)


class Policy(NamedTuple):
    data: Sequence[DataChooser]  # one of these is taken
    sizes: Sequence[Callable[[int, Random], int]]  # and for each file one of these
    entries: Sequence[CountChooser]


NAMES_ONLY = "any names"
POLICIES: dict[str, Policy] = {
    "nothing": Policy([whole(nothing)], [oldest_size], [nothing]),
    "everything": Policy([whole(everything)], [newest_size], [everything]),
    "the last write only": Policy([whole(only_the_last)], [newest_size], [everything]),
    "all but the first write": Policy([whole(all_but_the_first)], [newest_size], [everything]),
    "all but the last write": Policy([whole(all_but_the_last)], [newest_size], [everything]),
    "one write": Policy([whole(only_one)], [newest_size], [everything]),
    "all but one write": Policy([whole(all_but_one)], [newest_size], [everything]),
    "in order": Policy([torn_in_order], [newest_size], [everything]),
    "in reverse order": Policy([torn_in_reverse], [newest_size], [everything]),
    "any writes": Policy([whole(some)], SIZE_CHOOSERS, [some]),
    "any sectors": Policy([sectors], [newest_size], [everything]),
    "torn writes": Policy([each_torn], [newest_size], [everything]),
    "one torn write": Policy([one_torn], [newest_size], [everything]),
    "the last write torn": Policy([last_torn], [newest_size], [everything]),
    "some files": Policy([some_files], [newest_size], [everything]),
    "only sizes": Policy([whole(nothing)], [newest_size], [nothing]),
    "only names": Policy([whole(nothing)], [oldest_size], [everything]),
    "only names and sizes": Policy([whole(nothing)], [newest_size], [everything]),
    "no names": Policy([whole(everything)], [newest_size], [nothing]),
    "no sizes": Policy([whole(everything)], [oldest_size], [everything]),
    "any sizes": Policy([whole(everything)], [any_size], [everything]),
    NAMES_ONLY: Policy([whole(everything)], [newest_size], [some, only_one, all_but_one, in_order, in_reverse]),
    "a mix": Policy(DATA_CHOOSERS, SIZE_CHOOSERS, COUNT_CHOOSERS),
}

# what a real disk does most, and what recovery must tell apart
OFTEN = ("in order", "in reverse order", "any sectors", "torn writes", "one torn write", "the last write torn")
CHOICES = (*POLICIES, *OFTEN)


def surviving_tree(system: FileSystem, policy: Policy, chosen: Random) -> Tree:
    """One of the trees that the next start may find."""
    masks = _masks(system, chosen.choice(policy.data), chosen)
    entries = _entries(system, chosen.choice(policy.entries), chosen)
    contents = {}
    for number, file in system.files().items():
        size = chosen.choice(policy.sizes)(len(file.sizes()), chosen)
        contents[number] = bytes(file.surviving(masks, size))
    return dict(_walk(ROOT, "", entries, contents))


def _masks(system: FileSystem, choose: DataChooser, chosen: Random) -> dict[int, Mask]:
    pending = chain.from_iterable(file.pending.items() for file in system.files().values())
    writes = sorted((place, change) for place, change in pending if isinstance(change, Write))
    masks = choose([write for _place, write in writes], chosen)
    return {place: mask for (place, _write), mask in zip(writes, masks, strict=True)}


def _entries(system: FileSystem, choose: CountChooser, chosen: Random) -> dict[int, dict[str, int]]:
    """What each directory holds."""
    directories = system.directories()
    places = sorted(chain.from_iterable(directory.pending for directory in directories.values()))
    kept = choose(len(places), chosen) if places else []
    survivors = {place for place, survives in zip(places, kept, strict=True) if survives}
    return {number: directory.surviving(survivors) for number, directory in directories.items()}


def _walk(
    number: int, path: str, entries: dict[int, dict[str, int]], contents: dict[int, bytes]
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in sorted(entries[number].items()):
        if node in contents:
            yield path + name, contents[node]
        else:
            yield path + name, None
            yield from _walk(node, f"{path}{name}/", entries, contents)
