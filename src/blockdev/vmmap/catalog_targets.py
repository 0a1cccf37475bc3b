"""The catalog's rows of iSCSI targets: whose they are, who may log in, where they listen, which disk is which LUN (docs/targets.md).

A LUN's row goes with its disk or snapshot; its number is given to no other one, as `next_lun` only grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from blockdev.vmmap.database import Database

LUNS = (
    "SELECT l.target_id, l.number, l.serial, v.name, d.name, NULL, d.object_id, d.size_bytes"
    " FROM target_lun l JOIN disk d ON d.id = l.disk_id JOIN vm v ON v.id = d.vm_id"
    " UNION ALL SELECT l.target_id, l.number, l.serial, v.name, d.name, s.name, d.object_id, d.size_bytes"
    " FROM target_lun l JOIN snapshot_disk d ON d.id = l.snapshot_disk_id JOIN snapshot s ON s.id = d.snapshot_id"
    " JOIN vm v ON v.id = s.vm_id ORDER BY 1, 2"
)


class TargetRow(NamedTuple):
    """The target of a VM."""

    id: int
    vm_id: int
    iqn: str
    demo: int  # whether any initiator may log in
    depth: int  # commands that one initiator may have under way
    chap_user: str | None  # None: whoever may log in needs no secret
    mutual_user: str | None  # with which the target proves itself
    secrets: str | None  # the name of their file in HOME/keys/targets
    next_lun: int  # the number of the next LUN
    created: str


class PortalRow(NamedTuple):
    """Where a target listens."""

    target_id: int
    host: str  # an IPv4 or IPv6 address, without brackets
    port: int


class InitiatorRow(NamedTuple):
    """Who may log in to a target."""

    target_id: int
    iqn: str


class TargetLunRow(NamedTuple):
    """A row of `target_lun`: one of the two ids is there."""

    target_id: int
    number: int
    serial: str
    disk_id: int | None
    snapshot_disk_id: int | None


class LunRow(NamedTuple):
    """A LUN, and what it offers."""

    target_id: int
    number: int
    serial: str  # a uuid; the LUN's for as long as the disk is there
    vm: str
    disk: str
    snapshot: str | None  # a disk of this snapshot of the VM
    object_id: int | None  # None: missing from the pool
    size_bytes: int

    @property
    def export(self) -> str:
        return f"{self.vm}/{self.disk}" + ("" if self.snapshot is None else f"@{self.snapshot}")


class TargetRecords(Database):
    """Reads and writes of targets."""

    def targets(self) -> list[TargetRow]:
        return self._rows(TargetRow, "SELECT * FROM target ORDER BY id")

    def target(self, vm_id: int) -> TargetRow | None:
        return self._row(TargetRow, "SELECT * FROM target WHERE vm_id = ?", vm_id)

    def target_portals(self) -> list[PortalRow]:
        return self._rows(PortalRow, "SELECT * FROM target_portal ORDER BY target_id, host, port")

    def target_initiators(self) -> list[InitiatorRow]:
        return self._rows(InitiatorRow, "SELECT * FROM target_initiator ORDER BY target_id, iqn")

    def luns(self) -> list[LunRow]:
        """Of all targets, each one's by number."""
        return self._rows(LunRow, LUNS)

    def lunless_disks(self) -> list[tuple[int, str, str, int, str]]:
        """(target's id, VM's uuid, disk's name, its id, when it was made) of disks that have no LUN of their VM's target yet, the oldest first."""
        query = (
            "SELECT t.id, v.uuid, d.name, d.id, d.created FROM target t JOIN vm v ON v.id = t.vm_id JOIN disk d ON d.vm_id = v.id"
            " WHERE NOT EXISTS (SELECT 1 FROM target_lun l WHERE l.disk_id = d.id) ORDER BY d.id"
        )
        return self._rows(lambda *row: row, query)

    def lunless_snapshot_disks(self, target_id: int, snapshot_id: int) -> list[tuple[int, str]]:
        """(id, name) of disks of a snapshot that have no LUN yet."""
        query = (
            "SELECT d.id, d.name FROM snapshot_disk d WHERE d.snapshot_id = ?1 AND NOT EXISTS"
            " (SELECT 1 FROM target_lun l WHERE l.target_id = ?2 AND l.snapshot_disk_id = d.id) ORDER BY d.id"
        )
        return self._rows(lambda *row: row, query, snapshot_id, target_id)

    def insert_target(self, vm_id: int, iqn: str, demo: bool, depth: int, created: str) -> int:
        return self._do(
            "INSERT INTO target (vm_id, iqn, demo, depth, next_lun, created) VALUES (?, ?, ?, ?, 0, ?)",
            *(vm_id, iqn, int(demo), depth, created),
        )

    def change_target(self, target_id: int, demo: bool, depth: int) -> None:
        self._do("UPDATE target SET demo = ?, depth = ? WHERE id = ?", int(demo), depth, target_id)

    def set_target_secrets(self, target_id: int, chap_user: str | None, mutual_user: str | None, secrets: str | None) -> None:
        self._do(
            "UPDATE target SET chap_user = ?, mutual_user = ?, secrets = ? WHERE id = ?",
            *(chap_user, mutual_user, secrets, target_id),
        )

    def set_target_portals(self, target_id: int, portals: Iterable[tuple[str, int]]) -> None:
        self._do("DELETE FROM target_portal WHERE target_id = ?", target_id)
        for host, port in portals:
            self._do("INSERT INTO target_portal (target_id, host, port) VALUES (?, ?, ?)", target_id, host, port)

    def set_target_initiators(self, target_id: int, iqns: Iterable[str]) -> None:
        self._do("DELETE FROM target_initiator WHERE target_id = ?", target_id)
        for iqn in iqns:
            self._do("INSERT INTO target_initiator (target_id, iqn) VALUES (?, ?)", target_id, iqn)

    def insert_lun(self, target_id: int, serial: str, disk_id: int | None, snapshot_disk_id: int | None = None) -> None:
        """With the next number."""
        self._do(
            "INSERT INTO target_lun SELECT id, next_lun, ?, ?, ? FROM target WHERE id = ?",
            *(serial, disk_id, snapshot_disk_id, target_id),
        )
        self._do("UPDATE target SET next_lun = next_lun + 1 WHERE id = ?", target_id)

    def delete_snapshot_luns(self, target_id: int, snapshot_id: int) -> None:
        self._do(
            "DELETE FROM target_lun WHERE target_id = ? AND snapshot_disk_id IN (SELECT id FROM snapshot_disk WHERE snapshot_id = ?)",
            *(target_id, snapshot_id),
        )

    def delete_target(self, target_id: int) -> None:
        """With its portals, initiators and LUNs."""
        self._do("DELETE FROM target WHERE id = ?", target_id)
