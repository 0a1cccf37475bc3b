"""What the VM operations return: plain values, whose `to_json` field names are stable.

Sizes are bytes, times ISO 8601 UTC text, states small fixed words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from blockdev.policies import Compression, Dedup
from blockdev.types import Extent

DiskState = Literal["ok", "missing"]  # missing: the catalog knows it, the pool does not
Consistency = Literal["crash", "vm"]  # vm: the guest's file systems were frozen
DomainState = Literal["registering", "there", "unregistering"]  # but for `there`, it is being found out which
IfNotFrozen = Literal["crash", "fail"]  # what to do when a guest cannot be frozen
Origin = Literal["manual", "clone", "restore", "schedule", "import", "replication"]


class Terms(NamedTuple):
    """What is known and wanted of a snapshot beyond its name and time; times are ISO 8601 UTC."""

    origin: Origin = "manual"
    consistency: Consistency = "crash"  # what was achieved
    asked: Consistency = "crash"
    frozen_ms: int | None = None  # how long the guest was frozen for it
    expires: str | None = None  # None: kept until somebody deletes it
    locked_until: str | None = None  # until then nobody can delete it
    schedule: str | None = None  # that took it,
    due: str | None = None  # and when it was due


MANUAL = Terms()


class _Value:
    """A dataclass whose JSON is its fields."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Disk(_Value):
    """One disk of a VM."""

    name: str
    size_bytes: int
    export: str  # its NBD export name, VM/DISK
    object_id: int | None  # the pool's id of its vdisk; None: missing
    created: str
    state: DiskState = "ok"
    clients: list[str] | None = None  # who is attached; None: not asked, or the engine did not answer


@dataclass(frozen=True)
class Policy(_Value):
    """How a VM's data is kept; None: as the pool's."""

    compression: Compression | None
    dedup: Dedup | None


@dataclass(frozen=True)
class Domain(_Value):
    """Which domain of which hypervisor runs a VM."""

    hypervisor: str
    name: str
    uuid: str
    state: DomainState
    made: bool  # whether blockdev registered it


@dataclass(frozen=True)
class Received(_Value):
    """Where a VM comes from that another home sends."""

    peer: str
    since: str
    promoted: str | None  # when; None: nobody but the peer changes it, and it has no disks but those of its snapshots


@dataclass(frozen=True)
class VM(_Value):
    """One VM, without its configuration text (see `VMs.get_config`)."""

    name: str
    uuid: str
    description: str
    created: str
    size_bytes: int  # the sum of its disks' sizes
    snapshot_count: int
    cloned_from: str | None  # VM@SNAPSHOT as it was called when the clone was made
    policy: Policy
    agent: str | None = None  # the Unix socket of its guest agent
    domain: Domain | None = None  # where it runs, when that is known
    protected_over: list[str] = field(default_factory=list)  # the paths that it is replicated over
    received: Received | None = None  # None: it is of this home
    disks: list[Disk] = field(default_factory=list)


@dataclass(frozen=True)
class SnapshotDisk(_Value):
    """One disk of a snapshot."""

    name: str
    size_bytes: int
    export: str  # its read-only NBD export name, VM/DISK@SNAPSHOT
    object_id: int | None
    state: DiskState = "ok"
    clients: list[str] | None = None


@dataclass(frozen=True)
class Snapshot(_Value):
    """One snapshot of a whole VM."""

    vm: str
    name: str
    description: str
    created: str
    lsn: int  # its place in the pool's log: a later snapshot of any VM here has a higher one
    consistency: Consistency  # what was achieved
    origin: Origin  # a person, a schedule, a clone of the running VM, the safety snapshot of a restore, or where it was taken in from
    size_bytes: int
    disks: list[SnapshotDisk] = field(default_factory=list)
    config: str | None = None  # the VM's configuration at that moment; None in lists
    asked: Consistency = "crash"  # what consistency was asked for
    frozen_ms: int | None = None  # how long the guest was frozen for it
    expires: str | None = None  # None: it is kept until somebody deletes it
    locked_until: str | None = None  # nobody can delete it before
    schedule: str | None = None  # which one took it
    uuid: str = ""  # the same on every copy of it, in whichever pool
    changed_bytes: int | None = None  # since the one before it, when it was taken; None: not counted yet
    newest_on: list[str] = field(default_factory=list)  # paths whose other end has it, and no newer one


@dataclass(frozen=True)
class DiskDiff(_Value):
    """What changed on one disk between two snapshots."""

    disk: str
    changed_bytes: int | None  # in all; None: said with the first page
    extent_count: int | None  # likewise
    extents: list[Extent]  # of this page; state: what the newer snapshot has there

    def to_json(self) -> dict[str, Any]:
        extents = [{"offset": e.offset, "length": e.length, "state": e.state} for e in self.extents]
        return {**vars(self), "extents": extents}


@dataclass(frozen=True)
class Diff(_Value):
    """What changed on a VM between two snapshots, or from nothing to one: one page of it."""

    vm: str
    older: str | None
    newer: str
    changed_bytes: int | None  # in all; None: said with the first page
    disks: list[DiskDiff]  # on the first page all, then those that have extents on it
    next: str | None  # where the next page begins; None: there is none

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "disks": [disk.to_json() for disk in self.disks]}


@dataclass(frozen=True)
class Restored(_Value):
    """What a restore did."""

    vm: VM
    snapshot: str  # what was restored
    disks: list[str]  # the disks that were put back, or are new beside the others
    safety_snapshot: str | None  # the state before, origin `restore`; None: the VM had no disks left, or none was replaced
    cut_off: list[str] = field(default_factory=list)  # clients of what was replaced, `VM/DISK by CLIENT`: they get errors


@dataclass(frozen=True)
class DiskRestore(_Value):
    """What a restore would do to one disk."""

    disk: str
    size_bytes: int  # then
    size_bytes_now: int | None  # None: the disk is not there any more, and comes back
    changed_bytes: int  # that differ from what the disk has now; of one that comes back, all that it holds
    extent_count: int  # in so many places
    clients: list[str]  # who is attached now


@dataclass(frozen=True)
class RestorePreview(_Value):
    """What a restore would do, as things are now.  The state before is always kept in a snapshot."""

    vm: str
    snapshot: str
    created: str  # of the snapshot
    changed_bytes: int
    disks: list[DiskRestore]
    kept_disks: list[str]  # the snapshot has no such disks: they stay as they are
    config_changes: bool  # whether the configuration comes back to another text
    newer_snapshot_count: int  # they stay


@dataclass(frozen=True)
class Demoted(_Value):
    """What came of a VM that is received from now on."""

    vm: VM
    safety_snapshot: str | None  # what its disks held, origin `restore`; None: its newest snapshot holds the same
    cut_off: list[str] = field(default_factory=list)  # as in Restored


@dataclass(frozen=True)
class Import(_Value):
    """An import under way.  Write the image to `export`; the disk changes only when the import is finished."""

    id: int
    vm: str
    disk: str
    export: str  # VM/DISK~import: a vdisk of its own, served like any other
    size_bytes: int  # of the vdisk behind `export`
    create: bool  # whether finishing adds the disk, or replaces what it holds
    started: str


@dataclass(frozen=True)
class Finding(_Value):
    """Something that is wrong with the pool: bytes that cannot be read, or something of the pool itself."""

    vm: str | None  # None: of the pool itself, or of an object that is not of a VM
    disk: str | None
    snapshot: str | None  # None: the disk as it is now
    object: str | None  # the export, VM/DISK or VM/DISK@SNAPSHOT; None: of the pool itself
    offset: int  # of the first byte in the disk
    length: int  # 0: all of it, or of the pool itself
    what: str


@dataclass(frozen=True)
class SnapshotSpace(_Value):
    """What a snapshot takes."""

    snapshot: str
    created: str
    changed_bytes: int  # since the one before it: written or discarded
    frees_bytes: int  # of the pool, that deleting it alone gives back


@dataclass(frozen=True)
class VMSpace(_Value):
    """What a VM takes."""

    vm: str
    size_bytes: int  # the sum of its disks' sizes
    data_bytes: int  # that its disks hold now, as the guest sees it
    shared_bytes: int  # of these, in blocks that something else has, too
    unique_stored_bytes: int  # of the pool, that deleting the VM with its snapshots gives back
    snapshots_stored_bytes: int  # of the pool, that deleting all its snapshots gives back
    snapshots: list[SnapshotSpace]  # oldest first


@dataclass(frozen=True)
class PoolSpace(_Value):
    """What takes the pool's space; used = metadata + stored + reclaimable."""

    capacity_bytes: int
    used_bytes: int
    metadata_bytes: int  # maps, and what describes the blocks in segments
    stored_bytes: int  # by blocks that a disk or snapshot reaches
    reclaimable_bytes: int  # by what none reaches: a compaction gives it back
    logical_bytes: int  # data of all disks as guests see it, each in full
    referenced_bytes: int  # the same, of disks and snapshots
    disk_distinct_bytes: int  # logical_bytes, when what is there more than once counts once
    distinct_bytes: int  # referenced_bytes, likewise
    dedup_saved_bytes: int  # logical - disk_distinct
    snapshot_only_bytes: int  # distinct - disk_distinct: what only snapshots hold
    compression_saved_bytes: int  # distinct - stored


@dataclass(frozen=True)
class Space(_Value):
    """What takes the pool's space, and which VM takes how much of it."""

    pool: PoolSpace
    vms: list[VMSpace]  # by name


@dataclass(frozen=True)
class Status(_Value):
    """The control plane and, when it answers, the engine."""

    engine_running: bool
    engine_error: str | None  # why not
    engine: dict[str, Any]  # the engine's own status: version, pid, plugin, pool figures; {} when not running
    agreed: bool  # whether catalog and engine have been brought into agreement since either was started
    vm_count: int
    disk_count: int
    snapshot_count: int
    missing: list[str]  # exports that the catalog knows and the pool lacks
    foreign: list[str]  # pool objects whose names are not of VMs; left alone
    imports: list[Import]


@dataclass(frozen=True)
class Agreement(_Value):
    """What bringing catalog and engine into agreement changed (docs/agreement.md)."""

    finished: list[str] = field(default_factory=list)  # operations whose engine step had been done
    undone: list[str] = field(default_factory=list)  # operations whose engine step had not
    adopted: list[str] = field(default_factory=list)  # objects that the catalog did not know
    corrected: list[str] = field(default_factory=list)  # names and sizes that now follow the pool
    dropped: list[str] = field(default_factory=list)  # temporary objects that no user was told of
    missing: list[str] = field(default_factory=list)  # exports that the pool lacks; kept
    foreign: list[str] = field(default_factory=list)  # pool objects that are not of VMs; left alone
