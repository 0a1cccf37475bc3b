"""Snapshots, clones and restores: points in time of a VM, and what is made of them."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from blockdev.clock import now_seconds
from blockdev.errors import BlockdevError, InvalidArgument
from blockdev.vmmap.clock import to_text
from blockdev.web.ask import Ask, Pages
from blockdev.web.vms import clients_of, newest_first, optional

pages = Pages()
CLONES_MAX = 500


@pages.get("/vms/{vm}/snapshot", sends="create_snapshot")
async def snapshot_form(ask: Ask) -> Response:
    """Take a snapshot."""
    return ask.show("snapshot_form.html", vm=await ask.rest.get("/vms/{}", ask.path("vm")))


@pages.post("/vms/{vm}/snapshot", again=snapshot_form)
async def take_snapshot(ask: Ask) -> Response:
    form, vm = ask.form, ask.path("vm")
    body: dict[str, Any] = {"description": form.text("description").strip(), "consistency": form.get("consistency") or "crash"}
    body["if_not_frozen"] = form.get("if_not_frozen") or "crash"
    if form.get("name"):
        body["name"] = form.get("name")
    if form.get("keep"):
        body["keep_seconds"] = form.duration("keep")
    if form.get("lock"):
        body["locked_until"] = _in(form.duration("lock"))
    made = await ask.rest.post("/vms/{}/snapshots", vm, body=body)
    achieved = "" if made["consistency"] == made["asked"] else "; the guest could not be frozen, so it is as after a crash"
    return ask.done(f"/vms/{vm}#snapshots", f"took snapshot {made['name']}{achieved}")


def _in(seconds: int | None) -> str | None:
    return None if seconds is None else to_text(now_seconds() + seconds)


@pages.get("/vms/{vm}/snapshots/{snapshot}")
async def show_snapshot(ask: Ask) -> Response:
    """One snapshot: what changed since the one before it, what can be done with it."""
    vm, name = ask.path("vm"), ask.path("snapshot")
    snapshot, others = await asyncio.gather(ask.rest.get("/vms/{}/snapshots/{}", vm, name), ask.rest.get_all("snapshots", "/vms/{}/snapshots", vm))
    names = [one["name"] for one in sorted(others, key=lambda one: one["lsn"])]
    place = names.index(name) if name in names else 0
    older = ask.query("since") or (names[place - 1] if place else None)
    diff = await optional(ask.rest.get("/vms/{}/snapshots/{}/diff", vm, name, older=older, count=0))
    return ask.show("snapshot.html", vm=vm, snapshot=snapshot, older=older, names=names[:place], diff=diff, clients=clients_of(snapshot))


@pages.post("/vms/{vm}/snapshots/{snapshot}/change", again=show_snapshot)
async def change_snapshot(ask: Ask) -> Response:
    """The description; until when it is kept and locked, from now."""
    form = ask.form
    body: dict[str, Any] = {"description": form.text("description").strip()}
    if form.flag("forever"):
        body["expires"] = None
    elif form.get("keep"):
        body["expires"] = _in(form.duration("keep"))
    if form.flag("unlock"):
        body["locked_until"] = None
    elif form.get("lock"):
        body["locked_until"] = _in(form.duration("lock"))
    await ask.rest.patch("/vms/{}/snapshots/{}", ask.path("vm"), ask.path("snapshot"), body=body)
    return ask.done(f"/vms/{ask.path('vm')}/snapshots/{ask.path('snapshot')}", f"changed snapshot {ask.path('snapshot')}")


@pages.post("/vms/{vm}/snapshots/{snapshot}/delete", again=show_snapshot)
async def delete_snapshot(ask: Ask) -> Response:
    vm, name = ask.path("vm"), ask.path("snapshot")
    await ask.rest.delete("/vms/{}/snapshots/{}", vm, name, force=ask.form.flag("force"))
    return ask.done(f"/vms/{vm}#snapshots", f"deleted snapshot {name}")


@pages.get("/vms/{vm}/restore", sends="restore_vm")
async def restore_form(ask: Ask) -> Response:
    """Choose a snapshot, see what would change, restore."""
    vm = ask.path("vm")
    shown, snapshots = await asyncio.gather(ask.rest.get("/vms/{}", vm), ask.rest.get_all("snapshots", "/vms/{}/snapshots", vm))
    ordered = newest_first(snapshots)
    chosen = (ask.form.get("snapshot") or ask.query("snapshot")) or (ordered[0]["name"] if ordered else None)
    disk = ask.form.get("disk") or ask.query("disk") or None
    preview, trouble = None, None
    if chosen is not None:
        try:
            preview = await ask.rest.get("/vms/{}/snapshots/{}/restore", vm, chosen, disk=disk)
        except BlockdevError as error:
            trouble = error.message
    clients = [{"disk": one["disk"], "client": client} for one in preview["disks"] for client in one["clients"]] if preview else []
    return ask.show("restore.html", vm=shown, snapshots=ordered, chosen=chosen, disk=disk, preview=preview, trouble=trouble, clients=clients)


@pages.post("/vms/{vm}/restore", again=restore_form)
async def restore(ask: Ask) -> Response:
    form, vm = ask.form, ask.path("vm")
    body: dict[str, Any] = {"snapshot": form.need("snapshot", "the snapshot"), "force": form.flag("force")}
    if form.get("disk"):
        body["disk"] = form.get("disk")
    if form.get("how") == "beside":
        body["beside"] = form.need("beside", "the new name")
    done = await ask.rest.post("/vms/{}/restore", vm, body=body)
    if "beside" in body:
        to = f"/vms/{vm}" if "disk" in body else f"/vms/{body['beside']}"
        return ask.done(to, f"restored {vm}@{body['snapshot']} as {body['beside']}; nothing was replaced")
    safety = f"; the state before is in snapshot {done['safety_snapshot']}" if done["safety_snapshot"] else ""
    cut_off = f"; cut off: {', '.join(done['cut_off'])}" if done["cut_off"] else ""
    return ask.done(f"/vms/{vm}", f"restored {', '.join(done['disks'])} of {vm} to {done['snapshot']}{safety}{cut_off}")


@pages.get("/vms/{vm}/clone", sends="clone_vm")
async def clone_form(ask: Ask) -> Response:
    """1 to 500 clones, here; to another system by replication."""
    name = ask.path("vm")
    vm, snapshots, hypervisors, paths = await asyncio.gather(
        ask.rest.get("/vms/{}", name),
        ask.rest.get_all("snapshots", "/vms/{}/snapshots", name),
        ask.rest.get("/hypervisors"),
        ask.rest.get_all("paths", "/replication/paths"),
    )
    return ask.show("clone.html", vm=vm, snapshots=newest_first(snapshots), hypervisors=hypervisors["hypervisors"], paths=paths, most=CLONES_MAX)


@pages.post("/vms/{vm}/clone", again=clone_form)
async def clone(ask: Ask) -> Response:
    form, vm = ask.form, ask.path("vm")
    if form.get("where"):
        return await _clone_there(ask, vm)
    count = form.whole("count", "the number of clones") or 0
    if not 1 <= count <= CLONES_MAX:
        raise InvalidArgument(f"make 1 to {CLONES_MAX} clones, not {count}")
    names = form.need("names", "the name")
    body: dict[str, Any] = {"name": names} if count == 1 and "#" not in names else {"count": count, "prefix": names}
    if form.get("snapshot"):
        body["snapshot"] = form.get("snapshot")
    if form.flag("customize"):
        texts = {field: form.text(field).strip() for field in ("hostname", "user_data", "network_config")}
        body["customize"] = {field: text for field, text in texts.items() if text}
    made = await ask.rest.post("/vms/{}/clones", vm, body=body)
    clones = [one["name"] for one in made["vms"]]
    notice = f"made {clones[0]}" if len(clones) == 1 else f"made {len(clones)} clones, {clones[0]} to {clones[-1]}"
    to = f"/vms/{clones[0]}" if len(clones) == 1 else "/"
    if form.get("hypervisor"):
        to, told = await _register(ask, clones, to)
        notice += told
    return ask.done(to, notice)


async def _register(ask: Ask, clones: list[str], to: str) -> tuple[str, str]:
    """Have domains made of them; where that is seen, else `to`, and what to say of it: the clones are there, whatever comes of this."""
    hypervisor = ask.form.need("hypervisor", "the hypervisor")
    try:
        job = await ask.rest.post("/hypervisors/{}/registrations", hypervisor, body={"vms": clones, "start": ask.form.flag("start")})
    except BlockdevError as error:
        return to, f"; but {hypervisor} has them not: {error.message}"
    return f"/activity/jobs/{job['id']}", f"; {hypervisor} is being told of them"


async def _clone_there(ask: Ask, vm: str) -> Response:
    """One clone at the other end of a path: of a snapshot that is there already, or copied there."""
    form = ask.form
    body = {"path": form.need("where", "the other system"), "name": form.need("names", "the name")}
    if form.get("snapshot"):
        body["snapshot"] = form.need("snapshot", "the snapshot")
    shown = await ask.rest.get("/vms/{}", vm)
    if body["path"] in shown["protected_over"]:
        made = await ask.rest.post("/vms/{}/replication/clone", vm, body=body)
        return ask.done(f"/vms/{vm}", f"made {made['vm']} at the other end of {made['path']}, of {made['snapshot']}")
    job = await ask.rest.post("/vms/{}/replication/copy", vm, body=body)
    return ask.done(f"/vms/{vm}#activity", f"{vm} is being copied over {body['path']} as {body['name']} (job {job['id']})")
