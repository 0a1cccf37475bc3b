"""iSCSI targets of a home's VMs: what is wanted is in the catalog, and the kernel is brought to it (docs/targets.md).

It is brought there at start, after each change of a VM or target, and every LOOK_SECONDS, so what somebody changed by hand is
put right.  What cannot be done leaves the target degraded, with the reason, and is tried again.
Threads: any; one lock for all that is asked of the kernel, taken after the journal's and never the other way round.  Whoever
only reads takes none: `all` and `show` tell of the catalog and of the latest look, however long the next one takes.
Durable: whatever a method returned.  The devices and targets go on in the kernel when this process ends.
"""

from __future__ import annotations

import importlib
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from blockdev.targets import chap, model
from blockdev.targets.chap import ChapFiles, Credentials
from blockdev.targets.claim import Claim
from blockdev.targets.devices import Devices, Wanted

from blockdev.clock import monotonic_seconds, thread_cpu_seconds
from blockdev.engine.client import EngineClient
from blockdev.engine.clients import is_device_client
from blockdev.errors import (
    AlreadyExists,
    BlockdevError,
    Busy,
    InvalidArgument,
    NotFound,
    PoolFull,
    Unavailable,
)
from blockdev.home import Home
from blockdev.vmmap.catalog import Catalog, VMRow
from blockdev.vmmap.catalog_targets import LunRow, TargetRow
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.names import is_name
from blockdev.vmmap.offers import Offers
from blockdev.vmmap.service import VMs

if TYPE_CHECKING:
    from blockdev.targets.lio import Lio, TargetSpec

logger = logging.getLogger(__name__)
LOOK_SECONDS = 10.0
LOOK_PAUSE = 30.0  # times what the look before took of a processor, so that looks cost 3 % of one at the most
STOP_SECONDS_MAX = 5.0
LEAVE_SECONDS_MAX = 10.0  # for the engine to notice that a device has left
LEAVE_LOOK_SECONDS = 0.01
NO_DEVICE_YET = "its device is not there yet"
KERNEL_TARGETS = Path("/sys/kernel/config/target/iscsi")


class Wish(NamedTuple):
    """What is to become of a target; None: as it is, or of a new one by default."""

    initiators: Sequence[str] | None = None
    portals: Sequence[tuple[str, int]] | None = None
    demo: bool | None = None
    depth: int | None = None
    snapshots: Sequence[str] | None = None  # names of those whose disks are LUNs, too
    credentials: Credentials | None = None
    insecure: bool = False


class _Kernel(NamedTuple):
    """What a home has in the kernel."""

    devices: Devices
    lio: Lio
    claim: Claim


class _Picture(NamedTuple):
    """All that the catalog wants, at one moment."""

    targets: list[TargetRow]
    luns: dict[int, list[LunRow]]  # by the target's id
    portals: dict[int, list[model.Portal]]
    initiators: dict[int, list[str]]
    vms: dict[int, str]  # names, by id


class _Look(NamedTuple):
    """What the latest look at the kernel found.  It is replaced as a whole and never changed, so reading it takes no lock."""

    lio: Lio | None = None  # None: there is none
    missing: str | None = None  # what this machine lacks
    troubles: Mapping[int, list[str]] = MappingProxyType({})  # of each target that there was, by id
    luns: Mapping[str, str | None] = MappingProxyType({})  # why there is no device for it, by serial; None: there is one


class Targets(Offers):
    """The targets of one home."""

    def __init__(self, home: Home, vms: VMs, catalog: Catalog, engine: EngineClient, clock: Clock) -> None:
        """From now on operations on VMs let targets go of what they replace; nothing is asked of the kernel before `start`."""
        self._home = home
        self._vms = vms
        self._events = vms.events
        self._catalog = catalog
        self._engine = engine
        self._clock = clock
        self._chap = ChapFiles(home.keys / "targets")
        self._lock = threading.RLock()
        self._kernel: _Kernel | None = None  # this and what follows under _lock
        self._missing: str | None = None  # what this machine lacks
        self._wanted: dict[str, Wanted] | None = None  # what was asked of the devices last, and answered
        self._paths: dict[str, Path] = {}
        self._held: Counter[int] = Counter()  # ids of objects that nobody is to have but NBD clients
        self._closed: Counter[int] = Counter()  # ids of targets that nobody is to be logged in to
        self._look = _Look()  # replaced under _lock
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        vms.offers = self

    def start(self) -> None:
        """Bring the kernel to what is wanted, now and from now on."""
        self._due.set()
        self._thread = threading.Thread(target=self._run, name="targets", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Targets and devices go on."""
        self._stopping.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS_MAX)
        if self._kernel is not None:
            self._kernel.devices.stop()
            self._kernel.claim.release()

    def _run(self) -> None:
        look_at = 0.0
        while not self._stopping.is_set():
            self._due.clear()
            began = thread_cpu_seconds()
            looks = monotonic_seconds() >= look_at
            try:
                with self._lock:
                    self._bring(looks)
            except BlockdevError as error:
                logger.info("targets are looked after later: %s", error.message)
            except Exception:  # a bug must not end the looking
                if not self._stopping.is_set():
                    logger.exception("targets could not be looked after; it is tried again")
            ended = monotonic_seconds()
            if looks:
                # not by how long it took: on a busy machine, where it waits for others, nothing would be put right for minutes
                look_at = ended + max(LOOK_SECONDS, LOOK_PAUSE * (thread_cpu_seconds() - began))
            self._due.wait(max(0.0, look_at - ended))

    # what people ask for

    def add(self, vm: str, wish: Wish) -> model.Target:
        """A target for a VM, and the kernel offers it.  Unavailable: this machine cannot; AlreadyExists; InvalidArgument."""
        row = self._vm(vm)
        wish = wish._replace(
            initiators=wish.initiators or (),
            portals=[model.LOOPBACK] if wish.portals is None else wish.portals,
            demo=bool(wish.demo),
            depth=model.DEPTH if wish.depth is None else wish.depth,
            credentials=wish.credentials or chap.NOBODY,
        )
        self._check(wish, None)
        with self._lock:
            home_id = self._home_id()
            if self._kernel_for_work() is None:
                raise Unavailable(self._missing or "this machine offers no block devices")
            with self._catalog.transaction(grows=True):
                if self._catalog.target(row.id) is not None:
                    raise AlreadyExists(f"VM {vm} has a target already: blockdevctl target change {vm}")
                iqn = model.target_iqn(home_id, row.name, row.uuid)
                self._catalog.insert_target(row.id, iqn, bool(wish.demo), wish.depth or model.DEPTH, to_text(self._clock()))
                self._write(row, wish)
            self._bring_quietly()
        return self.show(vm)

    def change(self, vm: str, wish: Wish) -> model.Target:
        """Give a target what `wish` names.  Initiators that may not log in any more are logged out."""
        row = self._vm(vm)
        with self._lock:
            self._check(wish, self._row(row))
            with self._catalog.transaction(grows=True):
                self._write(row, wish)
            self._bring_quietly()
        return self.show(vm)

    def remove(self, vm: str, force: bool = False) -> model.Target:
        """What it was.  Busy: initiators are logged in; forced, they are logged out."""
        row = self._vm(vm)
        with self._lock:
            was = self.show(vm)
            if was.sessions and not force:
                raise Busy(_logged_in(vm, was.sessions))
            with self._catalog.transaction():
                self._catalog.delete_target(self._row(row).id)
            self._bring_quietly()
        return was

    def all(self) -> list[model.Target]:
        """All, by VM."""
        picture, look = self._picture(), self._look
        sessions = _sessions(look, [row.iqn for row in picture.targets])
        return sorted((self._view(row, picture, look, sessions) for row in picture.targets), key=lambda one: one.vm)

    def show(self, vm: str) -> model.Target:
        """NotFound."""
        row = self._row(self._vm(vm))
        picture, look = self._picture(), self._look
        return self._view(row, picture, look, _sessions(look, [row.iqn]))

    def _vm(self, name: str) -> VMRow:
        row = self._catalog.vm(name) if is_name(name) else None
        if row is None:
            raise NotFound(f"there is no VM {name}")
        return row

    def _row(self, vm: VMRow) -> TargetRow:
        row = self._catalog.target(vm.id)
        if row is None:
            raise NotFound(f"VM {vm.name} has no target: blockdevctl target add {vm.name}")
        return row

    def _check(self, wish: Wish, row: TargetRow | None) -> None:
        """InvalidArgument: a wish that cannot be, or one that lets in more than was meant."""
        if wish.depth is not None:
            model.check_depth(wish.depth)
        if wish.credentials is not None:
            chap.check(wish.credentials)
        known = self._known(row)
        initiators = known.initiators if wish.initiators is None else model.check_initiators(wish.initiators)
        portals = known.portals if wish.portals is None else model.check_portals(wish.portals)
        demo = known.demo if wish.demo is None else wish.demo
        has_chap = bool(known.credentials) if wish.credentials is None else wish.credentials.chap is not None
        touched = (wish.initiators, wish.portals, wish.demo, wish.credentials)
        if not wish.insecure and any(one is not None for one in touched):
            model.refuse_exposed([model.Portal(*one) for one in portals or ()], initiators or (), bool(demo), has_chap)

    def _known(self, row: TargetRow | None) -> Wish:
        """What a target has; `credentials` only tell whether there are any."""
        if row is None:
            return Wish()
        picture = self._picture()
        has = Credentials() if row.chap_user else None
        return Wish(picture.initiators.get(row.id, []), picture.portals.get(row.id, []), bool(row.demo), row.depth, None, has)

    def _write(self, vm: VMRow, wish: Wish) -> None:
        """In the transaction of the caller; secrets are on disk before the row that names them."""
        row = self._row(vm)
        demo = bool(row.demo) if wish.demo is None else wish.demo
        self._catalog.change_target(row.id, demo, row.depth if wish.depth is None else wish.depth)
        if wish.initiators is not None:
            self._catalog.set_target_initiators(row.id, model.check_initiators(wish.initiators))
        if wish.portals is not None:
            self._catalog.set_target_portals(row.id, model.check_portals(wish.portals))
        if wish.credentials is not None:
            given = wish.credentials
            name = None if given.chap is None else self._chap.write(given)
            users = [None if one is None else one.user for one in (given.chap, given.mutual)]
            self._catalog.set_target_secrets(row.id, users[0], users[1], name)
        self._number_disks()
        if wish.snapshots is not None:
            self._write_snapshots(vm, row, wish.snapshots)
        if self._row(vm).next_lun > model.LUN_MAX + 1:
            raise InvalidArgument(
                f"the target of VM {vm.name} has given out all numbers of LUNs up to {model.LUN_MAX}, and gives none twice: remove it and "
                "add it again"
            )

    def _write_snapshots(self, vm: VMRow, target: TargetRow, names: Sequence[str]) -> None:
        known = {one.name: one for one in self._catalog.snapshots(vm.id)}
        for name in names:
            if name not in known:
                raise NotFound(f"VM {vm.name} has no snapshot {name}")
        offered = {lun.snapshot for lun in self._catalog.luns() if lun.target_id == target.id and lun.snapshot}
        for name in offered.difference(names):
            self._catalog.delete_snapshot_luns(target.id, known[name].id)
        for name in dict.fromkeys(names):
            for disk_id, disk in self._catalog.lunless_snapshot_disks(target.id, known[name].id):
                serial = self._serial(f"{vm.uuid}/{disk}@{known[name].uuid}")
                self._catalog.insert_lun(target.id, serial, None, disk_id)

    def kept_credentials(self, vm: str, is_chap_kept: bool, is_mutual_kept: bool) -> Credentials:
        """What a change of one of them leaves as it is.  NotFound, also when that is lost."""
        row = self._row(self._vm(vm))
        keeps = (is_chap_kept and row.chap_user is not None, is_mutual_kept and row.mutual_user is not None)
        has = self._chap.read(row.secrets) if any(keeps) and row.secrets is not None else chap.NOBODY
        return Credentials(has.chap if keeps[0] else None, has.mutual if keeps[1] else None)

    # what the catalog wants

    def _home_id(self) -> str:
        found = self._catalog.pool_uuid()
        if found is None:
            raise Unavailable("the engine has not answered yet, so it is not known which pool this is: try again")
        return found

    def _serial(self, what: str) -> str:
        """The same for as long as the disk or snapshot is there, also under another catalog."""
        return str(uuid.uuid5(uuid.UUID(self._home_id()), what))

    def _number_disks(self) -> None:
        """Each disk of a VM with a target is a LUN; in a transaction."""
        for target_id, vm_uuid, disk, disk_id, created in self._catalog.lunless_disks():
            self._catalog.insert_lun(target_id, self._serial(f"{vm_uuid}/{disk}/{created}"), disk_id)

    def _picture(self) -> _Picture:
        catalog = self._catalog
        with catalog.transaction():
            targets = catalog.targets()
            found = _Picture(targets, {}, {}, {}, {row.vm_id: catalog.vm_name(row.vm_id) for row in targets})
            for lun in catalog.luns():
                found.luns.setdefault(lun.target_id, []).append(lun)
            for portal in catalog.target_portals():
                found.portals.setdefault(portal.target_id, []).append(model.Portal(portal.host, portal.port))
            for initiator in catalog.target_initiators():
                found.initiators.setdefault(initiator.target_id, []).append(initiator.iqn)
        return found

    # the kernel

    def _kernel_for_work(self) -> _Kernel | None:
        """None: this machine cannot, and `_missing` says why.  Called under the lock, as all that follows."""
        if self._kernel is None:
            home_id = self._home_id()
            try:
                lio = importlib.import_module("blockdev.targets.lio")  # with rtslib and udev's library: only when it is needed
            except ImportError as error:
                self._missing = f"rtslib-fb is not there ({error}): install PyPI's rtslib-fb, and Debian's libudev1"
                return None
            short = home_id[: model.HOME_CHARACTERS]
            devices = Devices(home_id, self._home.nbd_socket)
            claim = Claim(home_id, self._home.path)
            made = _Kernel(devices, lio.Lio(f"{model.AUTHORITY}:{short}:", f"blockdev-{short}-"), claim)
            self._missing = made.lio.missing() or devices.missing() or claim.missing()
            if self._missing is not None:
                return None
            devices.start()
            self._kernel = made
        else:
            self._missing = self._kernel.lio.missing() or self._kernel.devices.missing()
        return None if self._missing is not None else self._kernel

    def _is_anything_there(self) -> bool:
        pool = self._catalog.pool_uuid()
        name = f"{model.AUTHORITY}:{(pool or '')[: model.HOME_CHARACTERS]}:*"
        return self._kernel is not None or (pool is not None and any(KERNEL_TARGETS.glob(name)))

    def _bring_quietly(self) -> None:
        """What was asked for is written down; what the kernel makes of it, `show` says."""
        try:
            self._bring()
        except BlockdevError as error:
            logger.warning("targets are brought up later: %s", error.message)
        self._due.set()

    def _bring(self, looks: bool = False) -> None:
        """Bring the kernel to what is wanted.  looks: also where nothing else is wanted than before."""
        with suppress(PoolFull):  # they are numbered when there is room again
            if self._catalog.lunless_disks():
                with self._catalog.transaction(grows=True):
                    self._number_disks()
        picture = self._picture()
        if not picture.targets and not self._is_anything_there():
            return
        self._chap.keep_only([row.secrets for row in picture.targets if row.secrets is not None])
        kernel = self._kernel_for_work()
        if kernel is None:
            self._tell(picture, _Look(missing=self._missing))
            return
        wanted = {_key(lun): _wanted(lun) for luns in picture.luns.values() for lun in luns if self._is_free(lun)}
        paths, no_device = self._bring_devices(kernel, wanted, looks)
        specs, troubles = [], {row.id: list[str]() for row in picture.targets}
        for row in picture.targets:
            try:
                specs.append(self._spec(row, picture, paths))
            except NotFound as error:  # the secrets: it must not be offered without
                troubles[row.id].append(error.message)
        done = kernel.lio.bring(specs, looks)
        for change in done.changes:
            logger.info("%s", change)
        for row in picture.targets:
            troubles[row.id] += done.troubles.get(row.iqn, [])
        luns = {
            lun.serial: None if _key(lun) in paths else no_device.get(_key(lun), NO_DEVICE_YET)
            for luns in picture.luns.values()
            for lun in luns
        }
        if self._wanted != wanted or looks:
            kernel.devices.release_others(wanted)
            self._wanted = wanted
        self._tell(picture, _Look(kernel.lio, None, troubles, luns))

    def _bring_devices(self, kernel: _Kernel, wanted: dict[str, Wanted], looks: bool) -> tuple[dict[str, Path], dict[str, str]]:
        """(device of each key, why others have none)"""
        if looks or self._wanted != wanted or len(self._paths) < len(wanted):
            self._wanted = None  # until all is done
            self._paths = kernel.devices.bring(list(wanted.values()), looks)
        return self._paths, kernel.devices.troubles()

    def _is_free(self, lun: LunRow) -> bool:
        return lun.object_id is not None and lun.object_id not in self._held

    def _spec(self, row: TargetRow, picture: _Picture, paths: dict[str, Path]) -> TargetSpec:
        """NotFound: its secrets are lost."""
        lio: Any = importlib.import_module("blockdev.targets.lio")
        secrets = chap.NOBODY if row.secrets is None else self._chap.read(row.secrets)
        pairs = [lio.NO_SECRET if one is None else lio.Secret(one.user, one.secret) for one in (secrets.chap, secrets.mutual)]
        short = self._home_id()[: model.HOME_CHARACTERS]
        luns = [
            lio.LunSpec(lun.number, f"blockdev-{short}-{lun.serial}", lun.serial, str(paths[_key(lun)]), lun.snapshot is not None)
            for lun in picture.luns.get(row.id, [])
            if self._is_free(lun) and _key(lun) in paths
        ]
        spec: TargetSpec = lio.TargetSpec(
            *(row.iqn, luns, picture.initiators.get(row.id, []), picture.portals.get(row.id, [])),
            *(bool(row.demo), row.depth, *pairs, row.id not in self._closed),
        )
        return spec

    # what is told

    def _reasons(self, row: TargetRow, picture: _Picture, look: _Look) -> list[str]:
        if look.missing is not None:
            return [look.missing]
        return [
            *look.troubles.get(row.id, ["the kernel has not been brought to it yet"]),
            *(f"LUN {lun.number} ({lun.export}): {said}" for lun in picture.luns.get(row.id, []) if (said := self._lun_error(lun, look))),
        ]

    def _lun_error(self, lun: LunRow, look: _Look) -> str | None:
        if lun.object_id is None:
            return "it is missing from the pool: see blockdevctl pool status"
        if lun.object_id in self._held:
            return "it is being replaced"
        return look.luns.get(lun.serial, NO_DEVICE_YET)

    def _view(self, row: TargetRow, picture: _Picture, look: _Look, sessions: dict[str, list[str]]) -> model.Target:
        reasons = self._reasons(row, picture, look)
        is_there = row.iqn in sessions
        if not is_there and not reasons:
            reasons = ["it is not in the kernel: the next look brings it back"]
        return model.Target(
            vm=picture.vms[row.vm_id],
            iqn=row.iqn,
            state="unavailable" if not is_there else "degraded" if reasons else "up",
            reasons=reasons,
            portals=[str(portal) for portal in picture.portals.get(row.id, [])],
            initiators=picture.initiators.get(row.id, []),
            demo=bool(row.demo),
            chap_user=row.chap_user,
            mutual_user=row.mutual_user,
            depth=row.depth,
            luns=[
                model.Lun(lun.number, lun.disk, lun.snapshot, lun.export, lun.serial, lun.size_bytes, self._lun_error(lun, look))
                for lun in picture.luns.get(row.id, [])
            ],
            sessions=sessions.get(row.iqn, []),
            created=row.created,
        )

    def _tell(self, picture: _Picture, look: _Look) -> None:
        """From now on who asks is told so; events first, so that whoever sees a trouble finds its event."""
        if not self._held and not self._closed:  # else by an operation, for a moment
            self._note_troubles(picture, look)
        self._look = look

    def _note_troubles(self, picture: _Picture, look: _Look) -> None:
        for row in picture.targets:
            vm, reasons = picture.vms[row.vm_id], self._reasons(row, picture, look)
            if reasons:
                self._events.begin("error", "target", vm, f"the target of VM {vm} is not as it should be: {'; '.join(reasons)}")
            else:
                self._events.end("target", vm, f"the target of VM {vm} is up again")

    # Offers

    def changed(self) -> None:
        self._due.set()

    def has_only_devices(self, object_ids: Collection[int]) -> bool:
        with suppress(BlockdevError):
            clients = [client for id, _name, client in self._engine.attachments() if id in object_ids]
            return bool(clients) and all(map(is_device_client, clients))
        return False

    @contextmanager
    def letting_go(self, object_ids: Collection[int], force: bool, disconnect: bool = False) -> Iterator[list[str]]:
        with self._lock:
            ids = {id for id in object_ids if id not in self._held}
            picture = self._picture() if ids else None
            rows = [] if picture is None else [row for row in picture.targets if _has_any(picture, row, ids)]
            if picture is None or not rows or self._kernel is None:
                rows, logged_out = [], []
            else:
                logged_out = self._log_out(picture, rows, force, disconnect)
                self._held.update(ids)
                self._closed.update(row.id for row in rows if disconnect)
        if not rows:
            yield []
            return
        try:
            with self._lock:
                self._bring()
                self._await_leaving(ids)
            yield logged_out
        finally:
            with self._lock:
                self._held = +(self._held - Counter(ids))
                self._closed = +(self._closed - Counter(row.id for row in rows if disconnect))
                self._bring_quietly()

    def _log_out(self, picture: _Picture, rows: Sequence[TargetRow], force: bool, disconnect: bool) -> list[str]:
        """Busy; else who is cut off, each as `VM by INITIATOR`."""
        kernel = self._kernel
        assert kernel is not None
        sessions = kernel.lio.sessions([row.iqn for row in rows])
        cut_off = []
        for row in rows:
            vm, initiators = picture.vms[row.vm_id], sessions.get(row.iqn, [])
            if initiators and not force:
                raise Busy(_logged_in(vm, initiators))
            cut_off += [f"target of {vm} by {initiator}" for initiator in initiators]
            if initiators and disconnect:
                kernel.lio.disconnect(row.iqn)
        return cut_off

    def _await_leaving(self, object_ids: Collection[int]) -> None:
        """Until the engine has noticed that the devices are gone; then it is for it to say who is in the way."""
        deadline = monotonic_seconds() + LEAVE_SECONDS_MAX
        while monotonic_seconds() < deadline and self.has_devices(object_ids):
            self._stopping.wait(LEAVE_LOOK_SECONDS)

    def has_devices(self, object_ids: Collection[int]) -> bool:
        """Whether a device of ours is attached to one of these objects."""
        with suppress(BlockdevError):
            return any(id in object_ids and is_device_client(client) for id, _name, client in self._engine.attachments())
        return False


def _sessions(look: _Look, iqns: Sequence[str]) -> dict[str, list[str]]:
    """Who is logged in now, by target; targets that are not there are left out."""
    return {} if look.lio is None else look.lio.sessions(iqns)


def _key(lun: LunRow) -> str:
    """Of its device: another object behind the same disk, as after a restore, is another device."""
    return f"{lun.serial}-{lun.object_id}"


def _wanted(lun: LunRow) -> Wanted:
    return Wanted(_key(lun), lun.export, lun.size_bytes, lun.snapshot is not None)


def _has_any(picture: _Picture, row: TargetRow, object_ids: Collection[int]) -> bool:
    return any(lun.object_id in object_ids for lun in picture.luns.get(row.id, []))


def _logged_in(vm: str, initiators: Sequence[str]) -> str:
    return f"logged in to the target of VM {vm}: {', '.join(initiators)}; log out there first, or force it (--force): they are cut off then"
