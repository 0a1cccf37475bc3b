"""Customized clones: their seed disks, made of templates, written over NBD before anybody sees a clone.

What a person wrote is refused before anything is made.  Images are built before the operation begins, so others wait only
for their writing: about a millisecond for each clone.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from blockdev.api.schemas import ClonesMade, Customize
from blockdev.api.services import Services
from blockdev.cloudinit.files import Texts, check_files, check_texts, write_files
from blockdev.cloudinit.identity import Identity, identify
from blockdev.cloudinit.seed import Seed, build_seed
from blockdev.errors import PoolFull
from blockdev.transfer.nbd import Export
from blockdev.vmmap.clones import CustomClone
from blockdev.vmmap.machine import interface_count


def clone_customized(
    services: Services, vm: str, snapshot: str | None, names: Sequence[str], customize: Customize
) -> ClonesMade:
    """Clones of these names, all or none.  InvalidArgument, AlreadyExists: a template that cannot be used."""
    texts = Texts(customize.user_data, customize.network_config)
    vms = [(name, str(uuid.uuid4())) for name in names]
    check_texts(texts)
    _first_look(services, vm, snapshot, vms, texts, customize)
    taken = services.vms.snapshot_to_clone(vm, snapshot, names)
    clones = identify(vms, customize.hostname, interface_count(taken.config or ""))
    seeds = [build_seed(write_files(texts, clone)) for clone in clones]
    wanted = [CustomClone(clone.name, clone.uuid, seed.size_bytes) for clone, seed in zip(clones, seeds, strict=True)]
    made = services.vms.clone_customized(vm, taken.name, wanted, lambda exports: _write(services, exports, seeds))
    return ClonesMade(vms=made, hostnames={clone.name: clone.hostname for clone in clones})


def _first_look(
    services: Services,
    vm: str,
    snapshot: str | None,
    vms: Sequence[tuple[str, str]],
    texts: Texts,
    customize: Customize,
) -> None:
    """Refuse what can be refused before a snapshot is taken.

    One clone's files are enough: the words of the others are of the same letters and of about the same length.
    """
    config = services.vms.get_config(vm) if snapshot is None else services.vms.show_snapshot(vm, snapshot).config
    clones: list[Identity] = identify(vms, customize.hostname, interface_count(config or ""))
    check_files(write_files(texts, clones[-1]))


def _write(services: Services, exports: Sequence[str], seeds: Sequence[Seed]) -> None:
    """Durable when it returns: a flush is of the whole pool.  PoolFull."""
    try:
        for number, (name, seed) in enumerate(zip(exports, seeds, strict=True), 1):
            with Export(services.home.nbd_socket, name) as export:
                seed.write(export.write)
                if number == len(seeds):
                    export.flush()
    except PoolFull:  # the export's name is one that nobody was told of
        raise PoolFull("the pool is full: the seeds of the clones do not fit; delete VMs or snapshots, or use a larger pool") from None
