"""/vms/{vm}/protections and /vms/{vm}/replication: replicating one VM, and what is done when the other site is needed."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import takewhile
from typing import Annotated, Any

from fastapi import APIRouter, Query

from blockdev.api.jobs import Job
from blockdev.api.pages import COUNT_MAX, Count
from blockdev.api.routes.jobs import view
from blockdev.api.schemas import JobView, Name, Time
from blockdev.api.schemas_replication import (
    Adoption,
    NewPromotion,
    NewProtection,
    NewThere,
    Over,
    ProtectionList,
    ReplicationList,
    Reversal,
    SampleList,
)
from blockdev.api.services import Wired
from blockdev.clock import now_seconds
from blockdev.replicate.model import Demoted, MadeThere, Promoted, Protection, Queued
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.names import check_name

router = APIRouter(prefix="/vms/{vm}", tags=["replication"])
SAMPLES_SECONDS = 86400


@router.get("/protections")
def list_protections(vm: str, services: Wired) -> ProtectionList:
    """The paths that the VM is replicated over, and on what terms."""
    return ProtectionList(protections=services.replication.list_protections(vm))


@router.put("/protections/{path}")
def protect_vm(vm: str, path: str, body: NewProtection, services: Wired) -> Protection:
    """Replicate its snapshots over a path from the newest one on; one is taken if it has none.  Or on other terms from now on."""
    replication = services.replication
    known = next((one for one in replication.list_protections(vm) if one.path == path), None)
    terms = {"rpo_seconds": known and known.rpo_seconds, "keep_seconds": known and known.keep_seconds}
    return replication.protect(vm, path, **{**terms, **body.model_dump(exclude_unset=True)})


@router.delete("/protections")
def unprotect_vm(
    vm: str, services: Wired, path: Annotated[Name | None, Query(description="absent: all")] = None
) -> ProtectionList:
    """Replicate it no more; what is at the other end stays there.  The answer is what there was."""
    return ProtectionList(protections=services.replication.unprotect(vm, path))


@router.get("/replication")
def show_replication(vm: str, services: Wired) -> ReplicationList:
    """How the replication of the VM is."""
    return ReplicationList(vm=vm, replications=services.replication.status(vm))


@router.get("/replication/samples")
def list_samples(
    vm: str,
    services: Wired,
    since: Annotated[Time | None, Query(description="absent: of the last day")] = None,
    count: Count = COUNT_MAX,
) -> SampleList:
    """What it did minute by minute, for graphs; the oldest first."""
    found = services.replication.samples(vm, since or to_text(now_seconds() - SAMPLES_SECONDS))
    shown, rest = found[:count], found[count:]
    if rest:  # several ways have samples of one time: these stay together
        last = shown[-1].time
        shown += takewhile(lambda one: one.time == last, rest)
    more = len(found) > len(shown)
    return SampleList(vm=vm, samples=shown, next=found[len(shown)].time if more else None)


@router.post("/replication/now", status_code=201)
def replicate_vm(vm: str, body: Over, services: Wired) -> Queued:
    """Take a snapshot and send it, and what waits, at once."""
    return services.replication.now(vm, body.path)


@router.post("/replication/pause")
def pause_vm(vm: str, body: Over, services: Wired) -> ProtectionList:
    """Send nothing of it; what is being sent stops, and goes on from there later."""
    return ProtectionList(protections=services.replication.pause(vm, body.path))


@router.post("/replication/resume")
def resume_vm(vm: str, body: Over, services: Wired) -> ProtectionList:
    """Go on, at once, also after failures."""
    return ProtectionList(protections=services.replication.resume(vm, body.path))


@router.post("/replication/promote")
def promote_vm(vm: str, body: NewPromotion, services: Wired) -> Promoted:
    """The received VM goes on here by itself; its peer is refused from then on."""
    return services.replication.promote(vm, body.snapshot)


@router.post("/replication/reverse")
def reverse_vm(vm: str, body: Reversal, services: Wired) -> Demoted:
    """The other end has promoted the VM: it is received here from now on, and only what differs moves."""
    return services.replication.reverse(vm, body.force)


@router.post("/replication/receive")
def receive_vm(vm: str, body: Adoption, services: Wired) -> Demoted:
    """A VM of this home is received from a peer from now on: a seed that was imported, or one that goes back."""
    return services.replication.receive(vm, body.peer, body.force)


@router.post("/replication/clone", status_code=201)
def clone_vm_there(vm: str, body: NewThere, services: Wired) -> MadeThere:
    """A new VM at the other end of a path, from a snapshot that is there; replication goes on."""
    return services.replication.clone_there(vm, body.snapshot, body.path, body.name)


@router.post("/replication/copy", status_code=202)
def copy_vm(vm: str, body: NewThere, services: Wired) -> JobView:
    """A VM of its own at the other end of a path, sent there once; the job's result is a MadeThere."""
    check_name("VM", body.name)
    services.vms.show_vm(vm)
    if body.snapshot is not None:
        services.vms.show_snapshot(vm, body.snapshot)
    services.replication.show_path(body.path)

    def work(job: Job) -> Any:
        with ExitStack() as held:
            snapshot = body.snapshot or held.enter_context(services.unfinished.snapshot(vm, f"copy-{job.id}")).name
            return services.replication.copy(vm, snapshot, body.path, body.name, job).to_json()

    subject = vm if body.snapshot is None else f"{vm}@{body.snapshot}"
    return view(services.jobs.start("replicate.copy", subject, work))
