"""A check or scrub in this process, of a pool that nobody serves."""

from __future__ import annotations

from typing import Any

from blockdev import offline
from blockdev.cli.progress import display
from blockdev.cli.session import Session
from blockdev.engine.protocol import EngineFinding
from blockdev.findings import InspectionKind
from blockdev.vmmap.views import view_finding


def inspect(
    session: Session, kind: InspectionKind, rate_bytes: int | None, pool_path: str | None, title: str
) -> dict[str, Any]:
    """The same document as the job of a served pool has.  Ctrl-C ends it: it changes nothing."""
    path = pool_path or str(session.home.pool)
    with display(title, quiet=session.json) as shown:

        def show(done_bytes: int, total_bytes: int, state: str = "running") -> None:
            fraction = done_bytes / max(total_bytes, 1)
            shown.show({"state": state, "done_bytes": done_bytes, "total_bytes": total_bytes, "fraction": fraction})

        report = offline.inspect(path, kind, rate_bytes, show)
        show(report.done_bytes, report.done_bytes, "done")
    rows = [EngineFinding(f.object_id, f.name, f.offset, f.length, f.what) for f in report.findings]
    return {
        "findings": [view_finding(row).to_json() for row in rows],
        "more_findings": report.dropped,
        "healed": [],
        "read_bytes": report.done_bytes,
    }
