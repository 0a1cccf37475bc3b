"""A libvirt daemon and a served home that it runs VMs of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.served import Home, served_home
from tests.hypervisor.libvirt_daemon import LibvirtDaemon, is_usable, silence


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[LibvirtDaemon]:
    if not is_usable():
        pytest.skip("mounting a file system needs root")
    silence()
    made = LibvirtDaemon()
    yield made
    made.close()


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Served, with the daemon of the module added as `kvm` by whichever test wants it."""
    with served_home() as made:
        yield made
