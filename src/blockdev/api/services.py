"""What the routes work with: one of each for the life of the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from blockdev.addresses import Address
from blockdev.api.history import History
from blockdev.api.jobs import Jobs
from blockdev.api.listening import Tcp
from blockdev.api.tokens import Tokens
from blockdev.api.unfinished import Unfinished
from blockdev.engine.client import EngineClient
from blockdev.engine.clients import TRANSFER
from blockdev.home import Home
from blockdev.hypervisor.hypervisors import Hypervisors
from blockdev.hypervisor.registration import Registrations
from blockdev.replicate.service import Replication
from blockdev.schedule.runner import Scheduler
from blockdev.schedule.service import Schedules
from blockdev.statistics.service import Statistics
from blockdev.targets import attach
from blockdev.targets.service import Targets
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.events import Events
from blockdev.vmmap.recorder import Recorder
from blockdev.vmmap.service import VMs


@dataclass(frozen=True)
class Services:
    home: Home
    vms: VMs
    engine: EngineClient
    jobs: Jobs
    unfinished: Unfinished
    catalog: Catalog
    schedules: Schedules
    scheduler: Scheduler
    tokens: Tokens
    recorder: Recorder
    events: Events
    history: History
    hypervisors: Hypervisors
    registrations: Registrations
    replication: Replication
    targets: Targets
    tcp: Tcp | None  # what is served there
    statistics: Statistics
    nbd: Address | None  # where the engine serves NBD over TCP

    def uri(self, export: str) -> str:
        """Where qemu-img finds an export, for a transfer: none of it counts as a guest's."""
        return attach.describe("uri", attach.Address(socket=self.home.nbd_socket), TRANSFER + export)


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Wired = Annotated[Services, Depends(_services)]
