"""iSCSI targets as a person sees and wants them, and the rules for what can be wanted."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from blockdev.addresses import is_loopback, show_address
from blockdev.errors import InvalidArgument

AUTHORITY = "iqn.2026-11.io.blockdev"
HOME_CHARACTERS = 8  # of the pool's uuid, in the names of what is ours
PORT = 3260  # IANA's for iSCSI
LOOPBACK = ("127.0.0.1", PORT)
DEPTH = 64  # LIO's
DEPTH_MAX = 1024
PORTALS_MAX = 16
INITIATORS_MAX = 256
LUN_MAX = 16383  # beyond it a number has another form, which few initiators know
IQN_BYTES_MAX = 223  # RFC 7143, section 4.2.7.1
INITIATOR = re.compile(r"iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9-]+(\.[a-z0-9-]+)+(:[a-z0-9.:-]+)?|eui\.[0-9a-f]{16}")

State = Literal["up", "degraded", "unavailable"]


class Portal(NamedTuple):
    """Where a target listens."""

    host: str  # an IPv4 or IPv6 address, without brackets
    port: int

    def __str__(self) -> str:
        return show_address(self.host, self.port)


@dataclass(frozen=True)
class Lun:
    """One disk behind a target."""

    number: int
    disk: str
    snapshot: str | None  # of this snapshot: read-only
    export: str
    serial: str
    size_bytes: int
    error: str | None  # why it is not there


@dataclass(frozen=True)
class Target:
    """A target, as a person sees it."""

    vm: str
    iqn: str
    state: State
    reasons: list[str]  # why it is not up
    portals: list[str]
    initiators: list[str]  # who may log in
    demo: bool  # whether everybody may
    chap_user: str | None
    mutual_user: str | None
    depth: int
    luns: list[Lun]
    sessions: list[str]  # initiators that are logged in
    created: str


def target_iqn(home_id: str, vm_name: str, vm_uuid: str) -> str:
    """A VM's, which keeps it when it is renamed; its name at the time is for people."""
    readable = vm_name.lower().replace("_", "-")  # RFC 3722 has neither capitals nor underlines
    return f"{AUTHORITY}:{home_id[:HOME_CHARACTERS]}:{readable}.{vm_uuid[:HOME_CHARACTERS]}"


def check_initiators(names: Sequence[str]) -> list[str]:
    """Normalised, each once.  InvalidArgument."""
    found = list(dict.fromkeys(name.strip().lower() for name in names))
    for name in found:
        if not INITIATOR.fullmatch(name) or len(name) > IQN_BYTES_MAX:
            raise InvalidArgument(
                f"{name!r} is not an initiator's name: write one such as iqn.1993-08.org.debian:01:a1b2c3 (/etc/iscsi/initiatorname.iscsi)"
            )
    if len(found) > INITIATORS_MAX:
        raise InvalidArgument(f"a target has {INITIATORS_MAX} initiators at the most")
    return found


def check_portals(portals: Sequence[tuple[str, int]]) -> list[Portal]:
    """Each once.  InvalidArgument."""
    found = []
    for host, port in dict.fromkeys(portals):
        try:
            address = ipaddress.ip_address(host)
            found.append(Portal(str(getattr(address, "ipv4_mapped", None) or address), port))  # LIO tells nobody the other form
        except ValueError:
            raise InvalidArgument(f"{host!r} is not an address: a portal is ADDR:PORT, like 192.0.2.7:{PORT}") from None
    if not 1 <= len(found) <= PORTALS_MAX:
        raise InvalidArgument(f"a target has 1 to {PORTALS_MAX} portals, not {len(found)}")
    return found


def check_depth(depth: int) -> None:
    """InvalidArgument."""
    if not 1 <= depth <= DEPTH_MAX:
        raise InvalidArgument(f"an initiator may have 1 to {DEPTH_MAX} commands under way, not {depth}")


def refuse_exposed(portals: Sequence[Portal], initiators: Sequence[str], demo: bool, has_chap: bool) -> None:
    """InvalidArgument: reached from other machines, and not both by initiators that are named and with a secret."""
    outside = [portal for portal in portals if not is_loopback(portal.host)]
    if outside and (demo or not initiators or not has_chap):
        raise InvalidArgument(
            f"portal {outside[0]} is reached from other machines: name the initiators and give a CHAP user and secret, "
            "without demo mode; or say --insecure to let in whoever gives one of those names, or everybody"
        )
