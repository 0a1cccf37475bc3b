"""What else than NBD clients has the disks of VMs: iSCSI targets, whose devices are attached to the engine by themselves.

An operation that is refused while clients are attached asks here first, so that a device which nobody uses is no client.
The base class is of a home that offers nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Offers:
    """Nothing is offered."""

    @contextmanager
    def letting_go(self, object_ids: Collection[int], force: bool, disconnect: bool = False) -> Iterator[list[str]]:
        """While nobody but NBD clients has these objects; the initiators that were cut off for it.

        Busy: somebody uses one, unless forced.  disconnect: whoever uses one loses its whole session, not that LUN alone.
        """
        yield []

    def has_only_devices(self, object_ids: Collection[int]) -> bool:
        """Whether all that is attached to these objects are devices of targets, which live on under another name."""
        return False

    def changed(self) -> None:
        """A VM may have changed.  Never raises, never waits."""
