"""What a VM's configuration says of its hardware, when it is a libvirt domain's XML, and the addresses that a clone gets.

The text is a user's: one that is no such XML says nothing, and is no error.
"""

from __future__ import annotations

import hashlib
import re
from xml.etree import ElementTree

from blockdev.vmmap.names import CONFIG_BYTES_MAX, check_text

GRAPHICS = re.compile(r"""<graphics\s(?:[^<>"']|"[^"<]*"|'[^'<]*')*>""")  # in one pass, whatever the text
PASSWORD = re.compile(r"""\spasswd\s*=\s*(?:"[^"]*"|'[^']*')""")
CLONE_MAC_FIRST = 0x02  # a locally administered, individual address (IEEE 802, clause 8.2)


def domain_of(config: str) -> ElementTree.Element | None:
    """The <domain> element that a configuration is; None: it is something else."""
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError:
        return None
    return root if root.tag == "domain" else None


def check_config(text: str) -> str:
    """A configuration as it can be kept: without passwords.  InvalidArgument."""
    return without_passwords(check_text("configuration", text, CONFIG_BYTES_MAX))


def without_passwords(config: str) -> str:
    """As libvirt shows a domain: with no password of VNC or SPICE.  Whoever reads a configuration is not to get into a guest."""
    return GRAPHICS.sub(lambda graphics: PASSWORD.sub("", graphics[0]), config)


def interface_count(config: str) -> int:
    """How many network interfaces the VM has; 0 also when the configuration does not say."""
    domain = domain_of(config)
    return 0 if domain is None else len(domain.findall("./devices/interface"))


def mac_address(vm_uuid: str, number: int) -> str:
    """The MAC address of a clone's interface (0, 1, ...): always the same, and no other VM's but by a chance of 2**-40."""
    digest = hashlib.blake2b(f"{vm_uuid}/{number}".encode(), digest_size=5).digest()
    return ":".join(f"{byte:02x}" for byte in bytes([CLONE_MAC_FIRST]) + digest)
