"""Where a kernel has no network block devices, or we may not have them: the sentence says what is missing and what else there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blockdev.targets.devices import Devices, Wanted
from blockdev.targets.kernel_nbd import Family

ASK = """
import os, pathlib
os.setgid(65534); os.setuid(65534)
from blockdev.targets.devices import Devices
print(Devices("0", pathlib.Path("/nowhere")).missing())
"""


def family_is_there() -> bool:
    try:
        Family().close()
    except OSError:
        return False
    return True


def test_the_sentence_names_root_the_module_or_nothing() -> None:
    missing = Devices("0123abcd", Path("/nowhere/nbd.sock")).missing()
    if os.geteuid() != 0:
        assert missing is not None and "as root" in missing
    elif family_is_there():
        assert missing is None
    else:
        assert missing is not None and "modprobe nbd" in missing and os.uname().release in missing
    assert missing is None or "attach VM/DISK --as qemu" in missing


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_is_not_root_is_told_so() -> None:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "by root with CAP_SYS_ADMIN only" in done.stdout and "attach VM/DISK --as qemu" in done.stdout


def test_a_keeper_where_there_is_no_family_starts_and_stops() -> None:
    keeper = Devices("0123abcd", Path("/nowhere/nbd.sock"))
    keeper.start()
    keeper.stop()
    if not family_is_there():
        with pytest.raises(OSError):
            keeper.bring([Wanted("k", "vm/disk", 4096, False)])
