"""How one VM is protected: its schedules (the default ones or its own), what they will take, and the paths it is replicated over."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from blockdev.errors import InvalidArgument
from blockdev.web import schedules
from blockdev.web.ask import Ask, Pages
from blockdev.written import parse_duration, parse_keep, show_period

pages = Pages()
DAY_SECONDS = 86400
PREVIEW_DAYS = (1, 7, 30, 365)
PREVIEW_ROWS_MAX = 50


@pages.get("/vms/{vm}/protect")
async def show_protect(ask: Ask) -> Response:
    """The dialog."""
    vm = await ask.rest.get("/vms/{}", ask.path("vm"))
    own = await ask.rest.get("/vms/{}/schedules", vm["name"])
    default = await ask.rest.get("/schedules")
    known = {one["path"]: one for one in (await ask.rest.get("/vms/{}/protections", vm["name"]))["protections"]}
    paths = await ask.rest.get_all("paths", "/replication/paths")
    return ask.show(
        "protect.html",
        vm=vm,
        chosen=_chosen(own),
        schedules=own["schedules"],
        default_words=schedules.tell(default["schedules"]) or ["no schedules: no snapshots are taken"],
        rows=schedules.rows(own["schedules"] or default["schedules"]),
        consistencies=schedules.CONSISTENCIES,
        at_examples=schedules.AT_EXAMPLES,
        paths=[_way(path, known.get(path["name"])) for path in paths],
        preview_days=PREVIEW_DAYS,
    )


def _chosen(own: dict[str, Any]) -> str:
    return "default" if not own["own"] else "own" if own["schedules"] else "none"


def _way(path: dict[str, Any], known: dict[str, Any] | None) -> dict[str, Any]:
    rpo, keep = (None, None) if known is None else (known["rpo_seconds"], known["keep_seconds"])
    return {
        **path,
        "is_used": known is not None,
        "is_paused": known is not None and known["paused"],
        "rpo": "" if rpo is None else show_period(rpo),
        "keep": "" if keep is None else show_period(keep),
    }


@pages.post("/vms/{vm}/protect", again=show_protect)
async def protect(ask: Ask) -> Response:
    """Schedules first: what is replicated at once is a snapshot on their terms."""
    vm = ask.path("vm")
    terms = {path: _terms(ask, path) for path in ask.form.all("path")}
    await _set_schedules(ask, vm)
    known = {one["path"] for one in (await ask.rest.get("/vms/{}/protections", vm))["protections"]}
    for path, body in terms.items():
        await ask.rest.put("/vms/{}/protections/{}", vm, path, body=body)
    for path in sorted(known - terms.keys()):
        await ask.rest.delete("/vms/{}/protections", vm, path=path)
    return ask.done(f"/vms/{vm}", f"{vm} {_told(ask.form.get('set'), list(terms))}")


async def _set_schedules(ask: Ask, vm: str) -> None:
    wanted = ask.form.need("set", "which schedules the VM is to have")
    if wanted == "default":
        await ask.rest.delete("/vms/{}/schedules", vm)
    elif wanted in ("own", "none"):
        bodies = schedules.read_rows(ask.form) if wanted == "own" else []
        if wanted == "own" and not bodies:
            raise InvalidArgument("there is no schedule of its own yet: fill one in, or choose another set")
        await ask.rest.put("/vms/{}/schedules", vm, body={"schedules": bodies})
    else:
        raise InvalidArgument("a VM has the default schedules, its own, or none")


def _terms(ask: Ask, path: str) -> dict[str, Any]:
    rpo, keep = ask.form.get(f"rpo-{path}"), ask.form.get(f"keep-at-{path}")
    return {
        "rpo_seconds": None if rpo is None else parse_duration(rpo),
        "keep_seconds": None if keep is None else parse_keep(keep),
    }


def _told(wanted: str | None, paths: list[str]) -> str:
    taken = {"default": "has the default schedules", "own": "has its own schedules", "none": "has no schedules"}[wanted or "none"]
    return f"{taken} and is " + (f"replicated over {', '.join(paths)}" if paths else "not replicated")


@pages.get("/vms/{vm}/protect/preview")
async def preview(ask: Ask) -> Response:
    """A part: what will be taken, if nothing fails."""
    text = ask.query("days", "7")
    days = int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 7
    found = await ask.rest.get("/vms/{}/schedules/preview", ask.path("vm"), seconds=days * DAY_SECONDS)
    runs = found["runs"]
    return ask.part("preview.html", found=found, runs=runs[:PREVIEW_ROWS_MAX], more=len(runs[PREVIEW_ROWS_MAX:]), days=days)


@pages.post("/vms/{vm}/protect/run")
async def run_now(ask: Ask) -> Response:
    """The snapshot of a schedule, as if it were due."""
    vm, name = ask.path("vm"), ask.form.need("schedule", "the schedule")
    made = await ask.rest.post("/vms/{}/schedules/{}/run", vm, name)
    return ask.done(f"/vms/{vm}", f"schedule {name} took {made['name']}")
