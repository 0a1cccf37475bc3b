"""Runs in the guest: block devices of a home, on the guest's own kernel.  Prints what was seen as one JSON object.

Argument: the seed.  The engine is started and killed here; whoever keeps the devices is this process, as blockdevd would be.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blockdev.targets.devices import Devices, Wanted
from blockdev.targets.kernel_nbd import Device, Family, devices
from blockdev.targets.nbdkit import NbdServer, Options, start

from blockdev import Pool
from blockdev.engine.client import EngineClient
from blockdev.home import Home
from blockdev.transfer.nbd import shake_hands
from tests.cli import served

MEBIBYTE = 1 << 20
DISK, SMALL, BAD = "vm/disk", "vm/small", "vm/none"
DISK_BYTES, SMALL_BYTES = 64 * MEBIBYTE, 16 * MEBIBYTE
HOME_ID = "0123abcd"
WANTED = [
    Wanted("key-disk", DISK, DISK_BYTES, False),
    Wanted("key-small", SMALL, SMALL_BYTES, False),
    Wanted("key-snapshot", f"{SMALL}@s", SMALL_BYTES, True),
]
LIMITS = (
    *("logical_block_size", "minimum_io_size", "max_sectors_kb", "rotational", "scheduler", "write_cache", "fua"),
    *("discard_max_bytes", "read_ahead_kb", "io_timeout"),
)
KILLS = 4
WRITES_BETWEEN_KILLS = 1500
LIMIT_S = 240.0  # one processor for all, on a busy machine
# reads all of it back in the end, so a write that was replied to and lost shows
FIO = (
    f"fio --name=verify --ioengine=libaio --direct=1 --iodepth=16 --bs=4k --rw=randwrite --size={DISK_BYTES} --verify=crc32c "
    "--verify_fatal=1 --rate_iops=2500 --output-format=json"
)


def until(holds: Callable[[], Any], what: str) -> Any:
    return served.until(holds, what, LIMIT_S)


class Served:
    """A home with a pool, and its engine."""

    def __init__(self, path: Path) -> None:
        self.home = Home.at(path)
        self.home.make_directories()
        pool = Pool.create(str(self.home.pool), 1 << 30)
        pool.create_vdisk(DISK_BYTES, DISK)
        small = pool.create_vdisk(SMALL_BYTES, SMALL)
        small.write(0, b"frozen!!" * 512)
        pool.snapshot([small], [f"{SMALL}@s"])
        pool.close()
        self.server: NbdServer = start(Options(home=path))

    def kill(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.process.wait()

    def start(self) -> None:
        self.server = start(Options(home=self.home.path))

    @contextlib.contextmanager
    def control(self) -> Iterator[EngineClient]:
        client = EngineClient(self.home.engine_socket)
        try:
            yield client
        finally:
            client.close()

    def attachments(self) -> list[tuple[str, str]]:
        with self.control() as control:
            return sorted((name, client) for _id, name, client in control.attachments())

    def keeper(self) -> Devices:
        made = Devices(HOME_ID, self.home.nbd_socket)
        made.start()
        return made


def present() -> dict[str, Path]:
    """The connected devices of our home."""
    ours = [device for device in devices() if (device.backend or "").startswith(f"blockdev:{HOME_ID}:")]
    return {(device.backend or "").rpartition(":")[2]: device.path for device in ours if Path(f"/sys/block/{device.path.name}/pid").exists()}


def text_at(path: Path, offset: int = 0) -> str:
    """Eight characters, past the page cache."""
    command = ["dd", f"if={path}", "bs=4k", "iflag=direct,skip_bytes", "count=1", f"skip={offset}", "status=none"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout[:8].decode()


def write(path: Path, data: bytes, offset: int) -> None:
    """Past the page cache."""
    command = ["dd", f"of={path}", "bs=4k", "oflag=direct,seek_bytes", f"seek={offset}", "conv=notrunc", "status=none", "iflag=fullblock"]
    subprocess.run(command, check=True, input=data)


def see_limits(paths: dict[str, Path]) -> dict[str, str]:
    queue = Path("/sys/block") / paths["key-disk"].name / "queue"
    return {name: (queue / name).read_text().strip() for name in LIMITS}


def allocated_bytes(home: Served, export: str) -> int:
    uri = f"nbd+unix:///{export}?socket={home.home.nbd_socket}"
    shown = subprocess.run(["nbdinfo", "--map", "--json", uri], check=True, stdout=subprocess.PIPE).stdout
    return sum(extent["length"] for extent in json.loads(shown) if extent["type"] == 0)


def see_discard(home: Served, paths: dict[str, Path]) -> list[int]:
    device = paths["key-small"]
    write(device, os.urandom(8 * MEBIBYTE), 0)
    before = allocated_bytes(home, SMALL)
    subprocess.run(["blkdiscard", "-o", str(2 * MEBIBYTE), "-l", str(4 * MEBIBYTE), device], check=True)
    return [before, allocated_bytes(home, SMALL)]


def see_resize(home: Served, keeper: Devices, paths: dict[str, Path]) -> dict[str, Any]:
    """The device grows while it is open, over the same link."""
    before = home.attachments()
    with open(paths["key-small"], "rb"):
        with home.control() as control:
            control.resize(control.find(SMALL).id, 2 * SMALL_BYTES)
        after = keeper.bring([WANTED[0], WANTED[1]._replace(size_bytes=2 * SMALL_BYTES), WANTED[2]])
        write(after["key-small"], b"new end!" * 512, 2 * SMALL_BYTES - 4096)
    return {
        "size_bytes": Device(int(after["key-small"].name.removeprefix("nbd"))).size_bytes,
        "end": text_at(after["key-small"], 2 * SMALL_BYTES - 4096),
        "same": after == paths and home.attachments() == before,
    }


def writes_done(path: Path) -> int:
    return int((Path("/sys/block") / path.name / "stat").read_text().split()[4])


def see_kills(home: Served, path: Path, chosen: random.Random) -> dict[str, Any]:
    """fio writes all of the device and reads it back, while the engine is killed and started again."""
    fio = subprocess.Popen([*FIO.split(), f"--filename={path}", f"--randseed={chosen.randrange(1 << 30)}"], stdout=subprocess.PIPE)
    assert fio.stdout is not None
    for _ in range(KILLS):
        start_at = writes_done(path) + chosen.randrange(WRITES_BETWEEN_KILLS // 2, WRITES_BETWEEN_KILLS)
        until(lambda at=start_at: writes_done(path) >= at, "fio's writes")
        assert fio.poll() is None, "fio ended before the engine was killed"
        home.kill()
        home.start()
    output, _ = fio.communicate(timeout=2 * LIMIT_S)
    (job,) = json.loads(output[output.index(b"{") :])["jobs"]
    return {"status": fio.returncode, "error": job["error"], "written": job["write"]["total_ios"], "read": job["read"]["total_ios"]}


def see_new_keeper(home: Served, keeper: Devices, paths: dict[str, Path]) -> tuple[Devices, dict[str, Any]]:
    """Another control plane takes over what the one before left, and an engine's death behind it."""
    before = home.attachments()
    keeper.stop()
    without = home.attachments()
    fresh = home.keeper()
    found = present()
    again = fresh.bring(wanted_now())
    home.kill()
    home.start()
    until(lambda: home.attachments() == before, "links to the new engine")
    return fresh, {"kept": before == without, "present": found == paths, "same": again == paths}


def wanted_now() -> list[Wanted]:
    return [WANTED[0], WANTED[1]._replace(size_bytes=2 * SMALL_BYTES), WANTED[2]]


def see_disconnects(keeper: Devices, paths: dict[str, Path]) -> dict[str, Any]:
    """Somebody takes a device away: one that nobody has open, one that is open."""
    number = int(paths["key-small"].name.removeprefix("nbd"))
    subprocess.run(["nbd-client", "-d", paths["key-small"]], check=True, stdout=subprocess.DEVNULL)
    closed = keeper.bring(wanted_now())
    with open(closed["key-small"], "rb"):
        subprocess.run(["nbd-client", "-d", closed["key-small"]], check=True, stdout=subprocess.DEVNULL)
        opened = keeper.bring(wanted_now())
    return {
        "closed": closed == paths,
        "opened": opened["key-small"] != closed["key-small"] and opened["key-disk"] == paths["key-disk"],
        "readable": text_at(opened["key-small"], 2 * SMALL_BYTES - 4096),
        "present": present() == opened,
        "left": Device(number).backend,
    }


def see_half_made(home: Served) -> dict[str, Any]:
    """A control plane ends between the two steps in which a device is made; the next one finds it."""
    wanted = Wanted("key-half", SMALL, 2 * SMALL_BYTES, False)
    with Family() as family:
        link = shake_hands(home.home.nbd_socket, SMALL, "somebody")
        with link.connection:
            family.connect(30, f"blockdev:{HOME_ID}:key-half", [link.connection], wanted.size_bytes, 4096, link.flags, 60)
    fresh = Devices(HOME_ID, home.home.nbd_socket)
    found = fresh.bring([wanted])["key-half"]
    queue = Path("/sys/block") / found.name / "queue"
    seen = {"path": str(found)} | {name: (queue / name).read_text().strip() for name in ("logical_block_size", "max_sectors_kb")}
    with Family() as family:
        family.disconnect(30)
    return seen


def see_foreign(home: Served, keeper: Devices) -> dict[str, Any]:
    """One device with another's identifier, one with none, beside ours that are let go of."""
    other = Family()
    for index, backend in ((40, "blockdev:ffffffff:key-disk"), (41, "somebody's")):
        link = shake_hands(home.home.nbd_socket, SMALL, "somebody")
        with link.connection:
            other.connect(index, backend, [link.connection], SMALL_BYTES, 4096, link.flags, 60)
    keeper.bring(wanted_now())
    keeper.release_others([])
    other.close()
    left = {device.index: device.backend for device in devices() if device.in_use}
    return {"left": left, "present": list(present())}


def main() -> None:
    chosen = random.Random(int(sys.argv[1]))
    with_modules = Path("/sys/module/nbd").exists()
    home = Served(Path("/run/home"))
    keeper = home.keeper()
    facts: dict[str, Any] = {"loaded_before": with_modules, "missing": keeper.missing()}
    keeper.start()
    paths = keeper.bring([*WANTED, Wanted("key-bad", BAD, MEBIBYTE, False)])
    facts["troubles"] = keeper.troubles()
    facts["paths"] = sorted(paths)
    facts["attachments"] = home.attachments()
    facts["limits"] = see_limits(paths)
    snapshot = paths["key-snapshot"]
    facts["snapshot"] = [text_at(snapshot), (Path("/sys/block") / snapshot.name / "ro").read_text().strip()]
    facts["discard"] = see_discard(home, paths)
    facts["resize"] = see_resize(home, keeper, paths)
    facts["kills"] = see_kills(home, paths["key-disk"], chosen)
    keeper, facts["new_keeper"] = see_new_keeper(home, keeper, paths)
    facts["disconnects"] = see_disconnects(keeper, paths)
    facts["half_made"] = see_half_made(home)
    facts["foreign"] = see_foreign(home, keeper)
    keeper.stop()
    home.server.stop()
    print(json.dumps(facts))


main()
