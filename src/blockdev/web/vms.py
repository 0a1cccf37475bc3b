"""The VMs: all of them, and each one."""

from __future__ import annotations

from starlette.responses import Response

from blockdev.web.ask import Ask, Pages

pages = Pages()


@pages.get("/")
async def list_vms(ask: Ask) -> Response:
    """All VMs."""
    return ask.show("vms.html", vms=await ask.rest.get_all("vms", "/vms"))


@pages.get("/vms/{vm}")
async def show_vm(ask: Ask) -> Response:
    """One VM."""
    return ask.show("vm.html", vm=await ask.rest.get("/vms/{}", ask.path("vm")))


async def rename_form(ask: Ask) -> Response:
    """What a form's page looks like: also what is shown again when something is wrong."""
    return ask.show("rename.html", vm=await ask.rest.get("/vms/{}", ask.path("vm")))


pages.get("/vms/{vm}/rename")(rename_form)


@pages.post("/vms/{vm}/rename", again=rename_form)
async def rename(ask: Ask) -> Response:
    body = {"name": ask.form.need("name", "the new name"), "description": ask.form.text("description"), "force": ask.form.flag("force")}
    if body["name"] == ask.path("vm"):
        del body["name"]
    made = await ask.rest.patch("/vms/{}", ask.path("vm"), body=body)
    return ask.done(f"/vms/{made['name']}", f"changed {made['name']}")
