"""blockdevctl pool usage and vm usage: what takes the pool's space, and what deleting would give back."""

from __future__ import annotations

from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import print_columns, print_fields
from blockdev.cli.session import Session, Verb, pass_session
from blockdev.written import show_size

VM_COLUMNS = ("size_bytes", "data_bytes", "shared_bytes", "unique_stored_bytes", "snapshots_stored_bytes")


@click.command(cls=Verb, name="usage")
@pass_session
def pool_usage(session: Session) -> None:
    """Show what takes the pool's space, and how much of it each VM does.

    DATA is what a VM's disks hold as the guest sees it, SHARED what of it others hold, too.  UNIQUE is what deleting the VM
    gives back, SNAPSHOTS what deleting its snapshots does.
    """
    found = session.client.get("/pool/usage")

    def tell() -> None:
        print_fields(_pool_fields(found["pool"]))
        rows = [[vm["vm"], *(show_size(vm[column]) for column in VM_COLUMNS)] for vm in found["vms"]]
        if rows:
            click.echo()
        print_columns(["VM", "SIZE", "DATA", "SHARED", "UNIQUE", "SNAPSHOTS"], rows, right=range(1, 6))

    session.show(found, tell)


def _pool_fields(pool: dict[str, int]) -> list[tuple[str, str]]:
    """Each number, and in words what it is."""
    used, capacity = pool["used_bytes"], pool["capacity_bytes"]
    told = [
        ("logical_bytes", "guests' data", "that disks hold"),
        ("dedup_saved_bytes", "dedup saves", "of it"),
        ("snapshot_only_bytes", "snapshots hold", "more, that no disk holds"),
        ("compression_saved_bytes", "compression saves", "of all that"),
        ("stored_bytes", "stored", "is what remains"),
        ("metadata_bytes", "metadata", "beside it"),
        ("reclaimable_bytes", "reclaimable", "that a compaction gives back"),
    ]
    fields = [("used", f"{show_size(used)} of {show_size(capacity)} ({used / capacity:.0%})")]
    return fields + [(name, f"{show_size(pool[field])} {words}") for field, name, words in told]


@click.command(cls=Verb, name="usage")
@click.argument("name", type=values.VM)
@pass_session
def vm_usage(session: Session, name: str) -> None:
    """Show what a VM takes, and each of its snapshots.

    CHANGED is what was written or discarded since the snapshot before, FREES what deleting that snapshot alone gives back.
    """
    found = session.client.get(f"/vms/{name}/usage")
    session.show(found, lambda: _tell_vm(found))


def _tell_vm(vm: dict[str, Any]) -> None:
    print_fields(
        [
            ("VM", vm["vm"]),
            ("size", show_size(vm["size_bytes"])),
            ("data", f"{show_size(vm['data_bytes'])} that its disks hold"),
            ("shared", f"{show_size(vm['shared_bytes'])} of it is held elsewhere, too"),
            ("unique", f"{show_size(vm['unique_stored_bytes'])} that deleting the VM gives back"),
            ("snapshots", f"{show_size(vm['snapshots_stored_bytes'])} that deleting all its snapshots gives back"),
        ]
    )
    rows = [
        [one["snapshot"], one["created"], show_size(one["changed_bytes"]), show_size(one["frees_bytes"])]
        for one in vm["snapshots"]
    ]
    if rows:
        click.echo()
    print_columns(["SNAPSHOT", "CREATED", "CHANGED", "FREES"], rows, right=(2, 3))
