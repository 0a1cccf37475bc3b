"""Where snapshots lie in time, as numbers for a drawing: the newest at the right, the past squeezed towards the left.

A day of hourly snapshots and a year of weekly ones are to be seen together, so the place of a snapshot goes with the
logarithm of its age.
"""

from __future__ import annotations

import math
from typing import Any

from blockdev.clock import now_seconds
from blockdev.web.rendering import seconds_of

WIDTH, HEIGHT, EDGE = 1000, 56, 10
UNIT_SECONDS = 600  # ages below it are nearly linear
MARKS = ((3600, "1 h"), (6 * 3600, "6 h"), (86400, "1 d"), (7 * 86400, "1 w"), (30 * 86400, "1 mo"), (365 * 86400, "1 y"), (5 * 365 * 86400, "5 y"))
RADIUS_MIN, RADIUS_MAX = 3.5, 10.0


def timeline(snapshots: list[dict[str, Any]]) -> dict[str, Any]:
    """Dots (larger: more changed) and marks, in a box of WIDTH x HEIGHT."""
    now = now_seconds()
    ages = {one["name"]: max(now - seconds_of(one["created"]), 0) for one in snapshots}
    oldest = max([*ages.values(), 3600])
    most = max([one["changed_bytes"] or 0 for one in snapshots], default=0) or 1
    dots = [
        {
            "x": round(_place(ages[one["name"]], oldest), 1),
            "y": HEIGHT / 2 - 4,
            "r": round(max(RADIUS_MIN, RADIUS_MAX * math.sqrt((one["changed_bytes"] or 0) / most)), 1),
            "snapshot": one,
        }
        for one in snapshots
    ]
    marks = [{"x": round(_place(age, oldest), 1), "words": words} for age, words in MARKS if age < oldest]
    return {"dots": dots, "marks": marks, "width": WIDTH, "height": HEIGHT}


def _place(age: float, oldest: float) -> float:
    share = math.log1p(age / UNIT_SECONDS) / math.log1p(oldest / UNIT_SECONDS)
    return EDGE + (WIDTH - 2 * EDGE) * (1 - share)
