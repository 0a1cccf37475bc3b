"""The process that freezes and thaws a guest for another one, and thaws it when that one is gone or too slow.

It is the only one that talks to the agent, whose socket takes one client at a time: from before the freeze until after the
thaw it keeps the connection, so nobody comes in between, and there is nothing to take over when its owner is killed.
Its owner (freeze.py) holds the other end of a socket that is this process's standard input. One message, a JSON object, each way:

    owner                   watchdog
    (starts it)         ->
                        <-  {"ready": null}             the agent has answered
    {"freeze": null}    ->
                        <-  {"frozen": file systems}    the limit counts from the freeze's request
    {"thaw": null}      ->
                        <-  {"thawed": [was_whole, frozen_ms]}, and it ends

Instead of any of its messages {"error": [code, message]}, after trying to thaw. When the owner's end is closed without `thaw`, or the limit
passes, it thaws; a thaw that does not succeed is tried again for THAW_SECONDS_MAX, then it ends, as it does by an alarm if all else fails.
The signals that end a service are ignored: what stops the owner is what it is here for.  Few imports, so that it starts fast.
"""

from __future__ import annotations

import json
import signal
import socket
import time

from blockdev import diagnostics
from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError, Busy, GuestFailed, Unavailable
from blockdev.quiesce.agent import Release
from blockdev.quiesce.agents import GuestAgent, agent_at

READY_SECONDS_MAX = 5.0
ORDER_SECONDS_MAX = 10.0  # from `ready` to the order to freeze
ATTEMPT_SECONDS = 3.0  # for one try to thaw: a busy guest may take a second
THAW_SECONDS_MAX = 60.0
PAUSE_SECONDS = 0.2
MESSAGE_BYTES_MAX = 8192
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class OwnerGone(Exception):
    """The process that wanted the freeze has ended, or its end of the socket was closed."""


class Owner:
    """The other end of our standard input."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def tell(self, kind: str, content: object) -> None:
        """Never raises: the owner may be gone."""
        try:
            self._channel.settimeout(0)  # there is room for all that we ever say
            self._channel.send(json.dumps({kind: content}).encode())
        except OSError:
            pass

    def await_order(self, limit_s: float) -> None:
        """Until the owner says what comes next; TimeoutError, OwnerGone."""
        self._channel.settimeout(max(limit_s, 1e-3))
        try:
            order = self._channel.recv(MESSAGE_BYTES_MAX)
        except TimeoutError:
            raise
        except OSError:
            order = b""
        if not order:
            raise OwnerGone


def thaw_persistently(agent: GuestAgent, limit_s: float) -> Release:
    """Try to thaw until it succeeds or the limit is over, then raise what was wrong last."""
    deadline = monotonic_seconds() + limit_s
    while True:
        try:
            return agent.thaw(min(ATTEMPT_SECONDS, limit_s))
        except BlockdevError:
            if monotonic_seconds() + PAUSE_SECONDS >= deadline:
                raise
        time.sleep(PAUSE_SECONDS)


def frozen_ms(since: float) -> float:
    return (monotonic_seconds() - since) * 1000.0


def was_whole(release: Release, frozen_count: int) -> bool:
    """Whether all that was frozen was still frozen: if somebody has thawed one file system, there are fewer left to thaw."""
    return release.was_frozen and release.count >= frozen_count > 0


def freeze(agent: GuestAgent, limit_s: float) -> int:
    """How many file systems were frozen.  Busy: they were already, and are left so."""
    deadline = monotonic_seconds() + limit_s
    if agent.is_frozen(limit_s):
        raise Busy(
            f"the guest behind {agent.address} is frozen already, by another client or one that died: thaw it with fsfreeze -u in the guest"
        )
    try:
        count = agent.freeze(max(deadline - monotonic_seconds(), 1e-3))
        if count == 0:
            raise GuestFailed(f"the guest behind {agent.address} has no file system that can be frozen")
    except Unavailable as error:
        if monotonic_seconds() < deadline:
            raise FreezeFailed(error) from error
        late = f"the guest did not freeze within {limit_s:g} s, as it has much to write, a hook takes long or its agent hangs"
        raise FreezeFailed(Unavailable(f"{late}: {error.message}")) from error
    except BlockdevError as error:
        raise FreezeFailed(error) from error
    return count


class FreezeFailed(Exception):
    """A freeze that was begun and failed: a thaw is due."""

    def __init__(self, cause: BlockdevError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def undo_freeze(agent: GuestAgent, owner: Owner, error: BlockdevError) -> None:
    """Thaw, and tell the owner; it is not kept waiting for long."""
    try:
        thaw_persistently(agent, ATTEMPT_SECONDS)  # more than one try: the connection may have been lost
    except BlockdevError:
        later = f"; the guest may be frozen: a thaw is tried for {THAW_SECONDS_MAX:g} s more"
        owner.tell("error", [error.code, f"{error}{later}"])
        thaw_persistently(agent, THAW_SECONDS_MAX)
    else:
        owner.tell("error", [error.code, str(error)])


def hold(agent: GuestAgent, owner: Owner, limit_s: float) -> None:
    """From the order to freeze until the guest is thawed."""
    deadline = monotonic_seconds() + limit_s
    count = freeze(agent, limit_s)
    since = monotonic_seconds()
    owner.tell("frozen", count)
    is_in_time = True
    try:
        owner.await_order(deadline - monotonic_seconds())
    except (TimeoutError, OwnerGone):
        is_in_time = False
    release = thaw_persistently(agent, THAW_SECONDS_MAX)
    owner.tell("thawed", [is_in_time and was_whole(release, count), frozen_ms(since)])


def watch(agent: GuestAgent, owner: Owner, limit_s: float) -> None:
    try:
        agent.ping(READY_SECONDS_MAX)
        owner.tell("ready", None)
        owner.await_order(ORDER_SECONDS_MAX)
        hold(agent, owner, limit_s)
    except FreezeFailed as error:
        undo_freeze(agent, owner, error.cause)
    except (TimeoutError, OwnerGone):
        return  # nothing was frozen
    except BlockdevError as error:
        owner.tell("error", [error.code, str(error)])


def main(arguments: list[str]) -> None:
    """`ADDRESS LIMIT_SECONDS`; the owner is standard input."""
    address, limit_s = arguments[0], float(arguments[1])
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    longest_s = READY_SECONDS_MAX + ORDER_SECONDS_MAX + limit_s + 6 * ATTEMPT_SECONDS + THAW_SECONDS_MAX
    signal.alarm(int(longest_s) + 5)
    try:
        with agent_at(address) as agent, socket.socket(fileno=0) as channel:
            watch(agent, Owner(channel), limit_s)
    except BlockdevError as error:
        diagnostics.report(str(error))
