"""How long two processes wait for each other's answers on this machine while others compute; nothing of blockdev takes part.

`python -m bench.wakeups [--rounds N] [--answers N]`

A process sleeps for a millisecond, sends a byte to another one and waits for the answer: what a guest does with its storage.
Beside them as many processes as there are cores compute, with no system call.  A kernel with lazy preemption (Linux 6.13 and
later, where it is not built or booted otherwise) does not interrupt such a process for one that was woken on another core: it
looks at the next system call, interrupt or tick.  So the third row has something that sleeps for 0.1 ms at a time on each core,
whose timer interrupts: when that takes the waiting away, the kernel's way to preempt was what made it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

PAUSE_SECONDS = 0.001
INTERRUPT_SECONDS = 0.0001
CORES = sorted(os.sched_getaffinity(0))


@contextmanager
def running(work: Callable[[], None]) -> Iterator[None]:
    """In a process of its own, until the context is left."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def compute() -> None:
    parent = os.getppid()
    while os.getppid() == parent:  # one system call in some tens of milliseconds
        for _ in range(2_000_000):
            pass


def interrupt(core: int) -> None:
    parent = os.getppid()
    os.sched_setaffinity(0, {core})
    while os.getppid() == parent:
        time.sleep(INTERRUPT_SECONDS)


def answer_all(connection: socket.socket) -> None:
    while got := connection.recv(1):
        connection.send(got)


def answer_times(count: int) -> list[float]:
    """Milliseconds from a byte sent to its answer, ascending."""
    ours, theirs = socket.socketpair()
    found = []
    with ours, theirs, running(lambda: answer_all(theirs)):
        for _ in range(count):
            time.sleep(PAUSE_SECONDS)
            begun = time.perf_counter()
            ours.send(b"x")
            ours.recv(1)
            found.append((time.perf_counter() - begun) * 1000)
    return sorted(found)


def measure(count: int, computing: bool, interrupted: bool) -> list[float]:
    with ExitStack() as beside:
        for core in CORES:
            if computing:
                beside.enter_context(running(compute))
            if interrupted:
                beside.enter_context(running(lambda core=core: interrupt(core)))  # type: ignore[misc]
        return answer_times(count)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.wakeups", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", type=int, default=2000, help="of a round")
    given = parser.parse_args()
    cases = {"alone": (False, False), "beside processes that compute": (True, False), "the same, with timer interrupts": (True, True)}
    found: dict[str, list[list[float]]] = {name: [] for name in cases}
    for _ in range(given.rounds):
        for name, case in cases.items():
            found[name].append(measure(given.answers, *case))
    print(f"Linux {os.uname().release}, {len(CORES)} cores; milliseconds until an answer, the median of {given.rounds} rounds' p50 and p99")
    for name, rounds in found.items():
        p50, p99 = (statistics.median(one[int(len(one) * part)] for one in rounds) for part in (0.5, 0.99))
        print(f"{name:34} p50 {p50:6.3f}  p99 {p99:6.3f}")


if __name__ == "__main__":
    main()
