"""The bodies of requests, and of the answers that are not values of vmmap.model: what OpenAPI shows.

Field names are stable.  Sizes are bytes, times ISO 8601 UTC text.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from blockdev.cloudinit.files import TEXT_BYTES_MAX
from blockdev.constants import DURATION_SECONDS_MAX, KEEP_SECONDS_MIN, SECTOR_BYTES, VDISK_BYTES_MAX
from blockdev.errors import BY_CODE, InvalidArgument
from blockdev.policies import LEVELS, Compression, Dedup
from blockdev.quiesce.limits import LIMIT_SECONDS, LIMIT_SECONDS_MAX
from blockdev.schedule.rules import Schedule
from blockdev.schedule.times import local_zone
from blockdev.types import ExtentState
from blockdev.vmmap import model
from blockdev.vmmap.clock import text_of
from blockdev.vmmap.names import NAME_CHARACTERS_MAX

CLONES_MAX = 500
WAIT_SECONDS_MAX = 30
RATE_BYTES_MAX = CAPACITY_BYTES_MAX = 4 * 10**18  # below 2**62, and the same number in a document that has it as 4e+18
YEARS = range(1970, 9999)  # so that another time zone's offset never leads out of what can be written

# What only `json_schema_extra` says is checked further down, where the message knows what it is about.
NAME_FORM = {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$", "minLength": 1, "maxLength": NAME_CHARACTERS_MAX}
Name = Annotated[
    str,
    Field(
        description="1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit", json_schema_extra={**NAME_FORM}
    ),
]
Force = Annotated[bool, Query(description="go on although something uses it, which is cut off")]
OfDisk = Annotated[Name | None, Query(description="of this disk only; absent: of all")]
Prefix = Annotated[
    str,
    Field(
        description="the clones are called PREFIX-1, PREFIX-2, ...; or with a run of `#`, which is where the number goes, with as many digits",
        json_schema_extra={"pattern": r"^[A-Za-z0-9#][A-Za-z0-9._#-]*$", "minLength": 1, "maxLength": NAME_CHARACTERS_MAX},
        examples=["web", "node-##"],
    ),
]
CapacityBytes = Annotated[int, Field(ge=0, le=CAPACITY_BYTES_MAX, description="bytes")]
SizeBytes = Annotated[
    int,
    Field(
        gt=0,
        description="bytes, a multiple of 512",
        examples=[20 << 30],
        json_schema_extra={"multipleOf": SECTOR_BYTES, "maximum": VDISK_BYTES_MAX},
    ),
]
FilePath = Annotated[
    str,
    Field(
        max_length=4096,
        pattern=r"^[^\x00]*$",
        description="absolute, on the machine that serves",
        json_schema_extra={"pattern": r"^/[^\x00]*$"},
    ),
]
KeepSeconds = Annotated[int, Field(ge=KEEP_SECONDS_MIN, le=DURATION_SECONDS_MAX, description="a minute to a hundred years")]
FreezeSeconds = Annotated[
    int, Field(ge=1, le=LIMIT_SECONDS_MAX, description="a guest is thawed after so many seconds, whatever its snapshot does")
]
TIME_FORM = "write a time with its zone, such as 2026-11-22T15:19:26Z"


def _time(text: str) -> str:
    """A time with its zone, as the catalog writes it."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(TIME_FORM) from None
    if moment.tzinfo is None:
        raise ValueError(TIME_FORM)
    if moment.year not in YEARS:  # of the form of a time, so no schema refuses it
        raise InvalidArgument(f"{text} cannot be kept: take a time of the years {YEARS[0]} to {YEARS[-1]}")
    return text_of(moment)


Time = Annotated[
    str, Field(max_length=64, json_schema_extra={"format": "date-time"}, examples=["2026-11-22T15:19:26Z"]), AfterValidator(_time)
]
ImageFormat = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx"]


class Body(BaseModel):
    """A request body: a field we do not know is a mistake, not something to ignore, and 0 or "no" is not false."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, given: Any) -> Any:
        """JSON does not tell 1.0 from 1."""
        if not isinstance(given, dict):
            return given
        return {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in given.items()}


SOME = ConfigDict(json_schema_extra={"minProperties": 1})


def _examples(*bodies: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


class ErrorDetail(BaseModel):
    code: str = Field(description="stable", json_schema_extra={"enum": [*sorted(BY_CODE)]})
    message: str = Field(description="one line: what is wrong, where, and what to do next")


class ErrorBody(BaseModel):
    error: ErrorDetail


class ImageSource(Body):
    """A disk image file to fill a disk from."""

    path: FilePath
    format: ImageFormat | None = Field(None, description="recognised when absent; raw without a known file system needs it")


class NewDisk(Body):
    """A disk to make: empty with `size_bytes`, or filled from `image` (and then as large as it, or as `size_bytes`)."""

    name: Name
    size_bytes: SizeBytes | None = None
    image: ImageSource | None = None


class VMPolicy(Body):
    """How a VM's data is kept."""

    compression: Compression | Literal["pool"] | None = Field(
        None, description="cold: once it has proved to be cold; inline: soon after it was written; pool: as the pool's"
    )
    dedup: Dedup | Literal["pool"] | None = Field(None, description="whether equal blocks are stored once; pool: as the pool's")

    def given_policy(self) -> dict[str, Any]:
        """The fields of a DiskPolicy that the body names."""
        given = {"compression": self.compression, "dedup": self.dedup}
        return {field: None if word == "pool" else word for field, word in given.items() if word is not None}


class NewVM(VMPolicy):
    model_config = _examples({"name": "web", "disks": [{"name": "root", "size_bytes": 20 << 30}]})

    name: Name
    disks: list[NewDisk] = Field(default_factory=list, max_length=256)
    config: str = Field("", description="opaque text kept with the VM, such as libvirt XML")
    description: str = ""


class VMChange(VMPolicy):
    model_config = SOME

    agent: str | None = Field(None, description="the Unix socket of its guest agent on the machine that serves; null: none")
    name: Name | None = Field(None, description="the new name")
    description: str | None = None
    force: bool = Field(False, description="rename although clients are attached; they stay attached")


class Config(Body):
    config: str


class PoolChange(Body):
    """What is absent stays as it is."""

    model_config = SOME

    capacity_bytes: CapacityBytes | None = None
    compression: Compression | None = Field(None, description="of disks whose VM says nothing else, as the next two")
    compression_level: int | None = Field(None, ge=LEVELS[0], le=LEVELS[-1], description="of zstd")
    dedup: Dedup | None = None
    compaction_rate_bytes: int | None = Field(
        None, ge=0, le=RATE_BYTES_MAX, description="that the pool's own rounds read in a second; 0: the pool chooses"
    )

    def given_policy(self) -> dict[str, Any]:
        """The fields of a PoolPolicy that the body names."""
        return self.model_dump(exclude={"capacity_bytes"}, exclude_none=True)


class DiskResize(Body):
    size_bytes: SizeBytes
    force_shrink: bool = Field(False, description="allow a smaller size; what lies beyond it is lost")


class DiskImport(Body):
    image: ImageSource
    size_bytes: SizeBytes | None = Field(None, description="at least the image's; absent: the image's")
    replace: bool = Field(False, description="replace what the disk holds; false: the disk must not exist")


class DiskExport(Body):
    path: FilePath
    format: ImageFormat = "qcow2"
    snapshot: Name | None = Field(None, description="absent: the disk as it is now")
    overwrite: bool = False


class VMExport(Body):
    directory: FilePath = Field(description="made by the export; it must not exist, or be empty")
    format: ImageFormat = "qcow2"
    snapshot: Name | None = Field(None, description="absent: the VM as it is now")


class NewSnapshot(Body):
    model_config = _examples({"name": "before-upgrade", "keep_seconds": 259200}, {"consistency": "vm", "locked_until": "2999-01-01T00:00:00Z"})

    name: Name | None = Field(None, description="absent: named by the time")
    description: str = ""
    keep_seconds: KeepSeconds | None = Field(None, description="it is deleted so long from now; absent: when somebody does it")
    locked_until: Time | None = Field(None, description="until then nobody can delete it, nor its VM")
    consistency: model.Consistency = Field(
        "crash", description="vm: with the guest's file systems frozen by its agent; the answer says what was achieved"
    )
    if_not_frozen: model.IfNotFrozen = Field("crash", description="crash: take it all the same; fail: take none")
    freeze_seconds_max: FreezeSeconds = LIMIT_SECONDS


class SnapshotChange(Body):
    """What is absent stays as it is."""

    model_config = SOME

    description: str | None = None
    expires: Time | None = Field(None, description="it is deleted then; null: never")
    locked_until: Time | None = Field(None, description="until then nobody can delete it, nor its VM; null: unlock it")

    def given_terms(self) -> dict[str, Any]:
        """What VMs.change_snapshot is to set."""
        given = self.model_dump(exclude_unset=True)
        return {field: value for field, value in given.items() if value is not None or field != "description"}


class ScheduleChange(Body):
    """What is absent stays as it is, or is the default of a new schedule, which needs `at` and `keep_seconds`."""

    at: str | None = Field(None, max_length=500, examples=["hourly :05", "daily 02:30", "weekly sat 07:30", "cron 5 * * * *"])
    keep_seconds: KeepSeconds | None = None
    zone: str | None = Field(None, max_length=100, description="the time zone of `at`; absent: the server's", examples=["Europe/Zurich"])
    consistency: model.Consistency | None = Field(None, description="vm: freeze the guest's file systems; absent: crash")
    if_not_frozen: model.IfNotFrozen | None = Field(None, description="when they cannot be frozen; absent: crash")
    replicate: bool | None = None
    keep_remote_seconds: KeepSeconds | None = Field(None, description="null: as long as here")
    freeze_seconds_max: FreezeSeconds | None = None

    def given_fields(self) -> dict[str, Any]:
        """The fields of a Schedule that the body names."""
        given = self.model_dump(exclude_unset=True)
        return {field: value for field, value in given.items() if value is not None or field == "keep_remote_seconds"}


class NewSchedule(ScheduleChange):
    name: Name
    at: str = Field(max_length=500)
    keep_seconds: KeepSeconds

    def schedule(self) -> Schedule:
        return Schedule(**{"zone": local_zone(), **self.given_fields()})


class NewSchedules(Body):
    """A whole set; an empty one takes no snapshots."""

    model_config = _examples({"schedules": [{"name": "daily", "at": "daily 02:30", "keep_seconds": 172800, "zone": "Europe/Zurich"}]})

    schedules: list[NewSchedule] = Field(max_length=100)


class ScheduleSettings(Body):
    scheduled_snapshots_max: int = Field(
        description="how many snapshots of schedules a VM may have", json_schema_extra={"minimum": 1, "maximum": 10_000}
    )


EventLevel = Literal["info", "warning", "error"]  # the worst last


class Event(BaseModel):
    """Something noteworthy that nobody was there to be told of."""

    id: int = Field(description="later ones have higher ones")
    time: str
    level: EventLevel
    kind: str = Field(description="agreement, engine, hypervisor, job, pool, quiesce, replication, schedule, snapshot, target or vm")
    vm: str | None = Field(description="the VM's name at that time; null: it is of no one VM")
    message: str


class EventList(BaseModel):
    events: list[Event]
    next: str | None = Field(
        description="with `after` in the question: what to give as `after` next; else as `before`, for older ones, null: there are none"
    )


class Customize(Body):
    """A seed disk for each clone, which cloud-init reads.  In each text @name@, @hostname@, @number@, @uuid@ and @mac0@ are replaced."""

    hostname: str | None = Field(None, max_length=512, description="absent: made of the clone's name", examples=["web-@number@.example.org"])
    user_data: str | None = Field(None, max_length=TEXT_BYTES_MAX, examples=["#cloud-config\npackages: [vim]\n"])
    network_config: str | None = Field(
        None, max_length=TEXT_BYTES_MAX, description="absent: DHCP on each interface that the configuration has"
    )


class NewClones(Body):
    """One clone called `name`, or `count` of them called PREFIX-1, PREFIX-2, ..."""

    model_config = _examples({"snapshot": "s1", "name": "web-test"}, {"count": 2, "prefix": "web"})

    snapshot: Name | None = Field(None, description="absent: a snapshot is taken first")
    name: Name | None = None
    count: int | None = Field(None, ge=1, le=CLONES_MAX)
    prefix: Prefix | None = None
    customize: Customize | None = Field(None, description="absent: the clones' guests find themselves to be the one they came from")


class ClonesMade(BaseModel):
    vms: list[model.VM]
    hostnames: dict[str, str] = Field(description="of customized clones, by VM")


class NewRestore(Body):
    model_config = _examples({"snapshot": "s1"})

    snapshot: Name
    disk: Name | None = Field(None, description="absent: all disks and the configuration")
    beside: Name | None = Field(None, description="replace nothing: a new VM of this name, or with `disk` a new disk of this VM")
    force: bool = Field(False, description="cut attached clients off; they get errors")


class Pace(Body):
    """How fast a check, a scrub or a compaction goes."""

    rate_bytes: int | None = Field(None, gt=0, le=RATE_BYTES_MAX, description="to read in a second, at the most; absent: no limit")


class Inspected(BaseModel):
    """The result of a check or a scrub."""

    findings: list[model.Finding] = Field(description="what is wrong now; empty: sound")
    more_findings: int = Field(description="how many more there are")
    healed: list[str] = Field(description="copies that were bad and were written anew from the other one")
    read_bytes: int


class Compacted(BaseModel):
    """The result of a compaction."""

    segments_removed: int = Field(description="nothing in them was needed any more")
    segments_rewritten: int = Field(description="without what was not needed, compressed")
    nodes_freed: int = Field(description="map nodes whose places can be used again")
    freed_bytes: int = Field(description="given back to the file system")
    copied_bytes: int = Field(description="live data that was read to be written again, uncompressed")
    live_bytes: int = Field(description="data that a disk or snapshot reaches, uncompressed")
    kept: list[str] = Field(description="what could not be rewritten, and why")


class Progress(BaseModel):
    kind: Literal["check", "scrub", "compact", "reclaim"] = Field(description="reclaim: the pool compacts by itself")
    started: str
    done_bytes: int
    total_bytes: int


class InspectionRan(BaseModel):
    finished: str
    read_bytes: int
    finding_count: int
    healed_count: int


class PoolFindings(BaseModel):
    """What the last check and the last scrub found and is still there."""

    running: Progress | None = Field(description="a check or scrub that goes on now")
    last_check: InspectionRan | None
    last_scrub: InspectionRan | None
    findings: list[model.Finding]
    more_findings: int


class JobView(BaseModel):
    """An operation; a long one is asked for again until it has `finished`."""

    id: str
    kind: str = Field(description="noun.verb, as on the command line", examples=["disk.import", "pool.check", "snapshot.create"])
    subject: str = Field(description="what it works on: web, web/root, web@s1, pool")
    caller: str = Field(description="who asked: owner, the name of a token, or schedules")
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"] = Field(
        description="interrupted: the control plane died meanwhile"
    )
    total_bytes: int = Field(description="0: not known")
    done_bytes: int
    fraction: float = Field(description="0 to 1")
    result: Any = None
    error: ErrorDetail | None = Field(None, description="why it failed or was interrupted")
    created: str
    finished: str | None = Field(description="null: it goes on")
    version: int = Field(description="+1 at each change; see `after`")


class JobList(BaseModel):
    jobs: list[JobView]
    next: str | None = Field(description="the cursor of the jobs before these; null: there are none")


class VMPage(BaseModel):
    vms: list[model.VM]
    next: str | None = Field(description="`after` of the next page; null: this is the last one")


class SnapshotPage(BaseModel):
    snapshots: list[model.Snapshot]
    next: str | None = Field(description="`after` of the next page; null: this is the last one")


class ExtentView(BaseModel):
    offset: int
    length: int
    state: ExtentState


class DiskDiffView(BaseModel):
    disk: str
    changed_bytes: int | None = Field(description="in all; null on later pages")
    extent_count: int | None = Field(description="likewise")
    extents: list[ExtentView] = Field(description="those on this page")


class DiffView(BaseModel):
    vm: str
    older: str | None
    newer: str
    changed_bytes: int | None = Field(description="in all; null on later pages")
    disks: list[DiskDiffView] = Field(description="all on the first page, then those with extents on it")
    next: str | None = Field(description="`after` for the next page; null: there is none")


class Attachment(BaseModel):
    """One client connection to one export."""

    export: str
    client: str


class AttachmentList(BaseModel):
    attachments: list[Attachment]
    next: str | None = Field(description="`after` of the next page; null: this is the last one")


class ServingView(BaseModel):
    """Where disks are served over NBD."""

    nbd_socket: str
    nbd_host: str | None = Field(description="null, with a port: at all addresses of the machine")
    nbd_port: int | None = Field(description="null: not over TCP")


class StatusView(BaseModel):
    """The control plane and, when it answers, the engine."""

    engine_running: bool
    engine_error: str | None = Field(description="why not")
    engine: dict[str, Any] = Field(description="version, pid, plugin, pool figures; {} when it is not running")
    agreed: bool = Field(description="whether catalog and engine agree since either was started")
    vm_count: int
    disk_count: int
    snapshot_count: int
    missing: list[str] = Field(description="exports that the catalog knows and the pool lacks")
    foreign: list[str] = Field(description="pool objects whose names are not of VMs; left alone")
    imports: list[model.Import]
    inspections: PoolFindings | None = Field(description="null while the engine is away")
    compaction: Progress | None = Field(description="one that goes on now")
