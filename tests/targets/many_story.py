"""Runs in the lab guest: many VMs exported at once, and what one of them does to the sessions of the others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.targets import fio, initiator
from tests.targets.facts import fact
from tests.targets.initiator import BUSY_S, OURS
from tests.targets.world import DIRECTORY, MEBIBYTE, World, no_kernel_error

VMS = int(os.environ.get("BLOCKDEV_TARGETS_VMS") or 10)
LOADED = ("vm-03", "vm-07")
LOOKED_AT = 5  # of the others, at which an initiator looks
PORTAL = "127.0.0.1:3260"


def names() -> list[str]:
    return [f"vm-{number:02}" for number in range(VMS)]


@fact
def all_vms_are_exported_at_once_with_two_luns_each(world: World) -> None:
    begun = time.monotonic()
    for name in names():
        world.make_vm(name, root=16, data=16)
        world.offer(name, portals=[PORTAL])
    print(f"made and offered in {time.monotonic() - begun:.1f} s", flush=True)
    initiator.until(lambda: all_are_up(world), "all targets to be up")
    listed = {one["vm"]: one for one in world.ask("GET", "/targets")["targets"]}
    assert sorted(listed) == names() and all(len(one["luns"]) == 2 for one in listed.values())
    assert initiator.discover(PORTAL) == {one["iqn"] for one in listed.values()}
    serials = [lun["serial"] for one in listed.values() for lun in one["luns"]]
    assert len(set(serials)) == 2 * VMS
    world.notes["targets"] = listed
    for name in names()[:: VMS // LOOKED_AT]:
        for lun in listed[name]["luns"]:
            url = f"iscsi://{PORTAL}/{listed[name]['iqn']}/{lun['number']}"
            said = initiator.run("iscsi-inq", "--initiator-name", OURS, "-e", "1", "-c", "128", url)
            assert lun["serial"] in said, said


@fact
def adding_and_removing_one_leaves_the_sessions_of_the_others_alone(world: World) -> None:
    sessions = {vm: initiator.login(world.notes["targets"][vm]["iqn"], PORTAL) for vm in LOADED}
    disks = [disk for session in sessions.values() for disk in session.disks(2)]
    before = sorted(path.name for path in Path("/sys/class/iscsi_session").glob("session*"))
    with no_kernel_error():
        load = fio.verified(disks, 21, "--rw=randwrite", "--bs=4k", "--iodepth=4", "--size=8m", "--rate=500k,500k", *fio.WITHOUT_END)
        world.make_vm("one-more", root=16, data=16)
        made = world.offer("one-more", portals=[PORTAL])
        assert made["state"] == "up", made
        assert made["iqn"] in initiator.discover(PORTAL)
        world.ask("DELETE", "/vms/one-more/target")
        world.ask("DELETE", "/vms/vm-08/target")
        assert made["iqn"] not in initiator.discover(PORTAL)
        jobs = load.stop()
    assert all(job["write"]["io_bytes"] > 0 and job["read"]["io_bytes"] > 0 for job in jobs)
    assert sorted(path.name for path in Path("/sys/class/iscsi_session").glob("session*")) == before
    for session in sessions.values():
        session.logout()


@fact
def a_new_engine_has_all_devices_connected_again(world: World) -> None:
    listed = world.ask("GET", "/targets")["targets"]
    world.kill_engine()
    for one in listed[:: len(listed) // LOOKED_AT]:
        url = f"iscsi://{PORTAL}/{one['iqn']}/1"
        done = subprocess.run(
            ["iscsi-readcapacity16", "--initiator-name", OURS, url], capture_output=True, text=True, timeout=BUSY_S
        )
        assert done.returncode == 0 and str(16 * MEBIBYTE) in done.stdout, done
    initiator.until(lambda: all_are_up(world), "all targets to be up")


def all_are_up(world: World) -> bool:
    return all(one["state"] == "up" for one in world.ask("GET", "/targets")["targets"])


def main() -> None:
    World(DIRECTORY).play(sys.modules[__name__], "2G")


if __name__ == "__main__":
    main()
