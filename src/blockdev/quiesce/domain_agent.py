"""The guest agent of a libvirt domain, asked through libvirt, which keeps the agent's socket for itself.

Freeze and thaw are libvirt's own calls (virDomainFSFreeze, virDomainFSThaw).  The status is asked of the agent itself
(guest-fsfreeze-status), as libvirt has no call for it: without it, a guest that somebody else has frozen would be thawed under him, and one
that thawed meanwhile be noticed by the number of file systems alone.  Unlike on a socket of our own, others can reach the agent between
our calls.  A lost connection is made anew by the next call.  One thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from blockdev.errors import GuestFailed, NotFound, Unavailable
from blockdev.hypervisor.calls import Line
from blockdev.quiesce.agent import COUNT_MAX, STATUS, Release
from blockdev.quiesce.agents import DOMAIN_AGENT

if TYPE_CHECKING:
    from blockdev.hypervisor.connection import Connection

T = TypeVar("T")


class DomainAgent:
    """The face of quiesce.agent.Agent, by way of libvirt.

    Unavailable: libvirt or the agent does not answer; GuestFailed: it refused; Busy: the domain does not run.
    """

    def __init__(self, address: str) -> None:
        self._uuid, _, uri = address.removeprefix(DOMAIN_AGENT).partition("@")
        self.address = f"domain {self._uuid} at {uri}"  # for messages
        self._line = Line("of the guest", uri)

    def __enter__(self) -> DomainAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()

    def ping(self, limit_s: float) -> None:
        self._call(lambda connection: connection.ask_agent(self._uuid, "guest-ping", _whole(limit_s)), limit_s)

    def is_frozen(self, limit_s: float) -> bool:
        answer = self._call(lambda connection: connection.ask_agent(self._uuid, STATUS, _whole(limit_s)), limit_s)
        if answer not in ("frozen", "thawed"):
            raise GuestFailed(f"the guest agent of {self.address} answered {STATUS} with nonsense")
        return bool(answer == "frozen")

    def freeze(self, limit_s: float) -> int:
        """How many file systems were frozen.  After an error they may be, or become so: a thaw must follow."""

        def work(connection: Connection) -> int:
            connection.set_agent_limit(self._uuid, _whole(limit_s))  # else libvirt waits for ever, and keeps the thaw waiting
            return connection.freeze(self._uuid)

        return self._check(self._call(work, limit_s))

    def thaw(self, limit_s: float) -> Release:
        """Thaw all file systems, those too that the agent does not know of."""

        def work(connection: Connection) -> tuple[bool, int | GuestFailed]:
            connection.set_agent_limit(self._uuid, _whole(limit_s))
            try:
                was_frozen = connection.ask_agent(self._uuid, STATUS, _whole(limit_s)) == "frozen"
            except GuestFailed:
                was_frozen = False  # an agent that does not say is told to thaw all the same
            try:
                return was_frozen, connection.thaw(self._uuid)
            except GuestFailed as refusal:
                return was_frozen, refusal

        was_frozen, count = self._call(work, limit_s)
        if not isinstance(count, GuestFailed):
            return Release(was_frozen, self._check(count))
        if self.is_frozen(limit_s):
            raise count
        return Release(was_frozen, 0)  # thawed, and then the guest's own hook failed

    def _check(self, count: int) -> int:
        if not 0 <= count <= COUNT_MAX:
            raise GuestFailed(f"the guest agent of {self.address} counted {count} file systems")
        return count

    def _call(self, work: Callable[[Connection], T], limit_s: float) -> T:
        try:
            return self._line.call(work, limit_s, insist=True)
        except NotFound as error:
            raise Unavailable(f"{self.address} is gone: {error.message}") from error


def _whole(seconds: float) -> int:
    """libvirt counts whole seconds; 0 would mean not to wait."""
    return max(1, math.ceil(seconds))
