"""A guest on a stock kernel works on its disks over NBD while snapshots and clones of its VM are taken.

One history is played for the whole module: a guest writes and syncs without pause, snapshot `live` is taken under
that load, snapshot `frozen` with its file system frozen, then the guest changes what was snapshotted. A second guest
looks at clones of both and at `frozen` itself, and changes the clones.
"""

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.guest.conftest import ServedHome
from tests.lab.guest import Guest, Result, run
from tests.lab.qemu import Drive, Machine

HERE = Path(__file__).parent
PYTHON = ["/usr/bin/python3", "-S"]
EXPORTS = ("web/root", "web/data", "web/root@live", "web/data@live", "web/root@frozen", "web/data@frozen")
STEPS = 5
FROZEN_NAMES = ["changed", "imported.sha256", "lost+found", "source", "work"]


@dataclass
class History:
    """What was seen; steps are the writer's."""

    home: ServedHome
    copies: Path  # raw copies of EXPORTS, made after the first guest and before the second
    synced: dict[int, str]  # step to hash, all of them
    step_synced_before_live: int
    step_begun_after_live: int
    second_guest: Result


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_image(directory: Path) -> tuple[Path, dict[str, str]]:
    """An ext4 image with files of this machine in it, and the hashes of its files."""
    tree = directory / "tree"
    (tree / "source").mkdir(parents=True)
    hashes = {}
    for path in sorted(HERE.glob("*.py")):
        name = f"source/{path.name}"
        data = path.read_bytes()
        (tree / name).write_bytes(data)
        hashes[name] = digest(data)
    (tree / "imported.sha256").write_text("".join(f"{value}  {name}\n" for name, value in hashes.items()))
    image = directory / "root.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "128M"], check=True)
    return image, hashes


def lines(path: Path) -> list[str]:
    """The whole lines of a file that the guest is appending to."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def await_steps(guest: Guest, count: int) -> None:
    guest.await_file("synced")
    while len(lines(guest.share / "synced")) < count:
        assert guest.is_running(), guest.wait().describe()
        time.sleep(0.02)


def play_first_guest(home: ServedHome) -> tuple[dict[int, str], int, int]:
    drives = [Drive(home.uri("web/root")), Drive(home.uri("web/data"))]
    with Guest([*PYTHON, str(HERE / "guest_writer.py")], Machine(drives=drives, time_limit_s=400)) as guest:
        await_steps(guest, STEPS)
        synced_before = len(lines(guest.share / "synced"))
        home.ctl("snapshot", "create", "web", "--name", "live")
        begun_after = len(lines(guest.share / "begun"))
        home.ctl("clone", "web@live", "of-live")
        await_steps(guest, begun_after + STEPS)
        (guest.share / "stop").touch()
        guest.await_file("frozen")
        home.ctl("snapshot", "create", "web", "--name", "frozen")
        (guest.share / "thaw").touch()
        home.ctl("clone", "web@frozen", "of-frozen")
        result = guest.wait()
        assert result.status == 0, result.describe()
        synced = dict(line.split() for line in lines(guest.share / "synced"))
    return {int(step): value for step, value in synced.items()}, synced_before, begun_after


def counter(raw: Path) -> int:
    with open(raw, "rb") as disk:
        return int.from_bytes(disk.read(8), "little")


def raw_copy(directory: Path, export: str) -> Path:
    return directory / export.replace("/", "-")


def plan(synced: dict[int, str], live_step: int, imported: dict[str, str]) -> list[dict[str, Any]]:
    live = {f"work/{step}": synced[step] for step in range(1, live_step + 1)}
    # the step after the counter's may have been under way
    live_names = {"work": [str(step) for step in range(1, live_step + 2)]}
    frozen = {f"work/{step}": value for step, value in synced.items()} | {
        "changed": digest(b"before\n" * 1000)
    }
    of_frozen = {"files": imported | frozen, "names": {".": FROZEN_NAMES}}
    return [
        {"device": "/dev/vda", "files": imported | live, "names": live_names, "writable": True},
        {"device": "/dev/vdb", **of_frozen, "writable": True},
        {"device": "/dev/vdc", **of_frozen, "writable": False},
    ]


@pytest.fixture(scope="module")
def history(served_home: ServedHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    home, directory = served_home, tmp_path_factory.mktemp("guest")
    image, imported = make_image(directory)
    home.ctl("vm", "create", "web", "--image", f"root={image}", "--disk", "data=64M")
    synced, synced_before, begun_after = play_first_guest(home)
    for export in EXPORTS:
        home.copy(export, raw_copy(directory, export))
    live_step = counter(raw_copy(directory, "web/data@live"))
    (directory / "plan").write_text(json.dumps(plan(synced, live_step, imported)))
    machine = Machine(
        drives=[Drive(home.uri("of-live/root")), Drive(home.uri("of-frozen/root"))],
        qemu_arguments=home.qemu_arguments("web/root@frozen"),
        time_limit_s=400,
    )
    second = run([*PYTHON, str(HERE / "guest_checker.py"), str(directory / "plan")], machine)
    yield History(home, directory, synced, synced_before, begun_after, second)
    for path in directory.iterdir():
        if path.is_file():
            path.unlink()  # pytest would keep the copies of three runs


def test_snapshot_under_load_holds_what_was_synced_and_nothing_begun_after_it(history: History) -> None:
    step = counter(raw_copy(history.copies, "web/data@live"))
    assert history.step_synced_before_live <= step <= history.step_begun_after_live
    assert max(history.synced) > history.step_begun_after_live  # the guest went on writing


def test_snapshot_of_a_frozen_file_system_is_clean_without_replay(history: History) -> None:
    raw = raw_copy(history.copies, "web/root@frozen")
    checked = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    features = subprocess.run(["dumpe2fs", "-h", raw], capture_output=True, text=True).stdout
    assert "needs_recovery" not in features
    assert counter(raw_copy(history.copies, "web/data@frozen")) == max(history.synced)


def test_the_unmounted_origin_is_clean_and_has_the_later_writes(history: History) -> None:
    raw = raw_copy(history.copies, "web/root")
    checked = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    for name, content in (("changed", b"after\n" * 1000), ("later", b"later\n")):
        shown = subprocess.run(["debugfs", "-R", f"cat /{name}", raw], capture_output=True, check=True)
        assert shown.stdout == content


def test_clones_and_snapshot_mount_in_a_second_guest_with_the_files_of_their_instant(
    history: History,
) -> None:
    assert history.second_guest.status == 0, history.second_guest.describe()


@pytest.mark.parametrize("export", EXPORTS)
def test_writes_to_clones_change_neither_origin_nor_snapshot(history: History, export: str) -> None:
    subprocess.run(
        [
            "qemu-img",
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            raw_copy(history.copies, export),
            history.home.uri(export),
        ],
        check=True,
    )


@pytest.mark.parametrize("clone", ["of-live", "of-frozen"])
def test_a_clone_keeps_what_the_second_guest_wrote(history: History, clone: str, tmp_path: Path) -> None:
    raw = history.home.copy(f"{clone}/root", tmp_path / "raw")
    shown = subprocess.run(["debugfs", "-R", "cat /changed", raw], capture_output=True, check=True)
    listing = subprocess.run(["debugfs", "-R", "ls /", raw], capture_output=True, text=True, check=True)
    assert "cloned" in listing.stdout
    if clone == "of-frozen":
        assert shown.stdout == b"changed in the clone\n" * 500
    raw.unlink()
