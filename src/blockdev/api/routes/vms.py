"""/vms: virtual machines, their configurations, clones, restores and whole exports."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from blockdev.api import customize, exports, imports
from blockdev.api.access import Asking, least_role
from blockdev.api.guard import files_allowed
from blockdev.api.pages import COUNT_MAX, AfterName, Count, Glob, page, written
from blockdev.api.routes.jobs import view
from blockdev.api.schemas import (
    ClonesMade,
    Config,
    Force,
    JobView,
    NewClones,
    NewRestore,
    NewVM,
    VMChange,
    VMExport,
    VMPage,
)
from blockdev.api.services import Wired
from blockdev.api.unfinished import check_description
from blockdev.errors import InvalidArgument, NotAllowed
from blockdev.policies import DiskPolicy
from blockdev.vmmap.clones import clone_names
from blockdev.vmmap.model import VM, Restored, VMSpace
from blockdev.vmmap.names import NAME_CHARACTERS_MAX

router = APIRouter(prefix="/vms", tags=["VMs"])
Cloned = Annotated[
    str | None,
    Query(
        max_length=2 * NAME_CHARACTERS_MAX + 1,
        pattern=r"^[A-Za-z0-9._-]+(@[A-Za-z0-9._-]+)?$",
        description="only clones of this VM, or of VM@SNAPSHOT, by the name that it had then",
    ),
]


@router.get("", response_model=VMPage)
def list_vms(services: Wired, count: Count = COUNT_MAX, after: AfterName = "", name: Glob = None, cloned_from: Cloned = None) -> Response:
    """By name, without attached clients."""
    vms, cursor = page(services.vms.page_of_vms(after, name, cloned_from, count + 1), count, lambda vm: vm.name)
    return written(VMPage.model_construct(vms=vms, next=cursor))


@router.post("", status_code=201, responses={202: {"model": JobView, "description": "images are being imported"}})
def create_vm(body: NewVM, services: Wired, caller: Asking, request: Request, response: Response) -> VM | JobView:
    """A new VM.  With images: 202 and a job whose result is the VM; nobody sees it before it is whole.

    A configuration may be given by an admin only, as for `PUT /vms/{vm}/config`.
    """
    if body.config and not caller.may(least_role(set_config.__name__)):
        raise NotAllowed(f"a configuration needs the role admin: make VM {body.name} without one")
    if not any(disk.image for disk in body.disks):
        sizes = [(disk.name, _size(disk.name, disk.size_bytes)) for disk in body.disks]
        policy = DiskPolicy(**body.given_policy())
        return services.vms.create_vm(
            body.name, sizes, body.config, check_description(body.description), policy
        )
    files_allowed(request)
    response.status_code = 202
    return view(imports.create_vm(services, body))


@router.get("/{vm}")
def show_vm(vm: str, services: Wired) -> VM:
    """One VM, with the clients attached to its disks while the engine answers."""
    return services.vms.show_vm(vm)


@router.patch("/{vm}")
def change_vm(vm: str, body: VMChange, services: Wired, request: Request) -> VM:
    """Rename it, describe it, say how its data is kept and where its guest agent listens, or all of these."""
    policy, changed = body.given_policy(), None
    if "agent" in body.model_fields_set:
        if body.agent is not None:
            files_allowed(request)
        changed = services.vms.set_agent(vm, body.agent)
    if body.description is not None:
        changed = services.vms.set_description(vm, check_description(body.description))
    if policy:
        changed = services.vms.set_policy(vm, policy)
    if body.name is not None:
        changed = services.vms.rename_vm(vm, body.name, body.force)
    if changed is None:
        raise InvalidArgument("nothing to change: give name, description, compression, dedup or agent")
    return changed


@router.delete("/{vm}")
def delete_vm(vm: str, services: Wired, force: Force = False) -> VM:
    """Delete the VM with all its disks and snapshots; the answer is what it was."""
    return services.vms.delete_vm(vm, force)


@router.get("/{vm}/usage")
def show_vm_usage(vm: str, services: Wired) -> VMSpace:
    """What the VM and each of its snapshots take.  All maps of the pool are read: seconds on a large pool."""
    return services.vms.vm_usage(vm)


@router.get("/{vm}/config")
def get_config(vm: str, services: Wired) -> Config:
    """The text that is kept with the VM, such as libvirt XML."""
    return Config(config=services.vms.get_config(vm))


@router.put("/{vm}/config")
def set_config(vm: str, body: Config, services: Wired) -> VM:
    """Another text in its place, of at most 1 MiB."""
    return services.vms.set_config(vm, body.config)


@router.post("/{vm}/export", status_code=202, dependencies=[Depends(files_allowed)])
def export_vm(vm: str, body: VMExport, services: Wired) -> JobView:
    """All disks of one instant, and the configuration, into a new directory; the job's result is a VMExported."""
    return view(exports.export_vm(services, vm, body))


@router.post("/{vm}/clones", status_code=201, response_model=ClonesMade)
def clone_vm(vm: str, body: NewClones, services: Wired) -> Response:
    """New VMs from a snapshot of this one, all or none; customized ones have a disk `seed` each."""
    many = body.count is not None and body.prefix is not None
    if (body.name is not None) == many or (body.count is None) != (body.prefix is None):
        raise InvalidArgument("give either name, or count and prefix")
    if body.customize is not None:
        names = [body.name] if body.name is not None else clone_names(body.prefix or "", body.count or 0)
        return written(customize.clone_customized(services, vm, body.snapshot, names, body.customize), 201)
    if body.name is not None:
        made = [services.vms.clone(vm, body.snapshot, body.name)]
    else:
        assert body.count is not None and body.prefix is not None
        made = services.vms.clone_many(vm, body.snapshot, body.count, body.prefix)
    return written(ClonesMade.model_construct(vms=made, hostnames={}), 201)


@router.post("/{vm}/restore")
def restore_vm(vm: str, body: NewRestore, services: Wired) -> Restored:
    """Back to a snapshot, in place; the state before is kept in a snapshot of its own.  With `beside`, nothing is replaced."""
    if body.beside is not None:
        return services.vms.restore_beside(vm, body.snapshot, body.beside, body.disk)
    return services.vms.restore(vm, body.snapshot, body.disk, body.force)


def _size(disk: str, size_bytes: int | None) -> int:
    if size_bytes is None:
        raise InvalidArgument(f"disk {disk} needs a size or an image")
    return size_bytes
