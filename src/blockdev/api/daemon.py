"""blockdevd: the control plane of one home.

Listens on HOME/run/api.sock (0600), and on a loopback TCP address when told to.  One daemon per home: a flock on
run/blockdevd.lock, which the kernel drops with the process, so it never goes stale.  The engine may come and go.
Schedules run from the moment it serves.  SIGTERM and SIGINT: no new requests and runs, running jobs are cancelled and taken
back, exit status 0.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from blockdev.api.addresses import LOOPBACK_ONLY, Address
from blockdev.api.app import create_app
from blockdev.api.jobs import Jobs
from blockdev.api.ready import report_error, report_ready
from blockdev.api.services import Services
from blockdev.api.unfinished import Unfinished
from blockdev.clock import now_seconds
from blockdev.engine.client import EngineClient
from blockdev.errors import BlockdevError, Busy, InvalidArgument, Unavailable
from blockdev.home import Home
from blockdev.schedule.runner import Scheduler
from blockdev.schedule.service import Schedules
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.reserve import DEFAULT_RESERVE
from blockdev.vmmap.service import VMs

logger = logging.getLogger(__name__)
RECONCILE_SECONDS = 1.0  # between attempts while the engine is away
DRAIN_SECONDS = 5  # for requests that are under way at the end


def main() -> None:
    """The console script."""
    arguments = _parse(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="blockdevd: %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    os.umask(0o077)  # exported images hold guests' data
    try:
        serve(Home.at(arguments.home), arguments.api, arguments.ready_fd)
    except BlockdevError as error:
        report_error(arguments.ready_fd, error)
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_status)


def _parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="blockdevd", description="The control plane of one blockdev home.")
    parser.add_argument("--home", help="the home directory (default: BLOCKDEV_HOME)")
    parser.add_argument("--api", metavar="ADDR:PORT", help="serve REST on this loopback address, too")
    parser.add_argument("--ready-fd", type=int, help="write one line there when serving, or when starting failed")
    return parser.parse_args(given)


def serve(home: Home, api: str | None = None, ready_fd: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT.  Raises Busy, InvalidArgument, NotFound, UnknownFormat."""
    home.require_initialised()
    home.make_directories()
    with open(home.control_lock, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{home.path} has a control plane already: stop the other blockdevd first") from None
        listeners = _listen(home, api)
        catalog = Catalog(home.catalog, DEFAULT_RESERVE)
        services = _wire(home, catalog)
        stopped = threading.Event()

        def serving() -> None:
            report_ready(ready_fd)
            services.scheduler.start()

        try:
            services.schedules.ship()
            threading.Thread(target=_tidy, args=(services, stopped), name="tidy", daemon=True).start()
            config = uvicorn.Config(
                create_app(services),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
            server = _Server(config, services.jobs, serving)
            for number in (signal.SIGTERM, signal.SIGINT):  # until uvicorn takes them, and when it raises them again
                signal.signal(number, server.handle_exit)
            server.run(sockets=listeners)
        finally:
            services.scheduler.stop()
            services.jobs.close()
            stopped.set()
            catalog.close()
            with suppress(FileNotFoundError):
                home.api_socket.unlink()


class _Server(uvicorn.Server):
    """Says when it serves, and cancels the jobs as soon as it is told to stop, so that whoever waits for one hears of it."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs, serving: Callable[[], None]) -> None:
        super().__init__(config)
        self._jobs = jobs
        self._serving = serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._serving()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._jobs.cancel_all()
        super().handle_exit(sig, frame)


def _wire(home: Home, catalog: Catalog) -> Services:
    engine = EngineClient(home.engine_socket, f"blockdevd (pid {os.getpid()})")
    vms = VMs(catalog, engine)
    schedules = Schedules(catalog, now_seconds)
    scheduler = Scheduler(vms, catalog, schedules, now_seconds)
    return Services(home, vms, engine, Jobs(), Unfinished(vms), catalog, schedules, scheduler)


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


def _listen(home: Home, api: str | None) -> list[socket.socket]:
    """The bound sockets; the Unix socket's name is ours because we hold the lock."""
    sockets = [_listen_tcp(api)] if api else []
    with suppress(FileNotFoundError):
        home.api_socket.unlink()
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    local.bind(str(home.api_socket))
    home.api_socket.chmod(0o600)
    return [local, *sockets]


def _listen_tcp(api: str) -> socket.socket:
    address = Address.parse(api)
    if not address.is_loopback():
        raise InvalidArgument(LOOPBACK_ONLY.format(address=address))
    return address.listen()


if __name__ == "__main__":
    main()
