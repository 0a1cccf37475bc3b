"""Notes what was asked of the control plane, whatever the route: every request but those that read, as a job of the history.

A route says nothing for it: the job's kind comes from the route's name (`create_snapshot`: snapshot.create), its subject from the
path, its result from a few fields of the answer.  Not noted: a body or query of the wrong shape (422), an address or method that
nobody knows, and what the route started as a long job (202), which is in the history by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockdev.api.history import Operation
from blockdev.api.jobs import CALLER, OWNER
from blockdev.api.services import Services
from blockdev.clock import now_seconds
from blockdev.errors import BlockdevError, Locked
from blockdev.vmmap.events import Events

READING = ("GET", "HEAD", "OPTIONS")
UNNOTED_ROUTES = ("cancel_job",)  # the job says it
UNNOTED_STATUSES = (202, 405, 422)
BODY_BYTES_MAX = 1 << 20  # of an answer, to take a result from; 500 clones have a third of it
REQUEST_BYTES_MAX = 1 << 16  # to take a name from
NAMES_MAX = 20
# where the rule gives no good word
KINDS = {
    "set_config": "vm.config",
    "discover_one": "hypervisor.discover",
    "discover_all": "hypervisor.discover",
    "change_schedule_settings": "schedule.cap",
    "replicate_vm": "replicate.now",
    "clone_vm_there": "replicate.clone",
    **{f"{verb}_vm": f"replicate.{verb}" for verb in ("protect", "unprotect", "pause", "resume", "promote", "reverse", "receive")},
}
MAKING = ("create", "add", "import")
SEPARATORS = {"snapshot": "@", "disk": "/"}
# of an answer, what history keeps; nothing else gets in, so that no secret does
KEPT = ("vm", "name", "uuid", "snapshot", "safety_snapshot", "consistency", "frozen_ms", "expires", "locked_until", "size_bytes", "path", "peer")
KEPT_LISTS = ("vms", "disks", "schedules", "paths")  # by the names of what is in them
# what somebody who was not there wants to be told of
TOLD = {"vm.delete": "was deleted", "vm.restore": "was restored", "disk.remove": "was removed"}


class Recording:
    """ASGI middleware, behind the Guard, which says who asks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        token = CALLER.set(lambda: caller_of(scope))
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            exchange.failed(error)
            raise
        finally:
            CALLER.reset(token)
            exchange.note()


def caller_of(scope: Scope) -> str:
    return str(getattr(scope.get("state", {}).get("caller"), "name", OWNER))


class _Exchange:
    """One request and what was answered, as it goes by."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._began = now_seconds()
        self._status = 0
        self._asked = b""
        self._answer = b""
        self._is_noted = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and len(self._asked) < REQUEST_BYTES_MAX:
            self._asked += message.get("body", b"")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message["type"] == "http.response.body" and len(self._answer) < BODY_BYTES_MAX:
            self._answer += message.get("body", b"")
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.note()  # whoever has the answer finds it in the history
        await self._send(message)

    def failed(self, error: Exception) -> None:
        """By a bug: what is answered is made further out."""
        self._status = 500
        told = {"code": BlockdevError.code, "message": f"internal error: {type(error).__name__}: {error}"}
        self._answer = json.dumps({"error": told}).encode()

    def note(self) -> None:
        """Once; what it costs is the recorder's thread's."""
        name = getattr(self._scope.get("route"), "name", "")
        if self._is_noted or not name or name in UNNOTED_ROUTES or self._status in (0, *UNNOTED_STATUSES):
            return
        self._is_noted = True
        services = self._scope["app"].state.services
        assert isinstance(services, Services)
        caller, ended = caller_of(self._scope), now_seconds()
        services.history.note_later(lambda: self._done(name, caller, ended, services.events))

    def _done(self, route: str, caller: str, ended: float, events: Events) -> Operation:
        answer, asked = _document(self._answer), _document(self._asked)
        error = None
        if self._status >= 400:
            error = answer.get("error") or {"code": BlockdevError.code, "message": f"answered with status {self._status}"}
        path: dict[str, str] = self._scope.get("path_params", {})
        kind = kind_of(route)
        subject = subject_of(kind, path, answer if error is None else asked)
        result = None if error else kept(answer) | kept_of_question(asked)
        done = Operation(kind, subject, caller, self._began, ended, result, error)
        _tell(done, path.get("vm"), events)
        return done


def _tell(done: Operation, vm: str | None, events: Events) -> None:
    """The event that an operation is, if it is one."""
    if done.error is None:
        events.end("snapshot", vm, of=done.subject)
        if done.kind in TOLD and "beside" not in done.result:
            kept_as = f" to {done.result['snapshot']}" if "snapshot" in done.result else ""
            safety = done.result.get("safety_snapshot")
            before = f"; its state before is in {vm}@{safety}" if safety else ""
            what = "VM" if done.subject == vm else "disk"
            events.note("info", "vm", vm, f"{what} {done.subject} {TOLD[done.kind]}{kept_as} by {done.caller}{before}")
    elif done.error["code"] == Locked.code:
        message = f"{done.kind} of {done.subject} by {done.caller} was refused: {done.error['message']}"
        events.begin("warning", "snapshot", vm, message, of=done.subject)


def _document(body: bytes) -> Mapping[str, Any]:
    """An object of JSON, or an empty one."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def kind_of(route: str) -> str:
    """noun.verb of the name of a route's function: verb_noun, or verb_of-what_noun."""
    verb, _, rest = route.partition("_")
    return KINDS.get(route) or f"{rest.rpartition('_')[2].removesuffix('s') or 'operation'}.{verb}"


def subject_of(kind: str, path: Mapping[str, str], told: Mapping[str, Any]) -> str:
    """web, web/root, web@s1; what was made is named by the answer, or by who asked for it."""
    noun, _, verb = kind.partition(".")
    made = told.get("name") if verb in MAKING else None
    if "vm" in path:
        subject = path["vm"]
        for part, separator in (("disk", "/"), ("snapshot", "@")):
            if part in path:
                subject += separator + path[part]
        if isinstance(made, str) and noun in SEPARATORS and noun not in path:
            subject += SEPARATORS[noun] + made
        return subject
    if path:
        return "/".join(path.values())
    return made if isinstance(made, str) else noun


def kept_of_question(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A restore beside what is there: the name that it was given."""
    return {"beside": asked["beside"]} if isinstance(asked.get("beside"), str) else {}


def kept(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What history keeps of an answer."""
    found = {field: answer[field] for field in KEPT if isinstance(answer.get(field), str | int)}
    for field in KEPT_LISTS:
        if isinstance(answer.get(field), list):
            names = [one.get("name") if isinstance(one, dict) else one for one in answer[field]]
            found[field] = names[:NAMES_MAX]
            if len(names) > NAMES_MAX:
                found["count"] = len(names)
    return found
