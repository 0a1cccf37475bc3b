"""Finding out which domain runs which VM: by the exports of this home that domains have as disks.

Nothing changes at a hypervisor.  A link that still holds stays; of several domains that have a VM's disks the one that has the VM's
uuid is taken, else the one that runs.  Done again it finds the same.  Durable: the links and configurations, in one transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from xml.etree.ElementTree import Element

from blockdev.errors import BlockdevError
from blockdev.hypervisor.disks import DomainDisk, disks_of
from blockdev.hypervisor.hypervisors import READ_ALL_SECONDS, Hypervisors
from blockdev.hypervisor.place import is_remote
from blockdev.vmmap.catalog import Catalog, VMRow
from blockdev.vmmap.catalog_domains import HypervisorRow, LinkRow
from blockdev.vmmap.machine import domain_of
from blockdev.vmmap.names import CONFIG_BYTES_MAX, ObjectName, object_name

if TYPE_CHECKING:
    from blockdev.hypervisor.connection import Domain


@dataclass(frozen=True)
class Answer:
    """What one hypervisor said."""

    hypervisor: str
    domain_count: int
    error: str | None  # why it did not answer


@dataclass(frozen=True)
class Link:
    vm: str
    hypervisor: str
    domain: str
    uuid: str
    is_new: bool


@dataclass(frozen=True)
class LostLink:
    vm: str
    hypervisor: str
    domain: str
    reason: str


@dataclass(frozen=True)
class ForeignDisk:
    hypervisor: str
    domain: str
    target: str
    source: str


@dataclass(frozen=True)
class MixedDomain:
    hypervisor: str
    domain: str
    vms: list[str]


@dataclass(frozen=True)
class SharedDisk:
    export: str
    domains: list[str]  # HYPERVISOR/DOMAIN


@dataclass(frozen=True)
class MissingDisk:
    hypervisor: str
    domain: str
    export: str


@dataclass(frozen=True)
class UndecidedVM:
    vm: str
    domains: list[str]  # HYPERVISOR/DOMAIN


@dataclass(frozen=True)
class Discovery:
    """What was found, by name."""

    hypervisors: list[Answer] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    lost: list[LostLink] = field(default_factory=list)
    foreign: list[ForeignDisk] = field(default_factory=list)  # disks of domains that are not of this home
    mixed: list[MixedDomain] = field(default_factory=list)  # domains whose disks belong to several VMs: not linked
    shared: list[SharedDisk] = field(default_factory=list)  # disks that several domains have
    undecided: list[UndecidedVM] = field(default_factory=list)  # several domains have disks of them: not linked
    missing: list[MissingDisk] = field(default_factory=list)  # exports that domains have and this home has not
    unattached_vms: list[str] = field(default_factory=list)  # no domain has a disk of them
    unattached_disks: list[str] = field(default_factory=list)  # VM/DISK: no domain has it, but others of its VM


class _Seen(NamedTuple):
    """A domain that was read."""

    hypervisor: HypervisorRow
    domain: Domain
    exports: dict[str, set[str]]  # VM -> disks of this home that it can write to
    views: set[ObjectName]  # disks of snapshots, which it reads

    @property
    def label(self) -> str:
        return f"{self.hypervisor.name}/{self.domain.name}"


def discover(hypervisors: Hypervisors, name: str | None = None) -> Discovery:
    """Of one hypervisor, or all.  NotFound, PoolFull; one that does not answer is listed with the reason, and keeps its links."""
    rows = hypervisors.catalog.hypervisors() if name is None else [hypervisors.row(name)]
    found = Discovery()
    seen: list[_Seen] = []
    answered: set[int] = set()
    luns = hypervisors.luns()
    for row in rows:
        try:
            domains = hypervisors.call(row, lambda connection: connection.domains(), READ_ALL_SECONDS, insist=True)
        except BlockdevError as error:
            found.hypervisors.append(Answer(row.name, 0, error.message))
            continue
        answered.add(row.id)
        found.hypervisors.append(Answer(row.name, len(domains), None))
        disks = partial(disks_of, place=hypervisors.place, remote=is_remote(row.uri), luns=luns)
        seen += [_read(row, domain, disks, found) for domain in sorted(domains, key=lambda one: one.name)]
    with hypervisors.catalog.transaction(grows=True):
        _link(hypervisors.catalog, seen, answered, found)
        _say_unattached(hypervisors.catalog, seen, found)
        _say_missing(hypervisors.catalog, seen, found)
    return found


def _read(row: HypervisorRow, domain: Domain, disks: Callable[[Element], list[DomainDisk]], found: Discovery) -> _Seen:
    exports: dict[str, set[str]] = defaultdict(set)
    views: set[ObjectName] = set()
    foreign: dict[tuple[str, str], None] = {}  # each once, in its order
    for text in filter(None, (domain.config, domain.live)):
        root = domain_of(text)
        for disk in [] if root is None else disks(root):
            if disk.is_foreign:
                foreign[disk.target, disk.source] = None
            elif disk.export is not None and disk.export.snapshot is not None:
                views.add(disk.export)
            elif disk.export is not None:
                exports[disk.export.vm].add(disk.export.disk)
    found.foreign.extend(ForeignDisk(row.name, domain.name, target, source) for target, source in foreign)
    if len(exports) > 1:
        found.mixed.append(MixedDomain(row.name, domain.name, sorted(exports)))
    return _Seen(row, domain, dict(exports), views)


def _link(catalog: Catalog, seen: list[_Seen], answered: set[int], found: Discovery) -> None:
    candidates: dict[str, list[_Seen]] = defaultdict(list)
    holders: dict[str, list[_Seen]] = defaultdict(list)
    for one in seen:
        for name, disks in one.exports.items():
            for disk in disks:
                holders[object_name(name, disk)].append(one)
            if len(one.exports) == 1:
                candidates[name].append(one)
    found.shared.extend(
        SharedDisk(export, [one.label for one in holders[export]]) for export in sorted(holders) if len(holders[export]) > 1
    )
    there = {(one.hypervisor.id, one.domain.uuid) for one in seen}
    for vm in catalog.vms():
        link = catalog.link(vm.id)
        if link is not None and link.state != "there":
            continue  # settling.py's to say
        if link is not None and link.hypervisor_id not in answered:
            continue
        several = candidates.get(vm.name, [])
        chosen = _choose(vm, link, several)
        if chosen is not None:
            _take(catalog, vm, link, chosen, found)
            continue
        if len(several) > 1:
            found.undecided.append(UndecidedVM(vm.name, [one.label for one in several]))
        if link is not None and not (link.made and (link.hypervisor_id, link.uuid) in there):
            catalog.delete_link(vm.id)
            is_there = (link.hypervisor_id, link.uuid) in there
            reason = "it has no disk of the VM any more" if is_there else "it is gone"
            found.lost.append(LostLink(vm.name, link.hypervisor, link.name, reason))


def _choose(vm: VMRow, link: LinkRow | None, candidates: list[_Seen]) -> _Seen | None:
    """None: no domain, or several and nothing that says which."""
    for one in candidates:
        if link is not None and (one.hypervisor.id, one.domain.uuid) == (link.hypervisor_id, link.uuid):
            return one
    for chosen in (
        [one for one in candidates if one.domain.uuid == vm.uuid],
        candidates,
        [one for one in candidates if one.domain.is_running],
    ):
        if len(chosen) == 1:
            return chosen[0]
    return None


def _take(catalog: Catalog, vm: VMRow, link: LinkRow | None, chosen: _Seen, found: Discovery) -> None:
    """Only we give a domain the uuid of its VM: such a one is ours, also when the catalog was lost."""
    row, domain = chosen.hypervisor, chosen.domain
    wanted = (row.id, domain.uuid, domain.name, int(domain.uuid == vm.uuid))
    if link is None or (link.hypervisor_id, link.uuid, link.name, link.made) != wanted:
        catalog.put_link(vm.id, row.id, domain.uuid, domain.name, "there", made=domain.uuid == vm.uuid)
    if catalog.config_text(vm.config_id) != domain.config and len(domain.config.encode()) <= CONFIG_BYTES_MAX:
        catalog.set_config(vm.id, domain.config)
    is_new = link is None or (link.hypervisor_id, link.uuid) != wanted[:2]
    found.links.append(Link(vm.name, row.name, domain.name, domain.uuid, is_new))


def _say_unattached(catalog: Catalog, seen: list[_Seen], found: Discovery) -> None:
    """VMs of hypervisors that were not asked, or did not answer, are not said to be attached to nothing."""
    attached = {object_name(vm, disk) for one in seen for vm, disks in one.exports.items() for disk in disks}
    elsewhere = {link.vm_id for link in catalog.links()} - {
        vm.id for vm in catalog.vms() if any(vm.name in one.exports for one in seen)
    }
    disks: dict[int, list[str]] = defaultdict(list)
    for disk in catalog.disks():
        disks[disk.vm_id].append(disk.name)
    for vm in catalog.vms():
        names = [object_name(vm.name, disk) for disk in disks[vm.id]]
        lacking = [name for name in names if name not in attached]
        if vm.id in elsewhere or not lacking:
            continue
        if len(lacking) == len(names):
            found.unattached_vms.append(vm.name)
        else:
            found.unattached_disks.extend(lacking)


def _say_missing(catalog: Catalog, seen: list[_Seen], found: Discovery) -> None:
    """Domains whose VM was deleted, renamed or lost a disk would not start."""
    names = {vm.id: vm.name for vm in catalog.vms()}
    known = {object_name(names[disk.vm_id], disk.name) for disk in catalog.disks()}
    for one in seen:
        exports = {object_name(vm, disk) for vm, disks in one.exports.items() for disk in disks} - known
        exports |= {object_name(*view) for view in one.views if not _has_view(catalog, view)}
        found.missing.extend(MissingDisk(one.hypervisor.name, one.domain.name, export) for export in sorted(exports))


def _has_view(catalog: Catalog, view: ObjectName) -> bool:
    vm = catalog.vm(view.vm)
    snapshot = None if vm is None or view.snapshot is None else catalog.snapshot(vm.id, view.snapshot)
    return snapshot is not None and any(disk.name == view.disk for disk in catalog.snapshot_disks(snapshot.id))
