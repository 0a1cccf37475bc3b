"""The VMs: the list of all, making one, and what is done to one as a whole but copying it (copies.py)."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import JSONResponse, Response

from blockdev.errors import BlockdevError, InvalidArgument, NotFound, Unavailable
from blockdev.web.ask import Ask, Pages
from blockdev.web.rendering import is_received, seconds_of
from blockdev.written import parse_disk_size, show_count

pages = Pages()
ROWS_AT_ONCE = 100  # that are laid out; list.js has the same number
DISK_ROWS = 4  # in the form of a new VM; the script adds more
FIGURES = (
    *("read_iops", "write_iops", "read_bytes_per_second", "write_bytes_per_second"),
    *("latency_us_mean", "live_bytes", "changed_bytes_day"),
)
LEVELS = ("ok", "warning", "error")
STATES = {"ok": "good", "warning": "warn", "error": "bad"}  # levels of alerts -> classes of .state


@pages.get("/")
async def list_vms(ask: Ask) -> Response:
    """All VMs at a glance."""
    vms, status, coverage, replications, now = await asyncio.gather(
        ask.rest.get_all("vms", "/vms"),
        ask.rest.get("/status"),
        ask.rest.get("/schedule-coverage"),
        ask.rest.get_all("replications", "/replication/status"),
        figures(ask, watch=False),  # a look at the engine would hold the page up; its script asks for one
    )
    rows = [_row(vm, now) for vm in vms]
    _add_coverage(rows, coverage)
    _add_replication(rows, replications)
    for row in rows:
        row["tags"], row["order"] = _tags(row), _order(row)
    return ask.show(
        "vms.html",
        rows=rows,
        at_once=len(rows) if ask.query("all") else ROWS_AT_ONCE,
        status=status,
        pool_now=_whole(now["pool"]),
        states=STATES,
        unprotected=sum(not row["schedules"] for row in rows),
        alerts=sum("alerts" in row["tags"] for row in rows),
    )


def _tags(row: dict[str, Any]) -> str:
    """The words of the choice Show that the row is shown for."""
    vm, found = row["vm"], []
    if row["iops"]:
        found.append("busy")
    if not row["schedules"]:
        found.append("unprotected")
    if row["replications"]:
        found.append("replicated")
    if row["missing"] or any(one["level"] != "ok" for one in row["replications"]):
        found.append("alerts")
    if is_received(vm):
        found.append("received")
    return " ".join(found)


def _order(row: dict[str, Any]) -> str:
    """What the column of replication is sorted by: the worst first, then those that are behind most."""
    worst = max((LEVELS.index(one["level"]) for one in row["replications"]), default=-1)
    lag = max((one["lag_seconds"] or 0 for one in row["replications"]), default=0)
    return f"{len(LEVELS) - worst} {10**12 - lag:013}"


def _whole(pool: dict[str, Any]) -> dict[str, Any]:
    """The pool's figures, as those of a row."""
    return {
        "iops": _sum(pool.get("read_iops"), pool.get("write_iops")),
        "throughput": _sum(pool.get("read_bytes_per_second"), pool.get("write_bytes_per_second")),
        "latency": pool.get("latency_us_mean"),
    }


def _row(vm: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """One row of the list: what it shows, and what it is sorted by."""
    place = now["places"].get(vm["uuid"])
    found = {name: None if place is None or name not in now["vms"] else now["vms"][name][place] for name in FIGURES}
    reads, writes = found["read_iops"], found["write_iops"]
    bytes_read, bytes_written = found["read_bytes_per_second"], found["write_bytes_per_second"]
    return {
        "vm": vm,
        "iops": _sum(reads, writes),
        "throughput": _sum(bytes_read, bytes_written),
        "latency": found["latency_us_mean"],
        "live": found["live_bytes"],
        "change": found["changed_bytes_day"],
        "missing": any(disk["state"] != "ok" for disk in vm["disks"]),
        "schedules": 0,
        "own": False,
        "newest": None,
        "replications": [],
    }


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _add_coverage(rows: list[dict[str, Any]], coverage: dict[str, Any]) -> None:
    places = {name: place for place, name in enumerate(coverage["vm"])}
    for row in rows:
        place = places.get(row["vm"]["name"])
        if place is not None:
            row["schedules"], row["own"] = coverage["schedule_count"][place], coverage["own"][place]
            row["newest"] = coverage["newest_snapshot"][place]


def _add_replication(rows: list[dict[str, Any]], replications: list[dict[str, Any]]) -> None:
    by_name = {row["vm"]["name"]: row for row in rows}
    for one in replications:
        if one["vm"] in by_name and one["direction"] is not None:
            by_name[one["vm"]]["replications"].append(one)


async def figures(ask: Ask, watch: bool = True) -> dict[str, Any]:
    """What all VMs do now; `places`: uuid -> place in the columns.  Empty while nothing is counted."""
    try:
        now: dict[str, Any] = await ask.rest.get("/statistics", watch=watch)
    except (NotFound, Unavailable):
        now = {"vms": {"uuid": []}, "pool": {}}
    now["places"] = {uuid: place for place, uuid in enumerate(now["vms"]["uuid"])}
    return now


@pages.get("/figures")
async def show_figures(ask: Ask) -> Response:
    """What changes in the list, for the script: by uuid [IOPS, bytes/s, latency, live, changed a day]."""
    now = await figures(ask)
    rows = {}
    columns = now["vms"]
    for uuid, place in now["places"].items():
        given = {name: columns[name][place] if name in columns else None for name in FIGURES}
        rows[uuid] = [
            _sum(given["read_iops"], given["write_iops"]),
            _sum(given["read_bytes_per_second"], given["write_bytes_per_second"]),
            *(given["latency_us_mean"], given["live_bytes"], given["changed_bytes_day"]),
        ]
    return JSONResponse({"vms": rows, "pool": _whole(now["pool"])})


@pages.get("/new-vm", sends="create_vm")
async def new_vm_form(ask: Ask) -> Response:
    """Make a VM."""
    rows = max(DISK_ROWS, len(ask.form.every("disk_name")))
    return ask.show("new_vm.html", rows=rows, typed=list(zip(ask.form.every("disk_name"), ask.form.every("disk_size"), strict=False)))


@pages.post("/new-vm", again=new_vm_form)
async def new_vm(ask: Ask) -> Response:
    form = ask.form
    disks = []
    for name, size in zip(form.every("disk_name"), form.every("disk_size"), strict=False):
        if size and not name:
            raise InvalidArgument(f"the disk of {size} needs a name")
        if name and not size:
            raise InvalidArgument(f"disk {name} needs a size, such as 20G")
        if name:
            disks.append({"name": name, "size_bytes": parse_disk_size(size)})
    if not disks:
        raise InvalidArgument("a VM needs a disk: give a name and a size, such as root and 20G")
    body: dict[str, Any] = {"name": form.need("name", "the VM's name"), "description": form.text("description").strip(), "disks": disks}
    body |= {field: form.get(field) for field in ("compression", "dedup") if form.get(field)}
    if form.get("config"):
        body["config"] = form.text("config")
    made = await ask.rest.post("/vms", body=body)
    return ask.done(f"/vms/{made['name']}", f"created {made['name']}: attach its disks as its page says")


@pages.get("/vms/{vm}/rename", sends="change_vm")
async def rename_form(ask: Ask) -> Response:
    """The name and description."""
    return ask.show("rename.html", vm=await ask.rest.get("/vms/{}", ask.path("vm")))


@pages.post("/vms/{vm}/rename", again=rename_form)
async def rename(ask: Ask) -> Response:
    body = {"name": ask.form.need("name", "the new name"), "description": ask.form.text("description").strip(), "force": ask.form.flag("force")}
    if body["name"] == ask.path("vm"):
        del body["name"]
    made = await ask.rest.patch("/vms/{}", ask.path("vm"), body=body)
    return ask.done(f"/vms/{made['name']}", f"changed {made['name']}")


@pages.get("/vms/{vm}/delete", sends="delete_vm")
async def delete_form(ask: Ask) -> Response:
    """What would be lost, and a name to type."""
    name = ask.path("vm")
    vm, snapshots = await asyncio.gather(ask.rest.get("/vms/{}", name), ask.rest.get_all("snapshots", "/vms/{}/snapshots", name))
    locked = [one for one in snapshots if one["locked_until"] is not None]
    return ask.show("delete.html", vm=vm, snapshots=snapshots, locked=locked, clients=clients_of(vm))


@pages.post("/vms/{vm}/delete", again=delete_form)
async def delete(ask: Ask) -> Response:
    name = ask.path("vm")
    if ask.form.get("confirm") != name:
        raise InvalidArgument(f"type {name} to delete it")
    gone = await ask.rest.delete("/vms/{}", name, force=ask.form.flag("force"))
    return ask.done("/", f"deleted {gone['name']} with its disks and {show_count(gone['snapshot_count'], 'snapshot')}")


def clients_of(vm: dict[str, Any]) -> list[dict[str, str]]:
    """Who is attached, of a VM or of a snapshot."""
    return [{"disk": disk["name"], "client": client} for disk in vm["disks"] for client in disk["clients"] or ()]


async def optional(asked: Any, default: Any = None) -> Any:
    """What a part of a page needs but the page does not: the default when it cannot be had."""
    try:
        return await asked
    except BlockdevError:
        return default


def newest_first(snapshots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(snapshots, key=lambda one: (seconds_of(one["created"]), one["lsn"]), reverse=True)
