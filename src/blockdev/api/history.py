"""The history of jobs: what was asked, by whom, how it ended (docs/jobs.md).  Short operations are noted at their end, long ones
at their beginning, too, so that one whose control plane died is known to have been interrupted.

Best effort: noting never fails or delays what is noted (vmmap/recorder.py).  What results keep is chosen field by field: no secret
gets in that way.  Threads: any.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from blockdev.api.jobs import Job
from blockdev.errors import Unavailable
from blockdev.schedule.runner import RoundEnded
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_jobs import JobEnd, JobStart
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.events import Events, printable
from blockdev.vmmap.recorder import Recorder

SUBJECT_CHARACTERS_MAX = 200
MESSAGE_CHARACTERS_MAX = 1000
TEXT_CHARACTERS_MAX = 200  # of one text in a result
ITEMS_MAX = 20  # of one list in it
FIELDS_MAX = 40  # of one object in it
DEPTH_MAX = 4
RESULT_CHARACTERS_MAX = 8192
ALL_VMS = "all VMs"  # the subject of a round of schedules
INTERRUPTED = "the control plane ended in the middle: what was half done was taken back or is finished by itself, what was not begun is not done"
UNKEPT = frozenset({"config", "token", "password", "secret", "key", "user_data"})  # opaque or secret
WITHOUT_VM = ("pool", ALL_VMS)
SCHEDULES = "schedules"  # the caller of what they take


class Operation(NamedTuple):
    """A short operation that has ended, or a long one that could not begin.  Times are seconds since 1970."""

    kind: str
    subject: str
    caller: str
    began: float
    ended: float
    result: Any
    error: dict[str, str] | None  # its code and message; None: it was done


class History:
    """Of one catalog."""

    def __init__(self, recorder: Recorder, events: Events, clock: Clock) -> None:
        self._recorder = recorder
        self._events = events
        self._clock = clock

    def note_interrupted(self, catalog: Catalog) -> None:
        """Before anything is begun: what has no end was running when an earlier control plane died."""
        for row in catalog.unfinished_jobs():
            end = JobEnd("interrupted", to_text(self._clock()), error_code=Unavailable.code, error_message=INTERRUPTED)
            self._recorder.put(partial(_finish, row.start.id, end), grows=False)
            told = f"{row.start.kind} of {row.start.subject} was interrupted: {INTERRUPTED}"
            self._events.note("warning", "job", _vm_of(row.start.subject), told)

    def began(self, job: Job) -> None:
        """A long job; called once."""
        start = _start(job.id, job.kind, job.subject, job.caller, job.created_at)
        end = JobEnd("running", None)
        self._recorder.put(lambda catalog: catalog.insert_job(start, end), at_once=True)

    def ended(self, job: Job) -> None:
        with job.lock:
            end = _end(job.state, job.finished_at or self._clock(), job.result, job.error)
            end = end._replace(total_bytes=job.total_bytes, done_bytes=job.done_bytes)
        self._recorder.put(partial(_finish, job.id, end), grows=False, at_once=True)
        if job.state == "failed" and job.error is not None:
            message = f"{job.kind} of {job.subject} failed: {job.error['message']}"
            self._events.note("error", "job", _vm_of(job.subject), message)

    def note_later(self, make: Callable[[], Operation]) -> None:
        """`make` is called by the recorder."""
        self._recorder.put(lambda catalog: _insert(catalog, make()))

    def note_round(self, ended: RoundEnded) -> None:
        """A round of schedules that did something."""
        error = None if ended.error is None else {"code": ended.error.code, "message": ended.error.message}
        done = Operation("schedule.round", ALL_VMS, SCHEDULES, ended.began, self._clock(), ended.done._asdict(), error)
        self.note_later(lambda: done)


def _finish(id: str, end: JobEnd, catalog: Catalog) -> None:
    catalog.finish_job(id, end)


def _insert(catalog: Catalog, done: Operation) -> None:
    start = _start(secrets.token_hex(8), done.kind, done.subject, done.caller, done.began)
    catalog.insert_job(start, _end("failed" if done.error else "done", done.ended, done.result, done.error))


def _start(id: str, kind: str, subject: str, caller: str, began: float) -> JobStart:
    return JobStart(id, kind, printable(subject, SUBJECT_CHARACTERS_MAX), printable(caller, SUBJECT_CHARACTERS_MAX), to_text(began))


def _end(state: str, finished: float, result: Any, error: dict[str, str] | None) -> JobEnd:
    kept = None if result is None else bounded(result)
    code, message = (error["code"], printable(error["message"], MESSAGE_CHARACTERS_MAX)) if error else (None, None)
    return JobEnd(state, to_text(finished), result=kept, error_code=code, error_message=message)


def bounded(result: Any) -> str:
    """The JSON of a result as far as history keeps it; `shortened` says that it is not all of it."""
    fields = result if isinstance(result, dict) else {"value": result}
    kept = {name: _cut(value, 1) for name, value in list(fields.items())[:FIELDS_MAX] if name not in UNKEPT}
    text = json.dumps(kept, default=str)
    if len(text) > RESULT_CHARACTERS_MAX:
        kept = {name: value for name, value in kept.items() if not isinstance(value, dict | list)}
    if kept != {name: value for name, value in fields.items() if name not in UNKEPT}:
        text = json.dumps({**kept, "shortened": True}, default=str)
    return text


def _cut(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return printable(value, TEXT_CHARACTERS_MAX)
    if isinstance(value, dict):
        fields = list(value.items())[: FIELDS_MAX if depth < DEPTH_MAX else 0]
        return {name: _cut(one, depth + 1) for name, one in fields if name not in UNKEPT}
    if isinstance(value, list | tuple):
        return [_cut(one, depth + 1) for one in list(value)[: ITEMS_MAX if depth < DEPTH_MAX else 0]]
    return value


def _vm_of(subject: str) -> str | None:
    """The VM that a subject is of: web of web/root; none of pool."""
    vm = subject.partition("/")[0].partition("@")[0]
    return None if vm in ("", *WITHOUT_VM) else vm  # a subject may be the path of a file
