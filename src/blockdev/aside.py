"""Threads for what blocks, which nobody has to wait for: they end with the process, whatever they wait for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Aside(ThreadPoolExecutor):
    """Begins work in the order of asking, some of it at once.  A thread ends when there is no more to do."""

    def __init__(self, count_max: int, name: str) -> None:
        """count_max: of threads, which are called `name`."""
        super().__init__(1)  # asyncio takes no executor of another class; that one never has a thread
        self._count_max = count_max
        self._name = name
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._count = 0  # of threads

    def submit(self, work: Callable[..., T], /, *args: Any, **named: Any) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._waiting.append((future, partial(work, *args, **named)))
            if self._count == self._count_max:
                return future
            self._count += 1
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return future

    def _run(self) -> None:
        while (found := self._next()) is not None:
            future, work = found
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._count -= 1
            return None
