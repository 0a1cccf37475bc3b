"""The lab's cache: kernels that come as Debian packages, unpacked once and kept; and the programs that the lab runs.

What a cache directory holds appears by a rename when it is whole, under an exclusive lock on CACHE/lock, so what is there
may be used without the lock and several processes may ask at once. Nothing in it is ever changed in place.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
PACKAGE_OF_TOOL = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "modprobe": "kmod",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}


class LabError(Exception):
    """The lab itself failed (not the command in the guest); the message says what to do."""


def tool(name: str) -> str:
    """The full path of a program that the lab runs."""
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise LabError(f"{name} is missing: apt-get install {PACKAGE_OF_TOOL[name]}")
    return found


def cache_directory() -> Path:
    """BLOCKDEV_LAB_CACHE, else .cache/lab of this source tree."""
    default = Path(__file__).resolve().parents[2] / ".cache" / "lab"
    return Path(os.environ.get("BLOCKDEV_LAB_CACHE") or default).resolve()


def newest(cache: Path, prefix: str) -> Path | None:
    """Of the directories PREFIX-VERSION, the one that was made last."""
    return max(cache.glob(f"{prefix}-*"), key=lambda directory: directory.stat().st_mtime, default=None)


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Alone among those that add to the cache."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = open(cache / "lock", "w")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise LabError(
            f"cannot use the lab's cache {cache}: {error.strerror}; set BLOCKDEV_LAB_CACHE"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch_in(cache: Path) -> Iterator[Path]:
    """A directory to make something in; beside the final place, because a rename must not cross file systems."""
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=cache) as name:
        yield Path(name)


def output_of(command: Sequence[str], *, cwd: Path | None = None, typed: str | None = None) -> str:
    """What a command printed that must succeed."""
    done = subprocess.run(
        [tool(command[0]), *command[1:]], capture_output=True, text=True, check=False, cwd=cwd, input=typed
    )
    if done.returncode != 0:
        raise LabError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def download(package: Callable[[], str], directory: Path) -> tuple[Path, str]:
    """Fetch a package through apt, which verifies it; its file and its version. `package` asks apt for its name."""
    try:
        return _try_download(package(), directory)
    except LabError:
        if os.geteuid() != 0:
            raise
    output_of(["apt-get", "-qq", "update"])  # no package lists yet, or too old ones
    return _try_download(package(), directory)


def _try_download(package: str, directory: Path) -> tuple[Path, str]:
    # the directory is ours alone, so apt's download user could not write there
    output_of(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package], cwd=directory)
    file = next(directory.glob("*.deb"))
    return file, file.name.split("_")[1]
