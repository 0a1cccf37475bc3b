"""Imports: an image becomes a disk when all of it is there."""

from __future__ import annotations

from blockdev.errors import BlockdevError, NotFound
from blockdev.vmmap import intents
from blockdev.vmmap.lookup import object_ids, refuse_importing
from blockdev.vmmap.model import (
    Disk,
    Import,
)
from blockdev.vmmap.names import (
    check_size,
)
from blockdev.vmmap.operation import Operations, Replacement, change
from blockdev.vmmap.tags import Tag, encode_tag
from blockdev.vmmap.views import (
    import_name,
    view_disk,
    view_import,
)


class ImportOperations(Operations):
    """The operations on imports."""

    @change
    def begin_import(self, vm: str, disk: str, size_bytes: int, create: bool) -> Import:
        """Make a vdisk of its own for an image's data; the VM's disk changes only by `finish_import`.

        With `create` the disk must not exist yet; without, it must, keeps its size if that is larger, and must
        not be attached.  An import that is not finished when either process ends is dropped.
        """
        row = self._lookup.vm(vm)
        self._refuse_received(row)
        check_size(f"disk {disk}", size_bytes)
        if create:
            self._lookup.check_new_disk(row, disk)
        else:
            found = self._lookup.disk(row, disk)
            refuse_importing(row, self._lookup.imports_into(row, disk))
            with self.offers.letting_go(object_ids([found]), force=False):
                self._lookup.refuse_attached(object_ids([found]))
            size_bytes = max(size_bytes, found.size_bytes)
        now = self._journal.now()
        tag = encode_tag(Tag(row.uuid, now, temporary=True))
        intent = intents.BeginImport(row.id, vm, disk, size_bytes, create, now)
        self._journal.run(intent, lambda: self._engine.create([(size_bytes, import_name(vm, disk), tag)]))
        [begun] = self._lookup.imports_into(row, disk)
        self._journal.keep_import(begun.id)
        return view_import(row, begun)

    @change
    def finish_import(self, import_id: int, force: bool = False) -> Disk:
        """The imported data becomes the disk, at once.  Busy: the disk to be replaced is attached."""
        begun, row = self._lookup.image_import(import_id)
        old = self._catalog.disk(row.id, begun.disk)
        replacement = Replacement(
            begun.disk,
            begun.object_id,
            None if old is None else old.object_id,
            self._journal.now() if old is None else old.created,
        )
        old_ids = [] if replacement.old_id is None else [replacement.old_id]
        labels = self._replacing_labels(row, [replacement])
        intent = intents.FinishImport(
            begun.id, row.id, row.name, begun.disk, begun.object_id, begun.size_bytes, replacement.created
        )
        with self.offers.letting_go(old_ids, force, disconnect=True):
            if not force:
                self._lookup.refuse_attached(old_ids)
            # by force: whoever wrote the image may not have left quite yet
            self._journal.run(intent, lambda: self._engine.relabel(labels, force=True))
        self._journal.forget_import(begun.id)
        if old_ids:
            self._journal.drop(old_ids)
        return view_disk(row, self._lookup.disk(row, begun.disk), {})

    @change
    def abort_import(self, import_id: int) -> None:
        """Drop what was imported; the VM is as before.  An import that is no more is no error."""
        try:
            begun, row = self._lookup.image_import(import_id)
        except NotFound:
            return
        intent = intents.AbortImport(begun.id, row.name, begun.disk, begun.object_id)
        self._journal.forget_import(begun.id)  # it goes, if not now, then with the next agreement
        try:
            self._delete(intent, [begun.object_id], force=True)
        except BlockdevError:
            self._journal.agreed = False
            raise

