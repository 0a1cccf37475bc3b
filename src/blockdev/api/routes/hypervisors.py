"""/hypervisors and /vms/{vm}/domain: where VMs run.

A libvirt URI may name a program to run, and a configuration any file of the hypervisor: hypervisors are added, and VMs registered, over
the Unix socket only, as a token is no login to this machine.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from blockdev.api.guard import files_allowed, registering_allowed
from blockdev.api.jobs import Job
from blockdev.api.routes.jobs import view
from blockdev.api.schemas import Force, JobView
from blockdev.api.schemas_hypervisors import (
    DomainView,
    HypervisorList,
    HypervisorRemoved,
    NewHypervisor,
    NewRegistrations,
    RegistrationResults,
)
from blockdev.api.services import Services, Wired
from blockdev.errors import BlockdevError, NotFound
from blockdev.hypervisor.discovery import Discovery, discover
from blockdev.hypervisor.hypervisors import Hypervisor
from blockdev.vmmap.catalog_domains import LinkRow

router = APIRouter(tags=["hypervisors"])


@router.get("/hypervisors")
def list_hypervisors(services: Wired) -> HypervisorList:
    """By name; each is asked whether it answers, for at most ten seconds."""
    return HypervisorList(hypervisors=services.hypervisors.list(), next=None)


@router.post("/hypervisors", status_code=201, dependencies=[Depends(files_allowed)])
def add_hypervisor(body: NewHypervisor, services: Wired) -> Hypervisor:
    """Keep a libvirt connection by name; 503 when it does not answer."""
    return services.hypervisors.add(body.name, body.uri, body.at_once)


@router.get("/hypervisors/{name}")
def show_hypervisor(name: str, services: Wired) -> Hypervisor:
    """One libvirt connection, asked whether it answers, for at most ten seconds."""
    return services.hypervisors.show(name)


@router.delete("/hypervisors/{name}")
def remove_hypervisor(name: str, services: Wired, force: Force = False) -> HypervisorRemoved:
    """Forget it; refused while VMs are linked to its domains, forced the links are forgotten, too.  Nothing changes there."""
    removed = services.hypervisors.remove(name, force)
    return HypervisorRemoved(name=removed.name, uri=removed.uri)


@router.post("/hypervisors/{name}/discover")
def discover_one(name: str, services: Wired) -> Discovery:
    """Find out which domains of it run which VMs, and take their configurations."""
    return discover(services.hypervisors, name)


@router.post("/hypervisor-discovery")
def discover_all(services: Wired) -> Discovery:
    """The same of all hypervisors."""
    return discover(services.hypervisors)


@router.post("/hypervisors/{name}/registrations", status_code=202, dependencies=[Depends(registering_allowed)])
def register_vms(name: str, body: NewRegistrations, services: Wired) -> JobView:
    """Define a domain for each VM, of its configuration, with an identity of its own; the job's result is a RegistrationResults.

    One that fails does not stop the others.  Cancelled, no more are begun, and those that were stay.
    """
    row = services.hypervisors.row(name)

    def work(job: Job) -> object:
        results = services.registrations.register_all(
            *(row, body.vms, body.at_once or row.at_once, body.start),
            job.is_cancelled,
            lambda count: job.advance(count / len(body.vms)),
        )
        result = RegistrationResults(hypervisor=name, registrations=results).model_dump()
        if any(one.state == "cancelled" for one in results):
            job.finish("cancelled", result)
        return result

    return view(services.jobs.start("vm.register", name, work))


@router.get("/vms/{vm}/domain")
def show_domain(vm: str, services: Wired) -> DomainView:
    """The domain that runs the VM, asked whether it does."""
    link = services.vms.link(vm)
    if link is None:
        raise NotFound(f"no domain is known to run VM {vm}: see blockdevctl hypervisor discover")
    return _view(services, vm, link)


@router.delete("/vms/{vm}/domain")
def unregister_vm(vm: str, services: Wired, force: Force = False) -> DomainView:
    """Undefine the domain that blockdev made for the VM; refused while it runs, forced it is ended first."""
    link = services.registrations.unregister(vm, force)
    return DomainView(vm=vm, **_fields(link), is_running=False, error=None)


def _fields(link: LinkRow) -> dict[str, Any]:
    return {
        "hypervisor": link.hypervisor,
        "name": link.name,
        "uuid": link.uuid,
        "state": link.state,
        "made": bool(link.made),
    }


def _view(services: Services, vm: str, link: LinkRow) -> DomainView:
    is_running, error = None, None
    try:
        domain = services.hypervisors.domain_of(link)
        is_running = domain is not None and domain.is_running
        error = None if domain is not None else "the hypervisor has no such domain: see blockdevctl hypervisor discover"
    except BlockdevError as failure:
        error = failure.message
    return DomainView(vm=vm, **_fields(link), is_running=is_running, error=error)
