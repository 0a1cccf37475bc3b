"""Target `rest`: requests to the control plane's HTTP server, with a real catalog and a real engine behind it.

An input is requests, parted by a NUL byte at the start of a line.  The first line of one is METHOD TARGET, the rest its body;
RAW as the first line sends the rest as it is.  @DIR@ stands for a directory with images in it.  No answer is a 500, every
refusal has a code and a message, no job ends by a bug.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from blockdev.targets.service import Targets

from blockdev.api.app import create_app
from blockdev.api.history import History
from blockdev.api.jobs import FINISHED, Jobs
from blockdev.api.services import Services
from blockdev.api.statistics_sources import sources
from blockdev.api.tokens import Tokens
from blockdev.api.unfinished import Unfinished
from blockdev.engine.client import EngineClient
from blockdev.errors import BY_CODE
from blockdev.hypervisor.hypervisors import Hypervisors
from blockdev.hypervisor.place import Place
from blockdev.hypervisor.registration import Registrations
from blockdev.replicate.service import Replication
from blockdev.schedule.runner import Scheduler
from blockdev.schedule.service import Schedules
from blockdev.statistics.service import Statistics
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.events import Events
from blockdev.vmmap.recorder import Recorder
from blockdev.vmmap.service import VMs
from tests.fuzz import messages
from tests.fuzz.harness import Harness
from tests.fuzz.homes import ServedHome
from tests.fuzz.session import CORPUS
from tests.vmmap.world import Clock

API = b"/api/v1"
PART = b"\n\0"
SECONDS_MAX = 60.0
REQUESTS_MAX = 8
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHcq7rJZ0FEVqW9a7Qdd7Hq3GJk4c0PpC3m8m2dVd1qL"  # nobody's
READING = (b"GET", b"HEAD", b"OPTIONS")
IMAGE = {"path": "@DIR@/image.qcow2"}
SEEDS: dict[str, tuple[str, str, Any]] = {
    "list": ("GET", "/vms", None),
    "create": ("POST", "/vms", {"name": "new", "disks": [{"name": "a", "size_bytes": 1 << 20}], "config": "<x/>"}),
    "create-image": ("POST", "/vms", {"name": "new", "disks": [{"name": "a", "image": IMAGE}]}),
    "show": ("GET", "/vms/web", None),
    "change": ("PATCH", "/vms/web", {"name": "www", "description": "another", "force": True}),
    "delete": ("DELETE", "/vms/db?force=true", None),
    "config": ("GET", "/vms/web/config", None),
    "set-config": ("PUT", "/vms/web/config", {"config": "<web>é</web>"}),
    "export-vm": ("POST", "/vms/web/export", {"directory": "@DIR@/out", "format": "raw", "snapshot": "s1"}),
    "clones": ("POST", "/vms/web/clones", {"snapshot": "s1", "count": 2, "prefix": "copy"}),
    "clone": ("POST", "/vms/web/clones", {"name": "copy"}),
    "customized": (
        "POST",
        "/vms/web/clones",
        {
            "snapshot": "s1",
            "count": 2,
            "prefix": "copy",
            "customize": {
                "hostname": "web-@number@.@name@",
                "user_data": "#cloud-config\nhostname: '@hostname@ @uuid@ @mac0@'\n",
                "network_config": "{network: {version: 2, ethernets: {}}}",
            },
        },
    ),
    "restore-beside": ("POST", "/vms/web/restore", {"snapshot": "s1", "disk": "root", "beside": "older"}),
    "restore": ("POST", "/vms/web/restore", {"snapshot": "s1", "disk": "root", "force": False}),
    "add-disk": ("POST", "/vms/web/disks", {"name": "more", "size_bytes": 4096}),
    "resize": ("PATCH", "/vms/web/disks/data", {"size_bytes": 4096, "force_shrink": True}),
    "remove-disk": ("DELETE", "/vms/web/disks/data", None),
    "import": ("POST", "/vms/web/disks/x/import", {"image": {**IMAGE, "format": "qcow2"}, "size_bytes": 8 << 20}),
    "import-raw": ("POST", "/vms/web/disks/root/import", {"image": {"path": "@DIR@/image.raw"}, "replace": True}),
    "export": ("POST", "/vms/web/disks/root/export", {"path": "@DIR@/disk", "format": "vmdk", "overwrite": True}),
    "export-snapshot": ("POST", "/vms/web/snapshots/s2/export", {"path": "@DIR@/s2.bds", "since": "s1", "level": 1, "overwrite": False}),
    "import-snapshot": ("POST", "/streams/import", {"path": "@DIR@/stream.bds", "vm": "far", "name": "s9", "keep_seconds": 3600}),
    "inspect-stream": ("POST", "/streams/inspect", {"path": "@DIR@/stream.bds"}),
    "diff-page": ("GET", "/vms/web/snapshots/s2/diff?count=1&after=root:0", None),
    "snapshots": ("GET", "/vms/web/snapshots", None),
    "snapshot": ("POST", "/vms/web/snapshots", {"name": "s9", "description": "of now"}),
    "snapshot-terms": (
        "POST",
        "/vms/web/snapshots",
        {"keep_seconds": 3600, "locked_until": "2999-01-01T00:00:00Z", "consistency": "vm", "if_not_frozen": "fail"},
    ),
    "change-snapshot": ("PATCH", "/vms/web/snapshots/s1", {"expires": "2999-01-01T00:00:00+02:00", "locked_until": None}),
    "schedules": ("GET", "/vms/web/schedules", None),
    "set-schedules": ("PUT", "/vms/web/schedules", {"schedules": [{"name": "n", "at": "daily 02:30 mon-fri", "keep_seconds": 3600}]}),
    "put-schedule": (
        "PATCH",
        "/schedules/hourly",
        {"at": "cron */5 1-3 1,15 * mon", "zone": "Europe/Zurich", "keep_remote_seconds": None, "replicate": True},
    ),
    "remove-schedule": ("DELETE", "/vms/web/schedules/daily", None),
    "default-schedules": ("DELETE", "/vms/web/schedules", None),
    "preview": ("GET", "/vms/web/schedules/preview?seconds=100000", None),
    "run-schedule": ("POST", "/vms/web/schedules/hourly/run", None),
    "cap": ("PATCH", "/schedule-settings", {"scheduled_snapshots_max": 9}),
    "events": ("GET", "/events?vm=web&level=warning&before=9&count=5", None),
    "new-events": ("GET", "/events?kind=job&after=1&wait_seconds=0.1", None),
    "show-snapshot": ("GET", "/vms/web/snapshots/s1", None),
    "delete-snapshot": ("DELETE", "/vms/web/snapshots/s1?force=false", None),
    "diff": ("GET", "/vms/web/snapshots/s2/diff?older=s1&disk=root", None),
    "status": ("GET", "/status", None),
    "attachments": ("GET", "/attachments", None),
    "check": ("POST", "/pool/check", None),
    "scrub": ("POST", "/pool/scrub", {"rate_bytes": 1 << 30}),
    "resize-pool": ("PATCH", "/pool", {"capacity_bytes": 128 << 20}),
    "policy-pool": ("PATCH", "/pool", {"compression": "inline", "compression_level": 9, "dedup": "off", "compaction_rate_bytes": 0}),
    "policy": ("PATCH", "/vms/web", {"compression": "off", "dedup": "pool"}),
    "usage-pool": ("GET", "/pool/usage", None),
    "usage": ("GET", "/vms/web/usage", None),
    "jobs": ("GET", "/jobs", None),
    "past-jobs": ("GET", "/jobs?state=failed&kind=snapshot&subject=web&caller=owner&after=9&count=5", None),
    "job": ("GET", "/jobs/nothing?after=3&wait_seconds=0.5", None),
    "cancel": ("DELETE", "/jobs/nothing", None),
    "tokens": ("GET", "/tokens?count=5&after=a", None),
    "token": ("POST", "/tokens", {"name": "monitor", "role": "viewer", "valid_seconds": 86400}),
    "remove-token": ("DELETE", "/tokens/monitor", None),
    "hypervisors": ("GET", "/hypervisors", None),
    "add-hypervisor": ("POST", "/hypervisors", {"name": "h", "uri": "nothing:///default", "at_once": 2}),
    "hypervisor": ("GET", "/hypervisors/h", None),
    "remove-hypervisor": ("DELETE", "/hypervisors/h?force=true", None),
    "discover": ("POST", "/hypervisors/h/discover", None),
    "discover-all": ("POST", "/hypervisor-discovery", None),
    "register": ("POST", "/hypervisors/h/registrations", {"vms": ["web", "db"], "at_once": 1, "start": True}),
    "domain": ("GET", "/vms/web/domain", None),
    "unregister": ("DELETE", "/vms/web/domain?force=true", None),
    "identity": ("GET", "/replication/identity", None),
    "peers": ("GET", "/replication/peers?count=5&after=a", None),
    "peer": ("POST", "/replication/peers", {"name": "east", "key": KEY, "vms": ["web*", "d?"], "space_bytes": 1 << 30}),
    "change-peer": ("PATCH", "/replication/peers/east", {"vms": [], "space_bytes": None}),
    "remove-peer": ("DELETE", "/replication/peers/east?force=true", None),
    "invite": ("PUT", "/replication/invitations/east", {"vms": ["web*"], "seconds": 60}),
    "paths": ("GET", "/replication/paths?count=5&after=a", None),
    "path": ("POST", "/replication/paths", {"name": "far", "host": "127.0.0.1", "port": 9, "key": KEY, "level": 0}),
    "path-by-code": ("POST", "/replication/paths", {"name": "far", "host": "127.0.0.1", "port": 9, "code": "AE7AKEYC-2LVT5QDP"}),
    "throttle": (
        "PATCH",
        "/replication/paths/far",
        {"throttle": {"rate_bytes": 10000, "zone": "Europe/Zurich", "windows": [{"at": "mon-fri 08:00-18:00", "rate_bytes": None}]}},
    ),
    "test-path": ("POST", "/replication/paths/far/test", None),
    "remove-path": ("DELETE", "/replication/paths/far?force=true", None),
    "replications": ("GET", "/replication/status?level=error&state=failed&way=far&after=web/sent/far", None),
    "transfers": ("GET", "/replication/transfers?vm=web&count=5&after=9", None),
    "replication": ("GET", "/vms/web/replication", None),
    "samples": ("GET", "/vms/web/replication/samples?since=2026-11-28T00:00:00Z&count=5", None),
    "protect": ("PUT", "/vms/web/protections/far", {"rpo_seconds": 7200, "keep_seconds": 86400}),
    "unprotect": ("DELETE", "/vms/web/protections?path=far", None),
    "now": ("POST", "/vms/web/replication/now", {"path": "far"}),
    "pause": ("POST", "/vms/web/replication/pause", {"path": None}),
    "promote": ("POST", "/vms/web/replication/promote", {"snapshot": "s1"}),
    "reverse": ("POST", "/vms/web/replication/reverse", {"force": True}),
    "receive": ("POST", "/vms/web/replication/receive", {"peer": "east", "force": True}),
    "clone-there": ("POST", "/vms/web/replication/clone", {"path": "far", "name": "copy", "snapshot": "s1"}),
    "copy": ("POST", "/vms/web/replication/copy", {"path": "far", "name": "copy", "snapshot": "s1"}),
    "preview-restore": ("GET", "/vms/web/snapshots/s1/restore?disk=root", None),
    "default-set": ("GET", "/schedules", None),
    "set-default": ("PUT", "/schedules", {"schedules": [{"name": "n", "at": "hourly :05", "keep_seconds": 60, "zone": "UTC"}]}),
    "remove-default": ("DELETE", "/schedules/hourly", None),
    "put-vm-schedule": ("PATCH", "/vms/web/schedules/hourly", {"keep_seconds": 7200, "consistency": "vm", "if_not_frozen": "fail"}),
    "coverage": ("GET", "/schedule-coverage", None),
    "settings": ("GET", "/schedule-settings", None),
    "show-peer": ("GET", "/replication/peers/east", None),
    "show-path": ("GET", "/replication/paths/far", None),
    "protections": ("GET", "/vms/web/protections", None),
    "resume": ("POST", "/vms/web/replication/resume", {"path": "far"}),
    "serving": ("GET", "/serving", None),
    "compact": ("POST", "/pool/compact", {"rate_bytes": 1 << 30}),
    "caller": ("GET", "/caller", None),
    "console-code": ("POST", "/console-codes", None),
    "statistics": ("GET", "/statistics?watch=true", None),
    "statistics-now": ("GET", "/vms/web/statistics/now?watch=false", None),
    "graph": ("GET", "/vms/web/statistics?since=-86400&until=0&points=100", None),
    "pool-graph": ("GET", "/pool/statistics?since=0&until=1796000000&points=1", None),
    "targets": ("GET", "/targets?count=5&after=a", None),
    "target": ("GET", "/vms/web/target", None),
    "add-target": (
        "POST",
        "/vms/web/target",
        {
            "initiators": ["iqn.1993-08.org.debian:01:a1b2c3"],
            "portals": ["127.0.0.1:3260", "[::1]:3261"],
            "chap": {"user": "reader", "secret": "twelve-of-it"},
            "mutual": {"user": "target", "secret": "and-another1"},
            "depth": 64,
            "snapshots": ["s1"],
        },
    ),
    "change-target": ("PATCH", "/vms/web/target", {"demo": True, "insecure": True, "portals": ["0.0.0.0"], "chap": None, "snapshots": []}),
    "remove-target": ("DELETE", "/vms/web/target?force=true", None),
    "openapi": ("GET", "/openapi.json", None),
}
PATH_PARTS = (b"web", b"db", b"spare", b"root", b"data", b"s1", b"s2", b"vms", b"disks", b"snapshots", b"%00", b"%2F", b"..",
              b"%ff", b"%C3%A9", b"~", b"x" * 300, b"?force=maybe", b"?older=%ED%A0%80", b"?after=1e400", b"?wait_seconds=nan",
              b"?after=99999999999999999999", b"", b"@")  # fmt: skip


class Traces(logging.Handler):
    """Keeps the exceptions that are logged: of requests whose client did not wait, too."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(self.format(record))


class Rest(Harness):
    def __init__(self) -> None:
        self._served = ServedHome()
        self._directory = Path(self._served.home.path).parent / "files"
        self._services: Services | None = None
        self._catalog: Catalog | None = None
        self._serve_fresh()
        assert self._services is not None
        self._app = create_app(self._services)
        self._socket = str(self._directory.parent / "http.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._socket)
        listener.listen()
        self._traces = Traces()
        logging.getLogger().addHandler(self._traces)
        config = uvicorn.Config(self._app, log_config=None, access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        threading.Thread(target=self._server.run, args=([listener],), name="http", daemon=True).start()

    def _serve_fresh(self) -> None:
        """Another engine, catalog and directory; what the last ones held is forgotten."""
        if self._services is not None and self._catalog is not None:
            self._services.jobs.close(60)
            self._services.replication.stop()
            self._services.statistics.stop()
            self._services.engine.close()
            self._catalog.close()
        self._served.restart()
        shutil.rmtree(self._directory, ignore_errors=True)
        make_images(self._directory)
        home = self._served.home
        self._catalog, engine = Catalog(str(home.catalog)), EngineClient(home.engine_socket)
        recorder = Recorder(self._catalog)  # not started: it writes at once
        events = Events(recorder.put, Clock())
        history = History(recorder, events, Clock())
        vms = VMs(self._catalog, engine, clock=Clock(), events=events)
        schedules = Schedules(self._catalog, Clock())
        scheduler = Scheduler(vms, self._catalog, schedules, Clock())  # never started: nothing is due but what is asked for
        schedules.ship()
        hypervisors = Hypervisors(vms, self._catalog, Clock(), Place(home.nbd_socket))
        replication = Replication(home, vms, self._catalog, engine, Clock(), events, recorder)
        self._services = Services(
            home=home,
            vms=vms,
            engine=engine,
            jobs=Jobs(history),
            unfinished=Unfinished(vms),
            catalog=self._catalog,
            schedules=schedules,
            scheduler=scheduler,
            tokens=Tokens(self._catalog, Clock()),
            recorder=recorder,
            events=events,
            history=history,
            hypervisors=hypervisors,
            registrations=Registrations(hypervisors),
            replication=replication,
            targets=Targets(home, vms, self._catalog, engine, Clock()),  # this kernel has no LIO: it is what refuses
            tcp=None,
            statistics=Statistics(home.path, engine, sources(self._catalog, vms, replication), Clock()),
            nbd=None,
        )
        self._services.replication.start()

    def one_input(self, data: bytes) -> None:
        changed = False
        for request in split(data):
            wire = build(request, str(self._directory).encode())
            answer = self._ask(wire, is_whole=not request.startswith(b"RAW"))
            status = check_answer(answer, request)
            changed |= status is None or (status < 300 and not request.startswith(READING))
        self._await(lambda: not self._server.server_state.tasks, "a request whose client has left")
        changed |= self._check_jobs()
        assert not self._traces.found, self._traces.found[0]
        if changed:
            self._serve_fresh()
            self._app.state.services = self._services

    def _ask(self, request: bytes, is_whole: bool) -> bytes:
        """is_whole: it is answered without more; a client that ends its side is taken for one that has left."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(SECONDS_MAX)
            stream.connect(self._socket)
            answer = b""
            try:
                stream.sendall(request)
                if not is_whole:
                    stream.shutdown(socket.SHUT_WR)
                while part := stream.recv(1 << 16):
                    answer += part
            except (BrokenPipeError, ConnectionResetError):
                pass  # it need not take all of a request that it refuses
            except TimeoutError:
                raise AssertionError(f"no answer within {SECONDS_MAX} s") from None
            return answer

    def _check_jobs(self) -> bool:
        """Waits for all jobs; whether there were any."""
        assert self._services is not None
        jobs = self._services.jobs.all()
        for job in jobs:
            self._await(lambda job=job: job.state in FINISHED, f"a job of kind {job.kind}")
            message = (job.error or {}).get("message", "")
            assert not message.startswith("internal error"), message
        return bool(jobs)

    def _await(self, is_over: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not is_over():
            assert time.monotonic() < deadline, f"{what} does not end"
            time.sleep(0.001)

    def seeds(self) -> dict[str, bytes]:
        made = {name: request(*parts) for name, parts in SEEDS.items()}
        made["several"] = join([made["snapshot"], made["restore"], made["delete"], made["list"]])
        made["received"] = join([made["peer"], made["receive"], made["snapshot"], made["promote"]])
        made["protected"] = join([made["path"], made["protect"], made["now"], made["replication"], made["test-path"], made["copy"]])
        made["metrics"] = b"RAW\nGET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        made["raw"] = b"RAW\nGET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc"
        return made

    def mutate(self, data: bytes, chance: random.Random) -> bytes | None:
        found = split(data)
        if not found:
            return None
        at = chance.randrange(len(found))
        what = chance.random()
        if what < 0.15:
            found.insert(at, request(*chance.choice(list(SEEDS.values()))))
        elif what < 0.4:
            found[at] = change_target(found[at], chance)
        else:
            changed = change_body(found[at], chance)
            if changed is None:
                return None
            found[at] = changed
        return join(found[:REQUESTS_MAX])

    def close(self) -> None:
        self._server.should_exit = True
        self._served.close()


def make(name: str) -> Harness:
    return Rest()


def make_images(directory: Path) -> None:
    directory.mkdir()
    raw = directory / "image.raw"
    raw.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 16))
    cached = directory.parent / "image.qcow2"
    if not cached.exists():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", cached, "1M"], check=True)
    shutil.copy(cached, directory)
    (directory / "text").write_text("no image\n")
    (directory / "stream.bds").write_bytes((CORPUS / "stream" / "seed-whole").read_bytes())


def request(method: str, target: str, body: Any) -> bytes:
    line = f"{method} {API.decode()}{target}\n".encode()
    return line + (b"" if body is None else json.dumps(body).encode())


def split(data: bytes) -> list[bytes]:
    return data.split(PART)[:REQUESTS_MAX]


def join(requests: list[bytes]) -> bytes:
    return PART.join(requests)


def build(request: bytes, directory: bytes) -> bytes:
    """As it goes over the wire."""
    line, _, body = request.replace(b"@DIR@", directory).partition(b"\n")
    if line == b"RAW":
        return body
    head = [
        line + b" HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def check_answer(answer: bytes, request: bytes) -> int | None:
    """Its status; None for what is no answer to one request we know.  A refusal says why, in the one shape."""
    if not answer.startswith(b"HTTP/1.1 ") or request.startswith(b"RAW"):
        assert b"HTTP/1.1 500" not in answer
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status != 500, body[:300]
    if status >= 400 and body and b"application/json" in head:
        error = json.loads(body)["error"]
        assert error["code"] in BY_CODE and error["message"] and "\n" not in error["message"]
    elif status >= 400 and body:
        assert body == b"Invalid HTTP request received.", body[:300]  # uvicorn's own
    return status


def change_target(request: bytes, chance: random.Random) -> bytes:
    """Another part of the path, or more of it."""
    line, newline, body = request.partition(b"\n")
    parts = line.split(b"/")
    at = chance.randrange(len(parts))
    if chance.random() < 0.3:
        parts.insert(at, chance.choice(PATH_PARTS))
    elif at:
        parts[at] = chance.choice(PATH_PARTS)
    else:
        parts[at] = chance.choice((b"GET ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"HEAD ", b"OPTIONS ", b"X "))
    return b"/".join(parts) + newline + body


def change_body(request: bytes, chance: random.Random) -> bytes | None:
    line, newline, body = request.partition(b"\n")
    try:
        value = messages.change(json.loads(body), chance, with_bytes=False)
    except (ValueError, RecursionError):
        return None
    return line + newline + json.dumps(value).encode()
