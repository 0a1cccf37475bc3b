"""LIO, the kernel's SCSI target, through rtslib-fb: its one room.

`bring` makes configfs as the given specs say, and says what it changed and what it could not do.  Ours is what is named so:
targets whose IQN begins with the home's prefix, storage objects whose name does.  Nothing else is touched, and of ours nothing
that is as it should be, so sessions of targets that did not change go on.  A LUN that fails takes no other one down.
rtslib's saveconfig is neither read nor written: the catalog knows what is wanted.

Through rtslib a look at one target takes 25 ms (measured), most of it paths.  So what configfs held after a target was brought is
kept as a digest, and one that still has it is left alone: 50 targets take 60 ms then.

Threads: one at a time, which the caller sees to; `sessions` may be asked by any.  Durable: nothing; configfs is the kernel's memory.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from blockdev.targets.devices import MEANWHILE
from rtslib_fb import (
    LUN,
    TPG,
    BlockStorageObject,
    FabricModule,
    MappedLUN,
    NetworkPortal,
    NodeACL,
    RTSRoot,
    Target,
)
from rtslib_fb.tcm import bs_cache
from rtslib_fb.utils import RTSLibError, fwrite

from blockdev.addresses import bracketed, listen, show_address
from blockdev.errors import Busy

warnings.filterwarnings("ignore", message="Cannot set dbroot", module="rtslib")  # another one's is as good

CONFIGFS = Path("/sys/kernel/config")
CORE = CONFIGFS / "target" / "core"
ISCSI = CONFIGFS / "target" / "iscsi"
DBROOT = Path("/etc/target")  # rtslib refuses to work where it is not
KEPT_THERE = ("pr", "alua")  # without these persistent reservations fail with NOT READY
TPG_TAG = 1
VENDOR, MODEL, REVISION = "BLOCKDEV", "vdisk", "1"
# on, as LIO gives them; UNMAP and WRITE SAME with UNMAP are off unless told otherwise
OBJECT_ATTRIBUTES = {
    "emulate_caw": 1,
    "emulate_3pc": 1,
    "emulate_pr": 1,
    "unmap_granularity": 8,  # blocks of 512 bytes: what the pool maps is 4096
    "max_unmap_lba_count": 1 << 20,  # 512 MiB in one command; of more, initiators' own checks think it is a mistake
    "max_unmap_block_desc_count": 32,
    "emulate_tpu": 1,
    "emulate_tpws": 1,
}
# that are set to what a target is to be, in this order
GROUP_ATTRIBUTES = (
    *("authentication", "generate_node_acls", "cache_dynamic_acls", "demo_mode_write_protect", "prod_mode_write_protect"),
    *("demo_mode_discovery", "default_cmdsn_depth"),
)
FAILURES = (RTSLibError, OSError, ValueError, TypeError)  # rtslib's own slips among them
NO_SESSION = "No active"
INITIATOR_NAME = re.compile(r"[^\0\s]+")


class LunSpec(NamedTuple):
    """One LUN."""

    number: int
    name: str  # of the storage object
    serial: str
    device: str  # /dev/nbd3
    read_only: bool


@dataclass(frozen=True)
class Secret:
    """A user and what proves it."""

    user: str
    secret: str = field(repr=False)


NO_SECRET = Secret("", "")


@dataclass(frozen=True)
class TargetSpec:
    """One target, as it is to be."""

    iqn: str
    luns: Sequence[LunSpec]
    initiators: Sequence[str]
    portals: Sequence[tuple[str, int]]  # (IPv4 or IPv6 address without brackets, port)
    demo: bool  # any initiator may log in
    depth: int
    chap: Secret = NO_SECRET  # of initiators
    mutual: Secret = NO_SECRET  # of the target
    is_open: bool = True  # else nobody is logged in, and nobody can


class Outcome(NamedTuple):
    """What `bring` did."""

    changes: list[str]
    troubles: dict[str, list[str]]  # by IQN: what could not be done


class Lio:
    """What one home has in LIO."""

    def __init__(self, iqn_prefix: str, object_prefix: str) -> None:
        """Nothing is asked of the kernel yet."""
        self._iqn_prefix = iqn_prefix
        self._object_prefix = object_prefix
        self._is_ready = False
        self._brought: dict[str, tuple[TargetSpec, bytes]] = {}  # by IQN: what was asked for, and what configfs held then

    def missing(self) -> str | None:
        """What this machine lacks for LIO, as a sentence; None: nothing.  Loads the modules and mounts configfs."""
        if self._is_ready and CORE.is_dir():
            return None
        if os.geteuid() != 0:
            return f"LIO is the kernel's, and only root may tell it what to offer: run blockdevctl serve as root; {MEANWHILE}"
        try:
            _prepare()
        except FAILURES as error:
            return (
                f"this machine's kernel offers no LIO ({_words(error)}): Debian's stock kernel has it (linux-image-amd64; "
                "modprobe iscsi_target_mod, as root); in a container load it on the host, and let the container have /sys/kernel/config; "
                f"{MEANWHILE}"
            )
        self._is_ready = True
        return None

    def bring(self, specs: Sequence[TargetSpec], looks: bool = True) -> Outcome:
        """Make configfs so.  What cannot be done is told, and the rest is done.

        looks: also at targets of which nothing else is asked than before: somebody may have changed them.
        """
        bs_cache.clear()  # others may have made and removed backstores meanwhile
        done = Outcome([], {spec.iqn: [] for spec in specs})
        for target in self._surplus({spec.iqn for spec in specs}):
            _unmap_half_mapped(target.wwn)
            _try(done.changes, [], f"target {target.wwn} removed", target.delete)
        objects = self._objects()
        wanted = {lun.name for spec in specs for lun in spec.luns}
        surplus = [name for name in objects if name not in wanted]
        if surplus:
            _unmap_half_mapped(f"{self._iqn_prefix}*")
        for name in surplus:
            _drop(objects, name, done.changes)
        self._brought = {spec.iqn: self._brought[spec.iqn] for spec in specs if spec.iqn in self._brought}
        for spec in specs:
            known, digest = self._brought.get(spec.iqn, (None, b""))
            if known == spec and not (looks and _digest(spec, objects) != digest):
                continue
            self._brought.pop(spec.iqn, None)
            _unmap_half_mapped(spec.iqn)
            things = self._objects_as(spec.luns, objects, done.changes)
            try:
                _OneTarget(spec, done.changes, done.troubles[spec.iqn]).bring(things)
            except FAILURES as error:  # somebody took something away while it was looked at
                done.troubles[spec.iqn].append(f"the target cannot be looked after: {_words(error)}")
            objects |= {name: Path(thing.path) for name, thing in things.items()}
            if not done.troubles[spec.iqn]:
                self._brought[spec.iqn] = spec, _digest(spec, objects)
        return done

    def sessions(self, iqns: Sequence[str]) -> dict[str, list[str]]:
        """By IQN of those targets that are there, the names of the initiators that are logged in."""
        return {iqn: sorted(_initiators(f"{ISCSI}/{iqn}/tpgt_{TPG_TAG}")) for iqn in iqns if (ISCSI / iqn).is_dir()}

    def disconnect(self, iqn: str) -> None:
        """End the sessions of a target; nobody can log in until `bring` opens it again."""
        for target in self._targets():
            if target.wwn == iqn:
                TPG(target, TPG_TAG, "any").enable = False

    def _targets(self) -> list[Target]:
        return [one for one in FabricModule("iscsi").targets if one.wwn.startswith(self._iqn_prefix)]

    def _surplus(self, wanted: set[str]) -> list[Target]:
        """Our targets that are not wanted."""
        if all(path.name in wanted for path in ISCSI.glob(f"{self._iqn_prefix}*")):
            return []
        return [target for target in self._targets() if target.wwn not in wanted]

    def _objects(self) -> dict[str, Path]:
        """Our storage objects, by name."""
        return {path.name: path for path in CORE.glob(f"iblock_*/{self._object_prefix}*")}

    def _objects_as(self, luns: Iterable[LunSpec], objects: dict[str, Path], changes: list[str]) -> dict[str, BlockStorageObject]:
        """Those that are as they are wanted; the others go, with their LUNs."""
        kept = {}
        for lun in luns:
            if lun.name in objects:
                thing = _object(objects[lun.name])
                if _is_as(thing, lun):
                    kept[lun.name] = thing
                else:
                    _drop(objects, lun.name, changes)
        return kept


class _OneTarget:
    """Brings one target, and notes what it did and what it could not do."""

    def __init__(self, spec: TargetSpec, changes: list[str], troubles: list[str]) -> None:
        self._spec = spec
        self._changes = changes
        self._troubles = troubles

    def bring(self, objects: dict[str, BlockStorageObject]) -> None:
        """objects: our storage objects that are as they are wanted; those that are made are added."""
        try:
            group = self._group()
        except FAILURES as error:
            self._troubles.append(f"the target cannot be made: {_words(error)}")
            return
        if not self._spec.is_open and group.enable:
            self._do("sessions ended", lambda: setattr(group, "enable", False))
        self._set_attributes(group)
        self._bring_luns(group, objects)
        self._bring_initiators(group)
        self._bring_portals(group)
        if self._spec.is_open and not group.enable:
            self._do("opened", lambda: setattr(group, "enable", True))

    def _do(self, what: str, action: Callable[[], object]) -> bool:
        return _try(self._changes, self._troubles, f"target {self._spec.iqn}: {what}", action)

    def _group(self) -> TPG:
        target = Target(FabricModule("iscsi"), self._spec.iqn)
        groups = list(target.tpgs)
        if not self._spec.demo and any(group.get_attribute("generate_node_acls") == "1" for group in groups):
            target.delete()  # the kernel would let in whoever was in before
            groups = []
            target = Target(FabricModule("iscsi"), self._spec.iqn)
        if not groups:
            self._changes.append(f"target {self._spec.iqn} made")
        for group in groups:
            if group.tag != TPG_TAG:
                self._do(f"portal group {group.tag} removed", group.delete)
        return TPG(target, TPG_TAG)

    def _set_attributes(self, group: TPG) -> None:
        spec = self._spec
        demo = int(spec.demo)
        # whoever may not log in is not told of the target (demo_mode_discovery)
        values = (int(bool(spec.chap.user)), demo, demo, 0, 0, demo, spec.depth)
        self._set_some(group, dict(zip(GROUP_ATTRIBUTES, values, strict=True)))
        self._set_secrets(group, spec.demo)

    def _set_some(self, node: TPG | BlockStorageObject, wanted: dict[str, int]) -> None:
        for name, value in wanted.items():
            try:
                if node.get_attribute(name) != str(value):
                    node.set_attribute(name, value)
            except FAILURES as error:
                self._troubles.append(f"{name} cannot be {value}: {_words(error)}")

    def _set_secrets(self, node: TPG | NodeACL, are_used: bool) -> None:
        chap, mutual = (self._spec.chap, self._spec.mutual) if are_used else (NO_SECRET, NO_SECRET)
        wanted = {
            "chap_userid": chap.user,
            "chap_password": chap.secret,
            "chap_mutual_userid": mutual.user,
            "chap_mutual_password": mutual.secret,
        }
        for name, value in wanted.items():
            try:
                if (getattr(node, name) or "") != value:
                    setattr(node, name, value)
                    self._changes.append(f"target {self._spec.iqn}: {name} set")
            except FAILURES:  # whose words may repeat the value
                self._troubles.append(f"{name} cannot be set")

    def _bring_luns(self, group: TPG, objects: dict[str, BlockStorageObject]) -> None:
        wanted = {lun.number: lun for lun in self._spec.luns}
        there = set()
        for lun in list(group.luns):
            spec = wanted.get(lun.lun)
            if spec is not None and _object_name(lun) == spec.name:
                there.add(lun.lun)
            else:
                self._do(f"LUN {lun.lun} removed", lun.delete)
        for number, spec in wanted.items():
            thing = objects.get(spec.name) or self._make_object(spec)
            if thing is None:
                continue
            objects[spec.name] = thing
            if number not in there:
                self._prepare_object(thing)
                self._do(f"LUN {number} added", lambda number=number, thing=thing: LUN(group, number, thing))  # type: ignore[misc]
            else:
                self._set_some(thing, OBJECT_ATTRIBUTES)

    def _make_object(self, lun: LunSpec) -> BlockStorageObject | None:
        try:
            return BlockStorageObject(lun.name, dev=lun.device, wwn=lun.serial, readonly=lun.read_only, index=_free_index())
        except FAILURES as error:
            self._troubles.append(f"LUN {lun.number} cannot be made of {lun.device}: {_words(error)}")
            return None

    def _prepare_object(self, thing: BlockStorageObject) -> None:
        self._set_some(thing, OBJECT_ATTRIBUTES)
        for name, value in (("vendor_id", VENDOR), ("product_id", MODEL), ("revision", REVISION)):
            try:
                fwrite(f"{thing.path}/wwn/{name}", value)
            except OSError as error:
                self._troubles.append(f"{name} cannot be {value}: {_words(error)}")

    def _bring_initiators(self, group: TPG) -> None:
        spec = self._spec
        wanted = set(spec.initiators)
        for acl in list(group.node_acls):
            if acl.node_wwn not in wanted:
                self._do(f"initiator {acl.node_wwn} shut out", acl.delete)
        known = {acl.node_wwn for acl in group.node_acls}
        for initiator in spec.initiators:
            if initiator not in known:
                self._do(f"initiator {initiator} let in", lambda initiator=initiator: NodeACL(group, initiator))  # type: ignore[misc]
            try:
                acl = NodeACL(group, initiator, "lookup")
                self._set_secrets(acl, True)
                if acl.tcq_depth != str(spec.depth):
                    acl.tcq_depth = spec.depth
                self._map_luns(acl, {lun.lun for lun in group.luns})
            except FAILURES as error:
                self._troubles.append(f"initiator {initiator}: {_words(error)}")

    def _map_luns(self, acl: NodeACL, numbers: set[int]) -> None:
        read_only = {lun.number: lun.read_only for lun in self._spec.luns}
        there = set()
        for mapped in list(acl.mapped_luns):
            if mapped.mapped_lun in numbers and mapped.tpg_lun.lun == mapped.mapped_lun:
                there.add(mapped.mapped_lun)
                if mapped.write_protect != read_only[mapped.mapped_lun]:
                    mapped.write_protect = read_only[mapped.mapped_lun]
            else:
                mapped.delete()
        for number in sorted(numbers - there):
            MappedLUN(acl, number, number, write_protect=read_only[number])

    def _bring_portals(self, group: TPG) -> None:
        wanted = {(bracketed(host), port): (host, port) for host, port in self._spec.portals}
        there = set()
        for portal in list(group.network_portals):
            place = (portal.ip_address, portal.port)
            if place in wanted:
                there.add(place)
            else:
                self._do(f"portal {place[0]}:{place[1]} closed", portal.delete)
        for place in sorted(wanted.keys() - there):
            self._open_portal(group, place, *wanted[place])

    def _open_portal(self, group: TPG, place: tuple[str, int], host: str, port: int) -> None:
        try:
            NetworkPortal(group, *place)
        except FAILURES as error:
            # of a place that somebody has the kernel says EINVAL
            self._troubles.append(f"portal {show_address(host, port)} cannot be opened: {_listening_trouble(host, port) or _words(error)}")
        else:
            self._changes.append(f"target {self._spec.iqn}: portal {show_address(host, port)} opened")


def _prepare() -> None:
    """Modules, configfs, and the directories that LIO and rtslib expect.  Raises what is in FAILURES."""
    if not CONFIGFS.is_mount():
        for command in (["modprobe", "configfs"], ["mount", "-t", "configfs", "none", str(CONFIGFS)]):
            subprocess.run(command, capture_output=True, check=False)  # rtslib would mount it elsewhere
        if not CONFIGFS.is_mount():
            raise OSError("configfs cannot be mounted")
    DBROOT.mkdir(parents=True, exist_ok=True)
    root = RTSRoot()
    for name in KEPT_THERE:
        Path(root.dbroot, name).mkdir(parents=True, exist_ok=True)
    list(FabricModule("iscsi").targets)
    FabricModule("iscsi")._check_self()  # loads its module


def _listening_trouble(host: str, port: int) -> str | None:
    """Why no program could listen there; None: one could."""
    try:
        listen(host, port).close()
    except Busy as busy:
        return busy.message
    return None


def _object(path: Path) -> BlockStorageObject:
    return BlockStorageObject(path.name, index=int(path.parent.name.rpartition("_")[2]))


def _unmap_half_mapped(iqn: str) -> None:
    """Of our targets that match: mapped LUNs without a link, as somebody's death leaves them.  rtslib does not get past them, not even
    to remove what they are part of."""
    for mapped in ISCSI.glob(f"{iqn}/tpgt_*/acls/*/lun_*"):
        if not _links(str(mapped)):
            with suppress(OSError):  # the kernel keeps it: it will be said where it is in the way
                mapped.rmdir()


def _free_index() -> int:
    """For the directory of a new storage object.

    rtslib by itself thinks that a number is free whose directory is there and empty, as somebody's death between its making and
    the object's leaves it; then it could make no object any more, for whomever.
    """
    taken = {path.name.rpartition("_")[2] for path in CORE.glob("*_*")}
    return next(number for number in itertools.count() if str(number) not in taken)


def _drop(objects: dict[str, Path], name: str, changes: list[str]) -> None:
    path = objects.pop(name)
    _try(changes, [], f"backstore {name} removed", lambda: _object(path).delete())


def _digest(spec: TargetSpec, objects: dict[str, Path]) -> bytes:
    """Of all that configfs holds of a target and its storage objects, and that `bring` sees to."""
    group = f"{ISCSI}/{spec.iqn}/tpgt_{TPG_TAG}"
    found = hashlib.blake2b(digest_size=16)
    told: list[object] = [_names(f"{ISCSI}/{spec.iqn}"), _text(f"{group}/enable"), _names(f"{group}/np")]
    told += [_text(f"{group}/attrib/{name}") for name in GROUP_ATTRIBUTES] + _secrets(group)
    for number in _names(f"{group}/lun"):
        told += [number, _links(f"{group}/lun/{number}")]
    for initiator in _names(f"{group}/acls"):
        acl = f"{group}/acls/{initiator}"
        told += [initiator, _text(f"{acl}/cmdsn_depth"), *_secrets(acl)]
        for mapped in sorted(one for one in _names(acl) if one.startswith("lun_")):
            told += [mapped, _links(f"{acl}/{mapped}"), _text(f"{acl}/{mapped}/write_protect")]
    for lun in spec.luns:
        thing = objects.get(lun.name)
        told += [str(thing)]
        if thing is not None:
            told += [_text(f"{thing}/{name}") for name in ("enable", "udev_path", "wwn/vpd_unit_serial", "wwn/vendor_id")]
            told += [_text(f"{thing}/attrib/{name}") for name in OBJECT_ATTRIBUTES]
    found.update(repr(told).encode())
    return found.digest()


def _secrets(node: str) -> list[object]:
    return [_text(f"{node}/auth/{name}") for name in ("userid", "password", "userid_mutual", "password_mutual")]


def _text(path: str) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return os.read(descriptor, 4096).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _links(directory: str) -> list[str]:
    """Where the symbolic links of a directory lead to."""
    return [os.readlink(f"{directory}/{name}") for name in _names(directory) if os.path.islink(f"{directory}/{name}")]


def _is_as(thing: BlockStorageObject, lun: LunSpec) -> bool:
    try:
        return bool(
            thing.is_configured()
            and thing.udev_path == lun.device
            and thing.wwn == lun.serial
            and thing.readonly == lun.read_only
        )
    except FAILURES:
        return False


def _object_name(lun: LUN) -> str | None:
    try:
        return str(lun.storage_object.name)
    except FAILURES:
        return None


def _initiators(group: str) -> set[str]:
    """Who is logged in, by name and in demo mode."""
    named = {acl for acl in _names(f"{group}/acls") if not (_text(f"{group}/acls/{acl}/info") or NO_SESSION).startswith(NO_SESSION)}
    return named | set(INITIATOR_NAME.findall(_text(f"{group}/dynamic_sessions") or ""))


def _try(changes: list[str], troubles: list[str], what: str, action: Callable[[], object]) -> bool:
    try:
        action()
    except FAILURES as error:
        troubles.append(f"not done: {what}: {_words(error)}")
        return False
    changes.append(what)
    return True


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
