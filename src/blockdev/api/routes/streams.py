"""Stream files: a snapshot, whole or as what changed since another, in a file of the machine that serves."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from blockdev.api import streams
from blockdev.api.guard import files_allowed
from blockdev.api.routes.jobs import view
from blockdev.api.schemas import JobView
from blockdev.api.schemas_streams import SnapshotExport, SnapshotImport, StreamFile
from blockdev.api.services import Wired

router = APIRouter(tags=["snapshots"], dependencies=[Depends(files_allowed)])


@router.post("/vms/{vm}/snapshots/{snapshot}/export", status_code=202)
def export_snapshot(vm: str, snapshot: str, body: SnapshotExport, services: Wired) -> JobView:
    """Write the snapshot into a stream file, all of it or what changed since another one; the job's result is a StreamContent."""
    return view(streams.export_snapshot(services, vm, snapshot, body))


@router.post("/streams/import", status_code=202)
def import_snapshot(body: SnapshotImport, services: Wired) -> JobView:
    """Take a snapshot in from a stream file: a new VM, or one more snapshot of the VM that has its base.  The job's result is a StreamImported."""
    return view(streams.import_snapshot(services, body))


@router.post("/streams/inspect", status_code=202)
def inspect_stream(body: StreamFile, services: Wired) -> JobView:
    """Read a stream file to its end: what it holds, and whether it is sound; the job's result is a StreamContent."""
    return view(streams.inspect_stream(services, body))
