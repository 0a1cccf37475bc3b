"""The one place that reads the clock, so that tests and simulations can be told another time."""

from __future__ import annotations

import time


def now_seconds() -> float:
    """Wall time, seconds since 1970, UTC: for what people read; it may jump."""
    return time.time()


def monotonic_seconds() -> float:
    """For deadlines and durations; never jumps, means nothing across a restart."""
    return time.monotonic()


def thread_cpu_seconds() -> float:
    """What the calling thread has used of a processor: for the cost of work, which waiting does not add to."""
    return time.thread_time()
