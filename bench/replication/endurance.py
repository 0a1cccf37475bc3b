"""A VM with two disks under load, whose snapshots replicate for minutes: each one that arrives is compared with its source.

`python -m bench.replication.endurance [--seconds N] [--every N]` needs root.  One disk has an ext4 file system that this
machine has mounted and a program writes files to; the other one is read and written by fio.  Snapshots come by a schedule
each minute, by `schedule run` and by hand in between, about one in `--every` seconds.  Of each that arrives, the content
digest of both engines and `qemu-img compare` over NBD must agree; at the end none may be missing, and a clone at the other
end must play back its journal, be clean, and have every file that was durable when the snapshot was asked for.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.replication import guest, results
from bench.replication.homes import Home, Pair, same_disk, until
from bench.replication.results import note
from bench.workloads import DISTINCT_DATA, MIB
from blockdev.engine.client import EngineClient

VM = "web"
DISKS = ("root", "data")
SCHEDULE = "minutely"
FIO_BYTES_PER_SECOND = 6_000_000  # each way: enough to change every snapshot, not so much that the pools fill
FILES_BYTES_PER_SECOND = 1_500_000
CATCH_UP_SECONDS_MAX = 300


@dataclass
class Found:
    """What was compared."""

    taken: int = 0
    compared: int = 0
    seconds: float = 0.0
    delays: list[float] = field(default_factory=list)  # seconds from the snapshot's command to its arrival
    files_in_clones: list[int] = field(default_factory=list)
    sent_bytes: int = 0
    disk_bytes: int = 0
    fio: dict[str, float] = field(default_factory=dict)


def digests(home: Home, snapshot: str) -> list[str]:
    """The content digest of each disk of a snapshot, from nothing, by the engine that has it."""
    with closing(EngineClient(home.path / "run/engine.sock")) as engine:
        return [engine.digest(None, b"", engine.find(f"{VM}/{disk}@{snapshot}").id).hex() for disk in DISKS]


class Fio:
    """Random reads and writes of one export for so long."""

    def __init__(self, uri: str, size_bytes: int, seconds: float, seed: int, folder: Path) -> None:
        self._output = folder / "fio.json"
        command = [
            *("fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", f"--size={size_bytes}", "--rw=randrw", "--bs=4k", "--iodepth=8"),
            *("--time_based", f"--runtime={seconds:.0f}", f"--randseed={seed}", "--randrepeat=0", "--norandommap", *DISTINCT_DATA),
            *(f"--rate={FIO_BYTES_PER_SECOND},{FIO_BYTES_PER_SECOND}", "--output-format=json", f"--output={self._output}"),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self) -> dict[str, float]:
        """Its p99 in microseconds and what it did."""
        said, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"fio ended with {self._process.returncode}: {said[-500:]}")
        job = json.loads("{" + self._output.read_text().partition("{")[2])["jobs"][0]
        return {
            f"{way}_{name}": value
            for way in ("read", "write")
            for name, value in (("bytes", job[way]["io_bytes"]), ("p99_us", job[way]["clat_ns"]["percentile"]["99.000000"] / 1000))
        }

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


class Comparer:
    """Compares what arrives, in a thread of its own."""

    def __init__(self, pair: Pair, found: Found) -> None:
        self.failure: BaseException | None = None
        self.asked: dict[str, float] = {}  # snapshot -> when it was asked for
        self._pair, self._found = pair, found
        self._compared: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._stop.wait(0.2):
                self.look()
        except BaseException as error:
            self.failure = error

    def look(self) -> None:
        for name in [name for name in self._pair.target.snapshots(VM) if name not in self._compared]:
            if name in self.asked:
                self._found.delays.append(time.monotonic() - self.asked[name])
            ours, theirs = digests(self._pair.source, name), digests(self._pair.target, name)
            if ours != theirs:
                raise RuntimeError(f"{name}: the digests are {ours} and {theirs}")
            for disk in DISKS:
                export = f"{VM}/{disk}@{name}"
                if not same_disk(self._pair.source, export, self._pair.target, export):
                    raise RuntimeError(f"qemu-img compare: {export} differs")
            self._compared.add(name)
            self._found.compared = len(self._compared)
            note(f"compared {name}, {self._found.compared} so far")

    def finish(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise RuntimeError(f"while comparing: {self.failure}") from self.failure
        self.look()


def run(folder: Path, seconds: float, every_seconds: float, size_bytes: int, seed: int) -> Found:
    found, chosen = Found(disk_bytes=size_bytes), random.Random(seed)
    with Pair(folder) as pair:
        pair.source("vm", "create", VM, *(f"--disk={disk}={size_bytes}" for disk in DISKS))
        pair.source("schedule", "set", VM, SCHEDULE, "--at", "cron * * * * *", "--keep", "2d", "--keep-remote", "3d")
        with guest.FileSystem(pair.source, f"{VM}/root", folder / "guest", make=True) as mounted:
            fio = Fio(pair.source.uri(f"{VM}/data"), size_bytes, seconds, seed, folder)
            writer = guest.Writer(mounted.root, seed, FILES_BYTES_PER_SECOND)
            try:
                durable = _take_snapshots(pair, writer, found, chosen, seconds, every_seconds)
            finally:
                writer.stop()
                fio.stop()
            found.fio = fio.finish()
        found.sent_bytes = pair.proxy.sent_bytes
        _check_clones(pair, durable, found, folder)
    return found


def _take_snapshots(
    pair: Pair, writer: guest.Writer, found: Found, chosen: random.Random, seconds: float, every_seconds: float
) -> dict[str, list[str]]:
    """Snapshot -> the files that were durable before it was asked for; for those that were asked for by hand."""
    durable: dict[str, list[str]] = {}
    until(lambda: writer.synced, "the first file", 60)
    pair.source("replicate", "protect", VM, "--path", f"to-{pair.target.name}")
    comparer, begun = Comparer(pair, found), time.monotonic()
    try:
        while (at := time.monotonic() - begun) < seconds and comparer.failure is None and writer.failure is None:
            synced = list(writer.synced)
            if chosen.random() < 0.5:
                pair.source("schedule", "run", VM, SCHEDULE)
            else:
                name = f"hand-{len(durable)}"
                comparer.asked[name] = time.monotonic()
                pair.source("snapshot", "create", VM, "--name", name)
                durable[name] = synced
            time.sleep(max(0.0, min(chosen.uniform(0.5, 1.5) * every_seconds, seconds - at)))
        # What is wanted, not what there is: whatever is taken meanwhile by the schedule has to come, too.
        until(
            lambda: list(pair.source.snapshots(VM)) == list(pair.target.snapshots(VM)) or comparer.failure is not None,
            "the last snapshots",
            CATCH_UP_SECONDS_MAX,
        )
    finally:
        comparer.finish()
    found.seconds = time.monotonic() - begun
    ours, theirs = pair.source.snapshots(VM), pair.target.snapshots(VM)
    found.taken = len(theirs)
    if list(ours) != list(theirs) or [one["uuid"] for one in ours.values()] != [one["uuid"] for one in theirs.values()]:
        raise RuntimeError(f"taken: {list(ours)}; received: {list(theirs)}")
    return durable


def _check_clones(pair: Pair, durable: dict[str, list[str]], found: Found, folder: Path) -> None:
    """Of the first, the middle and the last one taken by hand."""
    names = list(durable)
    for name in dict.fromkeys([names[0], names[len(names) // 2], names[-1]]):
        clone = f"clone-{name}"
        pair.target("clone", f"{VM}@{name}", clone)
        found.files_in_clones.append(guest.check_clone(pair.target, f"{clone}/root", folder / "guest", durable[name]))


def main() -> None:
    parser = results.parser("bench.replication.endurance", __doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--every", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="of each of the two disks")
    given = parser.parse_args()
    if (reason := guest.missing()) is not None:
        raise SystemExit(reason)
    seed = results.seed_of(given)
    with results.scratch_folder(given.scratch, "endurance") as folder:
        result = results.Result("endurance", seed, folder, seconds=given.seconds, every_seconds=given.every, disk_mib=given.size)
        found = run(folder, given.seconds, given.every, given.size * MIB, seed)
        result["found"] = asdict(found)
        delays = sorted(found.delays)
        rows = [
            ["", ""],
            ["snapshots taken, and received in their order", str(found.taken)],
            ["compared by digest and qemu-img compare, equal", str(found.compared)],
            ["seconds", f"{found.seconds:.0f}"],
            ["fio wrote, MB", f"{found.fio['write_bytes'] / 1e6:,.0f}"],
            ["sent over the path, MB", f"{found.sent_bytes / 1e6:,.0f}"],
            ["from asking for a snapshot to its arrival, median s", f"{delays[len(delays) // 2]:.1f}"],
            ["the longest, s", f"{delays[-1]:.1f}"],
            ["clones at the other end that were clean, with all that was synced", str(len(found.files_in_clones))],
        ]
        result.tell(rows, given.json)


if __name__ == "__main__":
    main()
