"""/events: what happened while nobody was there to be told, such as a schedule that failed (docs/jobs.md)."""

from __future__ import annotations

import asyncio
from typing import Annotated, get_args

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from blockdev.api.pages import Count
from blockdev.api.schemas import WAIT_SECONDS_MAX, Event, EventLevel, EventList
from blockdev.api.services import Services, Wired
from blockdev.clock import monotonic_seconds

router = APIRouter(tags=["events"])
LEVELS: tuple[EventLevel, ...] = get_args(EventLevel)
LOOK_SECONDS = 0.05


@router.get("/events")
async def list_events(
    services: Wired,
    vm: Annotated[str | None, Query(max_length=200, description="of this VM only, by the name that it had then")] = None,
    level: Annotated[EventLevel, Query(description="of this level and worse ones")] = "info",
    kind: Annotated[str | None, Query(max_length=40, description="schedule, job, engine, pool, ...")] = None,
    before: Annotated[int | None, Query(ge=0, lt=1 << 63, description="older than the event of this id")] = None,
    after: Annotated[int | None, Query(ge=0, lt=1 << 63, description="newer than the event of this id, the oldest first")] = None,
    count: Count = 100,
    wait_seconds: Annotated[float, Query(ge=0, le=WAIT_SECONDS_MAX, description="with `after` and no `before`: wait for one to come")] = 0,
) -> EventList:
    """The newest first, with `after` the oldest; the last 10,000 are kept."""

    def find() -> list[Event]:
        found = services.catalog.events(vm, LEVELS[LEVELS.index(level) :], before, count, kind, after)
        return [Event.model_validate(row._asdict()) for row in found]

    await run_in_threadpool(services.recorder.flush)
    seen = services.recorder.done_count
    found = await run_in_threadpool(find)
    waits = after is not None and before is None  # what comes is newer than all that is there
    deadline = monotonic_seconds() + (wait_seconds if waits else 0)
    while not found and await _something_new(services, seen, deadline):
        seen = services.recorder.done_count
        found = await run_in_threadpool(find)
    following = found[-1].id if found and (after is not None or len(found) == count) else after
    return EventList(events=found, next=None if following is None else str(following))


async def _something_new(services: Services, seen: int, deadline: float) -> bool:
    """Whether something was written since; False when the time is over."""
    while services.recorder.done_count == seen:
        if monotonic_seconds() >= deadline:
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return True
