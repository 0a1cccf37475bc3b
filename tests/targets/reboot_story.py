"""Runs in the lab guest, on the disk that attach_story.py left: its machine was switched off, and starts again."""

from __future__ import annotations

import hashlib
import json
import sys

from tests.targets import initiator
from tests.targets.attach_story import CHAP, MUTUAL, assert_refused
from tests.targets.facts import fact
from tests.targets.initiator import run, until
from tests.targets.world import DIRECTORY, MEBIBYTE, World, mount_first_disk


@fact
def targets_are_as_they_were(world: World) -> None:
    until(lambda: world.target("guarded")["state"] == "up", "the target after the boot")
    expected = json.loads((DIRECTORY / "expected.json").read_text())
    found = world.target("guarded")
    for shown in (found, expected["target"]):
        shown.pop("sessions")  # nobody is logged in after a boot
    assert found == expected["target"]


@fact
def luns_hold_what_was_flushed_and_are_guarded_as_before(world: World) -> None:
    expected = json.loads((DIRECTORY / "expected.json").read_text())
    iqn = expected["target"]["iqn"]
    assert_refused(iqn)
    session = initiator.login(iqn, chap=CHAP, mutual=MUTUAL)
    disks = session.disks(2)
    for disk, lun in zip(disks, expected["target"]["luns"], strict=True):
        assert lun["serial"] in initiator.vital_page(disk, "sn")
        with open(disk, "rb") as device:
            assert hashlib.sha256(device.read(MEBIBYTE)).hexdigest() == expected["sha256"]
    session.logout()


@fact
def a_target_that_was_removed_is_not_back_and_the_pool_is_whole(world: World) -> None:
    listed = world.ask("GET", "/targets")["targets"]
    assert sorted(target["vm"] for target in listed) == ["foreign", "guarded"]
    world.home("pool", "check")


def main() -> None:
    mount_first_disk(DIRECTORY)
    World(DIRECTORY).play(sys.modules[__name__], "1G")
    run("umount", DIRECTORY)


if __name__ == "__main__":
    main()
