"""Makers of pools, exports and keys that are killed leave nothing for ever, and who makes one is left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from blockdev import Pool, _medium, directory, errors
from blockdev.api import certificate
from blockdev.home import Home as Paths
from blockdev.replicate.identity import KeyPair
from blockdev.transfer.disk import directory_beside
from tests.child import Child, Say

CAPACITY_BYTES = 64 << 20
SEGMENT_BYTES = 1 << 20
KILLED = 9


@pytest.fixture
def pool_path(tmp_path: Path) -> str:
    return str(tmp_path / "pool")


def make(path: str) -> None:
    Pool.create(path, CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES).close()


def kill(*_arguments: object, **_named: object) -> None:
    os._exit(KILLED)


def make_until(path: str, patch: pytest.MonkeyPatch, module: object, call: str) -> None:
    """In a process that is killed when it would make this call."""

    def work(_say: Say) -> None:
        patch.setattr(module, call, kill)
        make(path)

    with closing(Child(work)) as maker:
        assert maker.wait() == KILLED


def beside(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


STEPS = {
    "make_directory": _medium,
    "write_file": _medium,
    "sync_directory": _medium,
    "rename_file": _medium,
    "take_lock": directory,
}


@pytest.fixture(params=[(module, call) for call, module in STEPS.items()], ids=list(STEPS))
def killed(request: pytest.FixtureRequest, pool_path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path of a pool whose maker was killed."""
    os.makedirs(os.path.dirname(pool_path), exist_ok=True)
    make_until(pool_path, monkeypatch, *request.param)
    yield pool_path


def test_what_a_killed_maker_left_goes_when_the_pool_is_made(killed: str) -> None:
    make(killed)
    assert beside(killed) == ["pool"]


def test_what_a_killed_maker_left_goes_when_the_pool_is_opened(killed: str) -> None:
    left = [name for name in beside(killed) if name != "pool"]
    for name in left:
        os.rename(f"{os.path.dirname(killed)}/{name}", f"{os.path.dirname(killed)}/aside")
    make(killed)
    for name in left:
        os.rename(f"{os.path.dirname(killed)}/aside", f"{os.path.dirname(killed)}/{name}")
    Pool.open(killed).close()
    assert beside(killed) == ["pool"]


def test_what_an_earlier_build_left_goes(pool_path: str) -> None:
    os.makedirs(f"{pool_path}.making-4711/map")
    make(pool_path)
    assert beside(pool_path) == ["pool"]


def test_what_is_not_a_makers_stays(pool_path: str) -> None:
    others = ["other.making-1", "pool.making-", "pool.making-1.bak", "pool.making-me", "poolmaking-1"]
    for name in others:
        os.makedirs(os.path.join(os.path.dirname(pool_path), name, "map"))
    make(pool_path)
    assert beside(pool_path) == sorted([*others, "pool"])


def test_a_pool_that_is_being_made_is_not_cleared(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_rename, told = os.pipe()
    go, let_go = os.pipe()
    rename = _medium.rename_file

    def wait_and_rename(source: str, destination: str) -> None:
        if destination == pool_path:
            os.write(told, b"1")
            os.read(go, 1)
        rename(source, destination)

    def work(_say: Say) -> None:
        monkeypatch.setattr(_medium, "rename_file", wait_and_rename)
        make(pool_path)

    maker = Child(work)
    os.close(told)  # so that its end is seen
    try:
        assert os.read(at_rename, 1) == b"1"
        before = beside(pool_path)
        directory.clear_unfinished(pool_path)
        assert beside(pool_path) == before
        assert len(before) == 1
    finally:
        os.write(let_go, b"1")
        status = maker.wait()
        maker.close()
        for end in (at_rename, go, let_go):
            os.close(end)
    assert status == 0
    with Pool.open(pool_path) as pool:
        assert pool.check() == []


def clear_before(path: str, take: Callable[[str], int]) -> Callable[[str], int]:
    """Somebody clears what is not locked yet."""

    def take_lock(making: str) -> int:
        directory.clear_unfinished(path)
        assert not os.path.exists(making)
        return take(making)

    return take_lock


def clear_meanwhile(_path: str, take: Callable[[str], int]) -> Callable[[str], int]:
    """Somebody has the lock first, and lets go of it when all is cleared."""

    def take_lock(making: str) -> int:
        lock_file = take(making)
        shutil.rmtree(making)
        return lock_file

    return take_lock


def find_it_locked(_path: str, take: Callable[[str], int]) -> Callable[[str], int]:
    """Somebody is about to clear it."""

    def take_lock(making: str) -> int:
        os.close(take(making))
        raise errors.Busy("it is being cleared")

    return take_lock


@pytest.mark.parametrize("meanwhile", [clear_before, clear_meanwhile, find_it_locked])
def test_a_maker_whose_directory_is_cleared_before_it_is_locked_begins_anew(
    pool_path: str, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[..., Callable[[str], int]]
) -> None:
    take = directory.take_lock
    first = iter([meanwhile(pool_path, take)])

    def take_lock(making: str) -> int:
        return next(first, take)(making)

    monkeypatch.setattr(directory, "take_lock", take_lock)
    make(pool_path)
    Pool.open(pool_path).close()
    assert beside(pool_path) == ["pool"]


def export_and_die(place: Path) -> None:
    with directory_beside(place / "disk.raw") as made:
        (made / "disk.raw").write_bytes(b"half")
        kill()


def make_an_identity_and_die(place: Path) -> None:
    os.link = kill  # type: ignore[assignment]
    KeyPair.load(Paths(place))


def make_a_certificate_and_die(place: Path) -> None:
    os.rename = kill  # type: ignore[assignment]
    Paths(place).make_directories()
    certificate.make(place / "keys/api", "127.0.0.1")


def export(place: Path) -> None:
    with directory_beside(place / "disk.raw"):
        pass


def begin_serving(place: Path) -> None:
    Paths(place).make_directories()


@pytest.mark.parametrize(
    ("die", "again", "where"),
    [
        (export_and_die, export, "."),
        (make_an_identity_and_die, begin_serving, "keys"),
        (make_a_certificate_and_die, begin_serving, "keys"),
    ],
)
def test_what_is_made_beside_its_place_leaves_nothing_when_its_maker_is_killed(
    tmp_path: Path, die: Callable[[Path], None], again: Callable[[Path], None], where: str
) -> None:
    with closing(Child(lambda _say: die(tmp_path))) as maker:
        assert maker.wait() == KILLED
    [left] = os.listdir(tmp_path / where)
    assert left.startswith(".")
    again(tmp_path)
    assert os.listdir(tmp_path / where) in ([], ["keys", "run"])


def test_what_is_being_made_is_not_cleared_nor_is_what_others_made(tmp_path: Path) -> None:
    others = [".blockdev-export-", ".blockdev-export-mine", "blockdev-export-1-00000000", ".blockdev-export-1-00000000.bak"]
    for name in others:
        (tmp_path / name / "of-theirs").mkdir(parents=True)
    with directory_beside(tmp_path / "one") as one:
        (one / "data").touch()
        with directory_beside(tmp_path / "LOCK") as other:
            (other / "LOCK").touch()
            assert one != other and sorted(one.iterdir()) == [one / "data"]
        assert (one / "data").exists()
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_a_file_system_without_locks_takes_exports_and_clears_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with directory_beside(tmp_path / "one") as one, directory_beside(tmp_path / "other"):
        assert one.exists()
    assert os.listdir(tmp_path) == []
    with pytest.raises(errors.MediumError, match="cannot be locked"):
        make(str(tmp_path / "pool"))
    assert os.listdir(tmp_path) == []
