"""Snapshots with the consistency that was asked for, and the label of the one that was achieved.

A snapshot says `crash` until its guest was thawed and is known to have been frozen for all of it: whatever dies in between,
no snapshot says more than is true.
"""

from __future__ import annotations

import logging
import math

from blockdev.errors import BlockdevError, GuestFailed, InvalidArgument, Unavailable
from blockdev.quiesce.freeze import frozen
from blockdev.quiesce.limits import LIMIT_SECONDS
from blockdev.vmmap.domains import DOMAIN_AGENT
from blockdev.vmmap.model import MANUAL, IfNotFrozen, Snapshot, Terms
from blockdev.vmmap.service import VMs

logger = logging.getLogger(__name__)


def take_snapshot(
    vms: VMs,
    vm: str,
    name: str | None = None,
    description: str = "",
    terms: Terms = MANUAL,
    keep_seconds: float | None = None,
    if_not_frozen: IfNotFrozen = "crash",
    limit_seconds: float = LIMIT_SECONDS,
) -> Snapshot:
    """As VMs.create_snapshot; where `terms` ask for `vm`, with the guest's file systems frozen.

    if_not_frozen: what to do when the guest cannot be frozen.  With `fail` InvalidArgument when the VM has no agent, and what
    the freeze raises (Unavailable, of a schedule GuestFailed; GuestFailed, Busy).
    """
    no_guest = vms.refresh_config(vm)
    if terms.asked != "vm":
        return vms.create_snapshot(vm, name, description, terms, keep_seconds)
    agent = vms.agent(vm)
    reason: BlockdevError = InvalidArgument(
        f"VM {vm} has no guest agent that could freeze it: say where it listens with blockdevctl vm agent {vm} PATH, "
        "or find its domain with blockdevctl hypervisor discover"
    )
    if agent is not None and agent.startswith(DOMAIN_AGENT) and no_guest is not None:
        reason = Unavailable(no_guest)
    elif agent is not None:
        try:
            with vms.labelling(vm):
                return _take_frozen(vms, vm, name, description, terms, keep_seconds, agent, limit_seconds)
        except _NotFrozen as failure:
            reason = failure.error
    if if_not_frozen == "fail":
        if terms.schedule is not None and isinstance(reason, Unavailable):
            raise GuestFailed(reason.message)  # to a schedule Unavailable says that the engine is away, and all runs wait
        raise reason  # whoever asked is told, a schedule by an event of its own
    if agent is not None:  # without one the label of the snapshot says enough
        _note_trouble(vms, vm, f"VM {vm} was not frozen for its snapshot: {reason.message}")
    return vms.create_snapshot(vm, name, description, terms, keep_seconds)


def _note_trouble(vms: VMs, vm: str, message: str) -> None:
    logger.warning("%s", message)
    vms.events.begin("warning", "quiesce", vm, message)


class _NotFrozen(Exception):
    """There is no snapshot yet."""

    def __init__(self, error: BlockdevError) -> None:
        super().__init__(error)
        self.error = error


def _take_frozen(
    vms: VMs,
    vm: str,
    name: str | None,
    description: str,
    terms: Terms,
    keep_seconds: float | None,
    agent: str,
    limit_seconds: float,
) -> Snapshot:
    taken: Snapshot | None = None
    held = None
    try:
        with frozen(agent, limit_seconds) as held:
            taken = vms.create_snapshot(vm, name, description, terms, keep_seconds)
    except BlockdevError as error:
        if held is None:
            raise _NotFrozen(error) from error
        if taken is None:
            raise
        message = f"VM {vm} may not have been thawed in time: {error.message}"
        logger.warning("%s", message)
        vms.events.note("error", "quiesce", vm, message)  # each time: somebody must look after the guest
        return taken
    if not held.was_whole or held.frozen_ms is None:
        _note_trouble(vms, vm, f"VM {vm} did not stay frozen for its snapshot {taken.name}: it is crash-consistent")
        return taken
    vms.events.end("quiesce", vm, f"VM {vm} is frozen for its snapshots again")
    return vms.note_consistency(vm, taken.name, math.ceil(held.frozen_ms))
