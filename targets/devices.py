"""Block devices of this machine's kernel for a home's disks: made, kept connected while engines come and go, let go of.

A device is ours by its backend identifier, `blockdev:<home id>:<key>`, which lives as long as the device: a control plane that
starts finds what the one before left, and a device without it is never touched.  Devices live on without this process; a reboot
ends them.

One link a device, and no time limit of the driver.  With several links, Linux drops the one whose request is slower than
the limit and sends that request again over another, while the engine may still have the first copy in work: a late copy could
overwrite newer data.  With one, a request is sent again only when a new link has taken the place of a dead one; io_timeout is how
often the kernel looks whether that is so (docs/targets.md).

Threads: every method may be called from any thread; one lock, held over handshakes with the engine.  The keeper is one more.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import subprocess
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from blockdev.targets.kernel_nbd import Device, Family, Listener, devices

from blockdev.engine.clients import DEVICE, device_client
from blockdev.errors import BlockdevError
from blockdev.transfer.nbd import READ_ONLY, shake_hands

logger = logging.getLogger(__name__)
DEAD_LINK_SECONDS = 24 * 3600  # requests wait so long for a new link, then they fail
LOOK_SECONDS = 2.0  # between looks whether there is another engine, beside the kernel's word of a dead link
RETRY_SECONDS = 0.1  # while a link is dead
LOGICAL_BLOCK_BYTES = 512
MINIMUM_IO_BYTES = 4096
CAP_SYS_ADMIN = 21
LIMITS = {
    "max_sectors_kb": "1024",  # the driver's 128 make eight requests of one
    "io_timeout": "2000",  # ms: how long a request may lie with a dead engine after the link is mended
    "scheduler": "none",  # the engine orders its writes itself
    "rotational": "0",
    "add_random": "0",
    "read_ahead_kb": "512",
    "wbt_lat_usec": "0",  # a log's latencies say nothing of a disk's queue: writers would be held back
}
MEANWHILE = "meanwhile clients that speak NBD need none of it: blockdevctl attach VM/DISK --as qemu"


class Wanted(NamedTuple):
    """A disk or snapshot that is to be a block device."""

    key: str  # never changes; letters, digits and hyphens
    export: str  # its name in the pool, which may change
    size_bytes: int
    read_only: bool


class _Held:
    """A device that is there, and the engine that its link went to when it was last seen to live."""

    def __init__(self, wanted: Wanted, device: Device, engine: object) -> None:
        self.wanted = wanted
        self.device = device
        self.engine = engine  # None: of its link nothing is known
        self.told = False  # that it cannot be mended, in the log


class Devices:
    """The devices of one home."""

    def __init__(self, home_id: str, socket: Path, dead_link_seconds: int = DEAD_LINK_SECONDS) -> None:
        """socket: where the engine serves NBD."""
        self._prefix = f"blockdev:{home_id}:"
        self._socket = socket
        self._dead_link_seconds = dead_link_seconds
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._troubles: dict[str, str] = {}
        self._stopping = threading.Event()
        self._wake_reader, self._wake_writer = os.pipe()
        self._keeper: threading.Thread | None = None

    def missing(self) -> str | None:
        """Why there can be no devices here and what to do, as a sentence; None: there can.  Loads nbd.ko if it is not."""
        if os.geteuid() != 0 or not _may_administer():
            return (
                "block devices can be made by root with CAP_SYS_ADMIN only: run blockdevctl serve as root, outside of a "
                f"container or in one that is privileged; {MEANWHILE}"
            )
        if _family_is_there():
            return None
        with suppress(OSError):
            subprocess.run(["modprobe", "-q", "nbd"], check=False, capture_output=True)
        if _family_is_there():
            return None
        return (
            f"this kernel ({os.uname().release}) offers no network block devices here: modprobe nbd must work (Debian: the module is in "
            "linux-image-amd64, not in -cloud kernels), and a container needs it loaded by its host and the host's network name space; "
            f"{MEANWHILE}"
        )

    def bring(self, wanted: Sequence[Wanted], looks: bool = True) -> dict[str, Path]:
        """Have a device for each: connect what is missing, reconnect what is dead, resize, set limits.  Idempotent.

        looks: also at those of which nothing else is wanted than before: somebody may have changed them.  Those cost one call
        of the kernel each, 0.1 ms; without it nothing.
        Returns the device of each key; those that could not be had are left out, troubles() says why.  A device that was
        disconnected by another while it is open cannot come back: its key then gets another device.
        OSError when the kernel has no family nbd (missing()).
        """
        with self._lock, Family() as family:
            held: dict[str, _Held] = {} if looks else {one.key: self._held[one.key] for one in wanted if self._is_held(one)}
            rest = [one for one in wanted if one.key not in held]
            connected = self._connected(family, {one.key for one in rest}) if rest else {}
            troubles = {}
            for each in rest:
                if each.key not in connected:
                    self._held.pop(each.key, None)  # its number may be free now
            for each in rest:
                try:
                    held[each.key] = self._bring(family, each, connected.get(each.key))
                except (BlockdevError, OSError) as error:
                    troubles[each.key] = error.message if isinstance(error, BlockdevError) else f"{each.export}: {error.strerror}"
            self._held, self._troubles = held, troubles
            return {key: one.device.path for key, one in held.items()}

    def troubles(self) -> dict[str, str]:
        """Why the last bring() had no device for a key."""
        return dict(self._troubles)

    def _is_held(self, wanted: Wanted) -> bool:
        return wanted.key in self._held and self._held[wanted.key].wanted == wanted

    def release_others(self, keys: Collection[str]) -> None:
        """Disconnect all devices of this home but those of these keys: what is under way in them fails, and nobody should have
        them open."""
        with self._lock, Family() as family:
            self._held = {key: held for key, held in self._held.items() if key in keys}
            for key, device in self._ours():
                if key not in keys:
                    with suppress(OSError):  # disconnected already, and open still
                        family.disconnect(device.index)

    def start(self) -> None:
        """Keep links alive from now on: of the devices that bring() was asked for last.  Does nothing where there are none."""
        if self._keeper is None and _family_is_there():
            self._keeper = threading.Thread(target=self._keep, name="devices", daemon=True)
            self._keeper.start()

    def stop(self) -> None:
        """End the keeper.  All devices stay connected."""
        self._stopping.set()
        os.write(self._wake_writer, b"x")
        if self._keeper is not None:
            self._keeper.join()

    def _ours(self) -> Iterator[tuple[str, Device]]:
        """Those that are not held, too.  A held one is not looked at: a look costs a file of sysfs."""
        held = {one.device.index for one in self._held.values()}
        yield from ((key, one.device) for key, one in self._held.items())
        for device in devices():
            backend = None if device.index in held else device.backend
            if backend is not None and backend.startswith(self._prefix):
                yield backend.removeprefix(self._prefix), device

    def _connected(self, family: Family, keys: Collection[str]) -> dict[str, Device]:
        """The device of each of these keys that has one."""
        found = {}
        for key, device in self._ours():
            if key in keys:
                with suppress(OSError):  # EINVAL: open, but disconnected by somebody
                    family.offer(device.index, self._prefix + key, [], self._dead_link_seconds)
                    found[key] = device
        return found

    def _bring(self, family: Family, wanted: Wanted, device: Device | None) -> _Held:
        before = self._held.get(wanted.key)
        if device is None:
            held = self._connect(family, wanted)
        else:
            same = before is not None and before.device.index == device.index
            held = _Held(wanted, device, before.engine if same and before is not None else None)
            if not same:
                device.set_limits(LIMITS)
            if held.engine is None or held.engine != self._engine():
                self._mend(family, held)
            # blocks of 4096: whoever connected it ended before the second step of _connect
            if device.size_bytes != wanted.size_bytes or (not same and device.block_bytes != LOGICAL_BLOCK_BYTES):
                family.resize(device.index, self._prefix + wanted.key, wanted.size_bytes, LOGICAL_BLOCK_BYTES)
        return held

    def _connect(self, family: Family, wanted: Wanted) -> _Held:
        """Blocks of 4096 first: the least size of I/O, which the kernel only ever raises, stays at that."""
        backend = self._prefix + wanted.key
        engine = self._engine()
        for device in _free({held.device.index for held in self._held.values()}):
            link = shake_hands(self._socket, DEVICE + wanted.export, device_client(str(device.path)))
            with link.connection:
                flags = link.flags | (READ_ONLY if wanted.read_only else 0)
                try:
                    family.connect(
                        device.index, backend, [link.connection], wanted.size_bytes, MINIMUM_IO_BYTES, flags, self._dead_link_seconds
                    )
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        continue  # another was faster, or has it open
                    raise
            family.resize(device.index, backend, wanted.size_bytes, LOGICAL_BLOCK_BYTES)
            device.set_limits(LIMITS)
            return _Held(wanted, device, engine)
        raise AssertionError("the numbers of devices do not end")

    def _mend(self, family: Family, held: _Held) -> None:
        """Give its link, if that is dead, a new one.  Where the engine is away nothing changes: requests wait."""
        engine = self._engine()
        try:
            link = shake_hands(self._socket, DEVICE + held.wanted.export, device_client(str(held.device.path)))
            with link.connection:
                family.offer(held.device.index, self._prefix + held.wanted.key, [link.connection], self._dead_link_seconds)
        except (BlockdevError, OSError) as error:
            if not held.told:
                logger.warning("%s of %s waits for the engine: %s", held.device.path, held.wanted.export, error)
            held.told = True
        else:
            if held.told:
                logger.warning("%s of %s has a link again", held.device.path, held.wanted.export)
            held.engine, held.told = engine, False

    def _engine(self) -> object:
        """What tells one engine from the next: its socket; None: there is none."""
        try:
            status = os.stat(self._socket)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns

    def _keep(self) -> None:
        with Family() as family:
            listener = family.listen()
        try:
            while not self._stopping.is_set():
                try:
                    self._look(listener)
                except Exception:
                    logger.exception("links of block devices could not be looked at; the next look tries again")
                    self._stopping.wait(LOOK_SECONDS)
        finally:
            listener.close()

    def _look(self, listener: Listener) -> None:
        """Wait for something to do, and do it."""
        with self._lock:
            waiting = any(held.engine is None for held in self._held.values())
        select.select([listener, self._wake_reader], [], [], RETRY_SECONDS if waiting else LOOK_SECONDS)
        dead = listener.dead_links()
        with self._lock:
            engine = self._engine()
            for held in self._held.values():
                if dead is None or held.device.index in dead or held.engine != engine:
                    held.engine = None
            stale = [held for held in self._held.values() if held.engine is None]
            if engine is None or not stale or self._stopping.is_set():
                return
            with Family() as family:
                for held in stale:
                    self._mend(family, held)


def _free(taken: Collection[int]) -> Iterator[Device]:
    """Devices that nobody seems to use, then ones that the kernel does not have yet.  taken: numbers of some that are in use."""
    known = devices()
    yield from (device for device in known if device.index not in taken and not device.in_use)
    number = known[-1].index + 1 if known else 0
    while True:
        yield Device(number)
        number += 1


def _family_is_there() -> bool:
    try:
        Family().close()
    except OSError:
        return False
    return True


def _may_administer() -> bool:
    """Whether this process has CAP_SYS_ADMIN; the kernel asks for it in the first user name space, where root may not be root."""
    status = Path("/proc/self/status").read_text()
    (capabilities,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(capabilities, 16) >> CAP_SYS_ADMIN & 1)
