"""Which domain of which hypervisor runs a VM, and what is noted before and after a hypervisor is asked to change one.

The link is written as `registering` before libvirt is asked to define a domain, and as `unregistering` before it is asked to
undefine one; what a death in between leaves is settled by hypervisor/settling.py (docs/agreement.md).
"""

from __future__ import annotations

from blockdev.errors import AlreadyExists, Busy, NotFound
from blockdev.vmmap.catalog import VMRow
from blockdev.vmmap.catalog_domains import HypervisorRow, LinkRow
from blockdev.vmmap.operation import Operations, change

DOMAIN_AGENT = "libvirt:"  # the address of a guest agent by way of libvirt: libvirt:UUID@URI


class DomainOperations(Operations):
    """The catalog's side of registrations."""

    @change
    def begin_registration(self, name: str, hypervisor: HypervisorRow, domain: str) -> VMRow:
        """AlreadyExists: it has a domain, or its registration is under way; ReadOnly: a peer sends it."""
        vm = self._lookup.vm(name)
        self._refuse_received(vm)
        self.refuse_linked(name)
        with self._catalog.transaction(grows=True):
            self._catalog.put_link(vm.id, hypervisor.id, vm.uuid, domain, "registering", made=True)
        return vm

    def refuse_linked(self, name: str) -> None:
        """AlreadyExists: it has a domain, or its registration is under way; NotFound."""
        link = self.link(name)
        if link is not None:
            raise AlreadyExists(f"VM {name} has a domain already, {link.name} of hypervisor {link.hypervisor}")

    @change
    def begin_unregistration(self, name: str) -> LinkRow:
        """NotFound: it is not registered; Busy: it is not our domain, or is being registered or unregistered."""
        vm = self._lookup.vm(name)
        link = self._catalog.link(vm.id)
        if link is None:
            raise NotFound(f"VM {name} is not registered with a hypervisor")
        if not link.made:
            raise Busy(
                f"domain {link.name} of hypervisor {link.hypervisor} was not made by blockdev: undefine it there, with virsh"
            )
        if link.state != "there":
            raise Busy(f"VM {name} is {link.state} at hypervisor {link.hypervisor}: wait, or see that the hypervisor answers")
        with self._catalog.transaction():
            self._catalog.set_link_state(vm.id, "unregistering")
        return link

    def settle_link(self, vm_id: int, config: str | None) -> None:
        """The domain is there, with this configuration; None: it is not, and the VM has none now."""
        with self._journal.lock, self._catalog.transaction():
            if self._catalog.link(vm_id) is None:
                return
            if config is None:
                self._catalog.delete_link(vm_id)
            else:
                self._catalog.set_link_state(vm_id, "there")
                self._catalog.set_config(vm_id, config)

    def link(self, name: str) -> LinkRow | None:
        """NotFound: there is no such VM."""
        return self._catalog.link(self._lookup.vm(name).id)

    def agent(self, name: str) -> str | None:
        """Where the VM's guest agent is: its own socket, else by way of its domain; None: nobody knows.  NotFound."""
        vm = self._lookup.vm(name)
        link = self._catalog.link(vm.id)
        if vm.agent is None and link is not None and link.state == "there":
            return f"{DOMAIN_AGENT}{link.uuid}@{link.uri}"
        return vm.agent
