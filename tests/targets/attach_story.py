"""Runs in the lab guest: one home's targets, from the first login to the death of the engine under load."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.targets import facts, fio, initiator, plain_lio
from tests.targets.facts import fact
from tests.targets.initiator import OURS, Chap, Refused, run, until
from tests.targets.world import (
    DIRECTORY,
    MEBIBYTE,
    PORTALS,
    World,
    mount_first_disk,
    mounted,
    no_kernel_error,
)

OTHERS = "iqn.2026-11.org.example:somebody-else"
CHAP = Chap("web-user", "secret-of-sixteen")
MUTUAL = Chap("target-user", "another-secret-16")
FILE_BYTES = 24 * MEBIBYTE
BESIDE_BYTES = 4 * MEBIBYTE
DEATHS = 3
MULTIPATH_CONF = Path("/etc/multipath.conf")
URL = f"iscsi://{PORTALS[0]}"


def disks_of_web(world: World, count: int = 2) -> list[Path]:
    """Where this machine has them; logs in if nobody is."""
    iqn = world.target("web")["iqn"]
    if "web" not in world.notes or not world.notes["web"].is_there():
        world.notes["web"] = initiator.login(iqn)
    found: list[Path] = world.notes["web"].disks(count)
    return found


@fact
def open_iscsi_logs_in_without_chap_and_sees_each_lun_with_its_size_and_serial(world: World) -> None:
    world.make_vm("web", root=96, data=64)
    made = world.offer("web")
    assert made["state"] == "up" and made["iqn"] in initiator.discover(PORTALS[0]), made
    disks = disks_of_web(world)
    assert [lun["disk"] for lun in made["luns"]] == ["root", "data"]
    for lun, disk in zip(made["luns"], disks, strict=True):
        seen = initiator.sizes(disk)
        assert seen["size"] == lun["size_bytes"]
        assert seen["log-sec"] == 512 and seen["phy-sec"] in (512, 4096)
        assert seen["vendor"].strip() == "BLOCKDEV" and not seen["ro"] and not seen["rota"]
        assert lun["serial"] in initiator.vital_page(disk, "sn")
    assert len({initiator.wwid(disk) for disk in disks}) == 2


@fact
def each_lun_is_thinly_provisioned(world: World) -> None:
    for disk in disks_of_web(world):
        seen = initiator.sizes(disk)
        assert 0 < seen["disc-gran"] <= 4096 and seen["disc-max"] >= MEBIBYTE
        provisioning = initiator.vital_page(disk, "lbpv")
        assert "Unmap command supported (LBPU): 1" in provisioning, provisioning
        assert "Write same (16) with unmap bit supported (LBPWS): 1" in provisioning, provisioning


@fact
def the_printed_iscsiadm_commands_work_as_they_are(world: World) -> None:
    world.notes["web"].logout()
    printed = world.home("attach", "web", "--as", "iscsi").replace("\\\n", " ")
    commands = [line.strip().removeprefix("sudo ") for line in printed.splitlines() if line.strip().removeprefix("sudo ").startswith("iscsiadm")]
    assert commands, printed
    for command in commands:
        if "--logout" not in command and "-u" not in shlex.split(command):
            run(*shlex.split(command))
    iqn = world.target("web")["iqn"]
    assert len(initiator.Session(iqn, PORTALS[0], "default").disks(2)) == 2
    run("iscsiadm", "-m", "node", "-T", iqn, "--logout")


@fact
def an_ext4_is_filled_snapshotted_over_blockdev_restored_and_checked(world: World) -> None:
    disk = disks_of_web(world)[0]
    data = os.urandom(FILE_BYTES)
    run("mke2fs", "-q", "-t", "ext4", disk)
    with mounted(disk) as point:
        (point / "kept").write_bytes(data)
        run("sync", "-f", point)
    world.snapshot("web", "filled")
    with mounted(disk) as point:
        (point / "kept").write_bytes(b"overwritten")
        (point / "later").write_bytes(b"later")
    world.notes["web"].logout()
    world.ask("POST", "/vms/web/restore", {"snapshot": "filled"})
    until(lambda: world.target("web")["state"] == "up", "the target after the restore")
    disk = disks_of_web(world)[0]
    run("e2fsck", "-fn", disk)
    with mounted(disk) as point:
        assert hashlib.sha256((point / "kept").read_bytes()).digest() == hashlib.sha256(data).digest()
        assert not (point / "later").exists()


@fact
def the_wwn_and_serial_of_a_lun_stay_over_a_restore(world: World) -> None:
    seen = [lun["serial"] for lun in world.target("web")["luns"]]
    for serial, disk in zip(seen, disks_of_web(world), strict=True):
        assert serial in initiator.vital_page(disk, "sn")


@fact
def fstrim_reaches_the_pool(world: World) -> None:
    disk = disks_of_web(world)[0]
    with mounted(disk) as point:
        (point / "filler").write_bytes(os.urandom(FILE_BYTES))
        run("sync", "-f", point)
        full_bytes = world.compact()
        (point / "filler").unlink()
        run("sync", "-f", point)  # what is not committed yet is not trimmed
        run("fstrim", point)
        run("sync", "-f", point)
        trimmed_bytes = world.compact()
    given_back = full_bytes - trimmed_bytes
    assert abs(given_back - FILE_BYTES) <= BESIDE_BYTES, f"{given_back} of {FILE_BYTES} bytes"


@fact
def a_resize_reaches_the_initiator(world: World) -> None:
    disk = disks_of_web(world)[1]
    world.ask("PATCH", "/vms/web/disks/data", {"size_bytes": 80 * MEBIBYTE})
    world.notes["web"].rescan()
    until(lambda: initiator.sizes(disk)["size"] == 80 * MEBIBYTE, "the new size")
    data = os.urandom(4096)
    with open(disk, "r+b") as device:
        device.seek(79 * MEBIBYTE)
        device.write(data)
        device.flush()
        os.fsync(device.fileno())
    run("blockdev", "--flushbufs", disk)
    with open(disk, "rb") as device:
        device.seek(79 * MEBIBYTE)
        assert device.read(4096) == data


@fact
def the_disks_of_a_snapshot_are_read_only_luns_when_asked_for(world: World) -> None:
    made = world.ask("PATCH", "/vms/web/target", {"snapshots": ["filled"]})
    world.notes["web"].rescan()
    disks = disks_of_web(world, 4)
    by_number = {lun["number"]: lun for lun in made["luns"]}
    assert [by_number[number]["snapshot"] for number in sorted(by_number)] == [None, None, "filled", "filled"]
    for disk in disks[2:]:
        assert initiator.sizes(disk)["ro"]
        done = subprocess.run(["dd", "if=/dev/zero", f"of={disk}", "bs=4k", "count=1", "oflag=direct"], capture_output=True)
        assert done.returncode != 0
    with mounted(disks[2], "-o", "ro") as point:
        assert (point / "kept").stat().st_size == FILE_BYTES and not (point / "filler").exists()
    world.notes["web"].logout()
    world.ask("PATCH", "/vms/web/target", {"snapshots": []})
    disks_of_web(world)


@fact
def chap_lets_in_the_right_secret_and_nobody_else(world: World) -> None:
    world.make_vm("guarded", disk=32)
    chap = {"user": CHAP.user, "secret": CHAP.secret}
    iqn = world.offer("guarded", chap=chap)["iqn"]
    session = initiator.login(iqn, chap=CHAP)
    session.disks(1)
    session.logout()
    for wrong in (None, Chap(CHAP.user, "wrong-secret-of-16"), Chap("wrong-user", CHAP.secret)):
        assert_refused(iqn, chap=wrong)


@fact
def mutual_chap_proves_the_target_to_the_initiator(world: World) -> None:
    made = world.ask("PATCH", "/vms/guarded/target", {"mutual": {"user": MUTUAL.user, "secret": MUTUAL.secret}})
    session = initiator.login(made["iqn"], chap=CHAP, mutual=MUTUAL)
    session.disks(1)
    session.logout()
    assert_refused(made["iqn"], chap=CHAP, mutual=Chap(MUTUAL.user, "not-the-targets-own"))


def assert_refused(iqn: str, **who: object) -> None:
    try:
        session = initiator.login(iqn, **who)  # type: ignore[arg-type]
    except Refused:
        return
    found = session.devices()
    session.logout()
    raise AssertionError(f"{iqn} let {who} in, who saw {found}")


@fact
def an_unknown_initiator_and_a_foreign_lun_get_nothing(world: World) -> None:
    world.make_vm("foreign", disk=32)
    foreign = world.offer("foreign", initiators=(OTHERS,))["iqn"]
    web = world.target("web")["iqn"]
    assert_refused(web, initiator=OTHERS)
    assert_refused(foreign)
    theirs = initiator.login(foreign, initiator=OTHERS)
    assert len(theirs.disks(1)) == 1
    theirs.logout()
    words = ["iscsi-inq", "--initiator-name", OURS]
    assert "BLOCKDEV" in run(*words, f"{URL}/{web}/0")
    for url in (f"{URL}/{web}/2", f"{URL}/{foreign}/0"):
        done = subprocess.run([*words, url], capture_output=True, text=True)
        assert done.returncode != 0 or "Peripheral Qualifier:CONNECTED" not in done.stdout, done.stdout


@fact
def libiscsi_and_qemu_read_what_the_kernels_initiator_wrote(world: World) -> None:
    made = world.target("web")
    data = os.urandom(1 << 20)
    disk = disks_of_web(world)[1]
    with open(disk, "r+b") as device:
        device.write(data)
        os.fsync(device.fileno())
    listed = run("iscsi-ls", "--initiator-name", OURS, f"{URL}/")
    assert made["iqn"] in listed, listed
    url = f"{URL}/{made['iqn']}/1"
    size = run("iscsi-readcapacity16", "--initiator-name", OURS, url)
    assert str(80 * MEBIBYTE // 512) in size or str(80 * MEBIBYTE // 512 - 1) in size, size
    options = f"driver=iscsi,transport=tcp,portal={PORTALS[0]},target={made['iqn']},lun=1,initiator-name={OURS}"
    run("qemu-img", "convert", "--image-opts", "-O", "raw", options, "/tmp/copy")
    with open("/tmp/copy", "rb") as copy:
        assert copy.read(1 << 20) == data
        assert os.fstat(copy.fileno()).st_size == 80 * MEBIBYTE
    os.unlink("/tmp/copy")


@fact
def no_death_of_the_engine_reaches_the_initiator_and_nothing_is_lost(world: World) -> None:
    disks = disks_of_web(world)
    run("modprobe", "crc32c")
    options = ("--rw=randwrite", "--bssplit=512/10:4k/60:16k/20:64k/10", "--iodepth=16", "--size=24m", "--verify_backlog=512", "--rate=,800k", "--do_verify=1")  # lasts longer than the deaths
    with no_kernel_error():
        load = fio.verified(disks, 11, *options)
        for _ in range(DEATHS):
            before = fio.written_bytes(disks)
            until(lambda start=before: fio.written_bytes(disks) > start + MEBIBYTE, "more writes")  # type: ignore[misc]
            world.kill_engine()
        assert load.is_running(), "the load ended before the last death"
        jobs = load.finish()
    assert all(job["write"]["io_bytes"] >= 20 * MEBIBYTE for job in jobs)
    assert world.target("web")["state"] == "up"


@fact
def no_restart_of_the_control_plane_is_noticed(world: World) -> None:
    disks = disks_of_web(world)
    before = sessions()
    with no_kernel_error():
        # lightly: a control plane needs most of the guest's one processor to start
        load = fio.verified(disks, 12, "--rw=randwrite", "--bs=4k", "--iodepth=4", "--size=1m", "--rate_iops=40,40", *fio.WITHOUT_END)
        world.kill_control()
        until(lambda: world.target("web")["state"] == "up", "the target to be up")
        jobs = load.stop()
    assert all(job["write"]["io_bytes"] > 0 and job["read"]["io_bytes"] > 0 for job in jobs)
    assert sessions() == before
    until(lambda: world.target("web")["sessions"] == [OURS], "the session as the new control plane sees it")


def sessions() -> list[str]:
    """Those of open-iscsi, by number: one that is made anew has another."""
    return sorted(path.name for path in Path("/sys/class/iscsi_session").glob("session*"))


@fact
def what_is_changed_by_hand_is_put_right_and_what_is_not_ours_is_left_alone(world: World) -> None:
    theirs = plain_lio.file_backstore("theirs", plain_lio.sparse_file(Path("/dev/shm/theirs"), 16 * MEBIBYTE))
    plain_lio.target("iqn.2026-11.org.example:theirs", [theirs], "127.0.0.1:3270")
    their_session = initiator.login("iqn.2026-11.org.example:theirs", "127.0.0.1:3270")
    their_session.disks(1)
    before = sessions()
    group = plain_lio.ISCSI / world.target("guarded")["iqn"] / "tpgt_1"
    (group / "enable").write_text("0")
    (group / "attrib/authentication").write_text("0")
    until(lambda: (group / "enable").read_text().strip() == "1", "the target to be enabled again")
    until(lambda: (group / "attrib/authentication").read_text().strip() == "1", "CHAP to be asked for again")
    initiator.login(world.target("guarded")["iqn"], chap=CHAP, mutual=MUTUAL).logout()
    assert sessions() == before
    their_session.disks(1)
    their_session.logout()


@fact
def a_target_in_use_is_removed_by_force_only_and_then_nothing_of_it_is_left(world: World) -> None:
    made = world.target("web")
    refused = world.rest.delete("/vms/web/target")
    assert refused.status_code == 409, refused.text
    disks_of_web(world)
    world.notes["web"].logout()
    until(lambda: not world.target("web")["sessions"], "the session to be gone")
    world.home("target", "remove", "web")
    assert not (plain_lio.ISCSI / made["iqn"]).exists()
    serials = {lun["serial"] for lun in made["luns"]}
    left = [path for path in plain_lio.CORE.glob("*/*/wwn/vpd_unit_serial") if any(serial in path.read_text() for serial in serials)]
    assert not left


@fact
def a_target_with_chap_snapshots_and_data_is_left_for_the_next_boot(world: World) -> None:
    """reboot_story.py looks at it."""
    session = initiator.login(world.target("guarded")["iqn"], chap=CHAP, mutual=MUTUAL)
    data = os.urandom(MEBIBYTE)
    with open(session.disks(1)[0], "r+b") as device:
        device.write(data)
        os.fsync(device.fileno())
    world.snapshot("guarded", "left")
    left = world.ask("PATCH", "/vms/guarded/target", {"snapshots": ["left"]})
    expected = {"target": left, "sha256": hashlib.sha256(data).hexdigest()}
    (DIRECTORY / "expected.json").write_text(json.dumps(expected))


def main() -> None:
    world = World(DIRECTORY)
    mount_first_disk(DIRECTORY)
    world.begin("1G")
    facts.play(sys.modules[__name__], world, sys.argv[1:])
    # nothing is stopped: the machine is switched off with its sessions, targets and processes


if __name__ == "__main__":
    main()
