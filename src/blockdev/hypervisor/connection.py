"""One connection to one libvirt: the only file that knows libvirt's library, and what its errors mean.

Every call blocks until libvirt answers; calls.py gives them limits.  Once it is open, a libvirt that is silent for
KEEPALIVE_SECONDS times KEEPALIVE_COUNT makes all calls on it fail.  Threads: any, several at a time.  Nothing here is remembered.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import libvirt
import libvirt_qemu

from blockdev.errors import (
    AlreadyExists,
    BlockdevError,
    Busy,
    GuestFailed,
    InvalidArgument,
    NotFound,
    ToolFailed,
    Unavailable,
)

T = TypeVar("T")
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
MESSAGE_CHARACTERS_MAX = 400
AGENT_ERRORS = {"VIR_ERR_AGENT_UNRESPONSIVE", "VIR_ERR_AGENT_UNSYNCED", "VIR_ERR_AGENT_COMMAND_TIMEOUT"}
MEANINGS: dict[str, type[BlockdevError]] = {
    "VIR_ERR_NO_DOMAIN": NotFound,
    "VIR_ERR_DOM_EXIST": AlreadyExists,
    "VIR_ERR_OPERATION_INVALID": Busy,  # not in this state: it runs already, or does not run
    "VIR_ERR_XML_ERROR": InvalidArgument,
    "VIR_ERR_XML_DETAIL": InvalidArgument,
    "VIR_ERR_XML_INVALID_SCHEMA": InvalidArgument,
    "VIR_ERR_NO_NAME": InvalidArgument,
    "VIR_ERR_NO_OS": InvalidArgument,
    "VIR_ERR_OS_TYPE": InvalidArgument,
    "VIR_ERR_INVALID_MAC": InvalidArgument,
    "VIR_ERR_CONFIG_UNSUPPORTED": InvalidArgument,
    "VIR_ERR_ARGUMENT_UNSUPPORTED": InvalidArgument,
    "VIR_ERR_INVALID_ARG": InvalidArgument,
    "VIR_ERR_NO_SUPPORT": InvalidArgument,
    "VIR_ERR_AGENT_COMMAND_FAILED": GuestFailed,
    **dict.fromkeys(AGENT_ERRORS, Unavailable),
}
CODES: dict[int, type[BlockdevError]] = {
    getattr(libvirt, name): meaning for name, meaning in MEANINGS.items() if hasattr(libvirt, name)
}
AGENT_CODES = {getattr(libvirt, name) for name in AGENT_ERRORS if hasattr(libvirt, name)}
NOT_SUPPORTED = (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG)
UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)

_events_lock = threading.Lock()
_events: threading.Thread | None = None


class Domain(NamedTuple):
    """One domain, as libvirt tells of it."""

    uuid: str
    name: str
    is_running: bool
    config: str  # XML of its next start, without secrets
    live: str | None = None  # XML of what runs now, where it was asked for


class AgentSilent(Unavailable):
    """The domain's agent did not answer; libvirt did."""


def _serve_events() -> None:
    """Keepalive needs libvirt's event loop; one for the process, from before the first connection."""
    global _events
    with _events_lock:
        if _events is not None:
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised, and not printed, too
        libvirt.virEventRegisterDefaultImpl()
        _events = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
        _events.start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


@contextmanager
def _understood(what: str, other: type[BlockdevError] = ToolFailed) -> Iterator[None]:
    """libvirt's errors as ours; `other`: those that can be anything."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise _meaning(error, what, other) from error


def _meaning(error: libvirt.libvirtError, what: str, other: type[BlockdevError] = ToolFailed) -> BlockdevError:
    code = error.get_error_code()
    text = " ".join((error.get_error_message() or str(error)).split())
    message = f"{what}: {''.join(c if c.isprintable() else '?' for c in text[:MESSAGE_CHARACTERS_MAX])}"
    if code in AGENT_CODES:
        return AgentSilent(f"{message}; see that qemu-guest-agent runs in the guest")
    return CODES.get(code, other)(message)


class Connection:
    """An open connection; closed when nothing refers to it any more (calls.Line.close)."""

    def __init__(self, uri: str) -> None:
        """Unavailable: it does not answer, or refuses us."""
        _serve_events()
        self.uri = uri
        try:
            self._connection = libvirt.open(uri)
        except libvirt.libvirtError as error:
            text = " ".join((error.get_error_message() or str(error)).split())
            raise Unavailable(f"libvirt at {uri} cannot be reached: {text[:MESSAGE_CHARACTERS_MAX]}") from error
        with suppress(libvirt.libvirtError):  # a driver in this very process has nobody to keep alive
            self._connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)

    def is_alive(self) -> bool:
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    def version(self) -> str:
        """Of libvirt there: 9.0.0."""
        with _understood(self.uri):
            number = self._connection.getLibVersion()
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    def domain_count(self) -> int:
        with _understood(self.uri):
            return len(self._connection.listAllDomains())

    def domains(self) -> list[Domain]:
        """All of them, with what runs now; one that goes meanwhile is not in it."""
        with _understood(self.uri):
            found = self._connection.listAllDomains()
        told = []
        for domain in found:
            try:
                told.append(_tell(domain, with_live=True))
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise _meaning(error, self.uri) from error
        return told

    def find(self, uuid: str, with_live: bool = False) -> Domain | None:
        return self._look(lambda: _tell(self._connection.lookupByUUIDString(uuid), with_live))

    def find_named(self, name: str) -> Domain | None:
        return self._look(lambda: _tell(self._connection.lookupByName(name)))

    def _look(self, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise _meaning(error, self.uri) from error

    def define(self, xml: str) -> Domain:
        """A domain of that configuration, or another configuration of the domain that has its uuid and name."""
        with _understood("libvirt does not take the configuration"):
            return _tell(self._connection.defineXML(xml))

    def start(self, uuid: str) -> None:
        with _understood("libvirt does not start it"):
            self._domain(uuid).create()

    def destroy(self, uuid: str) -> None:
        """End it as by pulling the plug.  Busy: it does not run."""
        with _understood("libvirt does not end it"):
            self._domain(uuid).destroy()

    def undefine(self, uuid: str) -> None:
        """With what libvirt keeps for it; its disks are not touched."""
        with _understood("libvirt does not undefine it"):
            domain = self._domain(uuid)
            try:
                domain.undefineFlags(UNDEFINE)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in NOT_SUPPORTED:
                    raise
                domain.undefine()

    # its guest agent, whose refusals are internal errors to libvirt 9

    def set_agent_limit(self, uuid: str, seconds: int) -> None:
        """How long libvirt waits for an answer of the domain's agent; it holds for all clients of libvirt."""
        with _understood("the guest agent cannot be asked through libvirt"):
            self._domain(uuid).agentSetResponseTimeout(seconds, 0)

    def ask_agent(self, uuid: str, command: str, seconds: int) -> Any:
        """The agent's answer to a command without arguments.  AgentSilent, GuestFailed."""
        try:
            with _understood(f"the guest agent cannot be asked for {command} through libvirt", GuestFailed):
                text = libvirt_qemu.qemuAgentCommand(self._domain(uuid), json.dumps({"execute": command}), seconds, 0)
        except InvalidArgument as error:
            raise InvalidArgument(f"{error.message}; give the domain a channel org.qemu.guest_agent.0 (docs/quiesce.md)") from error
        try:
            return json.loads(text)["return"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise GuestFailed(f"the guest agent answered {command} with nonsense") from None

    def freeze(self, uuid: str) -> int:
        """How many file systems were frozen."""
        with _understood("libvirt does not freeze the guest", GuestFailed):
            return int(self._domain(uuid).fsFreeze())

    def thaw(self, uuid: str) -> int:
        """How many file systems were thawed."""
        with _understood("libvirt does not thaw the guest", GuestFailed):
            return int(self._domain(uuid).fsThaw())

    def _domain(self, uuid: str) -> Any:
        return self._connection.lookupByUUIDString(uuid)


def _tell(domain: Any, with_live: bool = False) -> Domain:
    is_running = bool(domain.isActive())
    config = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    live = domain.XMLDesc(0) if with_live and is_running else None
    return Domain(domain.UUIDString(), domain.name(), is_running, config, live)
