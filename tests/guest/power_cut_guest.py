"""Runs in the guest: the engine and the control plane of a home, for a machine outside that asks over TCP.

`power_cut_guest.py HOME` makes the home when there is none, starts the engine as `blockdevctl serve` does, brings catalog and
pool into agreement, and writes `ready` to the share.  NBD is then at NBD_PORT.  At CONTROL_PORT each line is a request,
{"call": NAME, "arguments": [...]}, and is answered by {"value": ...} or {"error": ...} when it is done, that is: durable.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from blockdev.targets.nbdkit import Options, start

from blockdev import Pool
from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError
from blockdev.findings import InspectionKind
from blockdev.home import Home
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs

NBD_PORT = 10809
CONTROL_PORT = 10810
CAPACITY_BYTES = 1 << 30
SEGMENT_BYTES = 1 << 20  # small, so that segments roll
MEMORY = {"map_cache_bytes": str(64 << 10), "dedup_bytes": str(1 << 20)}  # nodes are evicted, too
START_LIMIT_S = 200
SHARE = Path(os.environ["LAB_SHARE"])


class Control:
    """What can be asked, by name.  Forced, because a client that has just left may still be listed."""

    def __init__(self, home: Home) -> None:
        self.engine = EngineClient(home.engine_socket, "control")
        self.vms = VMs(Catalog(home.catalog), self.engine)

    def create_vm(self, name: str, disks: list[list[Any]]) -> None:
        self.vms.create_vm(name, [(disk, size_bytes) for disk, size_bytes in disks])

    def take_snapshot(self, vm: str, name: str) -> None:
        self.vms.create_snapshot(vm, name)

    def clone(self, vm: str, snapshot: str, name: str) -> None:
        self.vms.clone(vm, snapshot, name)

    def rename(self, vm: str, name: str) -> None:
        self.vms.rename_vm(vm, name, force=True)

    def delete_snapshot(self, vm: str, name: str) -> None:
        self.vms.delete_snapshot(vm, name, force=True)

    def delete_vm(self, vm: str) -> None:
        self.vms.delete_vm(vm, force=True)

    def checkpoint(self) -> None:
        self.engine.checkpoint()

    def exports(self) -> dict[str, list[str]]:
        """All exports: as the catalog has them, as the pool has them; and what the two do not agree upon."""
        vms = self.vms.list_vms()
        known = [disk.export for vm in vms for disk in vm.disks]
        known += [disk.export for vm in vms for taken in self.vms.list_snapshots(vm.name) for disk in taken.disks]
        status = self.vms.status()
        there = [thing.name or f"unnamed {thing.id}" for thing in self.engine.objects()]
        return {"catalog": sorted(known), "pool": sorted(there), "odd": status.missing + status.foreign}

    def begin_scrub(self) -> None:
        self.engine.inspect("scrub")

    def inspect(self, kind: InspectionKind) -> list[str]:
        """Whatever a check or a scrub has to say, when it is done."""
        run = self.engine.inspect(kind)
        while (outcome := self.engine.inspection(run, wait_s=1)).state == "running":
            pass
        assert outcome.report is not None, outcome
        return [str(finding) for finding in outcome.report.findings] + list(outcome.report.healed)


class Requests(socketserver.StreamRequestHandler):
    """One connection."""

    control: Control

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(json.dumps(self._answer(json.loads(line))).encode() + b"\n")

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"value": getattr(self.control, request["call"])(*request["arguments"])}
        except BlockdevError as error:
            return {"error": f"{type(error).__name__}: {error.message}"}
        except Exception:
            return {"error": traceback.format_exc()}


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


def tell(name: str, text: str) -> None:
    """The file appears whole."""
    (SHARE / f".{name}").write_text(text)
    (SHARE / f".{name}").rename(SHARE / name)


def main() -> None:
    home = Home.at(sys.argv[1])
    if not home.pool.exists():
        home.make_directories()
        Pool.create(home.pool, CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES).close()
    began = time.monotonic()
    options = Options(home=home.path, tcp=("0.0.0.0", NBD_PORT), insecure_tcp=True, parameters=MEMORY)
    start(options, START_LIMIT_S)
    started = time.monotonic()
    Requests.control = Control(home)
    agreement = Requests.control.vms.reconcile()
    figures = {"engine_s": started - began, "agreement_s": time.monotonic() - started}
    with Server(("0.0.0.0", CONTROL_PORT), Requests) as server:
        tell("ready", json.dumps(figures | {"agreement": agreement.to_json()}))
        threading.Thread(target=server.serve_forever).start()
        threading.Event().wait()


main()
