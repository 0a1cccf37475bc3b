"""Settings of the home: the default schedules, how many snapshots schedules may keep, tokens and their roles."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from blockdev.errors import NotAllowed
from blockdev.web import schedules
from blockdev.web.ask import Ask, Pages
from blockdev.written import parse_duration

pages = Pages()
ROLES = (
    ("scraper", "may read /metrics alone"),
    ("viewer", "sees everything but configurations, and changes nothing"),
    ("operator", "makes VMs, snapshots and clones, restores, protects"),
    ("admin", "may all, also delete VMs and change what concerns all of them"),
)


@pages.get("/settings")
async def show_settings(ask: Ask) -> Response:
    return await _show(ask, None)


async def _show(ask: Ask, made: dict[str, Any] | None) -> Response:
    default = await ask.rest.get("/schedules")
    settings = await ask.rest.get("/schedule-settings")
    try:
        tokens = await ask.rest.get_all("tokens", "/tokens")
    except NotAllowed:
        tokens = None
    return ask.show(
        "settings.html",
        made=made,
        schedules=schedules.tell(default["schedules"]),
        rows=schedules.rows(default["schedules"]),
        consistencies=schedules.CONSISTENCIES,
        at_examples=schedules.AT_EXAMPLES,
        cap=settings["scheduled_snapshots_max"],
        tokens=tokens,
        roles=ROLES,
    )


@pages.post("/settings/schedules", again=show_settings)
async def set_default_schedules(ask: Ask) -> Response:
    """Of all VMs that have none of their own."""
    bodies = schedules.read_rows(ask.form)
    await ask.rest.put("/schedules", body={"schedules": bodies})
    names = ", ".join(one["name"] for one in bodies)
    return ask.done("/settings", f"the default schedules are {names}" if bodies else "there is no default schedule any more")


@pages.post("/settings/cap", again=show_settings)
async def set_cap(ask: Ask) -> Response:
    cap = ask.form.whole("cap", "the number of snapshots")
    if cap is not None:
        await ask.rest.patch("/schedule-settings", body={"scheduled_snapshots_max": cap})
    return ask.done("/settings", f"schedules keep at most {cap} snapshots of a VM")


@pages.post("/settings/tokens", again=show_settings)
async def add_token(ask: Ask) -> Response:
    """This answer alone has the token: it is not kept, and the page cannot be asked for again."""
    form = ask.form
    valid = form.get("valid")
    body = {
        "name": form.need("name", "the name"),
        "role": form.need("role", "the role"),
        "valid_seconds": None if valid is None else parse_duration(valid),
    }
    return await _show(ask, await ask.rest.post("/tokens", body=body))


@pages.post("/settings/tokens/remove", again=show_settings)
async def remove_token(ask: Ask) -> Response:
    gone = await ask.rest.delete("/tokens/{}", ask.form.need("token", "the token's name"))
    return ask.done("/settings", f"token {gone['name']} lets nobody in any more")
