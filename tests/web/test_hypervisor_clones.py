"""The clone dialog with a real libvirt: domains made of the clones, and what became of each, the one that failed too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import libvirt
import pytest

from tests.cli.served import Home, served_home, until
from tests.hypervisor.domains import define, disk, domain
from tests.hypervisor.libvirt_daemon import LibvirtDaemon, libvirt_daemon
from tests.ports import free_address
from tests.web.browser import Browser


@pytest.fixture(scope="module")
def kvm() -> Iterator[LibvirtDaemon]:
    with libvirt_daemon() as made:
        yield made


@pytest.fixture(scope="module")
def console(kvm: LibvirtDaemon) -> Iterator[tuple[Home, Browser, libvirt.virConnect]]:
    """Of a home with the VM web, whose configuration is known from the hypervisor kvm."""
    address = free_address()
    with served_home("--api", address, "--api-hypervisors") as home, Browser(f"https://{address}", home.trust()) as browser:
        connection = kvm.connect()
        home("vm", "create", "web", "--disk", "root=8M")
        home("hypervisor", "add", "kvm", kvm.uri)
        define(connection, domain("web", disk("web/root", home.path / "run/nbd.sock", "vda")))
        home("hypervisor", "discover", "kvm")
        browser.sign_in(home("token", "add", "anna", "--role", "admin").strip())
        yield home, browser, connection
        with suppress(libvirt.libvirtError):  # a test may have ended what it is to
            connection.close()


def test_domains_are_made_of_clones_and_the_one_that_fails_is_shown(console: tuple[Home, Browser, libvirt.virConnect]) -> None:
    _home, browser, connection = console
    define(connection, domain("c-2"))  # somebody has that name
    answer = browser.send("/vms/web/clone", count="3", names="c-#", hypervisor="kvm")
    assert answer.status_code == 303 and re.fullmatch("/activity/jobs/[^/]+", answer.headers["location"]), answer.text
    job = answer.headers["location"]
    first = browser.page(job)
    assert "made 3 clones, c-1 to c-3; kvm is being told of them" in first and "vm.register of kvm" in first
    page = until(lambda: (found := browser.page(job)) and "1 of 3 failed" in found and found, "the job to end")
    assert "hx-get" not in page.partition("<main")[2], "what is over is not asked for again"
    rows = {vm: row for row in page.split("<tr>") for vm in ("c-1", "c-2", "c-3") if f'"/vms/{vm}"' in row}
    assert "registered" in rows["c-1"] and "registered" in rows["c-3"]
    assert "failed" in rows["c-2"] and "there is a domain c-2 with uuid" in rows["c-2"]
    assert {one.name() for one in connection.listAllDomains()} == {"web", "c-1", "c-2", "c-3"}
    assert f'href="{job}"' in browser.page("/activity")


def test_clones_are_there_also_when_the_hypervisor_went_away(console: tuple[Home, Browser, libvirt.virConnect], kvm: LibvirtDaemon) -> None:
    home, browser, _connection = console
    kvm.stop()  # for the tests behind this one, too
    job = browser.send("/vms/web/clone", count="2", names="d-#", hypervisor="kvm").headers["location"]
    until(lambda: "2 of 2 failed" in browser.page(job), "the job to end")
    assert {"d-1", "d-2"} <= {vm["name"] for vm in home.json("vm", "list")["vms"]}
