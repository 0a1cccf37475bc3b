"""How much changed since the snapshot before: counted in the background, after a snapshot was taken, the newest first.

Nothing waits for it: the engine counts under no lock that a guest or a change takes, and the catalog is written once for
many.  A count is against the next older snapshot that is there when it is made; once made it stays, whatever goes.
Threads: one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError, NotFound, Unavailable
from blockdev.vmmap.catalog import Catalog

logger = logging.getLogger(__name__)
COUNTED_AT_ONCE = 200  # written in one transaction


class ChangeCounter:
    """Fills in what the catalog does not know yet."""

    def __init__(self, catalog: Catalog, engine: EngineClient) -> None:
        self._catalog = catalog
        self._engine = engine
        self._hopeless: set[int] = set()  # the pool lacks a disk of them, or cannot read it: not tried again by this process

    def newest_uncounted(self) -> int | None:
        """The id of the next one; another one while snapshots are being taken."""
        return next(iter(self._catalog.uncounted_snapshots(1, self._hopeless)), None)

    def count_some(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Count up to COUNTED_AT_ONCE of them; how many there were.  Unavailable; PoolFull: the file system is."""
        waiting = self._catalog.uncounted_snapshots(COUNTED_AT_ONCE, self._hopeless)
        counted = [(id, changed) for id in waiting if not stopped() and (changed := self._count(id)) is not None]
        if counted:
            with self._catalog.transaction(grows=True):
                for id, changed in counted:
                    self._catalog.set_changed_bytes(id, changed)
        return len(counted)

    def _count(self, snapshot_id: int) -> int | None:
        """None: it or the one before went meanwhile, or it cannot be counted."""
        with self._catalog.transaction():
            row = self._catalog.snapshot_by_id(snapshot_id)
            if row is None:
                return None
            before = self._catalog.snapshot_before(row.vm_id, row.lsn)
            disks = self._catalog.snapshot_disks(row.id)
            older = {one.name: one.object_id for one in self._catalog.snapshot_disks(before.id)} if before else {}
        pairs = [(older.get(one.name), one.object_id) for one in disks]
        if any(newer is None for _older, newer in pairs) or any(id is None for id in older.values()):
            self._hopeless.add(snapshot_id)
            return None
        try:
            return sum(self._engine.count_changes(old, new)[0] for old, new in pairs if new is not None)
        except NotFound:  # deleted between the two looks: the next one finds another before it
            return None
        except Unavailable:
            raise
        except BlockdevError as error:
            logger.warning("what changed at snapshot %s could not be counted: %s", row.name, error.message)
            self._hopeless.add(snapshot_id)
            return None
