"""The hypervisors of one home: which there are, the lines to them, and the configurations that follow their domains.

Nothing of libvirt is loaded before one is used.  `refresh` is what every snapshot of a VM begins with: it waits REFRESH_SECONDS
at the most, once a minute for a hypervisor that does not answer, and never fails.  Threads: any.  Durable: what a method returned.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from blockdev.errors import AlreadyExists, BlockdevError, Busy, InvalidArgument, NotFound, Unavailable
from blockdev.hypervisor.calls import Line
from blockdev.hypervisor.disks import names_vm
from blockdev.hypervisor.place import Place
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_domains import HypervisorRow, LinkRow
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.machine import domain_of
from blockdev.vmmap.names import ObjectName, check_name, is_name
from blockdev.vmmap.service import VMs
from blockdev.written import show_count

if TYPE_CHECKING:
    from blockdev.hypervisor.connection import Connection, Domain

logger = logging.getLogger(__name__)
T = TypeVar("T")
REFRESH_SECONDS = 2.0
ANSWER_SECONDS = 10.0  # for what somebody waits for: the first call opens the connection
READ_ALL_SECONDS = 60.0  # the domains of a large hypervisor
AT_ONCE = 4
AT_ONCE_MAX = 64
URI_CHARACTERS_MAX = 1000


@dataclass(frozen=True)
class Hypervisor:
    """One hypervisor, as a person sees it."""

    name: str
    uri: str
    at_once: int  # registrations at the same time
    created: str
    vm_count: int  # that are known to run there
    is_reachable: bool | None = None  # None: it was not asked
    error: str | None = None  # why it is not
    version: str | None = None  # of its libvirt
    domain_count: int | None = None


class Hypervisors:
    """All that are configured."""

    def __init__(self, vms: VMs, catalog: Catalog, clock: Clock, place: Place) -> None:
        """place: where this home's exports are.  From now on snapshots of linked VMs refresh their configurations."""
        self.vms = vms
        vms.refresh_config = self.refresh
        self._events = vms.events
        self.catalog = catalog
        self.place = place
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: dict[int, Line] = {}  # by the hypervisor's id

    def close(self) -> None:
        with self._lock:
            lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            line.close()

    def add(self, name: str, uri: str, at_once: int = AT_ONCE) -> Hypervisor:
        """Unavailable: it does not answer; nothing is kept then."""
        check_name("hypervisor", name)
        _check_uri(uri)
        self._refuse_known(name, uri)
        line = Line(name, uri)
        version, count = line.call(_look, ANSWER_SECONDS, insist=True)
        with self.catalog.transaction(grows=True):
            self._refuse_known(name, uri)
            self.catalog.insert_hypervisor(name, uri, at_once, to_text(self._clock()))
            row = self.row(name)
        with self._lock:
            self._lines[row.id] = line
        return Hypervisor(name, uri, at_once, row.created, 0, True, None, version, count)

    def _refuse_known(self, name: str, uri: str) -> None:
        for row in self.catalog.hypervisors():
            if row.name == name:
                raise AlreadyExists(f"there is a hypervisor {name} already: choose another name, or remove it first")
            if row.uri == uri:
                raise AlreadyExists(f"hypervisor {row.name} has the address {uri} already")

    def row(self, name: str) -> HypervisorRow:
        found = self.catalog.hypervisor(name) if is_name(name) else None
        if found is None:
            raise NotFound(f"there is no hypervisor {name}: add it with blockdevctl hypervisor add {name} URI")
        return found

    def list(self) -> list[Hypervisor]:
        """By name, each asked whether it answers, all at the same time."""
        rows = self.catalog.hypervisors()
        shown: dict[int, Hypervisor] = {}

        def ask(row: HypervisorRow) -> None:
            shown[row.id] = self._show(row)

        threads = [threading.Thread(target=ask, args=(row,), name="hypervisor-list") for row in rows]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [shown[row.id] for row in rows if row.id in shown]

    def show(self, name: str) -> Hypervisor:
        return self._show(self.row(name))

    def _show(self, row: HypervisorRow) -> Hypervisor:
        count = len(self.catalog.links(row.id))
        try:
            version, domain_count = self.call(row, _look, ANSWER_SECONDS, insist=True)
        except BlockdevError as error:
            return Hypervisor(*row[1:], count, False, error.message)
        return Hypervisor(*row[1:], count, True, None, version, domain_count)

    def remove(self, name: str, force: bool = False) -> HypervisorRow:
        """Forget it; nothing changes there.  Busy: VMs are known to run there; forced, that is forgotten, too."""
        row = self.row(name)
        with self.catalog.transaction():
            links = self.catalog.links(row.id)
            if links and not force:
                raise Busy(
                    f"{show_count(len(links), 'VM')} linked to domains of hypervisor {name}, such as {self.catalog.vm_name(links[0].vm_id)}: "
                    "unregister those that blockdev registered, or use force to forget the links only"
                )
            self.catalog.delete_hypervisor(row.id)
        with self._lock:
            line = self._lines.pop(row.id, None)
        if line is not None:
            line.close()
        self._events.end("hypervisor", None, of=name)
        return row

    def call(self, row: HypervisorRow, work: Callable[[Connection], T], limit_s: float, insist: bool = False) -> T:
        """Of a hypervisor, `work` on its connection; an outage and its end are noted."""
        return self._call(row.id, row.name, row.uri, work, limit_s, insist)

    def call_linked(self, link: LinkRow, work: Callable[[Connection], T], limit_s: float, insist: bool = False) -> T:
        """The same of the hypervisor of a domain."""
        return self._call(link.hypervisor_id, link.hypervisor, link.uri, work, limit_s, insist)

    def _call(
        self, id: int, name: str, uri: str, work: Callable[[Connection], T], limit_s: float, insist: bool
    ) -> T:
        with self._lock:
            line = self._lines.setdefault(id, Line(name, uri))
        try:
            found = line.call(work, limit_s, insist)
        except Unavailable as error:
            if line.is_out():
                self._note_outage(name, error)
            raise
        self._note_answer(name)
        return found

    def _note_outage(self, name: str, error: BlockdevError) -> None:
        message = f"hypervisor {name} does not answer, snapshots keep the configurations known last: {error.message}"
        self._events.begin("warning", "hypervisor", None, message, of=name)

    def _note_answer(self, name: str) -> None:
        self._events.end("hypervisor", None, f"hypervisor {name} answers again", of=name)

    def domain_of(
        self, link: LinkRow, limit_s: float = ANSWER_SECONDS, insist: bool = False, with_live: bool = False
    ) -> Domain | None:
        """None: its hypervisor has no such domain."""
        return self.call_linked(link, lambda connection: connection.find(link.uuid, with_live), limit_s, insist)

    def luns(self) -> dict[str, ObjectName]:
        """What this home's iSCSI targets offer, by IQN/NUMBER."""
        iqns = {target.id: target.iqn for target in self.catalog.targets()}
        return {f"{iqns[lun.target_id]}/{lun.number}": ObjectName(lun.vm, lun.disk, lun.snapshot) for lun in self.catalog.luns()}

    def refresh(self, vm: str) -> str | None:
        """Take the configuration of a linked VM from its domain, if its hypervisor answers soon.

        Never raises; why the domain's guest cannot be asked for anything now, else None.
        """
        row = self.catalog.vm(vm) if is_name(vm) else None
        link = None if row is None else self.catalog.link(row.id)
        if row is None or link is None or link.state != "there":
            return None
        try:
            domain = self.domain_of(link, REFRESH_SECONDS, with_live=True)
        except BlockdevError as error:
            logger.info("VM %s keeps the configuration known last: %s", vm, error.message)
            return error.message
        if domain is None:
            return f"domain {link.name} of hypervisor {link.hypervisor} is gone: see hypervisor discover"
        self._follow(vm, link, domain)
        if not domain.is_running:
            return f"domain {domain.name} of hypervisor {link.hypervisor} does not run"
        root = domain_of(domain.live or domain.config)
        if root is not None and not (names_vm(root, vm, {}) or names_vm(root, vm, self.luns())):
            # it would be frozen for a snapshot of what another guest writes to
            return f"domain {domain.name} of hypervisor {link.hypervisor} has no disk of VM {vm} any more: see hypervisor discover"
        return None

    def _follow(self, vm: str, link: LinkRow, domain: Domain) -> None:
        """Its configuration and its name."""
        try:
            if domain.config != self.vms.get_config(vm):
                self.vms.set_config(vm, domain.config)
            if domain.name != link.name:
                with self.catalog.transaction(grows=True):
                    self.catalog.rename_link(link, domain.name)
        except BlockdevError as error:  # such as a full file system
            logger.info("VM %s keeps the configuration known last: %s", vm, error.message)


def _look(connection: Connection) -> tuple[str, int]:
    return connection.version(), connection.domain_count()


def _check_uri(uri: str) -> None:
    """It goes to libvirt as it is; but a driver in our own process would end its guests with us."""
    is_text = 0 < len(uri) <= URI_CHARACTERS_MAX and uri.isprintable()
    try:
        parts = urlsplit(uri)
    except ValueError:
        is_text = False
    if not is_text or not parts.scheme:
        raise InvalidArgument(f"{uri!r} is not a libvirt URI: write one such as qemu:///system or qemu+ssh://host/system")
    if parts.path == "/embed":
        raise InvalidArgument(f"{uri} would run domains in blockdevd itself, and they would end with it: use a libvirt daemon")
