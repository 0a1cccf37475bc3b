"""A libvirt daemon and a served home that it runs VMs of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.served import Home, served_home
from tests.hypervisor.libvirt_daemon import LibvirtDaemon, libvirt_daemon


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[LibvirtDaemon]:
    with libvirt_daemon() as made:
        yield made


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Served, with the daemon of the module added as `kvm` by whichever test wants it."""
    with served_home() as made:
        yield made
