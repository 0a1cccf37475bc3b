"""The catalog's rows of replication: peers, paths, what is protected, what is received, what was transferred (docs/replication.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from blockdev.vmmap.database import Database

TRANSFERS_MAX = 50_000
SAMPLES_MAX = 500_000

Direction = Literal["sent", "received"]
Purpose = Literal["protect", "copy"]  # the next snapshot of a received VM, or a VM of its own


class PeerRow(NamedTuple):
    """Another home that may send to this one, or be sent to."""

    id: int
    name: str
    key: str  # its public key, "ssh-ed25519 AAAA..."
    vms: str  # JSON: globs of the names of VMs that it may send; none: it may send nothing
    space_bytes: int | None  # what all it has sent may take; None: no limit
    created: str


class PathRow(NamedTuple):
    """A way to another home."""

    id: int
    name: str
    host: str
    port: int
    key: str  # the public key that the other end must have
    level: int  # of zstd
    throttle: str  # JSON: replicate.throttle's to read
    created: str


class ProtectionRow(NamedTuple):
    """A VM that is replicated over a path."""

    vm_id: int
    path_id: int
    rpo_seconds: int | None
    keep_seconds: int | None  # how long the other end keeps snapshots of no schedule; None: until somebody deletes them
    paused: int
    from_lsn: int  # older snapshots are not sent
    newest_uuid: str | None  # of the newest snapshot that the other end has
    newest_lsn: int | None
    newest_created: str | None
    newest_finished: str | None  # when it was there
    failures: int  # of the latest attempts, one after the other
    error_code: str | None  # of the last of these
    error_message: str | None
    created: str


class ReceivedRow(NamedTuple):
    """A VM that came from a peer."""

    vm_id: int
    peer_id: int
    rpo_seconds: int | None  # as the sender says
    since: str
    promoted: str | None  # when; None: nobody but the peer changes it


class MadeRow(NamedTuple):
    """A VM of its own that a peer had made here, by a copy or as a clone: it counts as space that the peer takes."""

    vm_id: int
    peer_id: int


class GuardedRow(NamedTuple):
    """That a VM is protected, as a list of VMs or snapshots shows it."""

    vm_id: int
    path: str
    newest_uuid: str | None


class OriginRow(NamedTuple):
    """That a VM is received, as a list of VMs shows it."""

    vm_id: int
    peer: str
    since: str
    promoted: str | None


class NewReceipt(NamedTuple):
    """What a receipt begins with."""

    peer_id: int
    purpose: Any  # a word of Purpose
    vm_uuid: str  # as the sender has it
    snapshot_uuid: str
    name: str  # of the VM that a copy makes; "" when its purpose is to protect
    body: str  # JSON: receipts' to read
    began: str


class ReceiptRow(NamedTuple):
    """A snapshot of which a part is here."""

    id: int
    peer_id: int
    purpose: Any  # as in NewReceipt, and so on
    vm_uuid: str
    snapshot_uuid: str
    name: str
    vm_id: int | None  # None: it makes a VM
    body: str
    data_bytes: int  # received so far
    began: str
    touched: str


class ReceiptDiskRow(NamedTuple):
    receipt_id: int
    number: int  # of the disk, as the sender counts
    object_id: int  # the vdisk that is written to
    next_block: int  # what is before it is here, durable


class TransferRow(NamedTuple):
    """One transfer that has ended."""

    id: int
    direction: Any  # a word of Direction
    way: str  # the path's name, or the peer's
    vm: str
    vm_uuid: str
    snapshot: str
    snapshot_uuid: str
    began: str
    finished: str
    logical_bytes: int  # of blocks that differ from the base
    network_bytes: int
    error_code: str | None  # None: it is whole
    error_message: str | None


class SampleRow(NamedTuple):
    """What a VM's replication did since the sample before."""

    id: int
    time: str
    direction: Any  # a word of Direction
    way: str
    vm_uuid: str
    logical_bytes: int
    network_bytes: int
    remaining_bytes: int | None
    lag_seconds: int | None


class NewestRow(NamedTuple):
    """The newest snapshot of a VM that came from a peer; its newest of all when none did."""

    vm_id: int
    name: str
    uuid: str
    created: str


class ReplicationRecords(Database):
    """The rows of replication."""

    # peers

    def peers(self) -> list[PeerRow]:
        return self._rows(PeerRow, "SELECT * FROM peer ORDER BY name")

    def peer(self, name: str) -> PeerRow | None:
        return self._row(PeerRow, "SELECT * FROM peer WHERE name = ?", name)

    def peer_by_id(self, peer_id: int) -> PeerRow | None:
        return self._row(PeerRow, "SELECT * FROM peer WHERE id = ?", peer_id)

    def peer_of_key(self, key: str) -> PeerRow | None:
        return self._row(PeerRow, "SELECT * FROM peer WHERE key = ?", key)

    def put_peer(self, name: str, key: str, vms: str, space_bytes: int | None, created: str) -> int:
        """A new peer, or other limits and another key of the one of that name."""
        return self._rows(
            int,
            "INSERT INTO peer (name, key, vms, space_bytes, created) VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE"
            " SET key = excluded.key, vms = excluded.vms, space_bytes = excluded.space_bytes RETURNING id",
            *(name, key, vms, space_bytes, created),
        )[0]

    def delete_peer(self, peer_id: int) -> None:
        """Those that it sent are VMs like others from then on."""
        self._do("DELETE FROM received_vm WHERE peer_id = ?", peer_id)
        self._do("DELETE FROM made_vm WHERE peer_id = ?", peer_id)
        self._do("DELETE FROM peer WHERE id = ?", peer_id)

    # paths

    def paths(self) -> list[PathRow]:
        return self._rows(PathRow, "SELECT * FROM path ORDER BY name")

    def path_named(self, name: str) -> PathRow | None:
        return self._row(PathRow, "SELECT * FROM path WHERE name = ?", name)

    def path_by_id(self, path_id: int) -> PathRow | None:
        return self._row(PathRow, "SELECT * FROM path WHERE id = ?", path_id)

    def insert_path(self, name: str, host: str, port: int, key: str, level: int, throttle: str, created: str) -> int:
        return self._do(
            "INSERT INTO path (name, host, port, key, level, throttle, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(name, host, port, key, level, throttle, created),
        )

    def change_path(self, path: PathRow) -> None:
        """All but its id, name and time."""
        self._do(
            "UPDATE path SET host = ?, port = ?, key = ?, level = ?, throttle = ? WHERE id = ?",
            *(path.host, path.port, path.key, path.level, path.throttle, path.id),
        )

    def delete_path(self, path_id: int) -> None:
        """With the protections over it."""
        self._do("DELETE FROM protection WHERE path_id = ?", path_id)
        self._do("DELETE FROM path WHERE id = ?", path_id)

    # protections

    def protections(self, vm_id: int | None = None) -> list[ProtectionRow]:
        """Of one VM, or all."""
        if vm_id is None:
            return self._rows(ProtectionRow, "SELECT * FROM protection ORDER BY vm_id, path_id")
        return self._rows(ProtectionRow, "SELECT * FROM protection WHERE vm_id = ? ORDER BY path_id", vm_id)

    def guards_of(self, vm_ids: Iterable[int]) -> list[GuardedRow]:
        """Of some VMs, by the paths' names."""
        return self._rows(
            GuardedRow,
            "SELECT g.vm_id, p.name, g.newest_uuid FROM protection g JOIN path p ON p.id = g.path_id"
            " WHERE g.vm_id IN (SELECT value FROM json_each(?)) ORDER BY p.name",
            json.dumps(list(vm_ids)),
        )

    def put_protection(
        self, vm_id: int, path_id: int, rpo_seconds: int | None, keep_seconds: int | None, from_lsn: int, created: str
    ) -> None:
        """A new one, or other terms of the one that is there, which goes on where it is."""
        self._do(
            "INSERT INTO protection (vm_id, path_id, rpo_seconds, keep_seconds, paused, from_lsn, failures, created)"
            " VALUES (?, ?, ?, ?, 0, ?, 0, ?) ON CONFLICT (vm_id, path_id) DO UPDATE"
            " SET rpo_seconds = excluded.rpo_seconds, keep_seconds = excluded.keep_seconds",
            *(vm_id, path_id, rpo_seconds, keep_seconds, from_lsn, created),
        )

    def pause_protection(self, vm_id: int, path_id: int, paused: bool) -> None:
        self._do("UPDATE protection SET paused = ? WHERE vm_id = ? AND path_id = ?", int(paused), vm_id, path_id)

    def note_replicated(self, vm_id: int, path_id: int, uuid: str, lsn: int, created: str, finished: str) -> None:
        """The other end has this snapshot."""
        self._do(
            "UPDATE protection SET newest_uuid = ?, newest_lsn = ?, newest_created = ?, newest_finished = ?,"
            " failures = 0, error_code = NULL, error_message = NULL WHERE vm_id = ? AND path_id = ?",
            *(uuid, lsn, created, finished, vm_id, path_id),
        )

    def note_failed(self, vm_id: int, path_id: int, error_code: str, error_message: str) -> None:
        self._do(
            "UPDATE protection SET failures = failures + 1, error_code = ?, error_message = ? WHERE vm_id = ? AND path_id = ?",
            *(error_code, error_message, vm_id, path_id),
        )

    def clear_failures(self, vm_id: int, path_id: int) -> None:
        self._do(
            "UPDATE protection SET failures = 0, error_code = NULL, error_message = NULL WHERE vm_id = ? AND path_id = ?",
            *(vm_id, path_id),
        )

    def delete_protection(self, vm_id: int, path_id: int) -> None:
        self._do("DELETE FROM protection WHERE vm_id = ? AND path_id = ?", vm_id, path_id)

    # received VMs

    def received_vms(self, peer_id: int | None = None) -> list[ReceivedRow]:
        """Of one peer, or all; also those that were promoted."""
        if peer_id is None:
            return self._rows(ReceivedRow, "SELECT * FROM received_vm ORDER BY vm_id")
        return self._rows(ReceivedRow, "SELECT * FROM received_vm WHERE peer_id = ? ORDER BY vm_id", peer_id)

    def received_vm(self, vm_id: int) -> ReceivedRow | None:
        """Also when it was promoted."""
        return self._row(ReceivedRow, "SELECT * FROM received_vm WHERE vm_id = ?", vm_id)

    def receiving_vm(self, vm_id: int) -> ReceivedRow | None:
        """None: it is this home's, as it never was received, or was promoted."""
        return self._row(ReceivedRow, "SELECT * FROM received_vm WHERE vm_id = ? AND promoted IS NULL", vm_id)

    def receiving_vms(self, peer_id: int | None = None) -> list[ReceivedRow]:
        """Those that were not promoted, of one peer, or all."""
        return [row for row in self.received_vms(peer_id) if row.promoted is None]

    def origins_of(self, vm_ids: Iterable[int]) -> list[OriginRow]:
        """Of some VMs, those that are received."""
        return self._rows(
            OriginRow,
            "SELECT r.vm_id, p.name, r.since, r.promoted FROM received_vm r JOIN peer p ON p.id = r.peer_id"
            " WHERE r.vm_id IN (SELECT value FROM json_each(?))",
            json.dumps(list(vm_ids)),
        )

    def put_received_vm(self, vm_id: int, peer_id: int, rpo_seconds: int | None, since: str) -> None:
        """It is the peer's, and not promoted."""
        self._do(
            "INSERT INTO received_vm (vm_id, peer_id, rpo_seconds, since) VALUES (?, ?, ?, ?) ON CONFLICT (vm_id) DO UPDATE"
            " SET peer_id = excluded.peer_id, rpo_seconds = excluded.rpo_seconds, promoted = NULL",
            *(vm_id, peer_id, rpo_seconds, since),
        )

    def set_promoted(self, vm_id: int, promoted: str) -> None:
        self._do("UPDATE received_vm SET promoted = ? WHERE vm_id = ?", promoted, vm_id)

    def delete_received_vm(self, vm_id: int) -> None:
        """It is a VM like others."""
        self._do("DELETE FROM received_vm WHERE vm_id = ?", vm_id)

    def made_vms(self, peer_id: int) -> list[MadeRow]:
        """Of one peer."""
        return self._rows(MadeRow, "SELECT * FROM made_vm WHERE peer_id = ? ORDER BY vm_id", peer_id)

    def vm_count_of_peer(self, peer_id: int) -> int:
        """Those that it sends, and those that it had made."""
        return self._number(
            "SELECT (SELECT count(*) FROM received_vm WHERE peer_id = ?1) + (SELECT count(*) FROM made_vm WHERE peer_id = ?1)",
            peer_id,
        )

    def put_made_vm(self, vm_id: int, peer_id: int) -> None:
        """It is there because the peer wanted it."""
        self._do("INSERT INTO made_vm (vm_id, peer_id) VALUES (?, ?)", vm_id, peer_id)

    def newest_received(self, vm_ids: list[int]) -> dict[int, NewestRow]:
        """By VM id; those without snapshots are not in it."""
        query = (  # a step or two for each VM, however many snapshots it has
            "SELECT s.vm_id, s.name, s.uuid, s.created FROM json_each(?) one JOIN snapshot s ON s.id = coalesce("
            "(SELECT id FROM snapshot WHERE vm_id = one.value AND origin = 'replication' ORDER BY lsn DESC, id DESC LIMIT 1),"
            " (SELECT id FROM snapshot WHERE vm_id = one.value ORDER BY lsn DESC, id DESC LIMIT 1))"
        )
        return {row.vm_id: row for row in self._rows(NewestRow, query, json.dumps(vm_ids))}

    def snapshot_names(self, uuids: list[str]) -> dict[tuple[int, str], str]:
        """(VM id, uuid) -> name of snapshots that are here."""
        query = "SELECT vm_id, uuid, name FROM snapshot WHERE uuid IN (SELECT value FROM json_each(?))"
        rows = self._rows(lambda *row: row, query, json.dumps(uuids))
        return {(vm_id, uuid): name for vm_id, uuid, name in rows}

    # half-received snapshots

    def receipts(self, peer_id: int | None = None) -> list[ReceiptRow]:
        """From one peer, or all."""
        if peer_id is None:
            return self._rows(ReceiptRow, "SELECT * FROM receipt ORDER BY id")
        return self._rows(ReceiptRow, "SELECT * FROM receipt WHERE peer_id = ? ORDER BY id", peer_id)

    def receipt(self, receipt_id: int) -> ReceiptRow | None:
        return self._row(ReceiptRow, "SELECT * FROM receipt WHERE id = ?", receipt_id)

    def receipts_of(self, peer_id: int, purpose: Purpose, vm_uuid: str, name: str) -> list[ReceiptRow]:
        """Those of one VM, or of one copy of it, oldest first."""
        return self._rows(
            ReceiptRow,
            "SELECT * FROM receipt WHERE peer_id = ? AND purpose = ? AND vm_uuid = ? AND name = ? ORDER BY id",
            *(peer_id, purpose, vm_uuid, name),
        )

    def receipts_into(self, vm_id: int) -> list[ReceiptRow]:
        """Of a VM that is here."""
        return self._rows(ReceiptRow, "SELECT * FROM receipt WHERE vm_id = ? ORDER BY id", vm_id)

    def receipt_disks(self, receipt_id: int | None = None) -> list[ReceiptDiskRow]:
        """Of one receipt by number, or all."""
        if receipt_id is None:
            return self._rows(ReceiptDiskRow, "SELECT * FROM receipt_disk ORDER BY receipt_id, number")
        return self._rows(ReceiptDiskRow, "SELECT * FROM receipt_disk WHERE receipt_id = ? ORDER BY number", receipt_id)

    def insert_receipt(self, new: NewReceipt, vm_id: int | None, object_ids: list[int]) -> None:
        """vm_id: of the VM that it is added to; object_ids: the vdisks that its disks are written to."""
        receipt_id = self._do(
            "INSERT INTO receipt (peer_id, purpose, vm_uuid, snapshot_uuid, name, vm_id, body, data_bytes, began, touched)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?8, ?6, 0, ?7, ?7)",
            *(*new, vm_id),
        )
        for number, object_id in enumerate(object_ids):
            self._do("INSERT INTO receipt_disk VALUES (?, ?, ?, 0)", receipt_id, number, object_id)

    def save_receipt(self, receipt_id: int, next_blocks: Sequence[int], data_bytes: int, touched: str) -> None:
        """next_blocks: for each disk; what is before them is durable."""
        self._do("UPDATE receipt SET data_bytes = ?, touched = ? WHERE id = ?", data_bytes, touched, receipt_id)
        for number, block in enumerate(next_blocks):
            self._do("UPDATE receipt_disk SET next_block = ? WHERE receipt_id = ? AND number = ?", block, receipt_id, number)

    def delete_receipt(self, receipt_id: int) -> None:
        self._do("DELETE FROM receipt WHERE id = ?", receipt_id)

    # digests of content: Catalog.newest_digests finds what one can be made from

    def set_digest(self, object_id: int, digest: bytes) -> None:
        """Of a snapshot's disk by what the pool calls it: the id of a row may be another one's when this was deleted."""
        self._do("UPDATE snapshot_disk SET digest = ? WHERE object_id = ?", digest, object_id)

    # history

    def add_transfer(self, *values: Any) -> None:
        """The fields of a TransferRow from direction on; the oldest go."""
        marks = ", ".join("?" * len(values))
        fields = ", ".join(TransferRow._fields[1:])
        newest = self._do(f"INSERT INTO transfer ({fields}) VALUES ({marks})", *values)
        self._do("DELETE FROM transfer WHERE id <= ?", newest - TRANSFERS_MAX)

    def transfers(self, vm_uuid: str | None, before: int | None, count: int) -> list[TransferRow]:
        """Newest first, those with an id below `before`; of one VM, or all."""
        return self._rows(
            TransferRow,
            "SELECT * FROM transfer WHERE (?1 IS NULL OR vm_uuid = ?1) AND (?2 IS NULL OR id < ?2) ORDER BY id DESC LIMIT ?3",
            *(vm_uuid, before, count),
        )

    def add_samples(self, samples: list[tuple[Any, ...]]) -> None:
        """Each the fields of a SampleRow from time on; the oldest go."""
        marks = ", ".join("?" * (len(SampleRow._fields) - 1))
        fields = ", ".join(SampleRow._fields[1:])
        for sample in samples:
            newest = self._do(f"INSERT INTO replication_sample ({fields}) VALUES ({marks})", *sample)
            self._do("DELETE FROM replication_sample WHERE id <= ?", newest - SAMPLES_MAX)

    def samples(self, vm_uuid: str, since: str) -> list[SampleRow]:
        """Oldest first."""
        return self._rows(
            SampleRow, "SELECT * FROM replication_sample WHERE vm_uuid = ? AND time >= ? ORDER BY id", vm_uuid, since
        )
