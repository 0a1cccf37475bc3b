"""When the other site is needed: promote, reverse, receive; and VMs that are made at the other end."""

from __future__ import annotations

from blockdev.replicate.model import Demoted, MadeThere, Promoted, Watcher
from blockdev.replicate.parts import Parts


class DisasterOperations(Parts):
    """The operations of the day when it counts, and of the tests before."""

    def promote(self, vm: str, snapshot: str | None = None) -> Promoted:
        """A received VM goes on by itself, from its newest snapshot or the named one; its peer is refused from then on.

        NotFound; Busy: it is not received, or promoted already; PoolFull.
        """
        raise NotImplementedError

    def receive(self, vm: str, peer: str, force: bool = False) -> Demoted:
        """A VM of this home is received from a peer from now on: adopt a seed that was imported, or go back to be the other end.

        What its disks hold beyond its newest snapshot is kept in a safety snapshot.  Forced, attached clients are cut off.
        NotFound; Busy: clients are attached, or it is protected.
        """
        raise NotImplementedError

    def reverse(self, vm: str, force: bool = False) -> Demoted:
        """On the former source, when the other end has promoted the VM: it is received here from now on, and sent from there.

        Only what differs moves.  NotFound: it is not protected; Busy: it is not promoted there, there is no path back
        (the message says what to run there), or clients are attached, unless forced; Unavailable.
        """
        raise NotImplementedError

    def clone_there(self, vm: str, snapshot: str | None, path: str, name: str) -> MadeThere:
        """A new VM at the other end, from a snapshot that it received (None: the newest one that it has).

        NotFound: it does not have it; AlreadyExists: there is a VM of that name there; NotAllowed; Unavailable.
        """
        raise NotImplementedError

    def copy(self, vm: str, snapshot: str | None, path: str, name: str, watcher: Watcher) -> MadeThere:
        """A copy of a VM at the other end, on its own from the beginning; without a snapshot one is taken.

        It goes on where it was when it was cut, for as long as it is waited for.  Cancelled; NotFound; AlreadyExists;
        NotAllowed; PoolFull: the other end's; Unavailable.
        """
        raise NotImplementedError
