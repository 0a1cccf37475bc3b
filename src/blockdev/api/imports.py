"""The jobs that fill disks from images.  A disk is seen when all of its image is there, and a VM is kept when all of its are."""

from __future__ import annotations

from typing import Any

from blockdev.api.jobs import Job, Part
from blockdev.api.schemas import DiskImport, ImageSource, NewVM
from blockdev.api.services import Services
from blockdev.api.unfinished import check_description
from blockdev.errors import AlreadyExists, InvalidArgument, NotFound
from blockdev.policies import DiskPolicy
from blockdev.transfer.disk import import_image
from blockdev.transfer.image import Image, inspect
from blockdev.vmmap.names import check_name, check_size
from blockdev.watching import Watcher


def import_disk(services: Services, vm: str, disk: str, body: DiskImport) -> Job:
    """Start the import; what can be refused at once is raised here."""
    there = {known.name for known in services.vms.show_vm(vm).disks}
    if disk in there and not body.replace:
        raise AlreadyExists(f"disk {vm}/{disk} exists already: say --replace to replace what it holds")
    if disk not in there and body.replace:
        raise NotFound(f"VM {vm} has no disk {disk} to replace")
    check_name("disk", disk)
    image, size_bytes = _measured(disk, body.image, body.size_bytes)

    def work(job: Job) -> Any:
        job.expect(image.size_bytes)
        return _fill(services, vm, disk, image, size_bytes, not body.replace, job)

    return services.jobs.start("disk.import", f"{vm}/{disk}", work)


def _fill(
    services: Services, vm: str, disk: str, image: Image, size_bytes: int, create: bool, watcher: Watcher
) -> dict[str, Any]:
    begun = services.vms.begin_import(vm, disk, size_bytes, create)
    try:
        import_image(image, services.uri(begun.export), watcher)
        return services.vms.finish_import(begun.id).to_json()
    except BaseException:
        with services.unfinished.removing():
            services.vms.abort_import(begun.id)
        raise


def create_vm(services: Services, body: NewVM) -> Job:
    """Start making a VM of which at least one disk comes from an image."""
    check_name("VM", body.name)
    check_description(body.description)
    if services.catalog.vm(body.name) is not None:
        raise AlreadyExists(f"VM {body.name} exists already")
    images: dict[str, tuple[Image, int]] = {}
    empty: list[tuple[str, int]] = []
    for disk in body.disks:
        check_name("disk", disk.name)
        if disk.image is not None:
            images[disk.name] = _measured(disk.name, disk.image, disk.size_bytes)
        elif disk.size_bytes is None:
            raise InvalidArgument(f"disk {disk.name} needs a size or an image")
        else:
            empty.append((disk.name, check_size(f"disk {disk.name}", disk.size_bytes)))
    if len(images) + len(empty) != len(body.disks):
        raise InvalidArgument("two disks have the same name")

    def work(job: Job) -> Any:
        return _create(services, body, empty, images, job)

    return services.jobs.start("vm.create", body.name, work)


def _create(
    services: Services, body: NewVM, empty: list[tuple[str, int]], images: dict[str, tuple[Image, int]], job: Job
) -> dict[str, Any]:
    total = sum(image.size_bytes for image, _ in images.values())
    job.expect(total)
    policy = DiskPolicy(**body.given_policy())
    with services.unfinished.vm(body.name, empty, body.config, body.description, policy):
        before = 0
        for disk, (image, size_bytes) in images.items():
            part = Part(job, before / total, (before + image.size_bytes) / total)
            _fill(services, body.name, disk, image, size_bytes, True, part)
            before += image.size_bytes
    return services.vms.show_vm(body.name).to_json()


def _measured(disk: str, source: ImageSource, size_bytes: int | None) -> tuple[Image, int]:
    """The image and the size of the disk made of it."""
    image = inspect(source.path, source.format)
    if size_bytes is None:
        return image, image.size_bytes
    check_size(f"disk {disk}", size_bytes)
    if size_bytes < image.size_bytes:
        raise InvalidArgument(
            f"disk {disk} of {size_bytes} bytes is smaller than its image {image.path} of {image.size_bytes} bytes: "
            "leave the size away, or give a larger one"
        )
    return image, size_bytes
