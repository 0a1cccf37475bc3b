"""blockdevd: the control plane of one home.

Listens on HOME/run/api.sock, and on TCP when told to (listening.py).  One daemon per home: a flock on run/blockdevd.lock,
which the kernel drops with the process, so it never goes stale.  The engine may come and go.  Schedules run from the moment it serves.  SIGTERM and SIGINT: no new requests and runs, running jobs are cancelled and taken
back (those that wait for an engine that hangs, at the next start), exit status 0.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from blockdev.addresses import Address
from blockdev.api.allocator import keep_freed_memory
from blockdev.api.app import create_app
from blockdev.api.history import History
from blockdev.api.jobs import Jobs
from blockdev.api.listening import Tcp, listen_local, prepare_tcp
from blockdev.api.ready import report_error, report_ready
from blockdev.api.servers import Servers
from blockdev.api.services import Services
from blockdev.api.statistics_sources import sources
from blockdev.api.tokens import Tokens
from blockdev.api.unfinished import Unfinished
from blockdev.api.watch import Watch
from blockdev.clock import now_seconds
from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError, Busy, PoolFull, Unavailable
from blockdev.home import Home
from blockdev.hypervisor.hypervisors import Hypervisors
from blockdev.hypervisor.place import Place
from blockdev.hypervisor.registration import Registrations
from blockdev.hypervisor.settling import Settling
from blockdev.replicate.service import Replication
from blockdev.schedule.runner import Scheduler
from blockdev.schedule.service import Schedules
from blockdev.statistics.service import Statistics
from blockdev.targets.service import Targets
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.changed_bytes import ChangeCounter
from blockdev.vmmap.events import Events
from blockdev.vmmap.recorder import Recorder
from blockdev.vmmap.reserve import DEFAULT_RESERVE
from blockdev.vmmap.service import VMs

logger = logging.getLogger(__name__)
RECONCILE_SECONDS = 1.0  # between attempts while the engine is away
COUNT_SECONDS = 1.0  # between looks for snapshots to count
COUNT_END_SECONDS_MAX = 2.0
JOBS_END_SECONDS_MAX = 12.0  # to take back what was begun; the supervisor gives us 20 s in all (supervisor.py)
ENGINE_SECONDS_MAX = 1.0  # for an engine to show that it does not hang


class Served(Protocol):
    """What a front makes: an application that is told when the process ends."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    @property
    def stop(self) -> Callable[[], None]: ...


Front = Callable[[FastAPI, Path | None], Served]  # of the API's application and the directory of the certificate


def main(front: Front | None = None) -> None:
    """front: makes what is served over TCP of the API's application, which is served itself without it."""
    arguments = _parse(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="blockdevd: %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of what strangers send, who could fill the log by that
    os.umask(0o077)  # exported images hold guests' data
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # connections that have not finished their TLS handshake count, too
    keep_freed_memory()
    try:
        home = Home.at(arguments.home)
        home.require_initialised()
        listening = Listening(_tcp(home, arguments), _address(arguments.nbd), _address(arguments.replicate))
        serve(home, listening, arguments.ready_fd, front)
    except BlockdevError as error:
        report_error(arguments.ready_fd, error)
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_status)


def _parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="blockdevd", description="The control plane of one blockdev home.")
    parser.add_argument("--home", help="the home directory (default: BLOCKDEV_HOME)")
    parser.add_argument("--api", metavar="ADDR:PORT", help="serve REST over TCP, too")
    parser.add_argument("--api-tls", metavar="DIR", type=Path, help="with the certificate there, not the home's own")
    parser.add_argument("--api-plain", action="store_true", help="without TLS, on a loopback address")
    parser.add_argument("--api-hypervisors", action="store_true", help="let admins with a token register VMs at hypervisors")
    parser.add_argument("--nbd", metavar="ADDR:PORT", help="where the engine serves NBD over TCP")
    parser.add_argument("--replicate", metavar="ADDR:PORT", help="where peers reach this home")
    parser.add_argument("--ready-fd", type=int, help="write one line there when serving, or when starting failed")
    return parser.parse_args(given)


class Listening(NamedTuple):
    """Where else than at its own sockets a home is reached; None: not at all."""

    tcp: Tcp | None = None  # REST
    nbd: Address | None = None  # the engine's
    replicate: Address | None = None  # for peers


def _address(text: str | None) -> Address | None:
    return Address.parse(text) if text else None


def _tcp(home: Home, given: argparse.Namespace) -> Tcp | None:
    if not given.api:
        return None
    return replace(prepare_tcp(home, Address.parse(given.api), given.api_tls, given.api_plain), registers=given.api_hypervisors)


def serve(home: Home, listening: Listening, ready_fd: int | None = None, front: Front | None = None) -> None:
    """Serve until SIGTERM or SIGINT.  Raises Busy, InvalidArgument, UnknownFormat."""
    home.make_directories()
    with open(home.control_lock, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{home.path} has a control plane already: stop the other blockdevd first") from None
        tcp = listening.tcp
        over_tcp = None if tcp is None else (tcp.address.listen(), tcp.context())
        local = listen_local(home)
        catalog = Catalog(home.catalog, DEFAULT_RESERVE)
        services = _wire(home, catalog, listening)
        watch = Watch(catalog, services.engine, services.recorder, services.events, now_seconds)
        stopped = threading.Event()
        counting = threading.Thread(target=_count_changes, args=(services, stopped), name="count", daemon=True)
        settling = Settling(services.registrations)

        def serving() -> None:
            report_ready(ready_fd)
            services.scheduler.start()
            settling.start()

        try:
            services.history.note_interrupted(catalog)
            services.recorder.start()
            services.schedules.ship()
            watch.start()
            threading.Thread(target=_tidy, args=(services, stopped), name="tidy", daemon=True).start()
            counting.start()
            services.replication.start()
            services.targets.start()
            services.statistics.start()
            # jobs are cancelled at the signal, so that whoever waits for one hears of it
            app = create_app(services)
            fronts = [] if front is None or tcp is None else [front(app, tcp.tls)]

            def stopping() -> None:
                services.jobs.cancel_all()
                for one in fronts:
                    one.stop()

            servers = Servers(serving, stopping)
            servers.add(app, local)
            if over_tcp is not None:
                servers.add(fronts[0] if fronts else app, *over_tcp)
            _let_the_collector_skip_what_stays()
            servers.run()
        finally:
            services.scheduler.stop()
            settling.stop()
            _end_jobs(services)
            services.replication.stop()
            services.targets.stop()
            services.hypervisors.close()
            services.statistics.stop()
            watch.stop()
            services.recorder.close()
            stopped.set()
            if counting.is_alive():
                counting.join(COUNT_END_SECONDS_MAX)  # it is in the middle of one snapshot at the most; an engine that hangs is not waited for
            catalog.close()
            with suppress(FileNotFoundError):
                home.api_socket.unlink()


def _end_jobs(services: Services) -> None:
    """While an engine hangs no job ends: what it began is taken back at the next start, as when we are killed."""
    if not services.jobs.close(0.0) and services.engine.answers(ENGINE_SECONDS_MAX):
        services.jobs.close(JOBS_END_SECONDS_MAX)


def _let_the_collector_skip_what_stays() -> None:
    """Libraries and routes are 70,000 objects that live as long as we: looking through them held a request up for 70 ms (measured)."""
    gc.collect()
    gc.freeze()


def _wire(home: Home, catalog: Catalog, listening: Listening) -> Services:
    engine = EngineClient(home.engine_socket, f"blockdevd (pid {os.getpid()})")
    blocks = EngineClient(home.engine_socket, f"replication of blockdevd (pid {os.getpid()})")  # whose connections give way to guests
    recorder = Recorder(catalog)
    events = Events(recorder.put, now_seconds)
    history = History(recorder, events, now_seconds)
    vms = VMs(catalog, engine, events=events)
    schedules = Schedules(catalog, now_seconds)
    scheduler = Scheduler(vms, catalog, schedules, now_seconds, events=events, ended=history.note_round)
    nbd, peers = listening.nbd, listening.replicate
    place = Place(home.nbd_socket, nbd.host, nbd.port) if nbd else Place(home.nbd_socket)
    hypervisors = Hypervisors(vms, catalog, now_seconds, place)
    listen = None if peers is None else (peers.host, peers.port)
    replication = Replication(home, vms, catalog, blocks, now_seconds, events, recorder, listen)
    return Services(
        home=home,
        vms=vms,
        engine=engine,
        jobs=Jobs(history),
        unfinished=Unfinished(vms),
        catalog=catalog,
        schedules=schedules,
        scheduler=scheduler,
        tokens=Tokens(catalog, now_seconds),
        recorder=recorder,
        events=events,
        history=history,
        hypervisors=hypervisors,
        registrations=Registrations(hypervisors),
        replication=replication,
        targets=Targets(home, vms, catalog, engine, now_seconds),
        tcp=listening.tcp,
        statistics=Statistics(home.path, engine, sources(catalog, vms, replication), now_seconds),
        nbd=nbd,
    )


def _tidy(services: Services, stopped: threading.Event) -> None:
    """Bring catalog and engine into agreement, and remove what was left, whenever that is due and the engine answers."""
    unfinished = services.unfinished
    while unfinished.sweep_due.wait():
        unfinished.sweep_due.clear()
        try:
            services.vms.reconcile()
            unfinished.sweep()
        except Unavailable:
            unfinished.sweep_due.set()
            time.sleep(RECONCILE_SECONDS)
        except Exception:
            if stopped.is_set():
                return
            logger.exception("catalog and engine could not be brought into agreement; the next change tries again")


def _count_changes(services: Services, stopped: threading.Event) -> None:
    """Count what changed at each snapshot, when a look finds none that was taken since the look before."""
    counter = ChangeCounter(services.catalog, services.engine)
    last = None
    while not stopped.wait(COUNT_SECONDS):
        try:
            newest = counter.newest_uncounted()
            if newest is None or newest != last:  # a round of schedules may be under way: it has the machine for itself
                last = newest
                continue
            while counter.count_some(stopped.is_set):
                pass
        except (Unavailable, PoolFull):
            pass
        except Exception:
            if stopped.is_set():
                return
            logger.exception("what changed at snapshots could not be counted; it is tried again")


if __name__ == "__main__":
    main()
