"""The pool: space that adds up, what it saves, compaction, scrub, health, and how data is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.responses import JSONResponse, Response

from blockdev.errors import InvalidArgument
from blockdev.policies import COMPRESSIONS, DEDUPS
from blockdev.web.ask import Ask, Pages
from blockdev.web.vm_page import POINTS, number_asked

pages = Pages()
BAR_WIDTH = 1000  # of a bar that stands for all of something
VMS_MAX = 200  # rows of the table of what VMs take, the largest first
WORK = {"check": "a check", "scrub": "a scrub", "compact": "a compaction"}
SPACE_PARTS = ("stored_bytes", "metadata_bytes", "reclaimable_bytes")


class Part(NamedTuple):
    """A stretch of a bar."""

    kind: str
    words: str
    size_bytes: int
    x: float
    width: float


@pages.get("/pool")
async def show_pool(ask: Ask) -> Response:
    """Both planes and what the pool is like; what has to be counted comes later, as a part."""
    return ask.show("pool.html", **await _health(ask), compressions=COMPRESSIONS, dedups=DEDUPS)


@pages.get("/pool/health")
async def show_health(ask: Ask) -> Response:
    """What changes by itself."""
    return ask.part("pool_health.html", **await _health(ask))


@pages.get("/pool/space")
async def show_space(ask: Ask) -> Response:
    """All maps are read for it: seconds on a large pool."""
    space = await ask.rest.get("/pool/usage")
    pool, vms = space["pool"], sorted(space["vms"], key=lambda vm: (-vm["unique_stored_bytes"], vm["vm"]))
    words = ("stored data", "metadata", "reclaimable")
    parts = [(name.removesuffix("_bytes"), word, pool[name]) for name, word in zip(SPACE_PARTS, words, strict=True)]
    bar = _bar([*parts, ("free", "free", max(pool["capacity_bytes"] - pool["used_bytes"], 0))])
    return ask.part("pool_space.html", pool=pool, vms=vms[:VMS_MAX], more=len(vms[VMS_MAX:]), bar=bar, width=BAR_WIDTH)


@pages.get("/pool/series")
async def show_series(ask: Ask) -> Response:
    """What graphs show of all VMs together, for the script."""
    since, until = number_asked(ask, "since", -3600), number_asked(ask, "until", 0)
    return JSONResponse(await ask.rest.get("/pool/statistics", since=since, until=until, points=POINTS))


@pages.post("/pool", again=show_pool)
async def change_pool(ask: Ask) -> Response:
    """The capacity, and how data is kept."""
    given = {
        "capacity_bytes": ask.form.size("capacity"),
        "compression": ask.form.get("compression"),
        "compression_level": ask.form.whole("level", "the level"),
        "dedup": ask.form.get("dedup"),
        "compaction_rate_bytes": _compaction_rate(ask),
    }
    before = (await ask.rest.get("/status"))["engine"]
    known = {"capacity_bytes": before.get("capacity_bytes"), **before.get("policy", {})}
    if given["capacity_bytes"] is not None and _is_shown_as(ask, known["capacity_bytes"]):
        given["capacity_bytes"] = None  # it was left as it was shown, rounded
    body = {name: value for name, value in given.items() if value is not None and value != known.get(name)}
    if body:
        await ask.rest.patch("/pool", body=body)
    return ask.done("/pool", "the pool is changed" if body else "nothing was to be changed")


@pages.post("/pool/work")
async def start_work(ask: Ask) -> Response:
    """A check, a scrub or a compaction; one that runs is joined."""
    kind = ask.form.need("kind", "what to start")
    if kind not in WORK:
        raise InvalidArgument("start a check, a scrub or a compaction")
    rate_bytes = ask.form.size("read_rate")
    job = await ask.rest.post(f"/pool/{kind}", body={"rate_bytes": rate_bytes})
    return ask.done("/pool", f"{WORK[kind]} is under way, job {job['id']}")


async def _health(ask: Ask) -> dict[str, Any]:
    status = await ask.rest.get("/status")
    engine = status["engine"]
    if not status["engine_running"]:
        return {"status": status, "engine": engine, "level": "bad", "level_words": "the engine is away"}
    level, words = _level(status)
    return {"status": status, "engine": engine, "level": level, "level_words": words}


def _level(status: dict[str, Any]) -> tuple[str, str]:
    """How well the pool is, in one word for the eye and a few for the reader."""
    stats, known = status["engine"]["stats"], status["inspections"]
    if stats["poisoned"]:
        return "bad", "a write to the log failed: writes are refused until serve is started again"
    if stats["checksum_errors_since_scrub"] or (known and (known["findings"] or known["more_findings"])):
        return "bad", "damage is known"
    if stats["level"] == "critical":
        return "bad", "critically full"
    if stats["level"] == "warning":
        return "warn", "filling up"
    return "good", "sound, with room"


def _bar(parts: list[tuple[str, str, int]]) -> list[Part]:
    """Side by side, as wide as they are large; what is there at all can be seen."""
    total = max(sum(size_bytes for _, _, size_bytes in parts), 1)
    found, x = [], 0.0
    for kind, words, size_bytes in parts:
        width = BAR_WIDTH * size_bytes / total
        found.append(Part(kind, words, size_bytes, round(x, 2), round(max(width, 2.0 if size_bytes else 0.0), 2)))
        x += width
    return found


def _compaction_rate(ask: Ask) -> int | None:
    """0: the pool's choice."""
    text = ask.form.get("rate")
    return 0 if text is not None and text.lower() == "auto" else ask.form.size("rate")


def _is_shown_as(ask: Ask, capacity_bytes: int | None) -> bool:
    return ask.form.get("capacity") == ask.form.get("capacity_shown") and capacity_bytes is not None
