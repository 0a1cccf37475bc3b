"""A pool with VMs in it, served on an engine socket in this process; a copy of the same one whenever an input changed it."""

from __future__ import annotations

import gc
import shutil
import tempfile
from pathlib import Path

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.home import Home
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs
from tests.fuzz.base_pools import MEBIBYTE, SMALL
from tests.vmmap import world


class ServedHome:
    """`home` with tests.vmmap.world in pool and catalog; its engine answers from start() to stop()."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="served-")
        self._master = Path(self._directory, "master")
        self.home = Home.at(str(Path(self._directory, "home")))
        self.pool: Pool | None = None
        self._server: EngineServer | None = None
        self._make_master()

    def _make_master(self) -> None:
        home = Home.at(str(self._master))
        home.make_directories()
        Pool.create(home.pool, 64 * MEBIBYTE, segment_bytes=MEBIBYTE).close()
        pool = Pool.open(home.pool, **SMALL)
        server = EngineServer(pool, Attachments(), str(home.engine_socket))
        server.start()
        catalog, client = Catalog(str(home.catalog)), EngineClient(home.engine_socket)
        world.build(VMs(catalog, client, clock=world.Clock()), pool)
        client.close()
        catalog.close()
        server.stop()
        pool.close()

    def start(self) -> None:
        """Serve a fresh copy."""
        shutil.copytree(self._master, self.home.path)
        self.pool = Pool.open(self.home.pool, **SMALL)
        attachments = Attachments()
        attachments.attach(self.pool.find("db/root"), "pid 7 (qemu)")
        self._server = EngineServer(self.pool, attachments, str(self.home.engine_socket), plugin="none")
        self._server.start()

    def stop(self) -> None:
        """Stop serving, and forget what was changed."""
        if self._server is not None and self.pool is not None:
            self._server.stop()
            self.pool.close()
        self._server = self.pool = None
        gc.collect()  # a server's operations refer to each other, and keep the pool's memory
        shutil.rmtree(self.home.path, ignore_errors=True)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._directory)
