"""/targets and /vms/{vm}/target: VMs' disks over iSCSI."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from blockdev.api.pages import COUNT_MAX, AfterName, Count, page
from blockdev.api.schemas import Force
from blockdev.api.schemas_targets import NewTarget, TargetChange, TargetList, parse_portals
from blockdev.api.services import Services, Wired
from blockdev.targets.chap import Credentials
from blockdev.targets.model import State, Target
from blockdev.targets.service import Wish

router = APIRouter(tags=["targets"])


@router.get("/targets")
def list_targets(
    services: Wired,
    count: Count = COUNT_MAX,
    after: AfterName = "",
    state: Annotated[State | None, Query(description="in this state only")] = None,
) -> TargetList:
    """By VM, with who is logged in and what is wrong."""
    found = [one for one in services.targets.all() if one.vm > after and state in (None, one.state)][: count + 1]
    targets, cursor = page(found, count, lambda one: one.vm)
    return TargetList(targets=list(targets), next=cursor)


@router.get("/vms/{vm}/target")
def show_target(vm: str, services: Wired) -> Target:
    """The VM's target, with who is logged in and what is wrong; 404 when it has none."""
    return services.targets.show(vm)


@router.post("/vms/{vm}/target", status_code=201)
def add_target(vm: str, body: NewTarget, services: Wired) -> Target:
    """Offer the VM's disks over iSCSI, each as a LUN; 503 when this machine's kernel cannot.

    Off loopback both initiators and `chap` are asked for, unless `insecure` is true.
    """
    credentials = Credentials(body.chap and body.chap.credential(), body.mutual and body.mutual.credential())
    wish = Wish(
        *(body.initiators, parse_portals(body.portals), body.demo, body.depth),
        *(body.snapshots, credentials, body.insecure),
    )
    return services.targets.add(vm, wish)


@router.patch("/vms/{vm}/target")
def change_target(vm: str, body: TargetChange, services: Wired) -> Target:
    """Who may not log in any more is logged out; a secret is asked for at the next login."""
    wish = Wish(
        *(body.initiators, parse_portals(body.portals), body.demo, body.depth),
        *(body.snapshots, _credentials(services, vm, body), body.insecure),
    )
    return services.targets.change(vm, wish)


def _credentials(services: Services, vm: str, body: TargetChange) -> Credentials | None:
    """Those that are given, and of the others what there is; without CHAP there is no mutual CHAP."""
    given = body.model_fields_set & {"chap", "mutual"}
    if not given:
        return None
    has = services.targets.kept_credentials(vm, "chap" not in given, "mutual" not in given and body.chap is not None)
    chap = body.chap.credential() if body.chap else has.chap
    return Credentials(chap, body.mutual.credential() if body.mutual else has.mutual)


@router.delete("/vms/{vm}/target")
def remove_target(vm: str, services: Wired, force: Force = False) -> Target:
    """What it was; refused while initiators are logged in, forced they are cut off.  The VM and its disks stay."""
    return services.targets.remove(vm, force)
