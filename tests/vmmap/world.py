"""A small world of VMs, every operation on it by name, and all that a user can see of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import xxhash

from blockdev import Pool
from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError
from blockdev.policies import DiskPolicy
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_schema import snapshot_uuid
from blockdev.vmmap.clones import CustomClone
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.model import Agreement, Terms
from blockdev.vmmap.receipts import base_uuid_of
from blockdev.vmmap.service import VMs

MEBIBYTE = 1 << 20
NOON = 1_795_348_800.0  # 2026-11-22T12:00:00Z
LATER = "2026-12-22T12:00:00.000Z"
TERMS = Terms("schedule", asked="vm", expires=LATER, locked_until=LATER, schedule="hourly", due="2026-11-22T11:05:00.000Z")
CUSTOM_CLONES = [CustomClone(f"copy-{number}", str(UUID(int=number)), 3 * 4096) for number in (1, 2)]
WEB_S1_ID, DB_S1_ID = 1, 3  # the catalog's
RECEIPTS = "~receipts"  # in an observation, beside the VMs
Observation = dict[str, Any]


class Clock:
    """One second later at each look."""

    def __init__(self) -> None:
        self.moment = NOON

    def __call__(self) -> float:
        self.moment += 1
        return self.moment


def build(vms: VMs, pool: Pool) -> None:
    """web: two disks, two snapshots, a disk that is gone, a policy; spare: no disk at all; db: another VM."""
    vms.create_vm(
        "web",
        [("root", MEBIBYTE), ("data", 2 * MEBIBYTE), ("old", MEBIBYTE)],
        "<web>1</web>",
        "the web server",
        DiskPolicy("inline", None),
    )
    write(pool, "web/root", b"A")
    write(pool, "web/data", b"a")
    write(pool, "web/old", b"o")
    vms.create_snapshot("web", "s1", "the first")
    vms.remove_disk("web", "old")
    write(pool, "web/root", b"B")
    vms.set_config("web", "<web>2</web>")
    vms.create_snapshot("web", "s2")
    write(pool, "web/data", b"c")
    vms.set_config("web", "<web>3</web>")
    vms.create_vm("spare", [])
    vms.create_vm("db", [("root", MEBIBYTE)])
    vms.create_snapshot("db", "s1")


def write(pool: Pool, export: str, byte: bytes) -> None:
    """Its first block is all this byte."""
    pool.find(export).write(0, byte * 4096)


def _import(vms: VMs, disk: str, create: bool, finish: bool) -> None:
    begun = vms.begin_import("web", disk, 4 * MEBIBYTE, create)
    try:
        if finish:
            vms.finish_import(begun.id)
    except BlockdevError:
        with suppress(BlockdevError):
            vms.abort_import(begun.id)
        raise
    if not finish:
        vms.abort_import(begun.id)


def _while_importing(vms: VMs, change: Callable[[], Any]) -> None:
    """What takes the disk away that an image is being read for, by force."""
    begun = vms.begin_import("web", "root", 4 * MEBIBYTE, create=False)
    try:
        change()
    except BlockdevError:
        with suppress(BlockdevError):
            vms.abort_import(begun.id)
        raise


def _clone_what_runs_with_seeds(vms: VMs) -> None:
    """As blockdev.api.customize does it."""
    taken = vms.snapshot_to_clone("web", None, [clone.name for clone in CUSTOM_CLONES])
    vms.clone_customized("web", taken.name, CUSTOM_CLONES, lambda exports: None)


def copy_of(vms: VMs, based_on: str | None) -> SnapshotCopy:
    """One that comes from elsewhere, of a VM that nobody here has, or on top of a snapshot of web."""
    base = None if based_on is None else vms.show_snapshot("web", based_on)
    based = base is not None
    return SnapshotCopy(
        uuid="11111111-2222-4333-8444-555555555555",
        name="far",
        description="taken elsewhere",
        created="2026-11-20T12:00:00.000Z",
        lsn=77,
        terms=Terms("import", "vm", "vm", 12),
        config="<far/>",
        disks=[
            CopiedDisk("root", 2 * MEBIBYTE, based),
            CopiedDisk("data", 4096 if based else MEBIBYTE, based),
            CopiedDisk("extra", 8192, False),
        ],
        vm_uuid="99999999-2222-4333-8444-555555555555",
        vm_name="far-away",
        base_uuid=base.uuid if base else None,
        base_name=base.name if base else "",
    )


def add_peer(catalog: Catalog, name: str) -> int:
    with catalog.transaction():
        return catalog.put_peer(name, f"ssh-ed25519 {name}", '["*"]', None, "2026-11-22T12:00:00.000Z")


def sent_copy(number: int) -> SnapshotCopy:
    """The snapshot of that number of a VM that a peer has."""
    vm_uuid, name, created = "77777777-2222-4333-8444-555555555555", f"far-{number}", f"2026-11-20T12:00:{number:02}.000Z"
    return SnapshotCopy(
        uuid=snapshot_uuid(vm_uuid, name, created),
        name=name,
        description="of a peer",
        created=created,
        lsn=100 + number,
        terms=Terms("replication", "vm", "vm", 12),
        config=f"<far>{number}</far>",
        disks=[CopiedDisk("root", MEBIBYTE, False), CopiedDisk("data", 8192, False)],
        vm_uuid=vm_uuid,
        vm_name="distant",
        base_uuid=None,
        base_name="",
    )


def _copy(vms: VMs, based_on: str | None, finish: bool) -> None:
    begun = vms.begin_copy(copy_of(vms, based_on), expires=LATER)
    try:
        if finish:
            vms.finish_copy(begun)
    except BlockdevError:
        vms.abort_copy(begun)
        raise
    if not finish:
        vms.abort_copy(begun)


OPERATIONS: dict[str, Callable[[VMs], Any]] = {
    "create a VM": lambda vms: vms.create_vm(
        "new", [("a", 4096), ("b", MEBIBYTE)], config="<new/>", description="just made"
    ),
    "create a VM without disks": lambda vms: vms.create_vm("new", []),
    "create a VM with a policy": lambda vms: vms.create_vm(
        "new", [("a", 4096), ("b", MEBIBYTE)], policy=DiskPolicy("off", "off")
    ),
    "rename a VM": lambda vms: vms.rename_vm("web", "www"),
    "rename a VM without disks": lambda vms: vms.rename_vm("spare", "www"),
    "delete a VM": lambda vms: vms.delete_vm("web"),
    "delete a VM without disks": lambda vms: vms.delete_vm("spare"),
    "set a configuration": lambda vms: vms.set_config("web", "<web>4</web>"),
    "set a description": lambda vms: vms.set_description("web", "another"),
    "set a policy": lambda vms: vms.set_policy("web", {"compression": None, "dedup": "off"}),
    "set a policy of a VM without disks": lambda vms: vms.set_policy("spare", {"dedup": "on"}),
    "say where an agent is": lambda vms: vms.set_agent("web", "/run/web.agent"),
    "add a disk": lambda vms: vms.add_disk("web", "more", 512),
    "remove a disk": lambda vms: vms.remove_disk("web", "data"),
    "remove a disk that is imported into": lambda vms: _while_importing(vms, lambda: vms.remove_disk("web", "root", force=True)),
    "delete a VM that is imported into": lambda vms: _while_importing(vms, lambda: vms.delete_vm("web", force=True)),
    "grow a disk": lambda vms: vms.resize_disk("web", "data", 3 * MEBIBYTE),
    "shrink a disk": lambda vms: vms.resize_disk("web", "data", 4096, force_shrink=True),
    "create a snapshot": lambda vms: vms.create_snapshot("web", "s3", "the third"),
    "create a snapshot with terms": lambda vms: vms.create_snapshot("web", "s3", terms=TERMS),
    "change a snapshot": lambda vms: vms.change_snapshot(
        "web", "s1", {"description": "kept", "expires": None, "locked_until": LATER}
    ),
    "note that a guest was frozen": lambda vms: vms.note_consistency("web", "s1", 250),
    "expire snapshots": lambda vms: vms.expire_snapshots([WEB_S1_ID, DB_S1_ID]),
    "delete a snapshot": lambda vms: vms.delete_snapshot("web", "s1"),
    "clone a snapshot": lambda vms: vms.clone("web", "s1", "copy"),
    "clone what runs": lambda vms: vms.clone("web", None, "copy"),
    "clone many": lambda vms: vms.clone_many("web", "s2", 5, "copy"),
    "clone with seeds": lambda vms: vms.clone_customized("web", "s1", CUSTOM_CLONES, lambda exports: None),
    "clone what runs with seeds": _clone_what_runs_with_seeds,
    "restore a VM": lambda vms: vms.restore("web", "s2"),
    "restore a VM with a disk that is gone": lambda vms: vms.restore("web", "s1"),
    "restore a disk": lambda vms: vms.restore("web", "s1", disk="root"),
    "restore a disk that is gone": lambda vms: vms.restore("web", "s1", disk="old"),
    "restore beside the VM": lambda vms: vms.restore_beside("web", "s1", "www"),
    "restore a disk beside": lambda vms: vms.restore_beside("web", "s1", "older", disk="old"),
    "import a new disk": lambda vms: _import(vms, "more", create=True, finish=True),
    "import over a disk": lambda vms: _import(vms, "root", create=False, finish=True),
    "import a snapshot": lambda vms: _copy(vms, "s2", finish=True),
    "import a VM with a snapshot": lambda vms: _copy(vms, None, finish=True),
    "give up an import of a snapshot": lambda vms: _copy(vms, "s2", finish=False),
    "give up an import": lambda vms: _import(vms, "more", create=True, finish=False),
}


def first_byte(pool: Pool, export: str, size_bytes: int) -> tuple[int, bytes]:
    thing = pool.find(export)
    assert thing.size_bytes == size_bytes, (
        f"{export}: the catalog says {size_bytes}, the pool {thing.size_bytes}"
    )
    return size_bytes, thing.read(0, 512)[:1]


def observe(vms: VMs, pool: Pool, content: Callable[[Pool, str, int], Any] = first_byte) -> Observation:
    """All that a user can see: names, texts, policies, sizes and `content` of everything; not when, nor which id."""
    seen: Observation = {}
    runs = {row.uuid: [run for run in vms._catalog.schedule_runs() if run.vm_id == row.id] for row in vms._catalog.vms()}
    made_for = {vms._catalog.vm_name(row.vm_id): peer.name for peer in vms._catalog.peers() for row in vms._catalog.made_vms(peer.id)}
    for vm in vms.list_vms():
        seen[vm.name] = {
            "description": vm.description,
            "config": vms.get_config(vm.name),
            "cloned_from": vm.cloned_from,
            "agent": vm.agent,
            "policy": vm.policy.to_json(),
            "received": None if vm.received is None else (vm.received.peer, vm.received.promoted is not None),
            "made_for": made_for.get(vm.name),
            "policies": {disk.name: pool.find(disk.export).policy for disk in vm.disks},
            "disks": {disk.name: content(pool, disk.export, disk.size_bytes) for disk in vm.disks},
            "snapshots": {},
            "runs": sorted(run[1:] for run in runs[vm.uuid]),
        }
        for listed in vms.list_snapshots(vm.name):
            snapshot = vms.show_snapshot(vm.name, listed.name)
            seen[vm.name]["snapshots"][snapshot.name] = {
                "description": snapshot.description,
                "terms": (snapshot.origin, snapshot.asked, snapshot.expires, snapshot.locked_until, snapshot.schedule),
                "achieved": (snapshot.consistency, snapshot.frozen_ms),
                "config": snapshot.config,
                "disks": {disk.name: content(pool, disk.export, disk.size_bytes) for disk in snapshot.disks},
            }
    receipts = half_received(vms, pool)
    return {**seen, RECEIPTS: {"snapshots": receipts}} if receipts else seen


def half_received(vms: VMs, pool: Pool) -> Observation:
    """What a peer is told when it goes on: how far each receipt is; and what is before that place, which is to be there."""
    found: Observation = {}
    for row in vms._catalog.receipts():
        disks = vms._catalog.receipt_disks(row.id)
        found[f"{row.purpose} {row.vm_uuid} {row.snapshot_uuid} {row.name}"] = {
            "base": base_uuid_of(row),
            "data_bytes": row.data_bytes,
            "next_blocks": [disk.next_block for disk in disks],
            "content": [xxhash.xxh3_64_hexdigest(pool.get(disk.object_id).read(0, disk.next_block * 4096)) for disk in disks],
        }
    return found


def without_automatic_snapshots(seen: Observation) -> Observation:
    """What a clone or restore that was interrupted may have left more than there was: its snapshot."""
    return {
        name: {
            **vm,
            "snapshots": {
                key: one for key, one in vm["snapshots"].items() if one.get("terms", "-")[0] not in ("clone", "restore")
            },
        }
        for name, vm in seen.items()
    }


def check_agreed(vms: VMs, catalog: Catalog, engine: EngineClient, missing: Sequence[str] = ()) -> None:
    """Catalog and pool say the same but for `missing`, nothing temporary is left but receipts, there is nothing more to agree upon."""
    policies = {vm.id: vm.policy for vm in catalog.vms()}
    given = {thing.id: thing.policy for thing in engine.objects()}
    for disk in catalog.disks():
        assert disk.object_id is None or given[disk.object_id] == policies[disk.vm_id], f"{disk}: another policy"
    again = vms.reconcile()
    assert again == Agreement(missing=list(missing)), f"a second agreement changed more: {again}"
    assert catalog.intents() == []
    names = {vm.id: vm.name for vm in catalog.vms()}
    known: set[tuple[int | None, str, int]] = set()
    for disk in catalog.disks():
        known.add((disk.object_id, f"{names[disk.vm_id]}/{disk.name}", disk.size_bytes))
    for snapshot in catalog.snapshots():
        for part in catalog.snapshot_disks(snapshot.id):
            name = f"{names[snapshot.vm_id]}/{part.name}@{snapshot.name}"
            known.add((part.object_id, name, part.size_bytes))
    receiving = {row.object_id for row in catalog.receipt_disks()}
    objects = {thing.id: thing for thing in engine.objects()}
    assert {id for id, thing in objects.items() if "~copy-" in str(thing.name)} == receiving
    shown = {(thing.id, thing.name, thing.size_bytes) for thing in objects.values() if thing.id not in receiving}
    assert {row for row in known if row[0] is not None} == shown
