"""Clones of VMs, and restores: what makes disks out of a snapshot's maps."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

from blockdev.engine.protocol import EngineObject
from blockdev.errors import BlockdevError, InvalidArgument, NotFound
from blockdev.vmmap import intents
from blockdev.vmmap.catalog import SnapshotRow, VMRow
from blockdev.vmmap.journal import was_refused
from blockdev.vmmap.lookup import object_ids, present, refuse_importing
from blockdev.vmmap.model import (
    VM,
    Restored,
    Snapshot,
    Terms,
)
from blockdev.vmmap.names import (
    check_name,
    object_name,
    shown_name,
)
from blockdev.vmmap.operation import (
    Label,
    Operations,
    Replacement,
    change,
    refreshing,
    refreshing_unless_named,
)
from blockdev.vmmap.tags import Tag, encode_tag
from blockdev.vmmap.views import (
    view_vm,
)

CLONES_MAX = 1000  # in one operation, which is one record of the pool
SEED = "seed"  # the disk of a customized clone that tells its guest who it is


class CustomClone(NamedTuple):
    """A clone with a seed disk of its own."""

    name: str
    uuid: str
    seed_size_bytes: int


def clone_names(prefix: str, count: int) -> list[str]:
    """`PREFIX-1` to `PREFIX-COUNT`; with a `#` or several, the number is there, with as many digits at least: node-##-a."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= CLONES_MAX:
        raise InvalidArgument(f"{count!r} clones cannot be made at once: take 1 to {CLONES_MAX}")
    before, marks, after = re.match(r"([^#]*)(#*)(.*)", prefix if "#" in prefix else f"{prefix}-#", re.DOTALL).groups()  # type: ignore[union-attr]
    if "#" in after:
        raise InvalidArgument(f"the number cannot be in two places of {shown_name(prefix)}: take the # of one of them away")
    names = [f"{before}{number:0{len(marks)}}{after}" for number in range(1, count + 1)]
    check_name("VM", names[-1])
    return names


class CloneOperations(Operations):
    """The operations that make disks of snapshots."""

    @refreshing_unless_named
    @change
    def clone(self, vm: str, snapshot: str | None, new_name: str) -> VM:
        """A new VM from a snapshot's disks and configuration; without one, a snapshot is taken first."""
        return self._clone(vm, snapshot, [new_name])[0]

    @change
    def clone_for_peer(self, vm: str, snapshot: str, new_name: str, peer_id: int) -> VM:
        """As `clone`; what the new VM takes counts as the peer's, who has it made here.  NotFound: it is no peer any more."""
        if self._catalog.peer_by_id(peer_id) is None:
            raise NotFound("you are no peer of this home any more")
        return self._clone(vm, snapshot, [new_name], made_for=peer_id)[0]

    @refreshing_unless_named
    @change
    def clone_many(self, vm: str, snapshot: str | None, count: int, prefix: str) -> list[VM]:
        """VMs `PREFIX-1` to `PREFIX-COUNT`, all or none."""
        return self._clone(vm, snapshot, clone_names(prefix, count))

    @refreshing_unless_named
    @change
    def snapshot_to_clone(self, vm: str, snapshot: str | None, names: Sequence[str]) -> Snapshot:
        """What clones of these names are to be made of, with its configuration; without `snapshot` one is taken."""
        row, taken = self._snapshot_to_clone(vm, snapshot, names)
        return self._view_snapshot(row, taken)

    @change
    def clone_customized(
        self, vm: str, snapshot: str, clones: Sequence[CustomClone], write_seeds: Callable[[list[str]], None]
    ) -> list[VM]:
        """New VMs from a snapshot, each with a disk `seed` of its own in the place of the snapshot's, all or none.

        `write_seeds` fills the exports of these names, in the order of `clones`; what it wrote is durable when it
        returns.  Nobody sees a clone before its seed is whole.
        """
        names = [clone.name for clone in clones]
        row, taken = self._snapshot_to_clone(vm, snapshot, names)
        sources = [source for source in self._sources(row, taken) if source[0] != SEED]
        disks = [*(disk for disk, _ in sources), SEED]
        intent = self._clone_intent(row, taken, disks, [[clone.uuid, clone.name] for clone in clones])
        self._journal.run(intent, lambda: self._customize(clones, sources, intent.created, write_seeds))
        return [view_vm(self._catalog, self._lookup.vm(name), {}) for name in names]

    def _clone(
        self, vm: str, snapshot: str | None, names: list[str], description: str = "", made_for: int | None = None
    ) -> list[VM]:
        row, taken = self._snapshot_to_clone(vm, snapshot, names)
        sources = self._sources(row, taken)
        vms = [[str(uuid.uuid4()), name] for name in names]
        intent = self._clone_intent(row, taken, [disk for disk, _ in sources], vms, description, made_for)
        specs = [
            (object_id, object_name(name, disk), encode_tag(Tag(vm_uuid, intent.created)))
            for vm_uuid, name in vms
            for disk, object_id in sources
        ]
        self._journal.run(intent, lambda: self._engine.clone(specs))
        return [view_vm(self._catalog, self._lookup.vm(name), {}) for name in names]

    def _snapshot_to_clone(self, vm: str, snapshot: str | None, names: Sequence[str]) -> tuple[VMRow, SnapshotRow]:
        row = self._lookup.vm(vm)
        for name in names:
            self._lookup.check_new_vm(name)
        if snapshot is not None:
            return row, self._lookup.snapshot(row, snapshot)
        self._refuse_received(row)
        name = self._time_name(row, "clone-")
        return row, self._take_snapshot(row, name, f"for clone {names[0]}", Terms("clone"))

    def _sources(self, vm: VMRow, snapshot: SnapshotRow) -> list[tuple[str, int]]:
        """(disk, object id) of all that a clone gets."""
        return [
            (disk.name, present(disk, object_name(vm.name, disk.name, snapshot.name)))
            for disk in self._catalog.snapshot_disks(snapshot.id)
        ]

    def _clone_intent(
        self, vm: VMRow, snapshot: SnapshotRow, disks: list[str], vms: list[list[str]], description: str = "", made_for: int | None = None
    ) -> intents.Clone:
        source = f"{vm.name}@{snapshot.name}"
        return intents.Clone(source, snapshot.id, disks, self._journal.now(), vms, *vm.policy, description, made_for)

    def _customize(
        self,
        clones: Sequence[CustomClone],
        sources: list[tuple[str, int]],
        created: str,
        write_seeds: Callable[[list[str]], None],
    ) -> list[EngineObject]:
        """The engine step: seeds and clones under names that nobody was told of, then all of them named by one record.

        What was made before that is dropped when a part fails: the last record is the commit point.
        """
        tags = [Tag(clone.uuid, created, temporary=True) for clone in clones]
        seeds = [(c.seed_size_bytes, f"{object_name(c.name, SEED)}~new", encode_tag(t)) for c, t in zip(clones, tags, strict=True)]
        disks = [
            (id, f"{object_name(clone.name, disk)}~new", encode_tag(tag))
            for clone, tag in zip(clones, tags, strict=True)
            for disk, id in sources
        ]
        made: list[EngineObject] = []
        try:
            made += self._engine.create(seeds)
            self._journal.at_step("clone:seeds_made")
            write_seeds([name for _, name, _ in seeds])
            self._journal.at_step("clone:seeds_written")
            if disks:
                made += self._engine.clone(disks)
            self._journal.at_step("clone:cloned")
            named = _in_order_of_clones(made, len(clones))
            self._engine.relabel(_labels_of_clones(named, clones, created), force=True)  # the writer may not have left quite yet
        except BlockdevError as error:
            if was_refused(error):
                self._journal.drop([thing.id for thing in made])
            raise
        return named

    @refreshing
    @change
    def restore(self, vm: str, snapshot: str, disk: str | None = None, force: bool = False) -> Restored:
        """Put the VM's disks and configuration, or one disk alone, back to a snapshot, all or none.

        The state before is kept in a snapshot of origin `restore`.  Disks that the snapshot lacks stay as they
        are; disks removed since come back.  Busy; forced, attached clients are cut off (errors, not other data
        under a running guest).
        """
        row = self._lookup.vm(vm)
        self._refuse_received(row)
        wanted = self._lookup.snapshot(row, snapshot)
        sources = {
            one.name: present(one, object_name(vm, one.name, snapshot))
            for one in self._lookup.snapshot_disks(row, snapshot, disk)
        }
        refuse_importing(row, [one for one in self._catalog.imports(row.id) if one.disk in sources])
        in_the_way = object_ids([one for one in self._catalog.disks(row.id) if one.name in sources])
        with self.offers.letting_go(in_the_way, force, disconnect=True) as logged_out:
            if not force:
                self._lookup.refuse_attached(in_the_way, "detach first, or force it (--force): they are cut off then and get errors")
            cut_off = [*logged_out, *self._lookup.attached(in_the_way)]
            safety = self._replace(row, wanted, sources, disk is None, force)
        shown = view_vm(self._catalog, self._lookup.vm(vm), self._lookup.clients())
        return Restored(shown, snapshot, list(sources), safety.name if safety else None, cut_off)

    def _replace(self, row: VMRow, wanted: SnapshotRow, sources: dict[str, int], is_whole: bool, force: bool) -> SnapshotRow | None:
        """Snapshot disks, by the name of the disk each becomes, in the places of those; the snapshot that was taken before."""
        vm, snapshot = row.name, wanted.name
        replaced = {one.name: one for one in self._catalog.disks(row.id) if one.name in sources}
        safety = self._take_safety_snapshot(row, snapshot)
        now = self._journal.now()
        places = [
            (name, replaced[name].object_id, replaced[name].created)
            if name in replaced
            else (name, None, now)
            for name in sources
        ]
        intent = intents.Restore(
            *(row.id, row.uuid, vm, snapshot, wanted.id, is_whole),
            [[name, old_id] for name, old_id, _ in places],
            now,
        )
        self._journal.run(intent, lambda: self._put_back(row, list(sources.values()), places, force))
        self._journal.drop([old_id for _, old_id, _ in places if old_id is not None])
        return safety

    @change
    def restore_beside(self, vm: str, snapshot: str, new_name: str, disk: str | None = None) -> Restored:
        """A snapshot as a new VM, or one disk of it as a new disk of this VM.  Nothing is replaced, nobody is cut off."""
        row = self._lookup.vm(vm)
        wanted = self._lookup.snapshot(row, snapshot)
        if disk is None:
            [made] = self._clone(vm, snapshot, [new_name], f"restored from {vm}@{snapshot} of {wanted.created}")
            return Restored(made, snapshot, [one.name for one in made.disks], None)
        self._refuse_received(row)
        self._lookup.check_new_disk(row, new_name)
        [source] = self._lookup.snapshot_disks(row, snapshot, disk)
        now = self._journal.now()
        spec = (
            present(source, object_name(vm, disk, snapshot)),
            object_name(vm, new_name),
            encode_tag(Tag(row.uuid, now)),
        )
        intent = intents.RestoreBeside(row.id, row.uuid, vm, snapshot, disk, new_name, now)
        self._journal.run(intent, lambda: self._engine.clone([spec]))
        return Restored(view_vm(self._catalog, row, self._lookup.clients()), snapshot, [new_name], None)

    def _put_back(
        self, vm: VMRow, sources: list[int], places: Sequence[tuple[str, int | None, str]], force: bool
    ) -> list[EngineObject]:
        """The engine step of a restore: clones beside the disks, then in their places, by one record."""
        temporary = encode_tag(Tag(vm.uuid, self._journal.now(), temporary=True))
        names = [f"{object_name(vm.name, name)}~new" for name, _, _ in places]
        made = self._engine.clone([(id, name, temporary) for id, name in zip(sources, names, strict=True)])
        self._journal.at_step("restore:cloned")
        replacements = [
            Replacement(name, thing.id, old_id, created)
            for (name, old_id, created), thing in zip(places, made, strict=True)
        ]
        try:
            self._engine.relabel(self._replacing_labels(vm, replacements), force)
        except BlockdevError as error:
            if was_refused(error):
                self._journal.drop([thing.id for thing in made])
            raise
        return made

    def _take_safety_snapshot(self, vm: VMRow, snapshot: str) -> SnapshotRow | None:
        """What a restore can be taken back with; None when there is nothing left to lose."""
        if not object_ids(self._catalog.disks(vm.id)):
            return None
        name = self._time_name(vm, "restore-")
        return self._take_snapshot(vm, name, f"before restore of {snapshot}", Terms("restore"), skip_missing=True)


def _in_order_of_clones(made: list[EngineObject], clone_count: int) -> list[EngineObject]:
    """All seeds and then all disks -> each clone's disks and then its seed, as a clone's intent has them."""
    seeds, disks = made[:clone_count], made[clone_count:]
    each = len(disks) // clone_count
    return [thing for number, seed in enumerate(seeds) for thing in [*disks[number * each : (number + 1) * each], seed]]


def _labels_of_clones(things: list[EngineObject], clones: Sequence[CustomClone], created: str) -> list[Label]:
    """What names them: NAME/DISK~new becomes NAME/DISK."""
    each = len(things) // len(clones)
    tags = [encode_tag(Tag(clone.uuid, created)) for clone in clones for _ in range(each)]
    return [(thing.id, (thing.name or "").removesuffix("~new"), tag) for thing, tag in zip(things, tags, strict=True)]
