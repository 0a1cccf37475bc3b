"""The bodies of requests about replication, and of its lists.  Answers are values of blockdev.replicate.model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from blockdev.api.schemas import RATE_BYTES_MAX, SOME, Body, KeepSeconds, Name
from blockdev.constants import INVITATION_SECONDS_MAX
from blockdev.replicate.model import Path, Peer, Protection, Replicated, Sample, Transfer
from blockdev.replicate.paths import LEVEL, LEVEL_MAX, PORT
from blockdev.replicate.peers import (
    GLOB_CHARACTERS_MAX,
    GLOBS_MAX,
    INVITATION_SECONDS,
)
from blockdev.replicate.protections import RPO_SECONDS_MAX
from blockdev.schedule.times import local_zone

WINDOWS_MAX = 32
RATE_BYTES_RANGE = {"minimum": 10_000, "maximum": 10**12}
SPACE_BYTES_MAX = RATE_BYTES_MAX  # the same number in a document that has it as 4e+18

# What only `json_schema_extra` says is checked further down, where the message knows what it is about.
Glob = Annotated[
    str,
    Field(min_length=1, max_length=GLOB_CHARACTERS_MAX, pattern=r"^[A-Za-z0-9._*?\[\]!-]+$", examples=["web-*"]),
]
Globs = Annotated[
    list[Glob], Field(max_length=GLOBS_MAX, description="names of VMs that it may send: `*` any characters, `?` one; empty: none")
]
SpaceBytes = Annotated[int, Field(gt=0, le=SPACE_BYTES_MAX)]
KeyLine = Annotated[
    str,
    Field(
        max_length=1024,
        description="the public key of the other home, as its identity shows it",
        examples=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHcq7rJZ0FEVqW9a7Qdd7Hq3GJk4c0PpC3m8m2dVd1qL"],
    ),
]
Level = Annotated[int, Field(ge=0, le=LEVEL_MAX, description="of zstd; 0: nothing is compressed")]
Host = Annotated[
    str,
    Field(
        max_length=255,
        description="a name, or an address of IPv4 or IPv6 without brackets",
        json_schema_extra={"pattern": r"^[A-Za-z0-9.:_%-]{1,255}$"},
    ),
]
Port = Annotated[int, Field(ge=1, le=65535)]
RateBytes = Annotated[int, Field(description="in a second; null: no limit", json_schema_extra=RATE_BYTES_RANGE)]


class NewPeer(Body):
    """Another home that may send to this one."""

    name: Name
    key: KeyLine
    vms: Globs = Field(default_factory=list)
    space_bytes: SpaceBytes | None = Field(None, description="that all it sends may take; null: no limit")


class PeerChange(Body):
    """What is absent stays as it is."""

    model_config = SOME

    key: KeyLine | None = None
    vms: Globs | None = None
    space_bytes: SpaceBytes | None = Field(None, description="null: no limit")

    def given_fields(self) -> dict[str, Any]:
        """What Replication.change_peer is to set."""
        given = self.model_dump(exclude_unset=True)
        return {field: value for field, value in given.items() if value is not None or field == "space_bytes"}


class NewInvitation(Body):
    """What the home may do that will have been invited."""

    vms: Globs = Field(default_factory=list)
    space_bytes: SpaceBytes | None = Field(None, description="that all it sends may take; null: no limit")
    seconds: int = Field(INVITATION_SECONDS, ge=1, le=INVITATION_SECONDS_MAX, description="how long the code is valid")


class Window(Body):
    """A time of the week at which another rate holds."""

    at: str = Field(max_length=200, examples=["mon-fri 08:00-18:00", "22:00-06:00"])
    rate_bytes: RateBytes | None


class ThrottleBody(Body):
    """How fast a path may send."""

    rate_bytes: RateBytes | None = Field(None, description="in a second, outside of all windows; null: no limit")
    zone: str | None = Field(None, max_length=100, description="the time zone of `windows`; null: the server's", examples=["Europe/Zurich"])
    windows: list[Window] = Field(default_factory=list, max_length=WINDOWS_MAX, description="the first that fits holds")

    def to_json(self) -> dict[str, Any]:
        """As replicate.throttle reads it."""
        return {**self.model_dump(), "zone": self.zone or local_zone()}


class NewPath(Body):
    """A way to another home: give its key, or the code of its invitation."""

    name: Name
    host: Host
    port: Port = PORT
    key: KeyLine | None = None
    code: str | None = Field(None, max_length=1024, description="of an invitation: both homes know each other afterwards")
    level: Level = LEVEL


class PathChange(Body):
    """What is absent stays as it is."""

    model_config = SOME

    host: Host | None = Field(None, description="where the same home is reached now")
    port: Port | None = Field(None, description="goes with `host`; null: the usual one")
    key: KeyLine | None = Field(None, description="that the home has now; what is being sent goes on only if it does")
    level: Level | None = None
    throttle: ThrottleBody | None = Field(None, description="replaces what there was")


class NewProtection(Body):
    """What is absent stays as it is, or is null for a new one."""

    rpo_seconds: Annotated[int, Field(ge=1, le=RPO_SECONDS_MAX)] | None = Field(
        None, description="how far the other end may be behind before that is an alert; null: as far as it likes"
    )
    keep_seconds: KeepSeconds | None = Field(
        None, description="how long the other end keeps snapshots that no schedule took; null: until somebody deletes them"
    )


class Over(Body):
    """Which protections of a VM are meant."""

    path: Name | None = Field(None, description="absent: all")


class NewPromotion(Body):
    snapshot: Name | None = Field(None, description="that the VM goes on from; absent: the newest one")


class Reversal(Body):
    force: bool = Field(False, description="cut attached clients off; they get errors")


class Adoption(Reversal):
    peer: Name


class NewThere(Body):
    """A VM to make at the other end of a path."""

    path: Name
    name: Name = Field(description="of the new VM, there")
    snapshot: Name | None = Field(None, description="absent: of a clone the newest that is there, of a copy one is taken")


class PeerPage(BaseModel):
    peers: list[Peer]
    next: str | None = Field(description="`after` of the next page; null: this is the last one")


class PathPage(BaseModel):
    paths: list[Path]
    next: str | None = Field(description="`after` of the next page; null: this is the last one")


class ProtectionList(BaseModel):
    protections: list[Protection]


class ReplicationList(BaseModel):
    vm: str
    replications: list[Replicated] = Field(description="one for each path, or the one of the peer that it comes from")


class ReplicationPage(BaseModel):
    replications: list[Replicated]
    level: Literal["ok", "warning", "error"] = Field(description="the worst of all that match, not only of this page")
    next: str | None = Field(description="`after` of the next page; null: this is the last one")


class TransferPage(BaseModel):
    transfers: list[Transfer]
    next: str | None = Field(description="`after` for those before these; null: there are none")


class SampleList(BaseModel):
    vm: str
    samples: list[Sample]
    next: str | None = Field(description="`since` of those that follow; null: there are none")
