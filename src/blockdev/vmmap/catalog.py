"""The catalog: what the control plane knows beyond the pool, in one SQLite file (docs/format/catalog.md).

Rows in, rows out: no rule about VMs is here.  A disk or snapshot disk whose object the pool lacks has no object id.
Threads: any; one lock, held for a whole transaction.  Durable: a transaction that was left without an exception.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from blockdev.policies import AS_POOL, DiskPolicy
from blockdev.vmmap.catalog_domains import DomainRecords
from blockdev.vmmap.catalog_events import EventRecords
from blockdev.vmmap.catalog_jobs import JobRecords
from blockdev.vmmap.catalog_replication import ReplicationRecords
from blockdev.vmmap.catalog_schema import config_digest
from blockdev.vmmap.catalog_targets import TargetRecords
from blockdev.vmmap.catalog_tokens import TokenRecords
from blockdev.vmmap.model import MANUAL, Terms


class VMRow(NamedTuple):
    id: int
    uuid: str
    name: str
    description: str
    created: str
    cloned_from: str | None
    config_id: int
    compression: Any  # a word of policies.Compression; None: as the pool's
    dedup: Any  # a word of policies.Dedup; None: as the pool's
    own_schedules: int  # whether it has a set of its own instead of the default one
    agent: str | None  # the Unix socket of its guest agent, on this machine

    @property
    def policy(self) -> DiskPolicy:
        return DiskPolicy(self.compression, self.dedup)


class DiskRow(NamedTuple):
    id: int
    vm_id: int
    name: str
    object_id: int | None
    size_bytes: int
    created: str


class CoverageRow(NamedTuple):
    """How a VM is protected by snapshots."""

    name: str
    own_schedules: int  # whether it has a set of its own
    schedule_count: int
    newest: str | None  # when its newest snapshot was taken


class SnapshotRow(NamedTuple):
    id: int
    vm_id: int
    name: str
    description: str
    created: str
    lsn: int
    consistency: Any  # a word of model.Consistency
    origin: Any  # a word of model.Origin
    config_id: int
    asked: Any  # a word of model.Consistency
    frozen_ms: int | None
    expires: str | None  # None: never
    locked_until: str | None
    schedule: str | None  # that took it,
    due: str | None  # and when it was due
    uuid: str  # the same on every copy of the snapshot, in whichever pool
    changed_bytes: int | None  # since the one before it, when it was taken; None: not counted yet

    def terms(self) -> Terms:
        return Terms(
            *(self.origin, self.consistency, self.asked, self.frozen_ms),
            *(self.expires, self.locked_until, self.schedule, self.due),
        )


class SnapshotDiskRow(NamedTuple):
    id: int
    snapshot_id: int
    name: str
    object_id: int | None
    size_bytes: int
    digest: bytes | None  # of its content (_exchange.pxd); None: not made yet


class ImportRow(NamedTuple):
    id: int
    vm_id: int
    disk: str
    object_id: int
    size_bytes: int
    creates: int
    started: str


class RunRow(NamedTuple):
    """How far a schedule of a VM is."""

    vm_id: int
    schedule: str
    handled: str  # runs that were due until then are done with
    failures: int  # of the latest runs, one after the other
    error: str | None  # of the last of these


class IntentRow(NamedTuple):
    id: int
    kind: str
    body: dict[str, Any]


class Catalog(DomainRecords, EventRecords, JobRecords, ReplicationRecords, TargetRecords, TokenRecords):
    """An open catalog."""

    # settings

    def pool_uuid(self) -> str | None:
        """The pool that this catalog is of; None until it has met one."""
        return self._row(str, "SELECT value FROM setting WHERE key = 'pool_uuid'")

    def set_pool_uuid(self, uuid: str) -> None:
        self._do("INSERT OR REPLACE INTO setting (key, value) VALUES ('pool_uuid', ?)", uuid)

    def setting(self, key: str) -> str | None:
        return self._row(str, "SELECT value FROM setting WHERE key = ?", key)

    def set_setting(self, key: str, value: str) -> None:
        self._do("INSERT OR REPLACE INTO setting (key, value) VALUES (?, ?)", key, value)

    # schedules: what they say is schedule.rules' to know

    def schedules(self) -> dict[int | None, list[dict[str, Any]]]:
        """By VM id; None: the default set."""
        found: dict[int | None, list[dict[str, Any]]] = {}
        for vm_id, body in self._rows(lambda *row: row, "SELECT vm_id, body FROM schedule ORDER BY id"):
            found.setdefault(vm_id, []).append(json.loads(body))
        return found

    def coverage(self) -> list[CoverageRow]:
        """Of all VMs, by name."""
        return self._rows(
            CoverageRow,
            "SELECT name, own_schedules,"
            " (SELECT count(*) FROM schedule s WHERE s.vm_id IS iif(v.own_schedules, v.id, NULL)),"
            " (SELECT created FROM snapshot s WHERE s.vm_id = v.id ORDER BY lsn DESC LIMIT 1)"
            " FROM vm v ORDER BY name",
        )

    def set_schedules(self, vm_id: int | None, bodies: list[dict[str, Any]], own: bool = True) -> None:
        """The default set, or that of a VM; not `own`: the VM has the default one again."""
        self._do("DELETE FROM schedule WHERE vm_id IS ?", vm_id)
        for body in bodies:
            self._do("INSERT INTO schedule (vm_id, name, body) VALUES (?, ?, ?)", vm_id, body["name"], json.dumps(body))
        if vm_id is not None:
            self._do("UPDATE vm SET own_schedules = ? WHERE id = ?", int(own), vm_id)

    def schedule_runs(self) -> list[RunRow]:
        return self._rows(RunRow, "SELECT * FROM schedule_run")

    def forget_schedule_runs(self, vm_id: int | None, schedules: Iterable[str]) -> None:
        """Of one VM, or of all that follow the default set."""
        for schedule in schedules:
            self._do(
                "DELETE FROM schedule_run WHERE schedule = ?1 AND vm_id IN"
                " (SELECT id FROM vm WHERE iif(?2 IS NULL, own_schedules = 0, id = ?2))",
                *(schedule, vm_id),
            )

    def restart_schedule_runs(self, vm_id: int | None, schedules: Iterable[str], now: str) -> None:
        """Those that forget_schedule_runs would forget are done with until now; how they went stays."""
        for schedule in schedules:
            self._do(
                "UPDATE schedule_run SET handled = ?3 WHERE schedule = ?1 AND vm_id IN"
                " (SELECT id FROM vm WHERE iif(?2 IS NULL, own_schedules = 0, id = ?2))",
                *(schedule, vm_id, now),
            )

    def put_schedule_runs(self, rows: Iterable[RunRow]) -> None:
        for row in rows:  # whose VM may be gone by now
            self._do(
                "INSERT OR REPLACE INTO schedule_run SELECT id, ?, ?, ?, ? FROM vm WHERE id = ?",
                *(row.schedule, row.handled, row.failures, row.error, row.vm_id),
            )

    # configurations: equal texts are kept once, since each snapshot and clone has one

    def config_text(self, config_id: int) -> str:
        return self._rows(str, "SELECT text FROM config WHERE id = ?", config_id)[0]

    def _config_id(self, text: str) -> int:
        digest = config_digest(text)
        found = self._row(int, "SELECT id FROM config WHERE digest = ?", digest)
        if found is not None:
            return found
        return self._do("INSERT INTO config (digest, text) VALUES (?, ?)", digest, text)

    def _drop_unused_configs(self, config_ids: Iterable[int]) -> None:
        for config_id in set(config_ids):
            self._do(
                "DELETE FROM config WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM vm WHERE config_id = ?1)"
                " AND NOT EXISTS (SELECT 1 FROM snapshot WHERE config_id = ?1)",
                config_id,
            )

    # VMs

    def vm(self, name: str) -> VMRow | None:
        return self._row(VMRow, "SELECT * FROM vm WHERE name = ?", name)

    def vm_by_id(self, vm_id: int) -> VMRow | None:
        return self._row(VMRow, "SELECT * FROM vm WHERE id = ?", vm_id)

    def vm_of_uuid(self, uuid: str) -> VMRow | None:
        return self._row(VMRow, "SELECT * FROM vm WHERE uuid = ?", uuid)

    def vm_name(self, vm_id: int) -> str:
        return self._rows(str, "SELECT name FROM vm WHERE id = ?", vm_id)[0]

    def vms(self) -> list[VMRow]:
        return self._rows(VMRow, "SELECT * FROM vm ORDER BY name")

    def vms_page(self, after: str, glob: str | None, cloned_from: str | None, count: int) -> list[VMRow]:
        """By name, those after the name `after` whose name matches `glob`, and that are clones of a VM or VM@SNAPSHOT."""
        return self._rows(
            VMRow,
            "SELECT * FROM vm WHERE name > ?1 AND (?2 IS NULL OR name GLOB ?2)"
            " AND (?3 IS NULL OR cloned_from = ?3 OR substr(cloned_from, 1, length(?3) + 1) = ?3 || '@') ORDER BY name LIMIT ?4",
            *(after, glob, cloned_from, count),
        )

    def vm_count(self) -> int:
        return self._number("SELECT count(*) FROM vm")

    def insert_vm(
        self,
        uuid: str,
        name: str,
        created: str,
        *,
        description: str = "",
        config: str = "",
        cloned_from: str | None = None,
        policy: DiskPolicy = AS_POOL,
    ) -> int:
        return self._do(
            "INSERT INTO vm (uuid, name, description, created, cloned_from, config_id, compression, dedup)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(uuid, name, description, created, cloned_from, self._config_id(config), *policy),
        )

    def rename_vm(self, vm_id: int, name: str) -> None:
        self._do("UPDATE vm SET name = ? WHERE id = ?", name, vm_id)

    def set_description(self, vm_id: int, description: str) -> None:
        self._do("UPDATE vm SET description = ? WHERE id = ?", description, vm_id)

    def set_policy(self, vm_id: int, policy: DiskPolicy) -> None:
        self._do("UPDATE vm SET compression = ?, dedup = ? WHERE id = ?", *policy, vm_id)

    def set_agent(self, vm_id: int, agent: str | None) -> None:
        self._do("UPDATE vm SET agent = ? WHERE id = ?", agent, vm_id)

    def set_config(self, vm_id: int, config: str) -> None:
        before = self._number("SELECT config_id FROM vm WHERE id = ?", vm_id)
        self._do("UPDATE vm SET config_id = ? WHERE id = ?", self._config_id(config), vm_id)
        self._drop_unused_configs([before])

    def delete_vm(self, vm_id: int) -> None:
        """With its disks, snapshots, imports, protections, and what a peer sends of it."""
        configs = self._rows(
            int,
            "SELECT config_id FROM vm WHERE id = ?1 UNION SELECT config_id FROM snapshot WHERE vm_id = ?1",
            vm_id,
        )
        self._do("DELETE FROM vm WHERE id = ?", vm_id)
        self._drop_unused_configs(configs)

    # disks

    def disk(self, vm_id: int, name: str) -> DiskRow | None:
        return self._row(DiskRow, "SELECT * FROM disk WHERE vm_id = ? AND name = ?", vm_id, name)

    def disks(self, vm_id: int | None = None) -> list[DiskRow]:
        """The disks of one VM, or of all, in the order they were added."""
        if vm_id is None:
            return self._rows(DiskRow, "SELECT * FROM disk ORDER BY id")
        return self._rows(DiskRow, "SELECT * FROM disk WHERE vm_id = ? ORDER BY id", vm_id)

    def disks_of(self, vm_ids: Iterable[int]) -> list[DiskRow]:
        """The disks of some VMs, in the order they were added."""
        query = "SELECT * FROM disk WHERE vm_id IN (SELECT value FROM json_each(?)) ORDER BY id"
        return self._rows(DiskRow, query, json.dumps(list(vm_ids)))

    def disk_count(self) -> int:
        return self._number("SELECT count(*) FROM disk")

    def put_disk(self, vm_id: int, name: str, object_id: int, size_bytes: int, created: str) -> None:
        """A new disk, or another object behind the disk of that name."""
        self._do(
            "INSERT INTO disk (vm_id, name, object_id, size_bytes, created) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (vm_id, name) DO UPDATE"
            " SET object_id = excluded.object_id, size_bytes = excluded.size_bytes",
            *(vm_id, name, object_id, size_bytes, created),
        )

    def set_disk_size(self, disk_id: int, size_bytes: int) -> None:
        self._do("UPDATE disk SET size_bytes = ? WHERE id = ?", size_bytes, disk_id)

    def lose_disk(self, disk_id: int) -> None:
        """The pool has no such object."""
        self._do("UPDATE disk SET object_id = NULL WHERE id = ?", disk_id)

    def delete_disk(self, disk_id: int) -> None:
        self._do("DELETE FROM disk WHERE id = ?", disk_id)

    # snapshots

    def snapshot(self, vm_id: int, name: str) -> SnapshotRow | None:
        return self._row(SnapshotRow, "SELECT * FROM snapshot WHERE vm_id = ? AND name = ?", vm_id, name)

    def snapshot_by_id(self, snapshot_id: int) -> SnapshotRow | None:
        return self._row(SnapshotRow, "SELECT * FROM snapshot WHERE id = ?", snapshot_id)

    def snapshots(self, vm_id: int | None = None) -> list[SnapshotRow]:
        """The snapshots of one VM, or of all, oldest first: the clock may jump, LSNs do not."""
        if vm_id is None:
            return self._rows(SnapshotRow, "SELECT * FROM snapshot ORDER BY lsn, id")
        return self._rows(SnapshotRow, "SELECT * FROM snapshot WHERE vm_id = ? ORDER BY lsn, id", vm_id)

    def snapshots_from(self, vm_id: int, lsn: int) -> list[SnapshotRow]:
        """Of one VM, oldest first, those of this LSN and later ones."""
        return self._rows(SnapshotRow, "SELECT * FROM snapshot WHERE vm_id = ? AND lsn >= ? ORDER BY lsn, id", vm_id, lsn)

    def snapshots_until(self, vm_id: int, lsn: int) -> list[SnapshotRow]:
        """Of one VM, oldest first, those of this LSN and earlier ones."""
        return self._rows(SnapshotRow, "SELECT * FROM snapshot WHERE vm_id = ? AND lsn <= ? ORDER BY lsn, id", vm_id, lsn)

    def newest_received_lsn(self, vm_id: int) -> int:
        """Of the newest snapshot of a VM that a peer sent; 0: there is none."""
        return self._number("SELECT coalesce(max(lsn), 0) FROM snapshot WHERE vm_id = ? AND origin = 'replication'", vm_id)

    def snapshot_count(self, vm_id: int | None = None) -> int:
        if vm_id is None:
            return self._number("SELECT count(*) FROM snapshot")
        return self._number("SELECT count(*) FROM snapshot WHERE vm_id = ?", vm_id)

    def snapshot_count_after(self, vm_id: int, lsn: int) -> int:
        return self._number("SELECT count(*) FROM snapshot WHERE vm_id = ? AND lsn > ?", vm_id, lsn)

    def snapshot_counts(self, vm_ids: Iterable[int]) -> dict[int, int]:
        """VM id -> how many snapshots, of some VMs; those without any are not in it."""
        query = "SELECT vm_id, count(*) FROM snapshot WHERE vm_id IN (SELECT value FROM json_each(?)) GROUP BY vm_id"
        return dict(self._rows(lambda vm_id, count: (vm_id, count), query, json.dumps(list(vm_ids))))

    def snapshots_page(
        self, vm_id: int, after: tuple[int, int], origin: str | None, schedule: str | None, count: int
    ) -> list[SnapshotRow]:
        """Of one VM, oldest first, those after (LSN, id); of an origin or a schedule only, if it is named."""
        return self._rows(
            SnapshotRow,
            "SELECT * FROM snapshot WHERE vm_id = ?1 AND (lsn, id) > (?2, ?3) AND (?4 IS NULL OR origin = ?4)"
            " AND (?5 IS NULL OR schedule = ?5) ORDER BY lsn, id LIMIT ?6",
            *(vm_id, *after, origin, schedule, count),
        )

    def snapshot_disks_of(self, snapshot_ids: Iterable[int]) -> list[SnapshotDiskRow]:
        query = "SELECT * FROM snapshot_disk WHERE snapshot_id IN (SELECT value FROM json_each(?)) ORDER BY id"
        return self._rows(SnapshotDiskRow, query, json.dumps(list(snapshot_ids)))

    def insert_snapshot(
        self,
        vm_id: int,
        name: str,
        created: str,
        lsn: int,
        *,
        description: str = "",
        terms: Terms = MANUAL,
        uuid: str | None = None,
        config: str | None = None,
    ) -> int:
        """uuid: of the snapshot that this is a copy of.  config: None: that which its VM has now."""
        return self._do(
            "INSERT INTO snapshot (vm_id, name, description, created, lsn, origin, consistency, asked, frozen_ms,"
            " expires, locked_until, schedule, due, uuid, config_id)"
            " SELECT id, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12,"
            " coalesce(?13, snapshot_uuid(uuid, ?1, ?3)), coalesce(?14, config_id) FROM vm WHERE id = ?15",
            *(name, description, created, lsn, *terms, uuid, None if config is None else self._config_id(config), vm_id),
        )

    def snapshot_of_uuid(self, vm_id: int, uuid: str) -> SnapshotRow | None:
        return self._row(SnapshotRow, "SELECT * FROM snapshot WHERE vm_id = ? AND uuid = ?", vm_id, uuid)

    def snapshots_of_uuid(self, uuid: str) -> list[SnapshotRow]:
        """The copies of one snapshot: each VM has one at the most."""
        return self._rows(SnapshotRow, "SELECT * FROM snapshot WHERE uuid = ? ORDER BY id", uuid)

    def snapshots_of_uuids(self, uuids: Sequence[str]) -> dict[str, list[SnapshotRow]]:
        """Likewise of many, by the uuids of those that are here."""
        found: dict[str, list[SnapshotRow]] = {}
        query = "SELECT * FROM snapshot WHERE uuid IN (SELECT value FROM json_each(?)) ORDER BY id"
        for row in self._rows(SnapshotRow, query, json.dumps(list(uuids))):
            found.setdefault(row.uuid, []).append(row)
        return found

    def uncounted_snapshots(self, count: int, without: Iterable[int]) -> list[int]:
        """Ids of up to `count` whose changed_bytes are not known, but for some of these; the newest first."""
        return self._rows(
            int,
            "SELECT id FROM snapshot WHERE changed_bytes IS NULL AND id NOT IN (SELECT value FROM json_each(?))"
            " ORDER BY lsn DESC, id DESC LIMIT ?",
            *(json.dumps(list(without)), count),
        )

    def snapshot_before(self, vm_id: int, lsn: int) -> SnapshotRow | None:
        """The newest one of a VM that is older."""
        query = "SELECT * FROM snapshot WHERE vm_id = ? AND lsn < ? ORDER BY lsn DESC LIMIT 1"
        return self._row(SnapshotRow, query, vm_id, lsn)

    def set_changed_bytes(self, snapshot_id: int, changed_bytes: int) -> None:
        self._do("UPDATE snapshot SET changed_bytes = ? WHERE id = ?", changed_bytes, snapshot_id)

    def set_snapshot_terms(
        self, snapshot_id: int, description: str, expires: str | None, locked_until: str | None
    ) -> None:
        self._do(
            "UPDATE snapshot SET description = ?, expires = ?, locked_until = ? WHERE id = ?",
            *(description, expires, locked_until, snapshot_id),
        )

    def set_snapshot_consistency(self, snapshot_id: int, consistency: str, frozen_ms: int | None) -> None:
        self._do("UPDATE snapshot SET consistency = ?, frozen_ms = ? WHERE id = ?", consistency, frozen_ms, snapshot_id)

    def snapshots_expired(self, now: str) -> list[SnapshotRow]:
        """Those whose time is over and whose locks, too; whether they may go is retention's to say."""
        return self._rows(
            SnapshotRow,
            "SELECT * FROM snapshot WHERE expires <= ?1 AND coalesce(locked_until, '') <= ?1 ORDER BY lsn, id",
            now,
        )

    def locked_snapshot(self, vm_id: int, now: str) -> SnapshotRow | None:
        """The one of a VM that is locked for longest."""
        query = "SELECT * FROM snapshot WHERE vm_id = ? AND locked_until > ? ORDER BY locked_until DESC LIMIT 1"
        return self._row(SnapshotRow, query, vm_id, now)

    def newest_of_schedule(self, vm_id: int, schedule: str) -> SnapshotRow | None:
        query = "SELECT * FROM snapshot WHERE vm_id = ? AND schedule = ? ORDER BY lsn DESC LIMIT 1"
        return self._row(SnapshotRow, query, vm_id, schedule)

    def scheduled_count(self, vm_id: int) -> int:
        return self._number("SELECT count(*) FROM snapshot WHERE vm_id = ? AND schedule IS NOT NULL", vm_id)

    def delete_snapshot(self, snapshot_id: int) -> None:
        configs = self._rows(int, "SELECT config_id FROM snapshot WHERE id = ?", snapshot_id)
        self._do("DELETE FROM snapshot WHERE id = ?", snapshot_id)
        self._drop_unused_configs(configs)

    def snapshot_disks(self, snapshot_id: int) -> list[SnapshotDiskRow]:
        query = "SELECT * FROM snapshot_disk WHERE snapshot_id = ? ORDER BY id"
        return self._rows(SnapshotDiskRow, query, snapshot_id)

    def snapshots_lacking_disks(self) -> set[int]:
        """Ids of the snapshots of which the pool has lost a disk."""
        return set(self._rows(int, "SELECT DISTINCT snapshot_id FROM snapshot_disk WHERE object_id IS NULL"))

    def snapshot_disks_of_vm(self, vm_id: int | None = None) -> list[SnapshotDiskRow]:
        """The disks of all snapshots of one VM, or of all."""
        if vm_id is None:
            return self._rows(SnapshotDiskRow, "SELECT * FROM snapshot_disk ORDER BY id")
        query = (
            "SELECT d.* FROM snapshot s JOIN snapshot_disk d ON d.snapshot_id = s.id"
            " WHERE s.vm_id = ? ORDER BY d.id"
        )
        return self._rows(SnapshotDiskRow, query, vm_id)

    def put_snapshot_disk(self, snapshot_id: int, name: str, object_id: int, size_bytes: int) -> None:
        """A new one, or another object behind the one of that name."""
        self._do(
            "INSERT INTO snapshot_disk (snapshot_id, name, object_id, size_bytes) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (snapshot_id, name) DO UPDATE"
            " SET object_id = excluded.object_id, size_bytes = excluded.size_bytes, digest = NULL",
            *(snapshot_id, name, object_id, size_bytes),
        )

    def newest_digests(self, vm_id: int, lsn: int) -> dict[str, SnapshotDiskRow]:
        """By disk, that of the newest snapshot older than `lsn` of which the digest is known."""
        rows = self._rows(
            SnapshotDiskRow,
            "SELECT d.* FROM snapshot s JOIN snapshot_disk d ON d.snapshot_id = s.id WHERE s.vm_id = ? AND s.lsn < ?"
            " AND d.digest IS NOT NULL AND d.object_id IS NOT NULL ORDER BY s.lsn, s.id",
            *(vm_id, lsn),
        )
        return {row.name: row for row in rows}

    def lose_snapshot_disk(self, snapshot_disk_id: int) -> None:
        """The pool has no such object."""
        self._do("UPDATE snapshot_disk SET object_id = NULL WHERE id = ?", snapshot_disk_id)

    def use_config_of_snapshot(self, vm_id: int, snapshot_id: int) -> None:
        """The VM's configuration becomes the snapshot's."""
        before = self._number("SELECT config_id FROM vm WHERE id = ?", vm_id)
        self._do(
            "UPDATE vm SET config_id = (SELECT config_id FROM snapshot WHERE id = ?) WHERE id = ?",
            *(snapshot_id, vm_id),
        )
        self._drop_unused_configs([before])

    def missing_exports(self) -> list[str]:
        """Names of the disks and snapshot disks that the pool lacks."""
        return self._rows(
            str,
            "SELECT v.name || '/' || d.name FROM disk d JOIN vm v ON v.id = d.vm_id WHERE d.object_id IS NULL"
            " UNION ALL SELECT v.name || '/' || d.name || '@' || s.name FROM snapshot_disk d"
            " JOIN snapshot s ON s.id = d.snapshot_id JOIN vm v ON v.id = s.vm_id WHERE d.object_id IS NULL"
            " ORDER BY 1",
        )

    # imports

    def imports(self, vm_id: int | None = None) -> list[ImportRow]:
        if vm_id is None:
            return self._rows(ImportRow, "SELECT * FROM import ORDER BY id")
        return self._rows(ImportRow, "SELECT * FROM import WHERE vm_id = ? ORDER BY id", vm_id)

    def import_by_id(self, import_id: int) -> ImportRow | None:
        return self._row(ImportRow, "SELECT * FROM import WHERE id = ?", import_id)

    def insert_import(
        self, vm_id: int, disk: str, object_id: int, size_bytes: int, creates: bool, started: str
    ) -> int:
        return self._do(
            "INSERT INTO import (vm_id, disk, object_id, size_bytes, creates, started) VALUES (?, ?, ?, ?, ?, ?)",
            *(vm_id, disk, object_id, size_bytes, int(creates), started),
        )

    def delete_import(self, import_id: int) -> None:
        self._do("DELETE FROM import WHERE id = ?", import_id)

    # intents

    def intents(self) -> list[IntentRow]:
        rows = self._rows(IntentRow, "SELECT * FROM intent ORDER BY id")
        return [row._replace(body=json.loads(str(row.body))) for row in rows]

    def insert_intent(self, kind: str, body: dict[str, Any]) -> int:
        return self._do("INSERT INTO intent (kind, body) VALUES (?, ?)", kind, json.dumps(body))

    def delete_intent(self, intent_id: int) -> None:
        self._do("DELETE FROM intent WHERE id = ?", intent_id)
