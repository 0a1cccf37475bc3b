"""/replication: who this home is to others, peers, paths, what is replicated and what was (docs/replication.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from blockdev.api.pages import COUNT_MAX, AfterName, Count, page
from blockdev.api.schemas import Force
from blockdev.api.schemas_replication import (
    NewInvitation,
    NewPath,
    NewPeer,
    PathChange,
    PathPage,
    PeerChange,
    PeerPage,
    ReplicationPage,
    TransferPage,
)
from blockdev.api.services import Wired
from blockdev.errors import InvalidArgument
from blockdev.replicate.model import Alert, Identity, Invitation, Path, PathTest, Peer, Replicated, State
from blockdev.vmmap.names import NAME_CHARACTERS_MAX

router = APIRouter(prefix="/replication", tags=["replication"])
LEVELS: tuple[Alert, ...] = ("ok", "warning", "error")  # the worst last
OfVM = Annotated[str | None, Query(max_length=NAME_CHARACTERS_MAX, description="of this VM only")]
_NAME_OR_NONE = rf"[A-Za-z0-9._-]{{0,{NAME_CHARACTERS_MAX}}}"
AfterReplication = Annotated[
    str | None,
    Query(
        pattern=rf"^{_NAME_OR_NONE}/(sent|received)/{_NAME_OR_NONE}$",
        description="`next` of the answer before; absent: from the beginning",
    ),
]
AfterTransfer = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,18}$", description="`next` of the answer before; absent: from the newest on")
]


@router.get("/identity")
def show_identity(services: Wired) -> Identity:
    """The public key of this home, and where peers reach it."""
    return services.replication.identity()


@router.get("/peers")
def list_peers(services: Wired, count: Count = COUNT_MAX, after: AfterName = "") -> PeerPage:
    """Homes that may send to this one, by name; without what they use."""
    found = [one for one in services.replication.list_peers() if one.name > after]
    peers, cursor = page(found, count, lambda peer: peer.name)
    return PeerPage(peers=list(peers), next=cursor)


@router.post("/peers", status_code=201)
def add_peer(body: NewPeer, services: Wired) -> Peer:
    """Let the home of this public key send VMs of these names."""
    return services.replication.add_peer(body.name, body.key, body.vms, body.space_bytes)


@router.get("/peers/{name}")
def show_peer(name: str, services: Wired) -> Peer:
    """With what it uses."""
    return services.replication.show_peer(name)


@router.patch("/peers/{name}")
def change_peer(name: str, body: PeerChange, services: Wired) -> Peer:
    """What it may send, or its key."""
    change = body.given_fields()
    if not change:
        raise InvalidArgument("nothing to change: give vms, space_bytes or key")
    return services.replication.change_peer(name, change)


@router.delete("/peers/{name}")
def remove_peer(name: str, services: Wired, force: Force = False) -> Peer:
    """It may send nothing any more; the answer is what it was.  Forced, VMs that came from it are VMs like others."""
    return services.replication.remove_peer(name, force)


@router.put("/invitations/{peer}")
def invite_peer(peer: str, body: NewInvitation, services: Wired) -> Invitation:
    """A code by which another home becomes this peer, once.  This answer alone has it."""
    return services.replication.invite(peer, body.vms, body.space_bytes, body.seconds)


@router.get("/paths")
def list_paths(services: Wired, count: Count = COUNT_MAX, after: AfterName = "") -> PathPage:
    """Ways to other homes, by name."""
    found = [one for one in services.replication.list_paths() if one.name > after]
    paths, cursor = page(found, count, lambda path: path.name)
    return PathPage(paths=list(paths), next=cursor)


@router.post("/paths", status_code=201)
def add_path(body: NewPath, services: Wired) -> Path:
    """A way to another home.  With its key nothing is connected yet; with the code of its invitation both are paired."""
    return services.replication.add_path(body.name, body.host, body.port, body.key, body.code, body.level)


@router.get("/paths/{name}")
def show_path(name: str, services: Wired) -> Path:
    """One way to another home, and whether it is connected."""
    return services.replication.show_path(name)


@router.patch("/paths/{name}")
def change_path(name: str, body: PathChange, services: Wired) -> Path:
    """Where the home is reached, which key it has, how fast the path may send, at once also what is being sent; how much it compresses."""
    throttle = None if body.throttle is None else body.throttle.to_json()
    return services.replication.change_path(name, host=body.host, port=body.port, key=body.key, level=body.level, throttle=throttle)


@router.delete("/paths/{name}")
def remove_path(name: str, services: Wired, force: Force = False) -> Path:
    """The answer is what it was.  Refused while VMs are protected over it; forced, they are not any more."""
    return services.replication.remove_path(name, force)


@router.post("/paths/{name}/test")
def test_path(name: str, services: Wired) -> PathTest:
    """Connect to the other end and ask it who it is and what it takes."""
    return services.replication.test_path(name)


@router.get("/status")
def list_replications(
    services: Wired,
    vm: OfVM = None,
    way: Annotated[str | None, Query(max_length=NAME_CHARACTERS_MAX, description="over this path, or from this peer")] = None,
    state: Annotated[State | None, Query(description="in this state only")] = None,
    level: Annotated[Alert, Query(description="of this level and worse ones")] = "ok",
    count: Count = COUNT_MAX,
    after: AfterReplication = None,
) -> ReplicationPage:
    """How the replication of each VM is, over each path and from each peer, by VM."""
    wanted = LEVELS[LEVELS.index(level) :]
    found = [
        one
        for one in sorted(services.replication.status(), key=_place)
        if vm in (None, one.vm) and way in (None, one.way) and state in (None, one.state) and one.level in wanted
    ]
    rest = found if after is None else [one for one in found if _place(one) > tuple(after.split("/"))]
    shown, cursor = page(rest, count, lambda one: "/".join(_place(one)))
    return ReplicationPage(level=worst(found), replications=list(shown), next=cursor)


def _place(one: Replicated) -> tuple[str, ...]:
    """In the order of a list."""
    return one.vm, one.direction or "", one.way or ""


def worst(found: Sequence[Replicated]) -> Alert:
    """The level of all of them together."""
    return max((one.level for one in found), key=LEVELS.index, default="ok")


@router.get("/transfers")
def list_transfers(services: Wired, vm: OfVM = None, count: Count = 100, after: AfterTransfer = None) -> TransferPage:
    """Snapshots that were sent or received, or failed to be: the newest first, the last 50,000 are kept."""
    found = services.replication.history(vm, None if after is None else int(after), count)
    return TransferPage(transfers=found, next=str(found[-1].id) if len(found) == count else None)
