"""The catalog's rows of hypervisors, and of which domain of which hypervisor runs a VM (docs/hypervisors.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from blockdev.vmmap.database import Database

LINKS = (
    "SELECT d.vm_id, d.hypervisor_id, h.name, h.uri, d.uuid, d.name, d.state, d.made"
    " FROM domain d JOIN hypervisor h ON h.id = d.hypervisor_id"
)


class HypervisorRow(NamedTuple):
    id: int
    name: str
    uri: str  # libvirt's
    at_once: int  # registrations at the same time
    created: str


class LinkRow(NamedTuple):
    """The domain of a VM."""

    vm_id: int
    hypervisor_id: int
    hypervisor: str
    uri: str
    uuid: str  # of the domain
    name: str  # of the domain
    state: Any  # a word of model.DomainState
    made: int  # whether we defined it; its uuid is the VM's then


class DomainRecords(Database):
    """Hypervisors and the domains of VMs."""

    def hypervisors(self) -> list[HypervisorRow]:
        return self._rows(HypervisorRow, "SELECT * FROM hypervisor ORDER BY name")

    def hypervisor(self, name: str) -> HypervisorRow | None:
        return self._row(HypervisorRow, "SELECT * FROM hypervisor WHERE name = ?", name)

    def insert_hypervisor(self, name: str, uri: str, at_once: int, created: str) -> None:
        self._do(
            "INSERT INTO hypervisor (name, uri, at_once, created) VALUES (?, ?, ?, ?)", name, uri, at_once, created
        )

    def delete_hypervisor(self, hypervisor_id: int) -> None:
        """With the links to its domains."""
        self._do("DELETE FROM domain WHERE hypervisor_id = ?", hypervisor_id)
        self._do("DELETE FROM hypervisor WHERE id = ?", hypervisor_id)

    def link(self, vm_id: int) -> LinkRow | None:
        return self._row(LinkRow, f"{LINKS} WHERE d.vm_id = ?", vm_id)

    def links(self, hypervisor_id: int | None = None) -> list[LinkRow]:
        """Of one hypervisor, or all."""
        if hypervisor_id is None:
            return self._rows(LinkRow, LINKS)
        return self._rows(LinkRow, f"{LINKS} WHERE d.hypervisor_id = ?", hypervisor_id)

    def links_of(self, vm_ids: Iterable[int]) -> list[LinkRow]:
        """Of some VMs."""
        query = f"{LINKS} WHERE d.vm_id IN (SELECT value FROM json_each(?))"
        return self._rows(LinkRow, query, json.dumps(list(vm_ids)))

    def unsettled_links(self) -> list[LinkRow]:
        """Those whose registration, or its end, was begun and is not known to be done."""
        return self._rows(LinkRow, f"{LINKS} WHERE d.state <> 'there'")

    def put_link(self, vm_id: int, hypervisor_id: int, uuid: str, name: str, state: str, made: bool) -> None:
        """The VM has this domain, and no other VM has it."""
        self._do(
            "DELETE FROM domain WHERE hypervisor_id = ? AND uuid = ? AND vm_id <> ?", hypervisor_id, uuid, vm_id
        )
        self._do(
            "INSERT OR REPLACE INTO domain (vm_id, hypervisor_id, uuid, name, state, made) VALUES (?, ?, ?, ?, ?, ?)",
            *(vm_id, hypervisor_id, uuid, name, state, int(made)),
        )

    def rename_link(self, link: LinkRow, name: str) -> None:
        """The domain is called so now; nothing when the VM has another link meanwhile."""
        self._do("UPDATE domain SET name = ? WHERE vm_id = ? AND uuid = ?", name, link.vm_id, link.uuid)

    def set_link_state(self, vm_id: int, state: str) -> None:
        self._do("UPDATE domain SET state = ? WHERE vm_id = ?", state, vm_id)

    def delete_link(self, vm_id: int) -> None:
        self._do("DELETE FROM domain WHERE vm_id = ?", vm_id)
