"""`with frozen(address) as held:` keeps a guest's file systems frozen for the body, and always thaws them.

The freeze and the thaw are done by a process of their own, the watchdog, so that the guest is thawed when this one is killed, hangs or
is stopped.  If it is the watchdog that dies, this process thaws at the end of the body.  Only when both are killed at once the guest stays frozen.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blockdev import diagnostics
from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError, InvalidArgument, Unavailable, from_code
from blockdev.quiesce import watchdog
from blockdev.quiesce.agent import Release
from blockdev.quiesce.agents import DOMAIN_AGENT, absolute, agent_at
from blockdev.quiesce.limits import LIMIT_SECONDS, LIMIT_SECONDS_MAX

START_SECONDS_MAX = 15.0  # of the watchdog, with the agent's first answer; 50 ms on an idle machine
THAW_PATIENCE_SECONDS = 10.0  # then the caller hears that the guest may still be frozen
PACKAGE = str(Path(watchdog.__file__).parents[1])
# The package without its __init__, which loads the engine's extensions and numpy: 90 ms that the watchdog's start would take longer.
BOOT = """\
import sys, types
sys.modules["blockdev"] = types.ModuleType("blockdev")
sys.modules["blockdev"].__path__ = [sys.argv[1]]
from blockdev.quiesce.watchdog import main
main(sys.argv[2:])
"""


class Held:
    """A frozen guest.  What is None or False during the body is known after it."""

    def __init__(self, file_system_count: int) -> None:
        self.file_system_count = file_system_count
        self.frozen_ms: float | None = None  # from the answer to the freeze to that to the thaw
        self.was_whole = False  # the guest was frozen until the body had ended; else call the snapshot `crash`


@contextmanager
def frozen(address: str | os.PathLike[str], limit_seconds: float = LIMIT_SECONDS) -> Iterator[Held]:
    """Freeze the guest whose agent listens on the Unix socket `address`, or is at libvirt:UUID@URI; thaw it behind the body.

    `limit_seconds` (at most 60) is from the freeze's request to the thaw's: then the guest is thawed although the body has not ended, and
    `was_whole` is False.  Before the body: InvalidArgument, Unavailable, Busy, GuestFailed, when the guest could not be frozen; it was thawed, or
    is being thawed for up to a minute.  Behind it: Unavailable, GuestFailed, when the guest may still be frozen; not in place of the body's own error.
    Costs 40 ms of a process's start, and what the guest takes to write what it holds.
    """
    if not 0 < limit_seconds <= LIMIT_SECONDS_MAX:
        raise InvalidArgument(f"a guest can be frozen for more than 0 and at most {LIMIT_SECONDS_MAX:g} s, not {limit_seconds:g}")
    keeper = _Watchdog(absolute(os.fspath(address)), limit_seconds)
    try:
        held = Held(keeper.freeze())
        try:
            yield held
        except BaseException:
            _thaw_and_report(keeper, held)
            raise
        keeper.thaw(held)
    finally:
        keeper.close()


def _thaw_and_report(keeper: _Watchdog, held: Held) -> None:
    try:
        keeper.thaw(held)
    except BlockdevError as error:
        diagnostics.report(str(error))


class _Died(Exception):
    """The watchdog ended without a word."""


class _Watchdog:
    """Our end of a watchdog process."""

    def __init__(self, address: str, limit_s: float) -> None:
        """Started, and the agent has answered it."""
        self._address = address
        self._limit_s = limit_s
        self._frozen_since = 0.0
        self._frozen_count = 0
        self._channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_end:
            self._process = self._start(its_end)
        try:
            self._listen("ready", START_SECONDS_MAX)
        except (_Died, TimeoutError) as error:
            self.close()
            raise Unavailable("the process that is to thaw the guest did not start: try again") from error
        except BaseException:
            self.close()
            raise

    def _start(self, its_end: socket.socket) -> subprocess.Popen[bytes]:
        # libvirt's module is among the site packages; without looking for those it starts faster
        site = [] if self._address.startswith(DOMAIN_AGENT) else ["-S"]
        command = [sys.executable, "-I", *site, "-c", BOOT, PACKAGE, self._address, repr(self._limit_s)]
        try:
            # a session of its own: Ctrl-C on our terminal is not for it
            return subprocess.Popen(
                command, stdin=its_end.fileno(), stdout=subprocess.DEVNULL, start_new_session=True, cwd="/"
            )
        except OSError as error:
            self._channel.close()
            raise Unavailable(f"cannot start a process to thaw the guest again: {error.strerror}") from error

    def freeze(self) -> int:
        """How many file systems were frozen."""
        self._order("freeze")
        try:
            self._frozen_count = self._listen("frozen", self._limit_s + 4 * watchdog.ATTEMPT_SECONDS)
        except (_Died, TimeoutError) as error:
            self._process.kill()
            self._thaw_ourselves()
            raise Unavailable("the process that froze the guest died: the guest was thawed, try again") from error
        self._frozen_since = monotonic_seconds()
        return self._frozen_count

    def thaw(self, held: Held) -> None:
        self._order("thaw")
        try:
            held.was_whole, held.frozen_ms = self._listen("thawed", THAW_PATIENCE_SECONDS)
        except TimeoutError:
            raise Unavailable(
                f"the guest behind {self._address} does not answer and may still be frozen; a thaw is tried for "
                f"{watchdog.THAW_SECONDS_MAX:g} s, then use fsfreeze -u in the guest, or restart it"
            ) from None
        except _Died:
            release = self._thaw_ourselves()
            held.was_whole = watchdog.was_whole(release, self._frozen_count)
            held.frozen_ms = watchdog.frozen_ms(self._frozen_since)

    def close(self) -> None:
        """The watchdog ends by itself, once the guest is thawed; it is waited for in the background."""
        self._channel.close()
        threading.Thread(target=self._process.wait, name="quiesce-reaper", daemon=True).start()

    def _thaw_ourselves(self) -> Release:
        with agent_at(self._address) as agent:
            return watchdog.thaw_persistently(agent, THAW_PATIENCE_SECONDS)

    def _order(self, kind: str) -> None:
        with suppress(OSError):  # it has ended; what it said before can be read
            self._channel.send(json.dumps({kind: None}).encode(), socket.MSG_NOSIGNAL)

    def _listen(self, kind: str, limit_s: float) -> Any:
        """The content of the message that must come now; the error that came instead, _Died, TimeoutError."""
        self._channel.settimeout(limit_s)
        try:
            data = self._channel.recv(watchdog.MESSAGE_BYTES_MAX)
        except ConnectionResetError:  # it ended without reading our order; what it said is still there
            data = self._channel.recv(watchdog.MESSAGE_BYTES_MAX)
        if not data:
            raise _Died
        message: dict[str, Any] = json.loads(data)
        if "error" in message:
            raise from_code(*message["error"])
        return message[kind]
