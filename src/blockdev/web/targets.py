"""iSCSI targets: all of them, and the one of a VM.  CHAP secrets go in and never come out."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from blockdev.errors import InvalidArgument, NotFound
from blockdev.web.ask import Ask, Pages
from blockdev.web.forms import Form

pages = Pages()
LEVELS = {"up": "good", "degraded": "warn", "unavailable": "bad"}
KEEP, NONE, SET = "keep", "none", "set"


@pages.get("/targets")
async def list_targets(ask: Ask) -> Response:
    return ask.show("targets.html", targets=await ask.rest.get_all("targets", "/targets"), levels=LEVELS)


@pages.get("/vms/{vm}/target")
async def show_target(ask: Ask) -> Response:
    """The target of a VM, or the form that makes it one."""
    vm = await ask.rest.get("/vms/{}", ask.path("vm"))
    try:
        target = await ask.rest.get("/vms/{}/target", vm["name"])
    except NotFound:
        target = None
    return ask.show("target.html", vm=vm, target=target, levels=LEVELS)


@pages.post("/vms/{vm}/target", again=show_target)
async def set_target(ask: Ask) -> Response:
    """Make one, or change the one that is there."""
    vm, form = ask.path("vm"), ask.form
    is_new = form.get("is_new") is not None
    body: dict[str, Any] = {
        "initiators": _words(form, "initiators"),
        "portals": _words(form, "portals") or ["127.0.0.1"],
        "demo": form.flag("demo"),
        "insecure": form.flag("insecure"),
        "snapshots": _words(form, "snapshots"),
    }
    depth = form.whole("depth", "the depth")
    body |= {} if depth is None else {"depth": depth}
    for kind in ("chap", "mutual"):
        wanted = form.get(f"{kind}-what") or KEEP
        if wanted == SET:
            body[kind] = _credential(form, kind)
        elif wanted == NONE and not is_new:
            body[kind] = None
    if is_new:
        await ask.rest.post("/vms/{}/target", vm, body=body)
    else:
        await ask.rest.patch("/vms/{}/target", vm, body=body)
    return ask.done(f"/vms/{vm}/target", f"{vm} is offered over iSCSI" if is_new else f"the target of {vm} is changed")


def _words(form: Form, name: str) -> list[str]:
    return form.text(name).replace(",", " ").split()


def _credential(form: Form, kind: str) -> dict[str, str]:
    words = {"chap": "CHAP", "mutual": "mutual CHAP"}[kind]
    secret = form.text(f"{kind}-secret")
    if not secret:
        raise InvalidArgument(f"the secret of {words} is missing")
    return {"user": form.need(f"{kind}-user", f"the user of {words}"), "secret": secret}


@pages.post("/vms/{vm}/target/remove", again=show_target)
async def remove_target(ask: Ask) -> Response:
    vm = ask.path("vm")
    await ask.rest.delete("/vms/{}/target", vm, force=ask.form.flag("force"))
    return ask.done(f"/vms/{vm}", f"{vm} is not offered over iSCSI any more; its disks stay")
