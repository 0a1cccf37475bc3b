"""Replication: how it is of all VMs, in both directions, and of one VM; what was sent and received; copies elsewhere."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from blockdev.addresses import show_address
from blockdev.errors import InvalidArgument
from blockdev.web.ask import Ask, Pages
from blockdev.written import show_duration, show_link_rate, show_period, show_speed

pages = Pages()
ROWS_MAX = 200
TRANSFERS_MAX = 30
STATES = ("up to date", "running", "scheduled", "paused", "exceeds rpo", "failed", "promoted")
LEVELS = {"ok": "good", "warning": "warn", "error": "bad"}
DIRECTIONS = {"sent": "to", "received": "from", None: ""}


@pages.get("/replication")
async def show_replication(ask: Ask) -> Response:
    """Who this home is, paths, peers; states and transfers come as parts that are asked for again."""
    identity = await ask.rest.get("/replication/identity")
    paths = await ask.rest.get_all("paths", "/replication/paths")
    peers = await ask.rest.get_all("peers", "/replication/peers")
    return ask.show(
        "replication.html", identity=identity, paths=[tell_path(one) for one in paths], peers=peers, states=STATES, **await _states(ask)
    )


@pages.get("/replication/states")
async def show_states(ask: Ask) -> Response:
    """A part: the table of VMs, of those that the address asks for."""
    return ask.part("replication_states.html", **await _states(ask))


async def _states(ask: Ask) -> dict[str, Any]:
    state, way = ask.query("state") or None, ask.query("way") or None
    found = await ask.rest.get("/replication/status", state=state, way=way, count=ROWS_MAX)
    return {"found": [tell(one) for one in found["replications"]], "is_more": found["next"] is not None, "level": found["level"]}


@pages.get("/replication/transfers")
async def show_transfers(ask: Ask) -> Response:
    """A part: the latest ones, of a VM or of all."""
    found = await ask.rest.get("/replication/transfers", vm=ask.query("vm") or None, after=ask.query("after") or None, count=TRANSFERS_MAX)
    return ask.part("transfers.html", transfers=found["transfers"], directions=DIRECTIONS, after=found["next"], vm=ask.query("vm"))


@pages.get("/vms/{vm}/replication")
async def show_vm_replication(ask: Ask) -> Response:
    """All that can be known and done about one VM's replication."""
    vm = await ask.rest.get("/vms/{}", ask.path("vm"))
    snapshots = await ask.rest.get("/vms/{}/snapshots", vm["name"], count=1000)
    paths = await ask.rest.get_all("paths", "/replication/paths")
    return ask.show(
        "vm_replication.html",
        vm=vm,
        snapshots=[one["name"] for one in reversed(snapshots["snapshots"])],
        paths=[one["name"] for one in paths],
        **await _of_vm(ask),
    )


@pages.get("/vms/{vm}/replication/state")
async def show_vm_state(ask: Ask) -> Response:
    """A part, that asks for itself again: quickly while something is on its way."""
    return ask.part("vm_replication_state.html", **await _of_vm(ask))


async def _of_vm(ask: Ask) -> dict[str, Any]:
    """The progress of what is on its way is that since somebody looks: the page brings back the most that it saw."""
    found = (await ask.rest.get("/vms/{}/replication", ask.path("vm")))["replications"]
    told = [tell(one) for one in found if one["direction"] is not None]
    for one in told:
        seen = ask.query(f"most-{one['way']}", "0")
        one["most_bytes"] = max(int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 19 else 0, one["bytes_remaining"] or 0)
    return {"found": told, "vm_name": ask.path("vm"), "is_busy": any(one["state"] in ("running", "scheduled") for one in told)}


def tell(one: dict[str, Any]) -> dict[str, Any]:
    """A replication, with the words for it."""
    left = one["bytes_remaining"]
    count = one["snapshots_remaining"]
    return {
        **one,
        "where": f"{DIRECTIONS[one['direction']]} {one['way'] or ''}".strip(),
        "kind": "" if one["state"] in ("paused", "not configured", "scheduled") and one["level"] == "ok" else LEVELS[one["level"]],
        "age": _seconds(one["age_seconds"]),
        "lag": "–" if one["lag_seconds"] is None else show_duration(one["lag_seconds"]) if one["lag_seconds"] else "nothing",
        "rpo": show_period(one["rpo_seconds"]) if one["rpo_seconds"] else "none",
        "keep": show_period(one["keep_seconds"]) if one["keep_seconds"] else "until deleted",
        "left": _seconds(one["eta_seconds"] or None),
        "network": show_speed(one["network_bytes_per_second"]),
        "logical": show_speed(one["logical_bytes_per_second"]),
        "network_mean": show_speed(one["network_bytes_per_second_mean"]),
        "logical_mean": show_speed(one["logical_bytes_per_second_mean"]),
        "waits": None if not count else (count, left),
    }


def _seconds(seconds: int | None) -> str:
    return "–" if seconds is None else show_duration(seconds)


def tell_path(path: dict[str, Any]) -> dict[str, Any]:
    """A path, with the words for it."""
    throttle = path["throttle"]
    return {
        **path,
        "place": show_address(path["host"], path["port"]),
        "limit": show_link_rate(throttle.get("rate_bytes")) + (", in windows others" if throttle.get("windows") else ""),
        "now": show_speed(path["network_bytes_per_second"]),
    }


def _over(ask: Ask) -> dict[str, Any]:
    return {"path": ask.form.get("path")}


async def _back(ask: Ask, notice: str) -> Response:
    return ask.done(f"/vms/{ask.path('vm')}/replication", notice)


@pages.post("/vms/{vm}/replication/now", again=show_vm_replication)
async def replicate_now(ask: Ask) -> Response:
    made = await ask.rest.post("/vms/{}/replication/now", ask.path("vm"), body=_over(ask))
    return await _back(ask, f"{made['snapshot']} was taken and goes over {', '.join(made['paths'])}")


@pages.post("/vms/{vm}/replication/pause", again=show_vm_replication)
async def pause(ask: Ask) -> Response:
    await ask.rest.post("/vms/{}/replication/pause", ask.path("vm"), body=_over(ask))
    return await _back(ask, "the replication is paused")


@pages.post("/vms/{vm}/replication/resume", again=show_vm_replication)
async def resume(ask: Ask) -> Response:
    await ask.rest.post("/vms/{}/replication/resume", ask.path("vm"), body=_over(ask))
    return await _back(ask, "the replication goes on")


@pages.post("/vms/{vm}/replication/promote", again=show_vm_replication)
async def promote(ask: Ask) -> Response:
    """The received VM goes on here by itself."""
    made = await ask.rest.post("/vms/{}/replication/promote", ask.path("vm"), body={"snapshot": ask.form.get("snapshot")})
    return await _back(ask, f"{made['vm']} goes on here from {made['snapshot']}; peer {made['peer']} is refused from now on")


@pages.post("/vms/{vm}/replication/reverse", again=show_vm_replication)
async def reverse(ask: Ask) -> Response:
    """It was promoted at the other end."""
    made = await ask.rest.post("/vms/{}/replication/reverse", ask.path("vm"), body={"force": ask.form.flag("force")})
    kept = f"; what its disks held is in {made['safety_snapshot']}" if made["safety_snapshot"] else ""
    return await _back(ask, f"{made['vm']} is received from {made['peer']} from now on{kept}")


@pages.post("/vms/{vm}/replication/elsewhere", again=show_vm_replication)
async def make_elsewhere(ask: Ask) -> Response:
    """A VM at the other end of a path: of a snapshot that is there, or sent there once."""
    vm, how = ask.path("vm"), ask.form.need("how", "how it is to be made")
    body = {
        "path": ask.form.need("over", "the path"),
        "name": ask.form.need("new_name", "the name of the new VM"),
        "snapshot": ask.form.get("of"),
    }
    if how == "clone":
        made = await ask.rest.post("/vms/{}/replication/clone", vm, body=body)
        return await _back(ask, f"{made['vm']} was made at the other end of {made['path']} of {made['snapshot']}")
    if how != "copy":
        raise InvalidArgument("clone what is there, or send a copy")
    job = await ask.rest.post("/vms/{}/replication/copy", vm, body=body)
    return ask.done("/activity", f"{body['name']} is on its way over {body['path']}, job {job['id']}")
