"""The replication of one home, for the REST layer: peers, paths, protections, status, and the work of a disaster.

Threads: every method may be called from any thread.  Durable: whatever a method returned.
"""

from __future__ import annotations

from blockdev.replicate.disaster import DisasterOperations
from blockdev.replicate.paths import PathOperations
from blockdev.replicate.peers import PeerOperations
from blockdev.replicate.protections import ProtectionOperations
from blockdev.replicate.status import StatusOperations


class Replication(PeerOperations, PathOperations, ProtectionOperations, StatusOperations, DisasterOperations):
    """One home's replication, both ways."""

    def start(self) -> None:
        """Listen for peers, and send what is to be sent."""
        raise NotImplementedError

    def stop(self) -> None:
        """End what is under way, which goes on from there after the next start; at most STOP_SECONDS_MAX."""
        raise NotImplementedError
