"""Runs in the QEMU guest: the engine and the targets of a home, for initiators on the machine outside.

Without blockdevd's web server, whose start alone takes a minute without KVM: what it does with targets is done by the same class.
Writes `ready` to the share when the LUNs are there, and ends when it sees `end`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from blockdev.targets.chap import Credential, Credentials
from blockdev.targets.nbdkit import Options, start
from blockdev.targets.service import Targets, Wish

from blockdev import Pool
from blockdev.clock import now_seconds
from blockdev.engine.client import EngineClient
from blockdev.home import Home
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs

PORTAL = ("10.0.2.15", 3260)  # the guest's address in QEMU's network
INITIATOR = "iqn.2026-11.org.example:outside"
USER, SECRET = "outside", "secret-of-sixteen"
DISK_BYTES = 16 << 20
START_LIMIT_S = 200


def main() -> None:
    share = Path(os.environ["LAB_SHARE"])
    home = Home.at("/run/home")
    home.make_directories()
    Pool.create(home.pool, 256 << 20, segment_bytes=4 << 20).close()
    start(Options(home=home.path), START_LIMIT_S)
    engine, catalog = EngineClient(home.engine_socket, "outside_guest"), Catalog(home.catalog)
    vms = VMs(catalog, engine)
    targets = Targets(home, vms, catalog, engine, now_seconds)
    vms.reconcile()
    vms.create_vm("out", [("disk", DISK_BYTES)])
    credentials = Credentials(Credential(USER, SECRET), None)
    made = targets.add("out", Wish(initiators=[INITIATOR], portals=[PORTAL], credentials=credentials))
    (share / ".ready").write_text(json.dumps({"iqn": made.iqn, "state": made.state, "serial": made.luns[0].serial}))
    (share / ".ready").rename(share / "ready")
    while not (share / "end").exists():
        time.sleep(0.2)


if __name__ == "__main__":
    main()
