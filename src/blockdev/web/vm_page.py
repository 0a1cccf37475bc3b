"""The page of one VM, its disks, and how they are attached."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response

from blockdev.errors import BlockdevError, InvalidArgument, NotFound
from blockdev.targets import attach, attach_iscsi
from blockdev.web.ask import Ask, Pages
from blockdev.web.timeline import timeline
from blockdev.web.vms import STATES, clients_of, newest_first, optional
from blockdev.written import parse_disk_size

pages = Pages()
SNAPSHOTS_SHOWN = 50
POINTS = 600
GRAPH_FIELDS = (
    *("read_iops", "write_iops", "flush_iops"),
    *("read_bytes_per_second", "write_bytes_per_second", "appended_bytes_per_second"),
    *("read_latency_us_mean", "write_latency_us_mean", "read_latency_us_p99", "write_latency_us_p99"),
    *("wait_log_us", "wait_medium_us", "wait_compaction_us", "wait_rest_us", "queue_depth"),
    *("wait_log_us_p99", "wait_medium_us_p99", "wait_compaction_us_p99"),
    *("live_bytes", "snapshots_bytes", "unique_bytes"),
    *("replication_remaining_bytes", "replication_logical_bytes_per_second"),
    *("replication_network_bytes_per_second", "replication_lag_seconds"),
)


@pages.get("/vms/{vm}")
async def show_vm(ask: Ask) -> Response:
    """One VM."""
    name = ask.path("vm")
    vm = await ask.rest.get("/vms/{}", name)
    snapshots, schedules, preview, replication, jobs, events, target, status, now = await asyncio.gather(
        ask.rest.get_all("snapshots", "/vms/{}/snapshots", name),
        ask.rest.get("/vms/{}/schedules", name),
        optional(ask.rest.get("/vms/{}/schedules/preview", name, seconds=86400 * 31)),
        ask.rest.get("/vms/{}/replication", name),
        ask.rest.get("/jobs", subject=name, count=10),
        ask.rest.get("/events", vm=name, count=10),
        optional(ask.rest.get("/vms/{}/target", name)),
        ask.rest.get("/status"),
        optional(ask.rest.get("/vms/{}/statistics/now", name, watch=True), {}),
    )
    shown = newest_first(snapshots)
    return ask.show(
        "vm.html",
        vm=vm,
        snapshots=shown if ask.query("all") else shown[:SNAPSHOTS_SHOWN],
        snapshot_count=len(shown),
        timeline=timeline(snapshots),
        schedules=schedules,
        next_run=preview["runs"][0] if preview and preview["runs"] else None,
        replications=[one for one in replication["replications"] if one["direction"] is not None],
        jobs=jobs["jobs"],
        events=events["events"],
        target=target,
        clients=clients_of(vm),
        status=status,
        now=now,
        states=STATES,
    )


@pages.get("/vms/{vm}/clients")
async def show_clients(ask: Ask) -> Response:
    """A part: who is attached."""
    vm = await ask.rest.get("/vms/{}", ask.path("vm"))
    return ask.part("vm_clients.html", vm=vm, clients=clients_of(vm))


@pages.get("/vms/{vm}/activity")
async def show_activity(ask: Ask) -> Response:
    """A part: jobs and events."""
    name = ask.path("vm")
    jobs, events = await asyncio.gather(ask.rest.get("/jobs", subject=name, count=10), ask.rest.get("/events", vm=name, count=10))
    return ask.part("vm_activity.html", jobs=jobs["jobs"], events=events["events"], states=STATES)


@pages.get("/vms/{vm}/series")
async def show_series(ask: Ask) -> Response:
    """What graphs show, for the script: columns of numbers."""
    since, until = number_asked(ask, "since", -3600), number_asked(ask, "until", 0)
    found = await ask.rest.get("/vms/{}/statistics", ask.path("vm"), since=since, until=until, points=POINTS)
    return JSONResponse(found)


@pages.get("/vms/{vm}/now")
async def show_now(ask: Ask) -> Response:
    """The latest rates, for the script."""
    return JSONResponse(await ask.rest.get("/vms/{}/statistics/now", ask.path("vm"), watch=True))


def number_asked(ask: Ask, name: str, default: int) -> int:
    text = ask.query(name, str(default))
    if not text.removeprefix("-").isdigit() or len(text) > 12:
        raise InvalidArgument(f"{name} is no number of seconds: {text[:40]!r}")
    return int(text)


@pages.get("/vms/{vm}/attach")
async def attach_page(ask: Ask) -> Response:
    """What to type or paste to use a disk, or read-only a disk of a snapshot, over NBD and iSCSI."""
    name, snapshot = ask.path("vm"), ask.query("snapshot") or None
    thing = await (ask.rest.get("/vms/{}/snapshots/{}", name, snapshot) if snapshot else ask.rest.get("/vms/{}", name))
    target = await optional(ask.rest.get("/vms/{}/target", name))
    served = await ask.rest.get("/serving")
    disks = [_ways(disk, served, snapshot, urlsplit(str(ask.request.url)).hostname or "") for disk in thing["disks"]]
    return ask.show("attach.html", name=name, snapshot=snapshot, disks=disks, target=target, iscsi=_iscsi(target, snapshot), served=served)


def _ways(disk: dict[str, Any], served: dict[str, Any], snapshot: str | None, here: str) -> dict[str, Any]:
    """How one disk is attached over NBD: on this machine, and from others when it is served to them."""
    read_only = snapshot is not None
    local = attach.Address(socket=served["nbd_socket"])
    found = {"name": disk["name"], "export": disk["export"], "size_bytes": disk["size_bytes"], "state": disk["state"]}
    found["here"] = [(words, attach.describe(form, local, disk["export"], read_only=read_only)) for form, words in WAYS]
    found["there"] = []
    if served["nbd_port"] is not None:
        far = attach.Address(host=served["nbd_host"] or here, port=served["nbd_port"])
        found["there"] = [(words, attach.describe(form, far, disk["export"], read_only=read_only)) for form, words in WAYS]
    return found


WAYS = (("uri", "URI"), ("qemu", "QEMU"), ("libvirt", "libvirt"), ("nbd-client", "Linux kernel (nbd-client)"))


def _iscsi(target: dict[str, Any] | None, snapshot: str | None) -> str | None:
    if target is None:
        return None
    try:
        return attach_iscsi.describe(attach_iscsi.offer_of(target, None, snapshot, None))
    except BlockdevError as error:
        return error.message


@pages.get("/vms/{vm}/add-disk", sends="add_disk")
async def add_disk_form(ask: Ask) -> Response:
    """Another disk."""
    return ask.show("add_disk.html", vm=await ask.rest.get("/vms/{}", ask.path("vm")))


@pages.post("/vms/{vm}/add-disk", again=add_disk_form)
async def add_disk(ask: Ask) -> Response:
    body = {"name": ask.form.need("name", "the disk's name"), "size_bytes": parse_disk_size(ask.form.need("size", "the size"))}
    made = await ask.rest.post("/vms/{}/disks", ask.path("vm"), body=body)
    return ask.done(f"/vms/{ask.path('vm')}#disks", f"added disk {made['name']}")


@pages.get("/vms/{vm}/disks/{disk}/change", sends="resize_disk")
async def change_disk_form(ask: Ask) -> Response:
    """Its size, and removing it."""
    vm = await ask.rest.get("/vms/{}", ask.path("vm"))
    disk = next((one for one in vm["disks"] if one["name"] == ask.path("disk")), None)
    if disk is None:
        raise NotFound(f"{vm['name']} has no disk {ask.path('disk')}")
    return ask.show("change_disk.html", vm=vm, disk=disk)


@pages.post("/vms/{vm}/disks/{disk}/change", again=change_disk_form)
async def change_disk(ask: Ask) -> Response:
    vm, disk = ask.path("vm"), ask.path("disk")
    body = {"size_bytes": parse_disk_size(ask.form.need("size", "the size")), "force_shrink": ask.form.flag("force_shrink")}
    await ask.rest.patch("/vms/{}/disks/{}", vm, disk, body=body)
    return ask.done(f"/vms/{vm}#disks", f"resized disk {disk}")


@pages.post("/vms/{vm}/disks/{disk}/remove", again=change_disk_form)
async def remove_disk(ask: Ask) -> Response:
    vm, disk = ask.path("vm"), ask.path("disk")
    if ask.form.get("confirm") != disk:
        raise InvalidArgument(f"type {disk} to remove it")
    await ask.rest.delete("/vms/{}/disks/{}", vm, disk, force=ask.form.flag("force"))
    return ask.done(f"/vms/{vm}#disks", f"removed disk {disk}; snapshots still have it")
