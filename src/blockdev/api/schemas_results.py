"""What jobs come to, by their kinds: a JobView has it as its `result`, which no other schema says."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from blockdev.api.schemas import Compacted, ImageFormat, Inspected
from blockdev.api.schemas_hypervisors import RegistrationResults
from blockdev.replicate.model import MadeThere
from blockdev.vmmap.model import VM, Consistency, Disk, Snapshot


class DiskExported(BaseModel):
    """The result of an export of a disk."""

    path: str
    format: ImageFormat
    size_bytes: int = Field(description="of the disk")
    used_bytes: int = Field(description="that the file takes")


class DiskFile(BaseModel):
    name: str = Field(description="the disk's")
    size_bytes: int = Field(description="of the disk")
    file: str = Field(description="its name in the directory")
    used_bytes: int = Field(description="that the file takes")


class VMExported(BaseModel):
    """The result of an export of a VM."""

    directory: str
    vm: str
    created: str = Field(description="the instant that it is of")
    format: ImageFormat
    disks: list[DiskFile]


class StreamBase(BaseModel):
    uuid: str
    name: str


class StreamDisk(BaseModel):
    name: str
    size_bytes: int
    based: bool = Field(description="false: all of the disk is in the stream")
    data_bytes: int
    hole_bytes: int


class StreamContent(BaseModel):
    """What a stream file holds: the result of an export of a snapshot, and of an inspection."""

    path: str
    vm: str
    vm_uuid: str
    snapshot: str
    uuid: str = Field(description="of the snapshot")
    created: str = Field(description="when the snapshot was taken")
    description: str
    consistency: Consistency
    base: StreamBase | None = Field(description="the snapshot that it builds on; null: it is a whole one")
    file_bytes: int
    data_bytes: int
    hole_bytes: int
    disks: list[StreamDisk]


class StreamImported(StreamContent):
    """The result of an import of a snapshot."""

    made: Snapshot
    made_vm: bool = Field(description="whether the VM is new, too")


RESULTS: dict[str, type[Any]] = {
    "vm.create": VM,
    "vm.export": VMExported,
    "vm.register": RegistrationResults,
    "disk.import": Disk,
    "disk.export": DiskExported,
    "snapshot.export": StreamContent,
    "snapshot.import": StreamImported,
    "stream.inspect": StreamContent,
    "replicate.copy": MadeThere,
    "pool.check": Inspected,
    "pool.scrub": Inspected,
    "pool.compact": Compacted,
}
BY_KIND = (
    "null until it is done.  By kind: "
    + ", ".join(f"{kind}: {model.__name__}" for kind, model in RESULTS.items())
    + "; of all others, and of those that ended long ago, a part of the answer, with `shortened` when it is not all"
)


def schemas(ref_template: str) -> dict[str, Any]:
    """Those of RESULTS that are no answer of a route's, and what they refer to, for the components of an OpenAPI document."""
    models = {model for model in RESULTS.values() if issubclass(model, BaseModel)}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, whole = models_json_schema([(model, "serialization") for model in ordered], ref_template=ref_template)
    found: dict[str, Any] = whole["$defs"]
    return found
