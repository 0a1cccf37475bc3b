"""The control plane dies at each step of a registration, with a real libvirt: the next one finds out, and nothing is left between."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import pytest

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.server import EngineServer
from blockdev.errors import Unavailable
from blockdev.hypervisor import registration
from blockdev.hypervisor.connection import Connection
from blockdev.hypervisor.hypervisors import Hypervisors
from blockdev.hypervisor.registration import Registrations
from tests.child import DIED_AS_TOLD
from tests.cli.served import until
from tests.hypervisor.domains import define, disk, domain, undefine_all
from tests.hypervisor.dying import HYPERVISOR, wire
from tests.hypervisor.libvirt_daemon import LibvirtDaemon

ROOT = Path(__file__).parents[2]
# step -> whether the VM has its domain afterwards
REGISTER = {"register:intended": False, "register:defined": True, "register:finished": True}
UNREGISTER = {
    "unregister:intended": True,
    "unregister:destroyed": True,
    "unregister:undefined": False,
    "unregister:finished": False,
}


class World:
    """A pool that is served, VMs web and copy, and a libvirt that knows neither."""

    def __init__(self, path: Path, daemon: LibvirtDaemon) -> None:
        self.path = path
        self.daemon = daemon

    @contextmanager
    def control_plane(self) -> Iterator[tuple[Hypervisors, Registrations]]:
        catalog, hypervisors, registrations = wire(self.path)
        yield hypervisors, registrations
        hypervisors.close()
        catalog.close()

    def build(self) -> None:
        with self.control_plane() as (hypervisors, _):
            config = domain("web", disk("web/root", "/nowhere/nbd.sock"))
            hypervisors.vms.create_vm("web", [("root", 1 << 20)], config)
            hypervisors.vms.clone("web", None, "copy")
            hypervisors.add(HYPERVISOR, self.daemon.uri)

    def run(self, operation: str, step: str) -> str:
        """What it said, "" when it died."""
        command = [sys.executable, "-m", "tests.hypervisor.dying", str(self.path), operation, step]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == (0 if done.stdout else DIED_AS_TOLD), done.stderr
        return done.stdout

    def defined(self) -> dict[str, str]:
        """Name -> uuid."""
        connection = self.daemon.connect()
        found = {one.name(): one.UUIDString() for one in connection.listAllDomains()}
        connection.close()
        return found

    def check(self, has_domain: bool) -> None:
        """Catalog and libvirt say the same, and there is no more to settle."""
        with self.control_plane() as (hypervisors, registrations):
            registrations.settle()
            assert registrations.settle() == [], "a second look changed more"
            shown = hypervisors.vms.show_vm("copy")
            assert hypervisors.catalog.unsettled_links() == []
            assert self.defined() == ({"copy": shown.uuid} if has_domain else {})
            assert (shown.domain is not None) == has_domain
            if has_domain:
                assert shown.domain is not None and (shown.domain.uuid, shown.domain.made) == (shown.uuid, True)
                assert f"<uuid>{shown.uuid}</uuid>" in hypervisors.vms.get_config("copy")


@pytest.fixture
def world(libvirtd: LibvirtDaemon) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="bd-") as directory:
        made = World(Path(directory), libvirtd)
        with Pool.create(f"{directory}/pool", 64 << 20, segment_bytes=1 << 20) as pool:
            server = EngineServer(pool, Attachments(), f"{directory}/engine.sock")
            server.start()
            made.build()
            yield made
            server.stop()
        connection = libvirtd.connect()
        undefine_all(connection)
        connection.close()


def test_the_control_plane_dies_at_each_step_of_a_registration(world: World) -> None:
    for step, has_domain in REGISTER.items():
        assert world.run("register", step) == "", step
        world.check(has_domain)
        if has_domain:
            assert world.run("unregister", "never") == "unregistered\n"
            world.check(False)
    assert world.run("register", "never").startswith("registered it was not started: libvirt does not start it")
    world.check(True)


def test_the_control_plane_dies_at_each_step_of_the_end_of_a_registration(world: World) -> None:
    for step, has_domain in UNREGISTER.items():
        assert world.run("register", "never").startswith("registered")
        assert world.run("unregister", step) == "", step
        world.check(has_domain)
        if has_domain:
            assert world.run("unregister", "never") == "unregistered\n"
            world.check(False)


@pytest.mark.parametrize(("step", "has_domain"), [("register:intended", False), ("register:defined", True)])
def test_what_was_left_is_settled_when_the_hypervisor_answers_again(world: World, step: str, has_domain: bool) -> None:
    assert world.run("register", step) == ""
    world.daemon.stop()
    try:
        with world.control_plane() as (hypervisors, registrations):
            assert registrations.settle() == []
            shown = hypervisors.vms.show_vm("copy").domain
            assert shown is not None and shown.state == "registering"
    finally:
        world.daemon.start()
    world.check(has_domain)


def test_a_libvirt_that_dies_in_the_middle_leaves_what_is_settled_later(world: World) -> None:
    """It is killed when the intention has been written down: whoever asked hears that nobody knows yet."""
    with world.control_plane() as (hypervisors, _):
        def kill_libvirt(step: str) -> None:
            if step == "register:intended":
                world.daemon.stop(9)

        registrations = Registrations(hypervisors, kill_libvirt)
        row = hypervisors.row(HYPERVISOR)
        (done,) = registrations.register_all(row, ["copy"], 1, False, lambda: False, lambda count: None)
        assert done.state == "failed" and done.error
        left = hypervisors.vms.show_vm("copy").domain
        assert left is not None and left.state == "registering"
        world.daemon.start()
        assert [text.endswith("is not there") for text in registrations.settle()] == [True]
    world.check(False)


def test_settling_that_looks_before_a_domain_is_made_does_not_say_that_it_is_not_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.control_plane() as (hypervisors, _):
        has_looked, is_made = threading.Event(), threading.Event()
        look = hypervisors.domain_of

        def look_and_dawdle(*arguments: Any, **named: Any) -> Any:
            found = look(*arguments, **named)
            has_looked.set()
            is_made.wait(60)
            return found

        monkeypatch.setattr(hypervisors, "domain_of", look_and_dawdle)

        def settle() -> None:
            assert registrations.settle() == []
            has_looked.set()

        def at_step(step: str) -> None:
            if step == "register:intended":
                settling.start()
                assert has_looked.wait(60)

        registrations = Registrations(hypervisors, at_step)
        settling = threading.Thread(target=settle)
        assert registrations.register(hypervisors.row(HYPERVISOR), "copy") == "copy"
        is_made.set()
        settling.join()
    world.check(True)


def test_a_domain_that_a_slow_libvirt_makes_later_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that was given up goes on: until it ends nobody says what became of it."""
    is_let_go, has_defined = threading.Event(), threading.Event()
    define = Connection.define

    def define_slowly(self: Connection, xml: str) -> Any:
        assert is_let_go.wait(60)
        try:
            return define(self, xml)
        finally:
            has_defined.set()

    monkeypatch.setattr(Connection, "define", define_slowly)
    monkeypatch.setattr(registration, "DEFINE_SECONDS", 0.5)
    with world.control_plane() as (hypervisors, registrations):
        with pytest.raises(Unavailable, match="did not answer within 0.5 s"):
            registrations.register(hypervisors.row(HYPERVISOR), "copy")
        assert registrations.settle() == [] and len(hypervisors.catalog.unsettled_links()) == 1
        is_let_go.set()
        assert has_defined.wait(60)
        assert until(registrations.settle, "the end of the call")[0].endswith("is there")
    world.check(True)


def test_a_domain_that_somebody_else_made_is_never_taken_over(world: World) -> None:
    with world.control_plane() as (hypervisors, registrations):
        uuid = hypervisors.vms.show_vm("copy").uuid
        connection = world.daemon.connect()
        xml = domain("copy", disk("x/y", "/elsewhere.sock")).replace("<memory", f"<uuid>{uuid}</uuid><memory")
        define(connection, xml)
        before = connection.lookupByName("copy").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        row = hypervisors.row(HYPERVISOR)
        (done,) = registrations.register_all(row, ["copy"], 1, False, lambda: False, lambda count: None)
        assert done.state == "failed" and "there is a domain copy" in (done.error or "")
        assert hypervisors.vms.show_vm("copy").domain is None
        assert connection.lookupByName("copy").XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before
        connection.close()
