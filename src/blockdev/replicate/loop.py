"""The one thread in which all of SSH happens: an asyncio loop of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from contextlib import nullcontext, suppress
from typing import Any, TypeVar

from blockdev.aside import Aside
from blockdev.errors import Unavailable
from blockdev.priority import give_way_to_guests
from blockdev.replicate.halt import Halt, Halted

logger = logging.getLogger(__name__)
THREADS_MAX = 128  # for what blocks: each path's name that is looked up, for a minute where nobody answers, and logins, which must not wait for these
T = TypeVar("T")


class Loop:
    """Starts with `start`, ends with `stop`."""

    def __init__(self) -> None:
        self.asyncio = asyncio.new_event_loop()
        self.asyncio.set_exception_handler(_tell)
        self.asyncio.set_default_executor(Aside(THREADS_MAX, "ssh aside"))
        self._thread = threading.Thread(target=self._run, name="ssh", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self.asyncio.is_closed()

    def call(self, work: Coroutine[Any, Any, T], halt: Halt | None = None) -> T:
        """What it returns, from any other thread.  Halted; Unavailable: the loop has ended."""
        if not self.is_running:
            work.close()
            raise Unavailable("replication is not running")
        entered = self._enter(work, halt)
        try:
            future = asyncio.run_coroutine_threadsafe(entered, self.asyncio)
        except RuntimeError:
            entered.close()
            work.close()
            raise Unavailable("replication is being stopped") from None
        try:
            return future.result()
        except CancelledError:
            if halt is not None and halt.is_said():
                raise Halted from None
            raise Unavailable("replication is being stopped") from None

    async def _enter(self, work: Coroutine[Any, Any, T], halt: Halt | None) -> T:
        """The task is told to halt, not the future that is waited for: what was made meanwhile would belong to nobody."""
        task = asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop has ended
                self.asyncio.call_soon_threadsafe(task.cancel)

        with nullcontext() if halt is None else halt.waking(cancel):
            return await work

    def stop(self) -> None:
        """What is under way in it is cancelled; what blocks is not waited for."""
        if self._thread.is_alive():
            self.asyncio.call_soon_threadsafe(self.asyncio.stop)
            self._thread.join()

    def _run(self) -> None:
        give_way_to_guests()
        asyncio.set_event_loop(self.asyncio)
        self.asyncio.run_forever()
        tasks = asyncio.all_tasks(self.asyncio)
        for task in tasks:
            task.cancel()
        self.asyncio.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.asyncio.close()


def _tell(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """At a level that strangers who break connections cannot fill the log with."""
    error = context.get("exception")
    logger.debug("in the loop of SSH: %s", context.get("message"), exc_info=error)
