"""The history of transfers: a row for each that has ended and moved something, at both ends."""

from __future__ import annotations

from blockdev.errors import BlockdevError
from blockdev.replicate.flow import Count, Flow
from blockdev.vmmap.clock import Clock, to_text
from blockdev.vmmap.recorder import Recorder


class Ledger:
    """Where one home keeps it.  Threads: any."""

    def __init__(self, recorder: Recorder, clock: Clock) -> None:
        self._recorder = recorder
        self._clock = clock

    def now(self) -> str:
        return to_text(self._clock())

    def put(
        self, flow: Flow, snapshot: tuple[str, str], began: str, moved: Count, error: BlockdevError | None
    ) -> None:
        """A transfer has ended now.  snapshot: its name and uuid; error: why it is not whole there."""
        if error is not None and not moved.logical:
            return
        failure = (None, None) if error is None else (error.code, error.message)
        row = (flow.direction, flow.way, flow.vm, flow.vm_uuid, *snapshot, began, self.now(), *moved, *failure)
        self._recorder.put(lambda catalog: catalog.add_transfer(*row))
