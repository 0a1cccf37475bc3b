"""Jobs and events: what runs, what ended and how, what happened while nobody was there to be told."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from blockdev.web.ask import Ask, Pages

pages = Pages()
JOBS_COUNT, EVENTS_COUNT = 30, 50
UNDER_WAY_MAX = 50
STATES = ("queued", "running", "done", "failed", "cancelled", "interrupted")
KINDS = {"done": "good", "failed": "bad", "interrupted": "bad", "cancelled": "warn"}
OUTCOME_KINDS = {"registered": "good", "started": "good", "failed": "bad", "cancelled": "warn"}
LEVELS = ("info", "warning", "error")
LEVEL_KINDS = {"warning": "warn", "error": "bad"}


@pages.get("/activity")
async def show_activity(ask: Ask) -> Response:
    """What is under way, jobs and events; all three follow what happens."""
    return ask.show("activity.html", states=STATES, levels=LEVELS, **await _under_way(ask), **await _jobs(ask), **await _events(ask))


@pages.get("/activity/running")
async def show_under_way(ask: Ask) -> Response:
    """A part: jobs that run, with their progress."""
    return ask.part("jobs_running.html", **await _under_way(ask))


async def _under_way(ask: Ask) -> dict[str, Any]:
    vm = ask.query("vm") or None
    running = await ask.rest.get("/jobs", state="running", subject=vm, count=UNDER_WAY_MAX)
    queued = await ask.rest.get("/jobs", state="queued", subject=vm, count=UNDER_WAY_MAX)
    return {"running": running["jobs"] + queued["jobs"]}


@pages.get("/activity/jobs")
async def show_jobs(ask: Ask) -> Response:
    """A part: jobs as the address asks for them, the newest first."""
    return ask.part("jobs.html", **await _jobs(ask))


async def _jobs(ask: Ask) -> dict[str, Any]:
    asked = {name: ask.query(name) or None for name in ("state", "kind", "caller")}
    vm, after = ask.query("vm") or None, ask.query("jobs_after") or None
    found = await ask.rest.get("/jobs", **asked, subject=vm, after=after, count=JOBS_COUNT)
    return {"jobs": found["jobs"], "jobs_after": found["next"], "kinds": KINDS}


@pages.get("/activity/jobs/{job}")
async def show_job(ask: Ask) -> Response:
    """One job: its progress, then what came of it; of VMs that a hypervisor was told of, what came of each."""
    return ask.show("job.html", **await _one_job(ask))


@pages.get("/activity/jobs/{job}/state")
async def show_job_state(ask: Ask) -> Response:
    """A part: the same."""
    return ask.part("job_state.html", **await _one_job(ask))


async def _one_job(ask: Ask) -> dict[str, Any]:
    job = await ask.rest.get("/jobs/{}", ask.path("job"))
    result = job["result"] if isinstance(job["result"], dict) else {}
    outcomes = result.get("registrations") or []
    failed = sum(one["state"] == "failed" for one in outcomes)
    return {"job": job, "outcomes": outcomes, "failed": failed, "kinds": KINDS, "outcome_kinds": OUTCOME_KINDS, "is_over": job["state"] not in STATES[:2]}


@pages.get("/activity/events")
async def show_events(ask: Ask) -> Response:
    """A part: events as the address asks for them, the newest first."""
    return ask.part("events.html", **await _events(ask))


async def _events(ask: Ask) -> dict[str, Any]:
    level = ask.query("level") or "info"
    found = await ask.rest.get("/events", vm=ask.query("vm") or None, level=level, before=ask.query("events_before") or None, count=EVENTS_COUNT)
    return {"events": found["events"], "events_before": found["next"], "level_kinds": LEVEL_KINDS}


@pages.post("/activity/jobs/{job}/cancel")
async def cancel_job(ask: Ask) -> Response:
    """What it did is taken back."""
    found = await ask.rest.delete("/jobs/{}", ask.path("job"))
    words = "is asked to stop" if found["state"] in ("queued", "running", "cancelled") else f"had ended: {found['state']}"
    return ask.done("/activity", f"job {found['id']} ({found['kind']} of {found['subject']}) {words}")
