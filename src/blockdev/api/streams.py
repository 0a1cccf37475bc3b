"""The jobs that write snapshots into stream files, and read them from there (docs/streams.md)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from blockdev.api.jobs import Job
from blockdev.api.schemas_streams import SnapshotExport, SnapshotImport, StreamFile
from blockdev.api.services import Services
from blockdev.api.unfinished import check_description
from blockdev.clock import now_seconds
from blockdev.errors import Busy, InvalidArgument, NotFound
from blockdev.transfer.disk import check_file
from blockdev.transfer.nbd import Export
from blockdev.transfer.streams import Counts, Source, check_readable, open_stream, read_stream, write_stream
from blockdev.vmmap.clock import to_text
from blockdev.vmmap.copies import CopiedDisk, SnapshotCopy
from blockdev.vmmap.model import Snapshot, Terms
from blockdev.vmmap.names import check_name, is_unfinished


def export_snapshot(services: Services, vm: str, snapshot: str, body: SnapshotExport) -> Job:
    """Start the export; what can be refused at once is raised here."""
    wanted = services.vms.show_snapshot(vm, snapshot)
    base = None if body.since is None else services.vms.show_snapshot(vm, body.since)
    if is_unfinished(wanted.description):
        raise Busy(f"snapshot {vm}@{snapshot} goes when the export that it was taken for ends: take another one")
    if base is not None and base.lsn >= wanted.lsn:
        raise InvalidArgument(f"{vm}@{base.name} is not older than {vm}@{snapshot}: --since names an older snapshot")
    check_file(body.path, body.overwrite)

    def work(job: Job) -> Any:
        return _export(services, wanted, base, body, job)

    return services.jobs.start("snapshot.export", f"{vm}@{snapshot}", work)


def _export(services: Services, wanted: Snapshot, base: Snapshot | None, body: SnapshotExport, job: Job) -> dict[str, Any]:
    vm, socket = wanted.vm, services.home.nbd_socket
    with ExitStack() as held:
        for one in (wanted, base):  # nobody deletes a snapshot that somebody is attached to
            if one is not None and one.disks:
                held.enter_context(Export(socket, one.disks[0].export))
                _require_same(services, one)
        pairs = services.vms.disk_pairs(vm, body.since, wanted.name)
        total = sum(services.engine.count_changes(pair.older_id, pair.newer_id)[0] for pair in pairs)
        job.expect(total)
        copy = _copy_of(wanted, base, services.vms.show_vm(vm).uuid, {pair.disk for pair in pairs if pair.older_id})
        exports = {disk.name: disk.export for disk in wanted.disks}
        sources = [Source(exports[pair.disk], services.engine.diff(pair.older_id, pair.newer_id)) for pair in pairs]
        counts = write_stream(socket, copy, sources, body.path, body.overwrite, body.level, total, job)
    return _described(body.path, copy, counts)


def _require_same(services: Services, wanted: Snapshot) -> None:
    """Another one may have taken its name while the job was queued; what is held now stays.  NotFound."""
    if services.vms.show_snapshot(wanted.vm, wanted.name).uuid != wanted.uuid:
        raise NotFound(f"snapshot {wanted.vm}@{wanted.name} was deleted, and another one has its name now: export that one")


def _copy_of(wanted: Snapshot, base: Snapshot | None, vm_uuid: str, based: set[str]) -> SnapshotCopy:
    return SnapshotCopy(
        uuid=wanted.uuid,
        name=wanted.name,
        description=wanted.description,
        created=wanted.created,
        lsn=wanted.lsn,
        terms=Terms("import", wanted.consistency, wanted.asked, wanted.frozen_ms),
        config=wanted.config or "",
        disks=[CopiedDisk(disk.name, disk.size_bytes, disk.name in based) for disk in wanted.disks],
        vm_uuid=vm_uuid,
        vm_name=wanted.vm,
        base_uuid=None if base is None else base.uuid,
        base_name="" if base is None else base.name,
    )


def import_snapshot(services: Services, body: SnapshotImport) -> Job:
    """Start the import; what is in the file is looked at by the job."""
    check_readable(body.path)
    for kind, name in (("VM", body.vm), ("snapshot", body.name)):
        if name is not None:
            check_name(kind, name)
    expires = None if body.keep_seconds is None else to_text(now_seconds() + body.keep_seconds)

    def work(job: Job) -> Any:
        return _import(services, body, expires, job)

    return services.jobs.start("snapshot.import", body.path, work)


def _import(services: Services, body: SnapshotImport, expires: str | None, job: Job) -> dict[str, Any]:
    file_bytes = check_readable(body.path)
    job.expect(file_bytes)
    with open_stream(body.path) as reader:
        check_description(reader.copy.description)
        begun = services.vms.begin_copy(reader.copy, body.vm, body.name, expires)
        try:
            counts = read_stream(reader, file_bytes, job, services.home.nbd_socket, begun.exports)
            made = services.vms.finish_copy(begun)
        except BaseException:
            services.vms.abort_copy(begun)
            raise
    shown = replace(made, config=None)  # viewers see the results of jobs
    return {**_described(body.path, reader.copy, counts), "made": shown.to_json(), "made_vm": begun.vm_id is None}


def inspect_stream(services: Services, body: StreamFile) -> Job:
    """Start reading a whole stream file: what it holds, and whether it is sound."""
    check_readable(body.path)

    def work(job: Job) -> Any:
        file_bytes = check_readable(body.path)
        job.expect(file_bytes)
        with open_stream(body.path) as reader:
            return _described(body.path, reader.copy, read_stream(reader, file_bytes, job))

    return services.jobs.start("stream.inspect", body.path, work)


def _described(path: str, copy: SnapshotCopy, counts: Counts) -> dict[str, Any]:
    """What a stream file holds."""
    disks = [
        {"name": disk.name, "size_bytes": disk.size_bytes, "based": disk.is_based, **vars(count)}
        for disk, count in zip(copy.disks, counts.disks, strict=True)
    ]
    return {
        "path": path,
        "vm": copy.vm_name,
        "vm_uuid": copy.vm_uuid,
        "snapshot": copy.name,
        "uuid": copy.uuid,
        "created": copy.created,
        "description": copy.description,
        "consistency": copy.terms.consistency,
        "base": None if copy.base_uuid is None else {"uuid": copy.base_uuid, "name": copy.base_name},
        "file_bytes": counts.file_bytes,
        "data_bytes": sum(count.data_bytes for count in counts.disks),
        "hole_bytes": sum(count.hole_bytes for count in counts.disks),
        "disks": disks,
    }
