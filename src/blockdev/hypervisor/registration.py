"""Registering VMs with a hypervisor: defining a domain for each, and undefining it again.

Each step is noted before it is done (vmmap/domains.py); the domain has its VM's uuid, so that after a death of ours one look at
the hypervisor says how far it had come (settling.py).  At most so many registrations at a hypervisor run at the same time as it was
given.  Threads: any; each registration is done by one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from blockdev.errors import AlreadyExists, BlockdevError, Busy, NotFound, Unavailable
from blockdev.hypervisor.hypervisors import ANSWER_SECONDS, Hypervisors
from blockdev.hypervisor.identity import own_domain
from blockdev.hypervisor.place import is_remote
from blockdev.vmmap.catalog_domains import HypervisorRow, LinkRow
from blockdev.vmmap.machine import domain_of

if TYPE_CHECKING:
    from blockdev.hypervisor.connection import Connection

logger = logging.getLogger(__name__)
T = TypeVar("T")
DEFINE_SECONDS = 60.0
START_SECONDS = 120.0

State = Literal["registered", "started", "failed", "cancelled"]


@dataclass(frozen=True)
class Registered:
    """What became of one VM."""

    vm: str
    domain: str | None
    state: State
    error: str | None


class _Gate:
    """How many registrations go on at one hypervisor."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    @contextmanager
    def passing(self, at_once: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._count < at_once)
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()


class _Work:
    """What is asked of a hypervisor for one domain, whose last call may go on when it is waited for no longer (calls.within)."""

    def __init__(self) -> None:
        self.is_asking = False
        self.is_over = False  # nobody waits any more


class Registrations:
    """Those of one home."""

    def __init__(self, hypervisors: Hypervisors, at_step: Callable[[str], None] | None = None) -> None:
        """`at_step` is called with each named step (crash tests)."""
        self._hypervisors = hypervisors
        self._vms = hypervisors.vms
        self._at_step = at_step or (lambda step: None)
        self._lock = threading.Lock()
        self._gates: dict[int, _Gate] = {}
        self._live: set[str] = set()  # uuids of the domains that are being defined or undefined

    def register_all(
        self,
        hypervisor: HypervisorRow,
        vms: Sequence[str],
        at_once: int,
        start: bool,
        is_cancelled: Callable[[], bool],
        done: Callable[[int], None],
    ) -> list[Registered]:
        """Each VM's outcome, in their order.  `done` is told how many have one; when cancelled, no more are begun."""
        results: dict[str, Registered] = {}
        lock = threading.Lock()
        with self._lock:
            gate = self._gates.setdefault(hypervisor.id, _Gate())

        def one(vm: str) -> None:
            with gate.passing(min(at_once, hypervisor.at_once)):
                outcome = Registered(vm, None, "cancelled", None) if is_cancelled() else self._try(hypervisor, vm, start)
            with lock:
                results[vm] = outcome
                done(len(results))

        names = list(dict.fromkeys(vms))
        with ThreadPoolExecutor(min(at_once, hypervisor.at_once), thread_name_prefix="register") as threads:
            for finished in [threads.submit(one, vm) for vm in names]:
                finished.result()
        return [results[vm] for vm in names]

    def _try(self, hypervisor: HypervisorRow, vm: str, start: bool) -> Registered:
        try:
            domain = self.register(hypervisor, vm)
        except BlockdevError as error:
            return Registered(vm, None, "failed", error.message)
        if not start:
            return Registered(vm, domain, "registered", None)
        try:
            self._start(hypervisor, vm)
        except BlockdevError as error:
            return Registered(vm, domain, "registered", f"it was not started: {error.message}")
        return Registered(vm, domain, "started", None)

    def register(self, hypervisor: HypervisorRow, vm: str) -> str:
        """Define a domain for the VM; its name is returned.

        InvalidArgument: its configuration does not do; AlreadyExists: it has a domain, or another domain has its name or uuid;
        NotFound; Unavailable: the domain may be there or not, which is found out when the hypervisor answers again.
        """
        shown = self._vms.show_vm(vm)
        self._vms.refuse_linked(vm)
        xml = own_domain(self._vms.get_config(vm), vm, shown.uuid, [disk.name for disk in shown.disks])
        _refuse_unreachable(hypervisor, xml)
        call = self._hypervisors.call
        call(hypervisor, lambda connection: _refuse_taken(connection, shown.uuid, vm), ANSWER_SECONDS)
        with self._living(shown.uuid, vm) as work:
            row = self._vms.begin_registration(vm, hypervisor, vm)
            self._at_step("register:intended")
            try:
                define = self._asking(work, shown.uuid, lambda connection: connection.define(xml))
                domain = call(hypervisor, define, DEFINE_SECONDS)
            except Unavailable:
                raise
            except BlockdevError:
                self._look_again(row.id, hypervisor, shown.uuid)
                raise
            self._at_step("register:defined")
            self._vms.settle_link(row.id, domain.config)
            self._at_step("register:finished")
        return domain.name

    def _look_again(self, vm_id: int, hypervisor: HypervisorRow, uuid: str) -> None:
        """libvirt refused, or something broke on the way: the link says what is there now."""
        domain = self._hypervisors.call(hypervisor, lambda connection: connection.find(uuid), ANSWER_SECONDS)
        self._vms.settle_link(vm_id, None if domain is None else domain.config)

    def _start(self, hypervisor: HypervisorRow, vm: str) -> None:
        uuid = self._vms.show_vm(vm).uuid
        self._hypervisors.call(hypervisor, lambda connection: connection.start(uuid), START_SECONDS)
        self._at_step("register:started")

    def unregister(self, vm: str, force: bool = False) -> LinkRow:
        """Undefine the domain that was made for the VM.  Busy: it runs; forced, it is ended first.  NotFound; Unavailable."""
        known = self._vms.link(vm)
        if known is not None and known.made:
            self._refuse_running(known, vm, force)
        with self._living(vm if known is None else known.uuid, vm) as work:
            link = self._vms.begin_unregistration(vm)
            self._at_step("unregister:intended")
            try:
                self._undefine(link, force, work)
            except Unavailable:
                raise
            except BlockdevError:
                self._look_again(link.vm_id, self._hypervisors.row(link.hypervisor), link.uuid)
                raise
            self._at_step("unregister:undefined")
            self._vms.settle_link(link.vm_id, None)
            self._at_step("unregister:finished")
        return link

    def _refuse_running(self, link: LinkRow, vm: str, force: bool) -> None:
        domain = self._hypervisors.domain_of(link, insist=True)
        if domain is not None and domain.is_running and not force:
            raise Busy(
                f"domain {link.name} of hypervisor {link.hypervisor} runs: shut it down first, or end it with "
                f"blockdevctl vm unregister {vm} --force"
            )

    def _undefine(self, link: LinkRow, force: bool, work: _Work) -> None:
        def ask(change: Callable[[Connection], None]) -> None:
            self._hypervisors.call_linked(link, self._asking(work, link.uuid, change), DEFINE_SECONDS)

        if force:
            with suppress(Busy, NotFound):  # it does not run, or is gone
                ask(lambda connection: connection.destroy(link.uuid))
            self._at_step("unregister:destroyed")
        with suppress(NotFound):
            ask(lambda connection: connection.undefine(link.uuid))

    def settle(self) -> list[str]:
        """Find out what became of the links that nobody works on and that are not settled; what was found, in words."""
        found = []
        for link in self._hypervisors.catalog.unsettled_links():
            try:
                with self._living(link.uuid, link.name):
                    found += self._settle(link)
            except Busy:
                continue  # whoever works on it settles it
            except BlockdevError as error:
                logger.info("domain %s is not settled: %s", link.name, error.message)
        return found

    def _settle(self, link: LinkRow) -> list[str]:
        """Nobody works on it from before the look: a domain that is made behind the look would be said not to be there."""
        if link not in self._hypervisors.catalog.unsettled_links():
            return []  # it was settled since it was listed
        domain = self._hypervisors.domain_of(link, insist=True)
        self._vms.settle_link(link.vm_id, None if domain is None else domain.config)
        what = "is there" if domain is not None else "is not there"
        return [f"domain {link.name} of hypervisor {link.hypervisor}, which was {link.state}, {what}"]

    @contextmanager
    def _living(self, uuid: str, vm: str) -> Iterator[_Work]:
        """Nobody else works on the domain, and `settle` leaves it alone.  From before its link is written to the end of the last call."""
        with self._lock:
            if uuid in self._live:
                raise Busy(f"VM {vm} is being registered or unregistered already: wait for that")
            self._live.add(uuid)
        work = _Work()
        try:
            yield work
        finally:
            with self._lock:
                work.is_over = True
                if not work.is_asking:
                    self._live.discard(uuid)

    def _asking(self, work: _Work, uuid: str, change: Callable[[Connection], T]) -> Callable[[Connection], T]:
        """`change`, unless it is too late for it; while it goes on the domain stays the work's.

        Else settling could look before a slow libvirt has made the domain, and say that it is not there.
        """

        def ask(connection: Connection) -> T:
            with self._lock:
                if work.is_over:
                    raise Unavailable(f"domain {uuid} was given up before libvirt could be asked")
                work.is_asking = True
            try:
                return change(connection)
            finally:
                with self._lock:
                    work.is_asking = False
                    if work.is_over:
                        self._live.discard(uuid)

        return ask


def _refuse_taken(connection: Connection, uuid: str, name: str) -> None:
    """libvirt would put another configuration in the place of a domain with this name and uuid."""
    same = connection.find(uuid) or connection.find_named(name)
    if same is not None:
        raise AlreadyExists(f"there is a domain {same.name} with uuid {same.uuid} already: see hypervisor discover")


def _refuse_unreachable(hypervisor: HypervisorRow, xml: str) -> None:
    """A Unix socket of this machine is none of another one's."""
    domain = domain_of(xml)
    assert domain is not None
    sockets = [host for host in domain.findall("./devices/disk/source/host") if host.get("transport") == "unix"]
    if sockets and is_remote(hypervisor.uri):
        raise Busy(
            f"the configuration has its disks on the Unix socket {sockets[0].get('socket')}, which hypervisor {hypervisor.name} "
            "cannot reach: serve NBD over TCP (serve --nbd ADDR:PORT), and give the configuration that address"
        )
