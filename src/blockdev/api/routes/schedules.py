"""/schedules and /vms/{vm}/schedules: when snapshots are taken and how long they are kept."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from blockdev.api.schemas import NewSchedules, ScheduleChange, ScheduleSettings
from blockdev.api.services import Services, Wired
from blockdev.schedule.rules import Schedule
from blockdev.schedule.service import PREVIEW_SECONDS_MAX, Coverage, Preview, ScheduleSet
from blockdev.vmmap.model import Snapshot

router = APIRouter(tags=["schedules"])
PreviewSeconds = Annotated[float, Query(description="from now on", json_schema_extra={"exclusiveMinimum": 0, "maximum": PREVIEW_SECONDS_MAX})]


@router.get("/schedules")
def show_default_schedules(services: Wired) -> ScheduleSet:
    """The default set: of all VMs that have none of their own."""
    return services.schedules.show()


@router.put("/schedules")
def replace_default_schedules(body: NewSchedules, services: Wired) -> ScheduleSet:
    """Another default set in place of what there is."""
    return _replace(services, None, [one.schedule() for one in body.schedules])


@router.patch("/schedules/{name}")
def put_default_schedule(name: str, body: ScheduleChange, services: Wired) -> ScheduleSet:
    """Add a schedule to the default set, or change one of it."""
    return _put(services, None, name, body)


@router.delete("/schedules/{name}")
def remove_default_schedule(name: str, services: Wired) -> ScheduleSet:
    """Take a schedule out of the default set; the snapshots that it took stay until they expire."""
    return _remove(services, None, name)


@router.get("/vms/{vm}/schedules")
def show_vm_schedules(vm: str, services: Wired) -> ScheduleSet:
    """The schedules of a VM: its own set, or the default one."""
    return services.schedules.show(vm)


@router.put("/vms/{vm}/schedules")
def replace_vm_schedules(vm: str, body: NewSchedules, services: Wired) -> ScheduleSet:
    """Give a VM a set of its own instead of the default one."""
    return _replace(services, vm, [one.schedule() for one in body.schedules])


@router.delete("/vms/{vm}/schedules")
def use_default_schedules(vm: str, services: Wired) -> ScheduleSet:
    """Take a VM's own set away: it has the default one again."""
    return _replace(services, vm, None)


@router.get("/vms/{vm}/schedules/preview")
def preview_schedules(vm: str, seconds: PreviewSeconds, services: Wired) -> Preview:
    """The snapshots that will be taken within so many seconds from now, oldest first."""
    return services.schedules.preview(vm, seconds)


@router.patch("/vms/{vm}/schedules/{name}")
def put_vm_schedule(vm: str, name: str, body: ScheduleChange, services: Wired) -> ScheduleSet:
    """Add a schedule to a VM's own set, or change one of it; the set begins as a copy of the default one."""
    return _put(services, vm, name, body)


@router.delete("/vms/{vm}/schedules/{name}")
def remove_vm_schedule(vm: str, name: str, services: Wired) -> ScheduleSet:
    """Take a schedule out of a VM's own set, which begins as a copy of the default one."""
    return _remove(services, vm, name)


@router.post("/vms/{vm}/schedules/{name}/run", status_code=201)
def run_schedule(vm: str, name: str, services: Wired) -> Snapshot:
    """Take the snapshot of a schedule now, as if it were due."""
    return services.vms.show_snapshot(vm, services.scheduler.run_now(vm, name))


@router.get("/schedule-coverage")
def list_coverage(services: Wired) -> Coverage:
    """How each VM is protected by snapshots, all of them in one answer, by name."""
    return services.schedules.coverage()


@router.get("/schedule-settings")
def show_schedule_settings(services: Wired) -> ScheduleSettings:
    """What holds for the schedules of all VMs."""
    return ScheduleSettings(scheduled_snapshots_max=services.schedules.cap())


@router.patch("/schedule-settings")
def change_schedule_settings(body: ScheduleSettings, services: Wired) -> ScheduleSettings:
    """Schedules take no more snapshots of a VM that has so many of them."""
    return ScheduleSettings(scheduled_snapshots_max=services.schedules.set_cap(body.scheduled_snapshots_max))


def _replace(services: Services, vm: str | None, schedules: list[Schedule] | None) -> ScheduleSet:
    changed = services.schedules.replace(vm, schedules)
    services.scheduler.kick()
    return changed


def _put(services: Services, vm: str | None, name: str, body: ScheduleChange) -> ScheduleSet:
    changed = services.schedules.put(vm, name, body.given_fields())
    services.scheduler.kick()
    return changed


def _remove(services: Services, vm: str | None, name: str) -> ScheduleSet:
    changed = services.schedules.remove(vm, name)
    services.scheduler.kick()
    return changed
