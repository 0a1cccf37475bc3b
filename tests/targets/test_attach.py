"""A VM's disks at a real initiator, in a real kernel: attach_story.py, and reboot_story.py on the disk that it leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.uml import UserModeMachine
from tests.targets import attach_story, reboot_story
from tests.targets.facts import Outcomes, facts_of

DISK_BYTES = 2 << 30


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the guest's machine; its home is there."""
    image = tmp_path_factory.mktemp("attach") / "disk"
    image.touch()
    os.truncate(image, DISK_BYTES)
    yield image
    image.unlink()  # pytest would keep those of three runs


@pytest.fixture(scope="module")
def first_boot(disk: Path) -> Outcomes:
    return Outcomes(attach_story, UserModeMachine(disks=[disk], time_limit_s=840))


@pytest.fixture(scope="module")
def second_boot(first_boot: Outcomes, disk: Path) -> Outcomes:
    return Outcomes(reboot_story, UserModeMachine(disks=[disk], time_limit_s=400))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fact", facts_of(attach_story))
def test_in_the_guest(first_boot: Outcomes, fact: str) -> None:
    first_boot.check(fact)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fact", facts_of(reboot_story))
def test_after_a_reboot_of_the_guest(second_boot: Outcomes, fact: str) -> None:
    second_boot.check(fact)
