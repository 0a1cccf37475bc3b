"""Who a clone is, and the words of a template that say it (docs/clones.md).

Only the words `@name@`, `@hostname@`, `@number@`, `@uuid@` and `@mac0@`, `@mac1@`, ... are replaced: user data holds shell
and Jinja, so braces, `$` and any other `@` are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from blockdev.errors import AlreadyExists, InvalidArgument
from blockdev.vmmap.machine import mac_address

INTERFACES_MAX = 32  # that a template may name when nobody knows how many there are
HOSTNAME_CHARACTERS_MAX = 253
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")  # RFC 1123, section 2.1
_WORD = re.compile(r"@(?:(name|hostname|number|uuid)|mac(\d{1,3}))@")


class Identity(NamedTuple):
    """One clone."""

    name: str
    number: int  # 1, 2, ... among the clones made at once
    uuid: str
    hostname: str
    interface_count: int  # 0: not known

    def mac_addresses(self) -> list[str]:
        """Of the interfaces that are known."""
        return [mac_address(self.uuid, number) for number in range(self.interface_count)]


def identify(vms: Sequence[tuple[str, str]], hostname_template: str | None, interface_count: int) -> list[Identity]:
    """The clones of (name, uuid).  Without a template for it, a clone's host name is made of its name.

    InvalidArgument: a host name that cannot be one; AlreadyExists: two clones with the same.
    """
    clones: list[Identity] = []
    taken: dict[str, str] = {}
    for number, (name, uuid) in enumerate(vms, 1):
        nameless = Identity(name, number, uuid, "", interface_count)
        clone = nameless._replace(hostname=_hostname(nameless, hostname_template))
        other = taken.setdefault(clone.hostname.lower(), name)
        if other != name:
            raise AlreadyExists(
                f"clones {other} and {name} would both have the host name {clone.hostname}: put @number@ or @name@ into it"
            )
        clones.append(clone)
    return clones


def fill(template: str, clone: Identity) -> str:
    """The template with its words replaced.  InvalidArgument: an interface that the clone does not have."""

    def value(found: re.Match[str]) -> str:
        word, interface = found.groups()
        return str(getattr(clone, word)) if word else _mac_address(clone, int(interface))

    return _WORD.sub(value, template)


def _hostname(clone: Identity, template: str | None) -> str:
    """Of one that has none yet."""
    if template is None:
        return hostname_of(clone.name)
    if "@hostname@" in template:
        raise InvalidArgument("a host name cannot be made of @hostname@: use @name@, @number@ or @uuid@")
    hostname = fill(template, clone)
    if len(hostname) > HOSTNAME_CHARACTERS_MAX or not _HOSTNAME.fullmatch(hostname):
        raise InvalidArgument(
            f"{hostname!r} cannot be the host name of {clone.name}: take parts of 1 to 63 letters, digits and '-', joined by '.'"
        )
    return hostname


def hostname_of(name: str) -> str:
    """A host name for the VM of that name: one label, in lower case."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _mac_address(clone: Identity, interface: int) -> str:
    if interface >= (clone.interface_count or INTERFACES_MAX):
        count = clone.interface_count or f"at most {INTERFACES_MAX}"
        raise InvalidArgument(f"@mac{interface}@ names an interface that {clone.name} does not have: it has {count}, from @mac0@ on")
    return mac_address(clone.uuid, interface)
