"""Settling registrations that a death, or a hypervisor's silence, left half done (docs/agreement.md).

Threads: one, which looks at the catalog every LOOK_SECONDS and asks a hypervisor only when there is something to settle there.
"""

from __future__ import annotations

import logging
import threading

from blockdev.errors import BlockdevError
from blockdev.hypervisor.registration import Registrations

logger = logging.getLogger(__name__)
LOOK_SECONDS = 20.0


class Settling:
    """Runs from `start`, which settles at once, to `stop`."""

    def __init__(self, registrations: Registrations) -> None:
        self._registrations = registrations
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settling", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """It waits for no hypervisor: what is not settled is settled at the next start."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                for settled in self._registrations.settle():
                    logger.warning("%s", settled)
            except BlockdevError as error:
                logger.warning("registrations could not be settled: %s", error.message)
            except Exception:
                if self._stopping.is_set():
                    return  # the catalog was closed under us
                logger.exception("registrations could not be settled; the next look tries again")
            self._stopping.wait(LOOK_SECONDS)
