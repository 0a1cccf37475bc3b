"""Runs in the lab guest: a VM's disk by two portals under multipathd, by the printed configuration; one path goes and comes back under load.

A path goes in three ways: its session is logged out; its network is cut, so that no packet passes in either direction and nobody
is told; its SCSI device is set offline.  fio goes on meanwhile and verifies what it wrote.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.targets import fio, initiator
from tests.targets.facts import fact
from tests.targets.initiator import Session, run, until
from tests.targets.world import DIRECTORY, PORTALS, World

MULTIPATH_CONF = Path("/etc/multipath.conf")
MAP = "web-data"
BOTH = Path("/dev/mapper") / MAP
LOAD = ("--rw=randwrite", "--bs=4k", "--iodepth=8", "--size=16m", "--rate=1m,1m", *fio.WITHOUT_END)
CUT_PORT = int(PORTALS[1].rpartition(":")[2])


@contextmanager
def verified_load(seed: int) -> Iterator[fio.Load]:
    """On the multipath device; it is stopped at the end, and must have gone without an error."""
    load = fio.verified([BOTH], seed, *LOAD)
    yield load
    assert load.stop()[0]["write"]["io_bytes"] > 0


def writes_more(disk: Path) -> bool:
    before = fio.written_bytes([disk])
    return until(lambda: fio.written_bytes([disk]) > before, f"writes to {disk}")


def active_paths() -> int:
    """As multipathd sees them; it pads its columns, by one more where another path is `faulty`."""
    return " ".join(run("multipath", "-ll", MAP).split()).count("active ready running")


def state_of(disk: Path) -> Path:
    return Path("/sys/block") / disk.name / "device/state"


def path_of(session: Session) -> Path:
    """The disk `data` by one session."""
    return session.disks(2)[1]


@fact
def the_printed_configuration_makes_one_device_of_two_paths(world: World) -> None:
    world.make_vm("web", root=32, data=64)
    iqn = world.offer("web")["iqn"]
    printed = world.home("attach", "web", "--as", "iscsi")
    MULTIPATH_CONF.write_text(printed[printed.index("defaults {") : printed.index("# a dead path")])
    run("modprobe", "-a", "dm-multipath", "dm-service-time", "crc32c")
    Path("/run/udev").mkdir(exist_ok=True)
    run("/lib/systemd/systemd-udevd", "--daemon")  # by whom multipathd hears of paths
    run("multipathd")
    world.notes |= {portal: initiator.login(iqn, portal) for portal in PORTALS}
    paths = [path_of(world.notes[portal]) for portal in PORTALS]
    assert initiator.wwid(paths[0]) == initiator.wwid(paths[1])
    until(lambda: BOTH.exists() and active_paths() == 2, "a multipath device with two paths")
    naa = initiator.wwid(paths[0]).removeprefix("naa.")
    for name in (f"wwn-0x{naa}", f"scsi-3{naa}"):
        assert name in printed
        until(lambda name=name: (Path("/dev/disk/by-id") / name).resolve() == BOTH.resolve(), f"{name} to lead to both paths")  # type: ignore[misc]
    with verified_load(5):
        for path in paths:
            assert writes_more(path)


@fact
def a_path_that_is_logged_out_is_given_up_and_taken_again(world: World) -> None:
    other = path_of(world.notes[PORTALS[0]])
    with verified_load(6):
        world.notes[PORTALS[1]].logout()
        until(lambda: active_paths() == 1, "the path to be given up")
        assert writes_more(other)
        world.notes[PORTALS[1]] = initiator.login(world.target("web")["iqn"], PORTALS[1])
        again = path_of(world.notes[PORTALS[1]])
        until(lambda: active_paths() == 2, "the path to be taken again")
        assert writes_more(again)


@contextmanager
def cut(port: int) -> Iterator[None]:
    """No packet from or to a port passes, and nobody is told."""
    for words in (
        "qdisc add dev lo root handle 1: prio",  # bands 1 to 3
        "qdisc add dev lo parent 1:3 handle 30: netem loss 100%",
        f"filter add dev lo parent 1: protocol ip u32 match ip dport {port} 0xffff flowid 1:3",
        f"filter add dev lo parent 1: protocol ip u32 match ip sport {port} 0xffff flowid 1:3",
    ):
        run("tc", *words.split())
    try:
        yield
    finally:
        run("tc", "qdisc", "del", "dev", "lo", "root")


@fact
def a_path_whose_network_is_cut_is_given_up_and_taken_again(world: World) -> None:
    run("modprobe", "-a", "sch_prio", "sch_netem", "cls_u32")
    paths = [path_of(world.notes[portal]) for portal in PORTALS]
    with verified_load(7):
        for path in paths:
            assert writes_more(path)
        begun = time.monotonic()
        with cut(CUT_PORT):
            until(lambda: active_paths() == 1, "the path to be given up")
            print(f"given up after {time.monotonic() - begun:.1f} s", flush=True)
            assert writes_more(paths[0])
            assert state_of(paths[1]).read_text().strip() == "transport-offline"
        begun = time.monotonic()
        until(lambda: active_paths() == 2, "the path to be taken again")
        print(f"taken again after {time.monotonic() - begun:.1f} s", flush=True)
        assert writes_more(paths[1])
    assert paths[1] == path_of(world.notes[PORTALS[1]]), "it is the same session"


@fact
def a_path_whose_scsi_device_is_offline_is_given_up_and_taken_again(world: World) -> None:
    paths = [path_of(world.notes[portal]) for portal in PORTALS]
    with verified_load(8):
        assert writes_more(paths[1])
        state_of(paths[1]).write_text("offline\n")
        until(lambda: active_paths() == 1, "the path to be given up")
        assert writes_more(paths[0])
        state_of(paths[1]).write_text("running\n")
        until(lambda: active_paths() == 2, "the path to be taken again")
        assert writes_more(paths[1])


@fact
def nothing_is_left_of_the_multipath_device(world: World) -> None:
    until(lambda: subprocess.run(["multipath", "-F"], capture_output=True).returncode == 0, "udev to let go of the map")
    run("multipathd", "shutdown")
    for portal in PORTALS:
        world.notes[portal].logout()
    run("udevadm", "control", "--exit")
    until(lambda: not world.target("web")["sessions"], "the sessions to be gone")


def main() -> None:
    World(DIRECTORY).play(sys.modules[__name__], "1G")


if __name__ == "__main__":
    main()
