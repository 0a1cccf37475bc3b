"""Who waits for whom when the processors are all in use: guests for nobody."""

from __future__ import annotations

import os

NICENESS = 10


def give_way_to_guests() -> None:
    """The calling thread works when no guest's request does.  It stays so: only root could take it back."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)  # of this thread, on Linux
