"""What is read out of configurations, and the addresses of clones."""

from __future__ import annotations

import re
import uuid

import pytest

from blockdev.vmmap.machine import domain_of, interface_count, mac_address

XML = "<domain type='kvm'><name>web</name><devices><interface type='network'/><disk/><interface type='bridge'/></devices></domain>"


def test_interfaces_of_a_domain_are_counted() -> None:
    assert interface_count(XML) == 2 and domain_of(XML) is not None


@pytest.mark.parametrize("text", ["", "<web/>", "not XML <", "<domain", "{}", "<domain/>"])
def test_what_is_no_domain_says_nothing(text: str) -> None:
    assert interface_count(text) == 0


def test_mac_addresses_are_stable_local_and_different() -> None:
    of = "8d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b11"
    assert mac_address(of, 0) == "02:4f:68:01:57:b5"
    found = {mac_address(str(uuid.UUID(int=number)), nic) for number in range(500) for nic in (0, 1)}
    assert len(found) == 1000
    assert all(re.fullmatch(r"02(:[0-9a-f]{2}){5}", one) for one in found)
