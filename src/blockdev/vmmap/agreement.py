"""Bringing catalog and pool into agreement (docs/agreement.md): the pool is the truth for what exists.

Invariant: nothing that a user was told exists is removed; only objects marked as temporary are.  It may be interrupted
anywhere and run again.  Cost: in proportion to all objects, so only when either process was started, or an operation
was interrupted.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from blockdev.engine.client import EngineClient
from blockdev.engine.protocol import EngineObject
from blockdev.errors import InvalidArgument, Poisoned, PoolFull
from blockdev.policies import AS_POOL, DiskPolicy
from blockdev.vmmap.catalog import Catalog, VMRow
from blockdev.vmmap.catalog_schema import Contradiction
from blockdev.vmmap.intents import PoolView, load_intent
from blockdev.vmmap.model import Agreement, Terms
from blockdev.vmmap.names import ObjectName, free_name, object_name, parse_object_name
from blockdev.vmmap.tags import Tag, encode_tag

ITEMS_AT_ONCE = 1000  # objects in one record of the pool

Label = tuple[int, str | None, bytes]  # object id, name, tag
Key = tuple[str, str, str | None]  # VM uuid, disk, snapshot: what an object is, whatever it is called


@dataclass(eq=False)
class _Group:
    """The objects of one VM in the pool."""

    vm_uuid: str
    vm_name: str
    members: list[tuple[ObjectName, EngineObject]] = field(default_factory=list)


class _Known(NamedTuple):
    """A disk or a snapshot disk in the catalog."""

    row_id: int
    object_id: int | None
    size_bytes: int


class _Compared(NamedTuple):
    """What the catalog knows of the pool's objects, and what it has to be told."""

    snapshots: dict[tuple[int, str], int]  # ids of known ones, by (VM id, name)
    others: list[tuple[_Group, ObjectName, EngineObject, _Known | None]]  # not known, or as something else
    lost_disks: list[int]  # rows of what the pool has no more
    lost_snapshot_disks: list[int]


def agree(
    catalog: Catalog,
    engine: EngineClient,
    live_imports: Mapping[int, bytes],
    live_temporaries: Mapping[int, bytes],
    now: str,
    at_step: Callable[[str], None],
) -> tuple[Agreement, bytes]:
    """What was changed, and which engine process was agreed with.

    Imports under way end here, but for `live_imports` (import id -> engine process) of this very engine process; so do
    copies under way, but for those whose objects are `live_temporaries` (object id -> engine process), and for receipts.
    """
    result = Agreement()
    led = engine.lead()
    if engine.status().get("stats", {}).get("poisoned"):
        raise Poisoned(
            "a write to the pool failed, what is durable is known only after a restart: restart the engine"
        )
    _check_pool(catalog, led.pool_uuid)
    view = PoolView(engine.objects())
    _settle(catalog, view, result)
    at_step("agree:settled")
    spared = {import_id for import_id, instance in live_imports.items() if instance == led.instance}
    copied = {id for id, instance in live_temporaries.items() if instance == led.instance}
    copied |= _receiving(catalog, view)
    _drop_temporary(catalog, engine, view, spared, copied, result)
    at_step("agree:dropped")
    groups = _group(catalog, view, result)
    _label(engine, view, groups, now, result)
    at_step("agree:labelled")
    compared = _compare(catalog, groups)  # before the transaction: it takes seconds with tens of thousands of objects
    with catalog.transaction():
        _follow(catalog, view, groups, compared, now, result)
        result.missing.extend(catalog.missing_exports())
    at_step("agree:followed")
    _give_policies(catalog, engine, view, result)
    at_step("agree:policies_given")
    return result, led.instance


def _check_pool(catalog: Catalog, pool_uuid: str) -> None:
    known = catalog.pool_uuid()
    if known is None:
        with catalog.transaction():
            catalog.set_pool_uuid(pool_uuid)
    elif known != pool_uuid:
        raise InvalidArgument(
            f"the catalog {catalog.path} is of pool {known}, the engine serves pool {pool_uuid}: "
            "put the catalog of this pool in its place, or move it away to take all VMs from the pool"
        )


def _settle(catalog: Catalog, view: PoolView, result: Agreement) -> None:
    """Finish the operations whose engine step was done, forget the others."""
    for row in catalog.intents():
        intent = load_intent(row)
        made = intent.evidence(view)
        try:
            with catalog.transaction():
                if made is not None:
                    intent.finish(catalog, made)
                catalog.delete_intent(row.id)
        except Contradiction as error:  # one row must not stop all that follows: what the pool has of it is taken in below
            with catalog.transaction():
                catalog.delete_intent(row.id)
            result.corrected.append(f"{intent}: {error.message}; what the pool has of it was taken in")
            continue
        (result.undone if made is None else result.finished).append(str(intent))


def _drop_temporary(
    catalog: Catalog,
    engine: EngineClient,
    view: PoolView,
    live_imports: Collection[int],
    live_temporaries: Collection[int],
    result: Agreement,
) -> None:
    """Delete the objects that are marked as temporary, but for those of imports and copies that go on."""
    imports = catalog.imports()
    kept = {
        row.id: row.object_id for row in imports if row.id in live_imports and row.object_id in view.by_id
    }
    spared = {*kept.values(), *live_temporaries}
    temporary = {
        id for id, tag in view.tags.items() if tag is not None and tag.temporary and id not in spared
    }
    if temporary:
        result.dropped.extend(sorted(view.by_id[id].name or f"object {id}" for id in temporary))
        engine.delete(sorted(temporary), force=True, missing_ok=True)
        view.remove(temporary)
    with catalog.transaction():
        for row in imports:
            if row.id not in kept:
                catalog.delete_import(row.id)


def _receiving(catalog: Catalog, view: PoolView) -> set[int]:
    """The vdisks of receipts; a receipt that lacks one goes, and then its others are nobody's."""
    disks: dict[int, list[int]] = defaultdict(list)
    for row in catalog.receipt_disks():
        disks[row.receipt_id].append(row.object_id)
    whole = {receipt_id: ids for receipt_id, ids in disks.items() if all(map(view.is_temporary, ids))}
    with catalog.transaction():
        for receipt in catalog.receipts():
            if receipt.id not in whole:
                catalog.delete_receipt(receipt.id)
    return {id for ids in whole.values() for id in ids}


def _group(catalog: Catalog, view: PoolView, result: Agreement) -> list[_Group]:
    """The pool's objects by VM.  A VM's uuid and name are each in one group only."""
    by_label: dict[tuple[str | None, str], _Group] = {}
    for thing in view.by_id.values():
        tag = view.tags[thing.id]
        if tag is not None and tag.temporary:
            continue
        name = parse_object_name(thing.name)
        if name is None:
            result.foreign.append(thing.name or f"object {thing.id}")
            continue
        label = (tag.vm_uuid if tag else None, name.vm)
        group = by_label.setdefault(label, _Group(label[0] or "", name.vm))
        group.members.append((name, thing))
    known = {vm.name: vm for vm in catalog.vms()}
    groups = _one_name_each(by_label)
    chosen = set(groups)
    _give_uuids(groups, [group for group in by_label.values() if group not in chosen], known)
    _give_names(groups, known)
    return groups


def _one_name_each(by_label: dict[tuple[str | None, str], _Group]) -> list[_Group]:
    """For each uuid the group of most objects; what else has that uuid was not named by this program."""
    largest: dict[str, _Group] = {}
    for (vm_uuid, _), group in by_label.items():
        if vm_uuid is not None:
            best = largest.setdefault(vm_uuid, group)
            if len(group.members) > len(best.members):
                largest[vm_uuid] = group
    return list(largest.values())


def _give_uuids(groups: list[_Group], others: list[_Group], known: dict[str, VMRow]) -> None:
    """Objects without a tag of ours join the VM that their name says, or become one."""
    by_name: dict[str, _Group] = {}
    for group in groups:
        vm = known.get(group.vm_name)
        if group.vm_name not in by_name or (vm is not None and group.vm_uuid == vm.uuid):
            by_name[group.vm_name] = group
    used = {group.vm_uuid for group in groups}
    for other in others:
        home = by_name.get(other.vm_name)
        if home is None:
            vm = known.get(other.vm_name)
            other.vm_uuid = vm.uuid if vm is not None and vm.uuid not in used else str(uuid.uuid4())
            by_name[other.vm_name] = other
            used.add(other.vm_uuid)
            groups.append(other)
        else:
            home.members.extend(other.members)


def _give_names(groups: list[_Group], known: dict[str, VMRow]) -> None:
    """Two VMs of one name: the one that the catalog calls so keeps it, others get a free one."""
    wanted = Counter(group.vm_name for group in groups)
    taken = set(wanted) | set(known)
    for name in [name for name, count in wanted.items() if count > 1]:
        rivals = [group for group in groups if group.vm_name == name]
        vm = known.get(name)
        rivals.sort(
            key=lambda group: (vm is None or group.vm_uuid != vm.uuid, -len(group.members), group.vm_uuid)
        )
        for group in rivals[1:]:
            group.vm_name = free_name(name, taken.__contains__)
            taken.add(group.vm_name)


def _label(engine: EngineClient, view: PoolView, groups: list[_Group], now: str, result: Agreement) -> None:
    """Give the objects the names and tags that their groups say; there is nothing to give in the usual case.

    New names are given in one record: half of them would tear a VM apart.  Tags alone may be given in parts.
    """
    renamed: list[Label] = []
    tagged: list[Label] = []
    for group in groups:
        for name, thing in group.members:
            tag = view.tags[thing.id]
            label = object_name(group.vm_name, name.disk, name.snapshot)
            if tag is not None and tag.vm_uuid == group.vm_uuid and label == thing.name:
                continue
            mended = (tag or Tag(group.vm_uuid, now))._replace(vm_uuid=group.vm_uuid)
            is_renamed = label != thing.name
            (renamed if is_renamed else tagged).append((thing.id, label, encode_tag(mended)))
            if is_renamed:
                result.corrected.append(f"{thing.name} is now called {label}")
    if renamed:
        engine.relabel(renamed, force=True)
    for first in range(0, len(tagged), ITEMS_AT_ONCE):
        engine.relabel(tagged[first : first + ITEMS_AT_ONCE], force=True)


def _compare(catalog: Catalog, groups: list[_Group]) -> _Compared:
    """What of the pool's objects the catalog does not know as they are.  No operation runs meanwhile."""
    disks, snapshots, snapshot_disks = _known_rows(catalog)
    others = []
    met: set[int] = set()  # objects that the catalog has under their keys
    for group in groups:
        for name, thing in group.members:
            known = (disks if name.snapshot is None else snapshot_disks).get((group.vm_uuid, name.disk, name.snapshot))
            if known is not None and known.object_id == thing.id:
                met.add(thing.id)
            if known is None or (known.object_id, known.size_bytes) != (thing.id, thing.size_bytes):
                others.append((group, name, thing, known))
    lost_disks, lost_snapshot_disks = (
        [row.row_id for row in rows.values() if row.object_id is not None and row.object_id not in met] for rows in (disks, snapshot_disks)
    )
    return _Compared(snapshots, others, lost_disks, lost_snapshot_disks)


def _follow(
    catalog: Catalog, view: PoolView, groups: list[_Group], compared: _Compared, now: str, result: Agreement
) -> None:
    """The catalog says what the pool says: names, sizes, what is missing, what it did not know."""
    vm_ids = _follow_names(catalog, groups, now, result)
    for row_id in compared.lost_disks:
        catalog.lose_disk(row_id)
    for row_id in compared.lost_snapshot_disks:
        catalog.lose_snapshot_disk(row_id)
    for group, name, thing, known in compared.others:
        label = object_name(group.vm_name, name.disk, name.snapshot)
        if known is not None and known.object_id == thing.id:
            result.corrected.append(f"{label} has {thing.size_bytes} bytes")
        else:
            result.adopted.append(label)
        tag = view.tags[thing.id] or Tag(group.vm_uuid, now)
        if name.snapshot is None:
            catalog.put_disk(vm_ids[group.vm_uuid], name.disk, thing.id, thing.size_bytes, tag.created)
        else:
            vm_id = vm_ids[group.vm_uuid]
            _adopt_snapshot_disk(catalog, compared.snapshots, vm_id, name.snapshot, name.disk, thing, tag)


def _adopt_snapshot_disk(
    catalog: Catalog,
    snapshots: dict[tuple[int, str], int],
    vm_id: int,
    snapshot: str,
    disk: str,
    thing: EngineObject,
    tag: Tag,
) -> None:
    snapshot_id = snapshots.get((vm_id, snapshot))
    if snapshot_id is None:
        snapshot_id = catalog.insert_snapshot(
            vm_id,
            snapshot,
            tag.created,
            thing.lsn or 0,
            terms=Terms(origin=tag.origin, consistency=tag.consistency, asked=tag.consistency),
        )
        snapshots[vm_id, snapshot] = snapshot_id
    catalog.put_snapshot_disk(snapshot_id, disk, thing.id, thing.size_bytes)


def _follow_names(catalog: Catalog, groups: list[_Group], now: str, result: Agreement) -> dict[str, int]:
    """VM uuid -> its id in the catalog, once each group's VM is there under its name."""
    vms = {vm.uuid: vm for vm in catalog.vms()}
    wanted = {group.vm_uuid: group.vm_name for group in groups}
    given = set(wanted.values())
    taken = given | {vm.name for vm in vms.values()}
    for vm in vms.values():  # a VM without objects yields its name to one that has them
        if vm.uuid not in wanted and vm.name in given:
            wanted[vm.uuid] = free_name(vm.name, taken.__contains__)
            taken.add(wanted[vm.uuid])
    renamed = [vm for vm in vms.values() if wanted.get(vm.uuid, vm.name) != vm.name]
    for vm in renamed:
        catalog.rename_vm(vm.id, vm.uuid)  # names may go round in a circle
    for vm in renamed:
        catalog.rename_vm(vm.id, wanted[vm.uuid])
        result.corrected.append(f"VM {vm.name} is now called {wanted[vm.uuid]}")
    ids = {vm.uuid: vm.id for vm in vms.values()}
    for group in groups:
        if group.vm_uuid not in ids:
            policy = _first_policy(group)
            ids[group.vm_uuid] = catalog.insert_vm(group.vm_uuid, group.vm_name, now, policy=policy)
            result.adopted.append(f"VM {group.vm_name}")
    return ids


def _first_policy(group: _Group) -> DiskPolicy:
    """That of a VM which only the pool knows: of its first disk."""
    disks = [thing for name, thing in group.members if name.snapshot is None]
    return min(disks, key=lambda thing: thing.id).policy if disks else AS_POOL


def _give_policies(catalog: Catalog, engine: EngineClient, view: PoolView, result: Agreement) -> None:
    """Each disk has the policy that the catalog says for its VM; of no use when the pool has no room left to say so."""
    vms = {vm.id: vm for vm in catalog.vms()}
    others = [
        (disk, vms[disk.vm_id])
        for disk in catalog.disks()
        if disk.object_id is not None and view.by_id[disk.object_id].policy != vms[disk.vm_id].policy
    ]
    policies = [(disk.object_id or 0, vm.policy) for disk, vm in others]
    with suppress(PoolFull):
        for first in range(0, len(policies), ITEMS_AT_ONCE):
            engine.set_disk_policies(policies[first : first + ITEMS_AT_ONCE])
        result.corrected.extend(f"{vm.name}/{disk.name} has its VM's policy" for disk, vm in others)


def _known_rows(
    catalog: Catalog,
) -> tuple[dict[Key, _Known], dict[tuple[int, str], int], dict[Key, _Known]]:
    """Disks by key, snapshot ids by (VM id, name), snapshot disks by key."""
    uuids = {vm.id: vm.uuid for vm in catalog.vms()}
    disks: dict[Key, _Known] = {
        (uuids[disk.vm_id], disk.name, None): _Known(disk.id, disk.object_id, disk.size_bytes)
        for disk in catalog.disks()
    }
    rows = catalog.snapshots()
    owners = {row.id: (uuids[row.vm_id], row.name) for row in rows}
    snapshot_disks: dict[Key, _Known] = {}
    for disk in catalog.snapshot_disks_of_vm():
        vm_uuid, snapshot = owners[disk.snapshot_id]
        snapshot_disks[vm_uuid, disk.name, snapshot] = _Known(disk.id, disk.object_id, disk.size_bytes)
    return disks, {(row.vm_id, row.name): row.id for row in rows}, snapshot_disks
