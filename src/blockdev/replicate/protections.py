"""Which VMs are replicated over which paths, and on what terms."""

from __future__ import annotations

from blockdev.constants import DURATION_SECONDS_MAX, KEEP_SECONDS_MIN
from blockdev.errors import AlreadyExists, Busy, InvalidArgument
from blockdev.replicate.model import Protection, Queued
from blockdev.replicate.parts import Parts
from blockdev.vmmap.catalog import VMRow
from blockdev.vmmap.catalog_replication import PathRow, ProtectionRow
from blockdev.vmmap.holds import Rules
from blockdev.vmmap.model import Terms
from blockdev.vmmap.names import is_unfinished

RPO_SECONDS_MIN, RPO_SECONDS_MAX = 1, 10 * 366 * 86400


class ProtectionOperations(Parts):
    """The operations on protections."""

    def protect(self, vm: str, path: str, rpo_seconds: int | None = None, keep_seconds: int | None = None) -> Protection:
        """Replicate a VM's snapshots over a path from the newest one on that is to be; one is taken if it has none.  Again: with other terms.

        rpo_seconds: how old the newest snapshot that is not there may become before it is an alert; None: never.
        keep_seconds: how long the other end keeps snapshots that no schedule took; None: until somebody deletes them.
        InvalidArgument, also for a VM without disks; NotFound; Busy: it is received itself;
        AlreadyExists: it goes to that home over another path.
        """
        check_seconds("an RPO", rpo_seconds, RPO_SECONDS_MIN, RPO_SECONDS_MAX)
        check_seconds("what the other end keeps", keep_seconds, KEEP_SECONDS_MIN, DURATION_SECONDS_MAX)
        row, way = self._vm(vm), self._path(path)
        self._refuse_unsuitable(row, way)
        self._see_to_a_snapshot(row, way)
        with self._catalog.transaction(grows=True):
            row, way = self._vm(vm), self._path(path)  # and all that was seen of them may have changed meanwhile
            self._refuse_unsuitable(row, way)
            self._catalog.put_protection(row.id, way.id, rpo_seconds, keep_seconds, self._first_lsn(row) or 0, self._now())
            shown = self._one(row, way)
        self._look(row.id)
        return shown

    def unprotect(self, vm: str, path: str | None = None) -> list[Protection]:
        """Replicate it no more, over one path or all; what is there stays there.  What they were is returned.  NotFound."""
        with self._catalog.transaction():
            row = self._vm(vm)
            found = self._protections(row, path)
            was = [view_protection(row, way, one) for one, way in found]
            for one, _way in found:
                self._catalog.delete_protection(row.id, one.path_id)
        self._look(row.id)
        return was

    def pause(self, vm: str, path: str | None = None) -> list[Protection]:
        """Send nothing of it, over one path or all; what is being sent stops, and goes on from there later.  NotFound."""
        return self._pause(vm, path, True)

    def resume(self, vm: str, path: str | None = None) -> list[Protection]:
        """Go on, at once, also after failures.  NotFound."""
        return self._pause(vm, path, False)

    def list_protections(self, vm: str | None = None) -> list[Protection]:
        """Of one VM or of all, by VM and path."""
        with self._catalog.transaction():
            row = None if vm is None else self._vm(vm)
            vms = {one.id: one for one in self._catalog.vms()}
            ways = {one.id: one for one in self._catalog.paths()}
            found = self._catalog.protections(None if row is None else row.id)
            shown = [view_protection(vms[one.vm_id], ways[one.path_id], one) for one in found]
        return sorted(shown, key=lambda one: (one.vm, one.path))

    def now(self, vm: str, path: str | None = None) -> Queued:
        """Take a snapshot, and attempt what waits at once, over one path or all.

        The snapshot is kept as long as the protection says; it goes over the other paths, too, in its turn.
        NotFound: it is not protected; Busy: all of that is paused; what a snapshot raises.
        """
        row = self._vm(vm)
        found = self._protections(row, path)
        going = [(one, way) for one, way in found if not one.paused]
        if not going:
            raise Busy(f"the replication of VM {vm} is paused: blockdevctl replicate resume {vm} first")
        keeps = [one.keep_seconds for one, _way in going]
        keep_seconds = None if None in keeps else max(keep for keep in keeps if keep is not None)
        self._vms.refresh_config(vm)
        taken = self._vms.create_snapshot(vm, None, "replicated on request", Terms(), keep_seconds)
        with self._catalog.transaction():
            for one, _way in going:
                self._catalog.clear_failures(row.id, one.path_id)
        self._look(row.id, at_once=True)
        return Queued(vm, taken.name, [way.name for _one, way in going])

    def _pause(self, vm: str, path: str | None, paused: bool) -> list[Protection]:
        with self._catalog.transaction():
            row = self._vm(vm)
            found = self._protections(row, path)
            for one, _way in found:
                self._catalog.pause_protection(row.id, one.path_id, paused)
                if not paused:
                    self._catalog.clear_failures(row.id, one.path_id)
            shown = [self._one(row, way) for _one, way in found]
        self._look(row.id, at_once=not paused)
        return shown

    def _one(self, vm: VMRow, way: PathRow) -> Protection:
        [row] = [one for one in self._catalog.protections(vm.id) if one.path_id == way.id]
        return view_protection(vm, way, row)

    def _refuse_unsuitable(self, vm: VMRow, way: PathRow) -> None:
        received = self._catalog.receiving_vm(vm.id)
        if received is not None:
            peer = self._catalog.peer_by_id(received.peer_id)
            raise Busy(
                f"VM {vm.name} is received from {'a peer' if peer is None else peer.name}: "
                f"blockdevctl replicate promote {vm.name} first"
            )
        if is_unfinished(vm.description):
            raise Busy(f"VM {vm.name} is being made: wait for its job")
        for one in self._catalog.protections(vm.id):
            other = self._catalog.path_by_id(one.path_id)
            if other is not None and other.id != way.id and other.key == way.key:
                raise AlreadyExists(f"VM {vm.name} is protected over path {other.name} already, which goes to the same home")

    def _first_lsn(self, vm: VMRow) -> int | None:
        """That of the newest snapshot which is to be replicated; None: there is none."""
        rules = Rules(self._catalog)
        return next((one.lsn for one in reversed(self._catalog.snapshots(vm.id)) if rules.is_sent(vm, one)), None)

    def _see_to_a_snapshot(self, vm: VMRow, way: PathRow) -> None:
        """Take one if the VM has none that is to be replicated."""
        with self._catalog.transaction():
            has_one = self._first_lsn(vm) is not None
        if not has_one:
            self._vms.refresh_config(vm.name)
            self._vms.create_snapshot(vm.name, None, f"the first to be replicated over path {way.name}")


def view_protection(vm: VMRow, way: PathRow, row: ProtectionRow) -> Protection:
    """As callers see it."""
    return Protection(vm.name, way.name, row.rpo_seconds, row.keep_seconds, bool(row.paused), row.newest_uuid, row.created)


def check_seconds(what: str, seconds: int | None, least: int, most: int) -> None:
    """InvalidArgument when it cannot be."""
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not least <= seconds <= most:
        raise InvalidArgument(f"{what} of {seconds!r} seconds cannot be: take {least} to {most}")
