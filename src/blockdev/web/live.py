"""What happens, as it happens: one stream of server-sent events for all open pages of a session in a browser.

    event: events   data: an event of the API
    event: jobs     data: the jobs that changed, a list

The page's script makes DOM events of them, `live:events` and `live:jobs` on the body, which parts of pages wait for:
hx-trigger="live:jobs from:body".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError
from blockdev.web.ask import Ask, Pages, cookie_of, sessions_of
from blockdev.web.rest import SignedOut

pages = Pages()
LOOK_SECONDS = 1.0
JOBS_LOOKED_AT = 30
SILENCE_SECONDS_MAX = 15.0  # then a comment is sent, so that who has gone is noticed
STREAMS_MAX = 64  # each is a connection: others must get through, too (api.servers)
RETRY_MS = 3000


class Ending:
    """Tells streams that the process ends."""

    def __init__(self) -> None:
        self.open_count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None

    def watched(self) -> asyncio.Event:
        """Set when it ends; called by the event loop."""
        if self._ended is None:
            self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        return self._ended

    def begin(self) -> None:
        """From a signal's handler."""
        if self._loop is not None and self._ended is not None:
            self._loop.call_soon_threadsafe(self._ended.set)


@pages.get("/live")
async def stream(ask: Ask) -> Response:
    """The stream, from after the event that the browser, or another of its pages, saw last; 503 when there are too many."""
    ending: Ending = ask.request.app.state.ending
    if ending.open_count >= STREAMS_MAX:
        return Response(status_code=503, headers={"Retry-After": "30"})
    seen = ask.request.headers.get("last-event-id", "") or ask.query("after")
    newest = await ask.rest.get("/events", count=1)
    after = int(seen) if seen.isdecimal() and len(seen) < 18 else max((one["id"] for one in newest["events"]), default=0)
    jobs = await _jobs(ask)  # before the browser is told that it listens
    return StreamingResponse(_messages(ask, ending, after, jobs), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _messages(ask: Ask, ending: Ending, after: int, jobs: dict[str, Any]) -> AsyncIterator[str]:
    ended, spoke = ending.watched(), monotonic_seconds()
    ending.open_count += 1
    try:
        yield f"retry: {RETRY_MS}\n\n"
        while not ended.is_set() and sessions_of(ask.request).is_there(cookie_of(ask.request)):
            try:
                events = (await ask.rest.get("/events", after=after))["events"]
                now = await _jobs(ask)
            except SignedOut:
                return
            except BlockdevError:  # the catalog is busy, say: the next look tells
                events, now = [], jobs
            for event in events:
                after = event["id"]
                yield _message("events", event, after)
            changed = [job for id, job in now.items() if jobs.get(id) != job]
            jobs = now
            if changed:
                yield _message("jobs", changed, after)
            if events or changed:
                spoke = monotonic_seconds()
            elif monotonic_seconds() - spoke > SILENCE_SECONDS_MAX:
                spoke = monotonic_seconds()
                yield ": still here\n\n"
            await _sleep(ended)
    finally:
        ending.open_count -= 1


async def _jobs(ask: Ask) -> dict[str, Any]:
    fields = ("id", "kind", "subject", "caller", "state", "fraction", "done_bytes", "total_bytes", "error")
    found = await ask.rest.get("/jobs", count=JOBS_LOOKED_AT)
    return {job["id"]: {field: job[field] for field in fields} for job in found["jobs"]}


def _message(event: str, data: Any, id: int) -> str:
    return f"id: {id}\nevent: {event}\ndata: {json.dumps(data)}\n\n"


async def _sleep(ended: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            await ended.wait()
    except TimeoutError:
        return
