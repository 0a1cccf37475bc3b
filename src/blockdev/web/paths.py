"""Paths to other homes and peers that may send to this one: made, shown, changed, tested, removed."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from blockdev.addresses import parse_endpoint
from blockdev.constants import REPLICATION_PORT
from blockdev.errors import InvalidArgument
from blockdev.web.ask import Ask, Pages
from blockdev.web.forms import Form
from blockdev.web.replication import tell_path
from blockdev.written import MB, parse_duration, parse_link_rate, parse_window

pages = Pages()
HOW = (
    ("code", "By a code", "that its console, or replicate peer invite there, shows once: both know each other then"),
    ("key", "By its key", "as its identity shows it"),
    ("peer", "It is a peer already", "the way back to a home that sends here"),
)


@pages.get("/replication/new-path", sends="add_path")
async def new_path(ask: Ask) -> Response:
    peers = await ask.rest.get_all("peers", "/replication/peers")
    return ask.show("path_new.html", how=HOW, peers=[one["name"] for one in peers], port=REPLICATION_PORT)


@pages.post("/replication/new-path", again=new_path)
async def add_path(ask: Ask) -> Response:
    """A code is used once and shown no more, also when something else in the form is wrong."""
    form = ask.form
    endpoint = parse_endpoint(form.need("place", "where the other home is reached"))
    level = form.whole("level", "the level")
    body: dict[str, Any] = {"name": form.need("name", "the name"), "host": endpoint.host}
    body |= {} if endpoint.port is None else {"port": endpoint.port}
    body |= {} if level is None else {"level": level}
    made = await ask.rest.post("/replication/paths", body={**body, **await _proof(ask)})
    paired = ", and both homes know each other" if form.get("how") == "code" else ""
    return ask.done(f"/replication/paths/{made['name']}", f"path {made['name']} is added{paired}")


async def _proof(ask: Ask) -> dict[str, str]:
    """By what the other home is known."""
    form, how = ask.form, ask.form.need("how", "how the other home is known")
    if how == "code":
        return {"code": form.need("code", "the code")}
    if how == "key":
        return {"key": form.need("key", "the key")}
    if how == "peer":
        peer = await ask.rest.get("/replication/peers/{}", form.need("peer", "the peer"))
        return {"key": peer["key"]}
    raise InvalidArgument("the other home is known by a code, by its key, or as a peer")


@pages.get("/replication/paths/{path}")
async def show_path(ask: Ask) -> Response:
    found = await ask.rest.get("/replication/paths/{}", ask.path("path"))
    throttle = found["throttle"]
    windows = [f"{one['at']}={_rate_words(one['rate_bytes'])}" for one in throttle.get("windows", ())]
    return ask.show(
        "path.html", path=tell_path(found), rate=_rate_words(throttle.get("rate_bytes")), windows="\n".join(windows), zone=throttle.get("zone") or ""
    )


def _rate_words(rate_bytes: int | None) -> str:
    """As parse_link_rate reads it."""
    return "none" if rate_bytes is None else f"{rate_bytes / MB:g}"


@pages.post("/replication/paths/{path}/throttle", again=show_path)
async def throttle_path(ask: Ask) -> Response:
    """What is being sent follows at once."""
    windows = [parse_window(line) for line in ask.form.text("windows").splitlines() if line.strip()]
    body = {
        "rate_bytes": parse_link_rate(ask.form.get("rate") or "none") or None,
        "windows": [{"at": at, "rate_bytes": rate_bytes or None} for at, rate_bytes in windows],
        "zone": ask.form.get("zone"),
    }
    await ask.rest.patch("/replication/paths/{}", ask.path("path"), body={"throttle": body})
    return ask.done(f"/replication/paths/{ask.path('path')}", "the throttle holds from now on")


@pages.post("/replication/paths/{path}/change", again=show_path)
async def change_path(ask: Ask) -> Response:
    endpoint, level = parse_endpoint(ask.form.need("place", "where it is reached")), ask.form.whole("level", "the level")
    body: dict[str, Any] = {"host": endpoint.host, "port": endpoint.port or REPLICATION_PORT}
    body |= {} if level is None else {"level": level}
    await ask.rest.patch("/replication/paths/{}", ask.path("path"), body=body)
    return ask.done(f"/replication/paths/{ask.path('path')}", "the path is changed")


@pages.post("/replication/paths/{path}/test")
async def test_path(ask: Ask) -> Response:
    """A part: what the other end says."""
    return ask.part("path_test.html", test=await ask.rest.post("/replication/paths/{}/test", ask.path("path")))


@pages.post("/replication/paths/{path}/remove", again=show_path)
async def remove_path(ask: Ask) -> Response:
    gone = await ask.rest.delete("/replication/paths/{}", ask.path("path"), force=ask.form.flag("force"))
    return ask.done("/replication", f"path {gone['name']} is removed")


@pages.get("/replication/new-peer", sends="invite_peer")
async def new_peer(ask: Ask) -> Response:
    return ask.show("peer_new.html", code=None)


@pages.post("/replication/new-peer", again=new_peer)
async def add_peer(ask: Ask) -> Response:
    """Invited by a code, which this answer alone has, or added by its key."""
    name = ask.form.need("name", "the name")
    may = _may(ask.form)
    key = ask.form.get("key")
    if key is not None:
        await ask.rest.post("/replication/peers", body={"name": name, "key": key, **may})
        return ask.done(f"/replication/peers/{name}", f"peer {name} is added")
    seconds = parse_duration(ask.form.need("valid", "how long the code is valid"))
    made = await ask.rest.put("/replication/invitations/{}", name, body={**may, "seconds": seconds})
    return ask.show("peer_new.html", code=made, identity=await ask.rest.get("/replication/identity"))


def _may(form: Form) -> dict[str, Any]:
    """What a peer may send."""
    return {"vms": (form.get("vms") or "").replace(",", " ").split(), "space_bytes": form.size("space")}


@pages.get("/replication/peers/{peer}")
async def show_peer(ask: Ask) -> Response:
    return ask.show("peer.html", peer=await ask.rest.get("/replication/peers/{}", ask.path("peer")))


@pages.post("/replication/peers/{peer}", again=show_peer)
async def change_peer(ask: Ask) -> Response:
    await ask.rest.patch("/replication/peers/{}", ask.path("peer"), body=_may(ask.form))
    return ask.done(f"/replication/peers/{ask.path('peer')}", "what it may send is changed")


@pages.post("/replication/peers/{peer}/remove", again=show_peer)
async def remove_peer(ask: Ask) -> Response:
    gone = await ask.rest.delete("/replication/peers/{}", ask.path("peer"), force=ask.form.flag("force"))
    return ask.done("/replication", f"peer {gone['name']} may send nothing any more")
