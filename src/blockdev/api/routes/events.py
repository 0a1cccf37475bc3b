"""/events: what happened while nobody was there to be told, such as a schedule that failed."""

from __future__ import annotations

from typing import Annotated, get_args

from fastapi import APIRouter, Query

from blockdev.api.schemas import EVENTS_COUNT_MAX, Event, EventLevel, EventList
from blockdev.api.services import Wired

router = APIRouter(tags=["events"])
LEVELS: tuple[EventLevel, ...] = get_args(EventLevel)


@router.get("/events")
def list_events(
    services: Wired,
    vm: Annotated[str | None, Query(description="of this VM only, by the name that it had then")] = None,
    level: Annotated[EventLevel, Query(description="of this level and worse ones")] = "info",
    before: Annotated[int | None, Query(ge=0, lt=1 << 63, description="older than the event of this id")] = None,
    count: Annotated[int, Query(ge=1, le=EVENTS_COUNT_MAX)] = 100,
) -> EventList:
    """The newest first; the last 10,000 are kept."""
    found = services.catalog.events(vm, LEVELS[LEVELS.index(level) :], before, count)
    return EventList(events=[Event.model_validate(row._asdict()) for row in found])
