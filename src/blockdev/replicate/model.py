"""What the replication service takes and returns: plain values, whose `to_json` field names are stable.

Sizes are bytes, durations seconds, times ISO 8601 UTC text, states small fixed words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from blockdev import watching
from blockdev.vmmap.catalog_replication import Direction

State = Literal[
    "not configured",  # neither protected nor received
    "up to date",
    "running",  # a snapshot is on its way
    "scheduled",  # something is to be sent, and waits for its turn or for the next attempt
    "paused",
    "exceeds rpo",
    "failed",  # the other end refuses it, or nothing was reached again and again: see the reason
    "promoted",  # received, and on its own now
]
Alert = Literal["ok", "warning", "error"]


class Watcher(watching.Watcher, Protocol):
    """Whoever waits for a long operation: api.jobs.Job is one."""

    def expect(self, total_bytes: int) -> None: ...


class Value:
    """A dataclass whose JSON is its fields."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Identity(Value):
    """Who this home is to others."""

    key: str  # its public key, "ssh-ed25519 AAAA..."
    fingerprint: str  # of that, "SHA256:..."
    listening: str | None  # HOST:PORT where others reach it; None: it does not listen (serve --replicate)


@dataclass(frozen=True)
class Invitation(Value):
    """What lets another home be paired with this one, once.  The code is a secret: it is shown once and kept nowhere."""

    peer: str
    code: str
    expires: str


@dataclass(frozen=True)
class Peer(Value):
    """Another home that may send to this one, or that this one sends to."""

    name: str
    key: str
    fingerprint: str
    vms: list[str]  # globs of the names of VMs that it may send; []: it may send nothing
    space_bytes: int | None  # what all it has sent may take; None: no limit
    used_bytes: int | None  # what that takes, as the limit counts it; None: not asked (lists)
    received: list[str]  # VMs that came from it
    path: str | None  # the path to it, when there is one
    connected: bool  # whether it is connected to this home now
    created: str


@dataclass(frozen=True)
class Path(Value):
    """A way to another home."""

    name: str
    host: str
    port: int
    key: str  # that the other end must have
    fingerprint: str
    peer: str | None  # what the other end is called as a peer here, when it is one
    level: int  # of zstd; 0: nothing is compressed
    throttle: dict[str, Any]  # how fast it may send when, as PATCH takes it
    connected: bool
    error: str | None  # why the last attempt to connect failed; None: it did not
    protected_count: int  # VMs
    running_count: int  # transfers
    network_bytes_per_second: int  # sent over the last seconds
    created: str


@dataclass(frozen=True)
class PathTest(Value):
    """What the other end of a path said."""

    path: str
    rtt_ms: float  # the least of several
    software: str  # of the other end
    version: int  # of the protocol, that both speak
    features: list[str]  # that both have
    peer: str  # what this home is called there
    vms: list[str]  # globs of the names that it may send there
    space_bytes: int | None  # limit there
    path_back: str | None  # the name of the path from there to here, which `reverse` needs; None: there is none


@dataclass(frozen=True)
class Protection(Value):
    """A VM that is replicated over a path."""

    vm: str
    path: str
    rpo_seconds: int | None
    keep_seconds: int | None  # how long the other end keeps snapshots of no schedule; None: until somebody deletes them
    paused: bool
    newest_uuid: str | None  # of the newest snapshot that is there
    created: str


@dataclass(frozen=True)
class Replicated(Value):
    """How the replication of a VM is: over one path, or from one peer."""

    vm: str
    vm_uuid: str
    direction: Direction | None  # None: neither protected nor received
    way: str | None  # the path's name, or the peer's
    state: State
    level: Alert
    reason: str | None = None  # why it failed or waits
    error_code: str | None = None
    failures: int = 0  # of the latest attempts, one after the other
    next_try: str | None = None  # when it is attempted again
    rpo_seconds: int | None = None
    keep_seconds: int | None = None
    newest: str | None = None  # name of the newest snapshot that the receiver has
    newest_uuid: str | None = None
    newest_created: str | None = None
    newest_finished: str | None = None  # when it was there; None: not known on this end
    age_seconds: int | None = None  # of the newest one, since it was taken
    lag_seconds: int | None = None  # sent: since the oldest snapshot that is not there was taken, 0: all are; received: age_seconds
    snapshot: str | None = None  # that is on its way
    snapshots_remaining: int | None = None  # with the one on its way; None: not known on this end
    bytes_remaining: int | None = None  # of changed blocks, likewise
    logical_bytes_per_second: int = 0  # blocks dealt with, over the last seconds
    network_bytes_per_second: int = 0
    logical_bytes_per_second_mean: int = 0  # since the transfer began
    network_bytes_per_second_mean: int = 0
    eta_seconds: int | None = None
    promoted: str | None = None  # when
    since: str | None = None  # when it was protected, or received first


@dataclass(frozen=True)
class Transfer(Value):
    """One transfer of a snapshot that ended."""

    id: int
    direction: Direction
    way: str  # the path's name, or the peer's
    vm: str
    vm_uuid: str
    snapshot: str
    snapshot_uuid: str
    began: str
    finished: str
    logical_bytes: int  # of blocks that differ from the base
    network_bytes: int
    error_code: str | None  # None: it is whole
    error_message: str | None


@dataclass(frozen=True)
class Sample(Value):
    """What a VM's replication did in a minute, for graphs."""

    time: str
    direction: Direction
    way: str
    logical_bytes: int
    network_bytes: int
    remaining_bytes: int | None
    lag_seconds: int | None


@dataclass(frozen=True)
class Queued(Value):
    """A snapshot that was taken to be replicated now."""

    vm: str
    snapshot: str
    paths: list[str]


@dataclass(frozen=True)
class Promoted(Value):
    """A received VM that is on its own."""

    vm: str
    snapshot: str  # that it goes on from
    peer: str  # that it came from
    disks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Demoted(Value):
    """A VM that is received from now on."""

    vm: str
    peer: str
    safety_snapshot: str | None  # what its disks held beyond the newest snapshot; None: nothing
    path: str | None = None  # `reverse`: the path that its snapshots go by at the other end


@dataclass(frozen=True)
class MadeThere(Value):
    """A VM that was made at the other end of a path."""

    path: str
    vm: str  # its name there
    vm_uuid: str | None  # None: not told
    snapshot: str  # VM@SNAPSHOT here
