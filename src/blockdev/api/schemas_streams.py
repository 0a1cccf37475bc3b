"""The bodies of requests about stream files."""

from __future__ import annotations

from pydantic import Field

from blockdev.api.schemas import Body, FilePath, KeepSeconds, Name

LEVEL_DEFAULT, LEVEL_MAX = 3, 19


class StreamFile(Body):
    path: FilePath


class SnapshotExport(StreamFile):
    since: Name | None = Field(None, description="an older snapshot of the VM: only what changed since; absent: all of it")
    level: int = Field(LEVEL_DEFAULT, ge=0, le=LEVEL_MAX, description="of zstd; 0: not compressed")
    overwrite: bool = False


class SnapshotImport(StreamFile):
    vm: Name | None = Field(
        None, description="the name of the VM that it makes, or the VM that has its base; absent: as the stream says"
    )
    name: Name | None = Field(None, description="of the snapshot; absent: as it was called")
    keep_seconds: KeepSeconds | None = Field(None, description="it is deleted so long from now; absent: when somebody does it")
