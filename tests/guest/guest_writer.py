"""Runs in the guest: writes to a file system on /dev/vda and a counter on /dev/vdb while the machine takes snapshots.

Told and tells through files in the share. Each step N of the load: N to `begun`; a file of random bytes, synced, and
its directory; N to the start of /dev/vdb, synced; N and the file's hash to `synced`. After `stop` it freezes the
file system and says `frozen`; after `thaw` it changes what was frozen, and unmounts.
"""

import fcntl
import hashlib
import os
import random
import subprocess
import time
from pathlib import Path

FREEZE = 0xC0045877  # FIFREEZE and FITHAW of linux/fs.h
THAW = 0xC0045878
SHARE = Path(os.environ["LAB_SHARE"])
ROOT = Path("/mnt")


def tell(name: str, text: str = "") -> None:
    with open(SHARE / name, "a") as told:
        told.write(text)


def told(name: str) -> bool:
    return (SHARE / name).exists()


def write_synced(path: Path, data: bytes) -> None:
    for name, flags in ((path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), (path.parent, os.O_RDONLY)):
        handle = os.open(name, flags)
        if name == path:
            os.write(handle, data)
        os.fsync(handle)
        os.close(handle)


def load() -> None:
    (ROOT / "work").mkdir()
    counter = os.open("/dev/vdb", os.O_WRONLY)
    step = 0
    while not told("stop"):
        step += 1
        tell("begun", f"{step}\n")
        data = os.urandom(random.randrange(1, 64 << 10))
        write_synced(ROOT / "work" / str(step), data)
        os.pwrite(counter, step.to_bytes(8, "little"), 0)
        os.fsync(counter)
        tell("synced", f"{step} {hashlib.sha256(data).hexdigest()}\n")
    os.close(counter)


def freeze_until_told() -> None:
    mount = os.open(ROOT, os.O_RDONLY)
    fcntl.ioctl(mount, FREEZE, 0)
    tell("frozen")
    while not told("thaw"):
        time.sleep(0.02)
    fcntl.ioctl(mount, THAW, 0)
    os.close(mount)


def main() -> None:
    subprocess.run(["mount", "/dev/vda", ROOT], check=True)
    subprocess.run(["sha256sum", "--quiet", "-c", "imported.sha256"], cwd=ROOT, check=True)
    load()
    write_synced(ROOT / "changed", b"before\n" * 1000)
    freeze_until_told()
    write_synced(ROOT / "changed", b"after\n" * 1000)
    write_synced(ROOT / "later", b"later\n")
    (ROOT / "work" / "1").unlink()
    subprocess.run(["umount", ROOT], check=True)


main()
