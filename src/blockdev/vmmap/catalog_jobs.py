"""The catalog's jobs: what was asked of the control plane, by whom, and how it ended; the newest JOBS_MAX (docs/jobs.md).

Invariant: a row without `finished` is of a job that runs, or of one whose control plane died.
Threads: any, as database.py.
"""

from __future__ import annotations

from typing import NamedTuple

from blockdev.vmmap.database import Database

JOBS_MAX = 10_000  # kept, and those that have not ended


class JobEnd(NamedTuple):
    """How a job ended; of one that runs the end is still to come."""

    state: str  # a word of api.jobs.JobState
    finished: str | None
    total_bytes: int = 0  # 0: not known, or not a matter of bytes
    done_bytes: int = 0
    result: str | None = None  # JSON
    error_code: str | None = None
    error_message: str | None = None


class JobStart(NamedTuple):
    """What was asked."""

    id: str
    kind: str  # noun.verb, such as snapshot.create
    subject: str  # web, web/root, web@s1, pool
    caller: str
    created: str


class JobRow(NamedTuple):
    """One job."""

    number: int  # rises from each to the next
    start: JobStart
    end: JobEnd

    @classmethod
    def of(cls, number: int, *values: object) -> JobRow:
        """As the table has it."""
        id, kind, subject, caller, state, created, *rest = values
        return cls(number, JobStart(id, kind, subject, caller, created), JobEnd(state, *rest))  # type: ignore[arg-type]


class JobFilter(NamedTuple):
    """Which jobs; None: whichever."""

    state: str | None = None
    kind: str | None = None  # snapshot.create, or snapshot for all that is done with one
    subject: str | None = None  # web is also for web/root and web@s1
    caller: str | None = None


class JobRecords(Database):
    """The rows of `job`."""

    def insert_job(self, start: JobStart, end: JobEnd) -> None:
        """Note a job; of those that have ended the oldest are forgotten."""
        number = self._do(
            "INSERT INTO job (id, kind, subject, caller, created, state, finished, total_bytes, done_bytes, result,"
            " error_code, error_message) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(*start, *end),
        )
        self._do("DELETE FROM job WHERE number <= ? AND finished IS NOT NULL", number - JOBS_MAX)

    def finish_job(self, id: str, end: JobEnd) -> None:
        """Nothing, where its beginning could not be noted."""
        self._do(
            "UPDATE job SET state = ?, finished = ?, total_bytes = ?, done_bytes = ?, result = ?, error_code = ?,"
            " error_message = ? WHERE id = ?",
            *(*end, id),
        )

    def unfinished_jobs(self) -> list[JobRow]:
        """Oldest first."""
        return self._rows(JobRow.of, "SELECT * FROM job WHERE finished IS NULL ORDER BY number")

    def job(self, id: str) -> JobRow | None:
        return self._row(JobRow.of, "SELECT * FROM job WHERE id = ?", id)

    def jobs(self, wanted: JobFilter, before: int | None, count: int) -> list[JobRow]:
        """The newest first, of a lower number than `before`."""
        return self._rows(
            JobRow.of,
            "SELECT * FROM job WHERE number < ?1 AND (?2 IS NULL OR state = ?2)"
            " AND (?3 IS NULL OR kind = ?3 OR substr(kind, 1, length(?3) + 1) = ?3 || '.')"
            " AND (?4 IS NULL OR subject = ?4 OR substr(subject, 1, length(?4) + 1) IN (?4 || '/', ?4 || '@'))"
            " AND (?5 IS NULL OR caller = ?5) ORDER BY number DESC LIMIT ?6",
            *((1 << 63) - 1 if before is None else before, *wanted, count),
        )
