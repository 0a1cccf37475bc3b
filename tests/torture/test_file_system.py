"""The model of a file system leaves all that a real one may leave after a power cut, and nothing else."""

from __future__ import annotations

import tempfile
from random import Random

import pytest

from tests.torture.file_system import (
    SECTOR,
    Create,
    FileSystem,
    Operation,
    Remove,
    Rename,
    Sync,
    SyncDirectory,
    Tree,
    Truncate,
    Write,
    read_tree,
    write_tree,
)
from tests.torture.power_cut import POLICIES, surviving_tree

OLD, NEW = b"o" * SECTOR, b"n" * SECTOR
FILE = 1  # the number of the one file that most trees have


def outcomes(tree: Tree, operations: list[Operation], tries: int = 2000) -> list[Tree]:
    """The different trees that the policies make of the same past."""
    system = FileSystem(tree)
    system.apply(operations)
    chosen = Random(1)
    found: list[Tree] = []
    for _ in range(tries):
        left = surviving_tree(system, POLICIES[chosen.choice(list(POLICIES))], chosen)
        if left not in found:
            found.append(left)
    return found


def contents(tree: Tree, operations: list[Operation]) -> set[bytes | None]:
    return {left["f"] for left in outcomes(tree, operations)}


def test_unsynced_sectors_are_old_or_new_each_by_itself() -> None:
    assert contents({"f": OLD * 3}, [Write(FILE, 0, NEW * 2)]) == {
        OLD * 3,
        NEW + OLD * 2,
        OLD + NEW + OLD,
        NEW * 2 + OLD,
    }


def test_a_later_write_may_survive_without_an_earlier_one() -> None:
    found = contents({"f": OLD * 2}, [Write(FILE, 0, NEW), Write(FILE, SECTOR, NEW)])
    assert OLD + NEW in found and NEW + OLD in found


def test_a_sector_written_twice_has_any_of_its_versions() -> None:
    later = b"l" * SECTOR
    assert contents({"f": OLD}, [Write(FILE, 0, NEW), Write(FILE, 0, later)]) == {OLD, NEW, later}


def test_a_write_across_a_sector_boundary_is_torn_there_only() -> None:
    half = SECTOR // 2
    found = contents({"f": OLD * 2}, [Write(FILE, half, NEW)])
    assert found == {
        OLD * 2,
        OLD[:half] + NEW[:half] + OLD,
        OLD + NEW[:half] + OLD[:half],
        OLD[:half] + NEW + OLD[:half],
    }


def test_what_was_synced_stays() -> None:
    assert contents({"f": OLD * 2}, [Write(FILE, 0, NEW * 3), Sync(FILE)]) == {NEW * 3}


def test_a_sync_of_one_file_says_nothing_of_another() -> None:
    tree: Tree = {"f": OLD, "g": OLD}
    found = {left["g"] for left in outcomes(tree, [Write(2, 0, NEW), Write(FILE, 0, NEW), Sync(FILE)])}
    assert found == {OLD, NEW}


def test_a_size_may_be_lost_or_come_without_its_data() -> None:
    assert contents({"f": OLD}, [Write(FILE, SECTOR, NEW)]) == {OLD, OLD + bytes(SECTOR), OLD + NEW}


def test_what_was_truncated_is_gone_or_back_but_never_both() -> None:
    found = contents({"f": OLD * 2}, [Truncate(FILE, SECTOR), Write(FILE, 2 * SECTOR, NEW)])
    assert OLD * 2 in found, "the truncation was lost"
    assert OLD in found, "only the truncation survived"
    assert OLD + bytes(SECTOR) + NEW in found
    assert OLD * 2 + NEW not in found, "what a later size needs was cut before"


def test_a_synced_file_vanishes_with_its_name() -> None:
    made: list[Operation] = [Create(0, "g", 2, False), Write(2, 0, NEW), Sync(2)]
    assert {left.get("g") for left in outcomes({"f": OLD}, made)} == {None, NEW}
    assert {left.get("g") for left in outcomes({"f": OLD}, [*made, SyncDirectory(0)])} == {NEW}


def test_a_name_survives_without_its_data() -> None:
    found = [left for left in outcomes({}, [Create(0, "g", 1, False), Write(1, 0, NEW), SyncDirectory(0)])]
    assert {left["g"] for left in found} == {b"", bytes(SECTOR), NEW}


def test_a_rename_is_atomic() -> None:
    tree: Tree = {"f": OLD, "g": NEW}
    found = outcomes(tree, [Rename(0, "g", "f", 2)])
    assert len(found) == 2 and tree in found and {"f": NEW} in found


def test_changes_of_a_directory_survive_in_any_combination() -> None:
    found = outcomes({"f": OLD}, [Create(0, "g", 2, False), Remove(0, "f", FILE), Create(0, "h", 3, False)])
    assert {frozenset(left) for left in found} == {
        frozenset(names)
        for names in (["f"], ["f", "g"], [], ["f", "h"], ["g"], ["f", "g", "h"], ["h"], ["g", "h"])
    }


def test_a_directory_is_lost_with_what_is_in_it() -> None:
    made: list[Operation] = [Create(0, "d", 1, True), Create(1, "g", 2, False), SyncDirectory(1)]
    found = outcomes({}, made)
    assert len(found) == 2 and {} in found and {"d": None, "d/g": b""} in found


def test_a_file_is_settled_when_no_change_of_it_is_pending() -> None:
    system = FileSystem({"d": None, "d/f": OLD})
    assert system.settled("d/f") == OLD and system.settled("d/g") == b""
    system.apply([Write(2, 0, NEW), Create(1, "g", 3, False)])
    assert system.settled("d/f") is None and system.settled("d/g") is None
    system.apply([Sync(2), Rename(1, "g", "h", 3)])
    assert system.settled("d/f") == NEW and system.settled("d/h") is None
    system.apply([SyncDirectory(1)])
    assert system.settled("d/g") == b"" and system.settled("d/h") == b""


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_leaves_what_is_durable(name: str) -> None:
    system = FileSystem({"d": None, "d/f": OLD, "e": NEW})
    system.apply([Write(2, SECTOR, NEW), Sync(2), Create(1, "g", 4, False), SyncDirectory(1)])
    for seed in range(20):
        left = surviving_tree(system, POLICIES[name], Random(seed))
        assert left == {"d": None, "d/f": OLD + NEW, "d/g": b"", "e": NEW}


def test_a_tree_is_read_back_as_it_was_written() -> None:
    tree: Tree = {"d": None, "d/e": None, "d/e/f": OLD, "d/g": b"", "h": NEW}
    with tempfile.TemporaryDirectory() as directory:
        write_tree(tree, f"{directory}/root")
        assert read_tree(f"{directory}/root") == tree
