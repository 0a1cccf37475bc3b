"""What is read out of configurations, and the addresses of clones."""

from __future__ import annotations

import re
import uuid

import pytest

from blockdev.vmmap.machine import check_config, domain_of, interface_count, mac_address, without_passwords

XML = "<domain type='kvm'><name>web</name><devices><interface type='network'/><disk/><interface type='bridge'/></devices></domain>"


def test_interfaces_of_a_domain_are_counted() -> None:
    assert interface_count(XML) == 2 and domain_of(XML) is not None


@pytest.mark.parametrize("text", ["", "<web/>", "not XML <", "<domain", "{}", "<domain/>"])
def test_what_is_no_domain_says_nothing(text: str) -> None:
    assert interface_count(text) == 0


@pytest.mark.parametrize(
    "tag",
    [
        "<graphics type='vnc' passwd='secret7' port='-1'/>",
        '<graphics passwd="secret7" type="spice"><listen type="address"/></graphics>',
        "<graphics type='vnc' listen='a>b' passwd = 'secret7'/>",
        "<graphics\n  type='vnc'\n  passwd='secret7'\n  passwdValidTo='2030-01-01T00:00:00'/>",
    ],
)
def test_a_password_is_not_kept_of_a_configuration(tag: str) -> None:
    config = f"<domain><devices>{tag}<interface passwd='its own'/></devices></domain>"
    kept = check_config(config)
    assert "secret7" not in kept and "its own" in kept and kept == without_passwords(kept)
    graphics, before = (domain_of(one).find("./devices/graphics") for one in (kept, config))
    assert graphics.attrib == {name: value for name, value in before.attrib.items() if name != "passwd"}


@pytest.mark.parametrize("text", ["<graphics " * 50_000, "<graphics" + " " * 1_000_000, "<graphics '" + "passwd=" * 100_000])
def test_looking_for_passwords_takes_no_long_time_whatever_the_text(text: str) -> None:
    assert without_passwords(text) == text


def test_mac_addresses_are_stable_local_and_different() -> None:
    of = "8d0c6b9a-3c11-4c4e-9a39-0b6f6d2f3b11"
    assert mac_address(of, 0) == "02:4f:68:01:57:b5"
    found = {mac_address(str(uuid.UUID(int=number)), nic) for number in range(500) for nic in (0, 1)}
    assert len(found) == 1000
    assert all(re.fullmatch(r"02(:[0-9a-f]{2}){5}", one) for one in found)
