"""How the replication of each VM is, and how it was.

Nothing is asked of the engine or of other homes: what has to be counted was counted by the pulse.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from blockdev.clock import monotonic_seconds
from blockdev.replicate.dispatcher import FAILURES_SERIOUS
from blockdev.replicate.flow import NOTHING, STILL, Count, Flow
from blockdev.replicate.lanes import Lane, Retry
from blockdev.replicate.model import Alert, Replicated, Sample, State, Transfer
from blockdev.replicate.parts import Parts
from blockdev.vmmap.catalog import VMRow
from blockdev.vmmap.catalog_replication import Direction, NewestRow, ProtectionRow, ReceiptRow, ReceivedRow
from blockdev.vmmap.clock import seconds_of, to_text
from blockdev.vmmap.receipts import vm_name_of

WARNING_PART = 0.8  # of the RPO


class _Trouble(NamedTuple):
    """What keeps a lane from sending."""

    retry: Retry
    is_serious: bool


class Figures(NamedTuple):
    """One VM over one way, in numbers."""

    vm_uuid: str
    direction: Direction
    way: str
    moved: Count  # since this process began
    bytes_remaining: int | None  # None: not known
    lag_seconds: int | None  # None: nothing is here yet
    rpo_seconds: int | None


class StatusOperations(Parts):
    """The operations that tell."""

    def status(self, vm: str | None = None) -> list[Replicated]:
        """One for each VM and path, or peer, by VM and way; of all, also those of which the first snapshot is coming.

        Of one VM: also `not configured`.  NotFound.
        """
        with self._catalog.transaction():
            row = None if vm is None else self._vm(vm)
            vm_id = None if row is None else row.id
            vms = {one.id: one for one in (self._catalog.vms() if row is None else [row])}
            protections = self._catalog.protections(vm_id)
            received = [one for one in self._catalog.received_vms() if vm_id in (None, one.vm_id)]
            paths = {one.id: one.name for one in self._catalog.paths()}
            peers = {one.id: one.name for one in self._catalog.peers()}
            names = self._catalog.snapshot_names([one.newest_uuid for one in protections if one.newest_uuid])
            newest = self._catalog.newest_received([one.vm_id for one in received])
            arriving = self._catalog.receipts() if row is None else []
            unseen = self._dispatcher.unseen()  # before the lanes: what was looked at meanwhile is in them
        shown = [
            self._sent(vms[one.vm_id], one, paths[one.path_id], names.get((one.vm_id, one.newest_uuid or "")), one.vm_id in unseen)
            for one in protections
        ]
        shown += [self._received(vms[one.vm_id], one, peers[one.peer_id], newest.get(one.vm_id)) for one in received]
        first = {(one.peer_id, one.vm_uuid): one for one in arriving if one.vm_id is None and one.purpose == "protect"}
        shown += [self._arriving(one, peers[one.peer_id]) for one in first.values()]
        if row is not None and not shown:
            return [Replicated(row.name, row.uuid, None, None, "not configured", "ok")]
        return sorted(shown, key=lambda one: (one.vm, one.way or ""))

    def history(self, vm: str | None = None, before: int | None = None, count: int = 100) -> list[Transfer]:
        """Transfers that ended, newest first, those with an id below `before`; of one VM, or all.  NotFound."""
        self._recorder.flush()
        with self._catalog.transaction():
            uuid = None if vm is None else self._vm(vm).uuid
            return [Transfer(*row) for row in self._catalog.transfers(uuid, before, count)]

    def samples(self, vm: str, since: str) -> list[Sample]:
        """What it did minute by minute since a time (ISO 8601 UTC), oldest first.  NotFound."""
        self._recorder.flush()
        with self._catalog.transaction():
            rows = self._catalog.samples(self._vm(vm).uuid, since)
        return [
            Sample(row.time, row.direction, row.way, row.logical_bytes, row.network_bytes, row.remaining_bytes, row.lag_seconds)
            for row in rows
        ]

    def figures(self) -> list[Figures]:
        """Of all VMs: what moved, what is left and how late they are.  Cheap: it may be asked for each second."""
        now = self._clock()
        found = [
            Figures(
                *(lane.flow.vm_uuid, "sent", lane.flow.way, lane.flow.total()),
                *(lane.bytes_remaining(), int(lane.lag_seconds(now)), lane.row.rpo_seconds),
            )
            for lane in self._dispatcher.lanes()
        ]
        flows = {(flow.vm_uuid, flow.way): flow for flow in self._inbound.flows()}
        with self._catalog.transaction():
            received = self._catalog.receiving_vms()
            newest = self._catalog.newest_received([row.vm_id for row in received]) if received else {}
            peers = {row.id: row.name for row in self._catalog.peers()}
            uuids = {row.vm_id: vm.uuid for row in received if (vm := self._catalog.vm_by_id(row.vm_id)) is not None}
        lags = {
            (uuids[row.vm_id], peers[row.peer_id]): (
                _age(newest[row.vm_id].created, now) if row.vm_id in newest else None,
                row.rpo_seconds,
            )
            for row in received
        }
        for uuid, way in {**flows, **lags}:
            flow = flows.get((uuid, way))
            moving = None if flow is None else flow.moving
            remaining = 0 if moving is None else moving.remaining()
            moved = NOTHING if flow is None else flow.total()
            found.append(Figures(uuid, "received", way, moved, remaining, *lags.get((uuid, way), (None, None))))
        return found

    # of what is sent

    def _sent(self, vm: VMRow, row: ProtectionRow, way: str, newest: str | None, is_unseen: bool) -> Replicated:
        known = self._dispatcher.lane(row.vm_id, row.path_id)
        lane = known or Lane(row, Flow("sent", way, vm.name, vm.uuid))
        now, monotonic = self._clock(), monotonic_seconds()
        trouble = self._trouble(lane)
        moving, rates = lane.flow.moving, lane.flow.rates(monotonic)
        remaining = lane.bytes_remaining()
        state = self._state_sent(lane, row, trouble, now)
        if state == "up to date" and (known is None or is_unseen):
            state = "scheduled"  # nobody has looked yet
        is_told = lane.pending and not row.paused and (moving is None or trouble.retry is not lane.retry)
        error = trouble.retry.error if is_told else None
        waits = error is not None and moving is None and trouble.retry.at > monotonic
        return Replicated(
            vm=vm.name,
            vm_uuid=vm.uuid,
            direction="sent",
            way=way,
            state=state,
            level=_level_sent(lane, state, trouble, now),
            reason=None if error is None else error.message,
            error_code=None if error is None else error.code,
            failures=trouble.retry.failures,
            next_try=to_text(now + trouble.retry.at - monotonic) if waits else None,
            rpo_seconds=row.rpo_seconds,
            keep_seconds=row.keep_seconds,
            newest=newest,
            newest_uuid=row.newest_uuid,
            newest_created=row.newest_created,
            newest_finished=row.newest_finished,
            age_seconds=_age(row.newest_created, now),
            lag_seconds=int(lane.lag_seconds(now)),
            snapshot=None if moving is None else moving.snapshot,
            snapshots_remaining=len(lane.pending),
            bytes_remaining=remaining,
            logical_bytes_per_second=rates.recent.logical,
            network_bytes_per_second=rates.recent.network,
            logical_bytes_per_second_mean=rates.mean.logical,
            network_bytes_per_second_mean=rates.mean.network,
            eta_seconds=_eta(remaining, rates.recent.logical or rates.mean.logical),
            since=row.created,
        )

    def _trouble(self, lane: Lane) -> _Trouble:
        """The path's, when its other end is not reached; else the lane's own."""
        way = self._dispatcher.way(lane.row.path_id)
        retry = way.retry if way is not None and way.retry.error is not None else lane.retry
        return _Trouble(retry, retry.is_refused or retry.failures >= FAILURES_SERIOUS)

    def _state_sent(self, lane: Lane, row: ProtectionRow, trouble: _Trouble, now: float) -> State:
        if row.paused:
            return "paused"
        if lane.pending and trouble.is_serious and lane.flow.moving is None:
            return "failed"
        if lane.is_over_rpo(now):
            return "exceeds rpo"
        if lane.flow.moving is not None:
            return "running"
        return "up to date" if row.newest_uuid is not None and not lane.pending else "scheduled"

    # of what is received

    def _received(self, vm: VMRow, row: ReceivedRow, peer: str, newest: NewestRow | None) -> Replicated:
        flow = self._inbound.flow(row.peer_id, vm.uuid)
        now = self._clock()
        age = None if newest is None else _age(newest.created, now)
        state, level = _of_received(row, flow is not None and flow.moving is not None, age)
        return Replicated(
            vm=vm.name,
            vm_uuid=vm.uuid,
            direction="received",
            way=peer,
            state=state,
            level=level,
            rpo_seconds=row.rpo_seconds,
            newest=None if newest is None else newest.name,
            newest_uuid=None if newest is None else newest.uuid,
            newest_created=None if newest is None else newest.created,
            age_seconds=age,
            lag_seconds=None if row.promoted is not None else age,
            promoted=row.promoted,
            since=row.since,
            **_incoming(flow),
        )

    def _arriving(self, receipt: ReceiptRow, peer: str) -> Replicated:
        """There is no VM yet: its first snapshot is coming."""
        flow = self._inbound.flow(receipt.peer_id, receipt.vm_uuid)
        state: State = "scheduled" if flow is None or flow.moving is None else "running"
        return Replicated(
            vm_name_of(receipt), receipt.vm_uuid, "received", peer, state, "ok", since=receipt.began, **_incoming(flow)
        )


def _incoming(flow: Flow | None) -> dict[str, Any]:
    """What is on its way to here, and how fast."""
    moving = None if flow is None else flow.moving
    rates = STILL if flow is None else flow.rates(monotonic_seconds())
    return {
        "snapshot": None if moving is None else moving.snapshot,
        "logical_bytes_per_second": rates.recent.logical,
        "network_bytes_per_second": rates.recent.network,
        "logical_bytes_per_second_mean": rates.mean.logical,
        "network_bytes_per_second_mean": rates.mean.network,
    }


def _level_sent(lane: Lane, state: State, trouble: _Trouble, now: float) -> Alert:
    if state == "paused":
        return "warning" if lane.is_over_rpo(now) else "ok"
    if lane.is_over_rpo(now) or (state == "failed" and trouble.retry.failures > 1):
        return "error"
    return "warning" if state == "failed" or lane.is_over_rpo(now, WARNING_PART) else "ok"


def _of_received(row: ReceivedRow, is_moving: bool, age: int | None) -> tuple[State, Alert]:
    if row.promoted is not None:
        return "promoted", "ok"
    rpo = row.rpo_seconds
    is_late = rpo is not None and age is not None and age > rpo
    nearly = rpo is not None and age is not None and age > rpo * WARNING_PART
    level: Alert = "error" if is_late else "warning" if nearly else "ok"
    if is_late:
        return "exceeds rpo", level
    return ("running" if is_moving else "up to date" if age is not None else "scheduled"), level


def _age(created: str | None, now: float) -> int | None:
    return None if created is None else max(int(now - seconds_of(created)), 0)


def _eta(remaining: int | None, per_second: int) -> int | None:
    if remaining is None or (remaining and not per_second):
        return None
    return remaining // per_second if remaining else 0
