"""A control plane in a process of its own that registers or unregisters a VM, and dies at a step.

`HOME OPERATION STEP`: what it did is one line, unless it died.
"""

from __future__ import annotations

import sys
from pathlib import Path

from blockdev.engine.client import EngineClient
from blockdev.hypervisor.hypervisors import Hypervisors
from blockdev.hypervisor.place import Place
from blockdev.hypervisor.registration import Registrations
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs
from tests.child import die_at
from tests.vmmap.world import Clock

HYPERVISOR = "kvm"


def wire(home: Path, step: str = "never") -> tuple[Catalog, Hypervisors, Registrations]:
    catalog, engine = Catalog(home / "catalog.db"), EngineClient(home / "engine.sock")
    vms = VMs(catalog, engine, clock=Clock())
    hypervisors = Hypervisors(vms, catalog, Clock(), Place(home / "nbd.sock"))
    return catalog, hypervisors, Registrations(hypervisors, die_at(step))


def main(home: str, operation: str, step: str) -> None:
    _, hypervisors, registrations = wire(Path(home), step)
    if operation == "register":
        (done,) = registrations.register_all(
            hypervisors.row(HYPERVISOR), ["copy"], 1, True, lambda: False, lambda count: None
        )
        print(done.state, done.error, flush=True)
    else:
        registrations.unregister("copy", force=True)
        print("unregistered", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
