"""Which agent an address means: a Unix socket of this machine, or a domain's agent by way of libvirt (libvirt:UUID@URI).

Few imports, so that the watchdog starts fast: what libvirt needs is loaded only for such an address.
"""

from __future__ import annotations

import importlib
import os
from contextlib import AbstractContextManager
from typing import Protocol

from blockdev.quiesce.agent import Agent, Release

DOMAIN_AGENT = "libvirt:"  # as in vmmap.domains, which the watchdog has no time to load


class GuestAgent(AbstractContextManager["GuestAgent"], Protocol):
    """What the watchdog asks of an agent; limits are seconds, errors as Agent's."""

    address: str

    def ping(self, limit_s: float) -> None: ...
    def is_frozen(self, limit_s: float) -> bool: ...
    def freeze(self, limit_s: float) -> int: ...
    def thaw(self, limit_s: float) -> Release: ...


def absolute(address: str) -> str:
    """The address, wherever it is used."""
    return address if address.startswith(DOMAIN_AGENT) else os.path.abspath(address)


def agent_at(address: str) -> GuestAgent:
    if not address.startswith(DOMAIN_AGENT):
        return Agent(address)
    made: GuestAgent = importlib.import_module("blockdev.quiesce.domain_agent").DomainAgent(address)
    return made
