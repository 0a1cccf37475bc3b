"""A home of a thousand VMs: how soon it answers, how large its control plane is, and what a round of its schedules costs a guest.

`python -m bench.fleet [--vms N] [--snapshots N] [--requests N] [--rounds N] [--seconds S]`

A schedule of every minute is due for all VMs at once, and what the minute before took goes at the same time.  A guest writes to
one of these VMs: for some seconds of each round, and for as long when it is over, in turns.  Then one client asks over the home's
own socket, one thing after the other.  What 500 clones cost, and that each is a disk of its own, is tested by tests/nbd/test_clones.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.fio import fill
from bench.guest_load import guest_load
from bench.replication import results
from bench.replication.homes import Home
from bench.replication.results import Result, note
from bench.workloads import GIB

GUEST = "vm-0000"
GUEST_BYTES = GIB
ROUND_BEGINS_S, QUIET_BEGINS_S = 2, 32  # in the minute: the first runs are due at its beginning, and a round takes half of it at most
LOADS = {
    "one after the other": ["--iodepth=1"],
    "2,000 a second": ["--iodepth=8", "--rate_iops=2000", "--rate_process=poisson"],
    "as many as can be": ["--iodepth=32"],
}


def ask(home: Home, method: str, path: str, body: Any = None) -> Any:
    answer = home.rest.request(method, path, json=body)
    if answer.status_code >= 300:
        raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
    return answer.json() if answer.content else None


def name_of(number: int) -> str:
    return f"vm-{number:04}"


def make_fleet(home: Home, vms: int, snapshots: int) -> None:
    for number in range(vms):
        disks = [{"name": "root", "size_bytes": GUEST_BYTES}, {"name": "data", "size_bytes": 16 * GIB}]
        ask(home, "POST", "/vms", {"name": name_of(number), "disks": disks})
    note(f"{vms} VMs")
    for turn in range(snapshots):
        for number in range(vms):
            ask(home, "POST", f"/vms/{name_of(number)}/snapshots", {"name": f"s{turn}"})
        note(f"{turn + 1} of {snapshots} snapshots of each")


def answer_times(home: Home, vms: int, requests: int) -> dict[str, list[float]]:
    """Milliseconds of each request, by what was asked."""
    asked: dict[str, Callable[[int], tuple[str, str, Any]]] = {
        "list all VMs": lambda turn: ("GET", "/vms", None),
        "list 50 VMs": lambda turn: ("GET", "/vms?count=50", None),
        "show a VM": lambda turn: ("GET", f"/vms/{name_of(turn * 7 % vms)}", None),
        "list a VM's snapshots": lambda turn: ("GET", f"/vms/{name_of(turn * 7 % vms)}/snapshots", None),
        "take a snapshot": lambda turn: ("POST", f"/vms/{name_of(turn * 7 % vms)}/snapshots", {"name": f"asked-{turn}"}),
        "clone a snapshot": lambda turn: ("POST", f"/vms/{name_of(turn * 7 % vms)}/clones", {"snapshot": "s0", "name": f"c-{turn}"}),
        "clone a running VM": lambda turn: ("POST", f"/vms/{name_of(turn * 7 % vms)}/clones", {"name": f"r-{turn}"}),
    }
    found: dict[str, list[float]] = {}
    for what, request in asked.items():
        found[what] = []
        for turn in range(requests):
            method, path, body = request(turn)
            begun = time.perf_counter()
            ask(home, method, path, body)
            found[what].append((time.perf_counter() - begun) * 1000)
        note(f"{what}: {statistics.median(found[what]):.1f} ms")
    return found


def memory_mib(home: Home) -> tuple[float, float]:
    """Of the control plane: now, and the most that it had."""
    lines = Path(f"/proc/{home.children()['control']}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return sizes["VmRSS"] / 1024, sizes["VmHWM"] / 1024


@contextmanager
def scheduled(home: Home) -> Iterator[None]:
    """Every VM is due at each minute, while the block lasts."""
    every_minute = {"name": "minute", "at": "cron * * * * *", "zone": "UTC", "keep_seconds": 60}
    ask(home, "PUT", "/schedules", {"schedules": [every_minute]})
    try:
        yield
    finally:
        ask(home, "PUT", "/schedules", {"schedules": []})


def wait_for(moment: datetime) -> None:
    time.sleep(max((moment - datetime.now(UTC)).total_seconds(), 0.0))


def rounds_done(home: Home) -> list[dict[str, Any]]:
    """The rounds that took snapshots, the latest first; with the seconds that they took."""
    found = ask(home, "GET", "/jobs?kind=schedule.round&count=1000")["jobs"]
    for one in found:
        one["seconds"] = (datetime.fromisoformat(one["finished"]) - datetime.fromisoformat(one["created"])).total_seconds()
    return [one for one in found if one["result"]["taken"]]


def rounds_beside_a_guest(home: Home, folder: Path, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """By load and turn: what the guest had in the round and behind it."""
    uri = home.uri(f"{GUEST}/root")
    fill(uri, GUEST_BYTES, seed, folder / "fio")
    found: dict[str, Any] = {load: [] for load in LOADS}
    with scheduled(home):
        minute = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=2)  # the first one has nothing to let go of
        for turn in range(rounds):
            sides = {}
            for side, begins_s in (("beside", ROUND_BEGINS_S), ("alone", QUIET_BEGINS_S)):
                wait_for(minute + timedelta(seconds=begins_s))
                sides[side] = {
                    load: guest_load(uri, GUEST_BYTES, seconds, seed + turn, folder / "fio", ["--rw=randwrite", *options])
                    for load, options in LOADS.items()
                }
                seed += rounds  # what was written before would be found, and not written
            for load in LOADS:
                found[load].append({side: runs[load] for side, runs in sides.items()})
                note(f"{load}: p99 {sides['alone'][load]['p99']:.0f} us alone, {sides['beside'][load]['p99']:.0f} in a round")
            minute += timedelta(minutes=1)
    done = rounds_done(home)
    found["rounds"] = [{"seconds": one["seconds"], **one["result"]} for one in done[:rounds]]
    return found


def rows_of(answers: dict[str, list[float]], beside: dict[str, Any]) -> list[list[str]]:
    rows = [["", "p50 ms", "p99 ms", "most"]]
    for what, times in answers.items():
        times = sorted(times)
        rows.append([what, *(f"{one:.1f}" for one in (statistics.median(times), times[int(len(times) * 0.99)], times[-1]))])
    rows.append(["a guest's 4 KiB random writes", "alone", "in a round", "ratio"])
    for load in LOADS:
        for figure in ("iops", "p50", "p99"):
            alone, there = ([turn[side][figure] for turn in beside[load]] for side in ("alone", "beside"))
            ratio = statistics.median(one / other for one, other in zip(there, alone, strict=True))
            rows.append([f"  {load}, {figure}{'' if figure == 'iops' else ' us'}", f"{statistics.median(alone):.0f}", f"{statistics.median(there):.0f}", f"{ratio:.2f}"])
    return rows


def main() -> None:
    parser = results.parser("bench.fleet", __doc__)
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--snapshots", type=int, default=20, help="of each")
    parser.add_argument("--requests", type=int, default=300, help="of each kind")
    parser.add_argument("--rounds", type=int, default=5, help="beside which the guest is measured; a minute each")
    parser.add_argument("--seconds", type=float, default=4, help="of one run of the guest; of three a round")
    given = parser.parse_args()
    seed = results.seed_of(given)
    with results.scratch_folder(given.scratch, "fleet") as folder, ExitStack() as closing:
        result = Result("fleet", seed, folder, vms=given.vms, snapshots=given.snapshots, requests=given.requests, rounds=given.rounds)
        home = Home(folder, "home")
        closing.callback(home.close)
        home.serve()
        make_fleet(home, given.vms, given.snapshots)
        beside = rounds_beside_a_guest(home, folder, given.rounds, given.seconds, seed)
        answers = answer_times(home, given.vms, given.requests)  # last: it makes VMs
        now, most = memory_mib(home)
        result["answers_ms"], result["rounds"], result["control_mib"] = answers, beside, {"now": now, "most": most}
        result.tell(rows_of(answers, beside), given.json)
        for one in beside["rounds"]:
            note(f"a round took {one['seconds']:.1f} s: {one['taken']} taken, {one['deleted']} deleted, {one['failed']} failed")
        note(f"the control plane has {now:.0f} MiB, and had {most:.0f} at the most")


if __name__ == "__main__":
    main()
