"""kill -9 of the control plane and of the engine, at any moment, while VMs come and go: nothing acknowledged is lost."""

from __future__ import annotations

import random
import tempfile
import threading

from blockdev import Pool
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.errors import BlockdevError, Unavailable
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.service import VMs
from tests.child import Child, Say
from tests.vmmap.world import Clock, check_agreed

ROUNDS = 12
LIMIT_VMS = 6
Disks = frozenset[str]
Snapshots = frozenset[tuple[str, Disks]]
State = dict[str, tuple[Disks, Snapshots]]  # automatic snapshots are left out


def perform(vms: VMs, words: list[str]) -> None:
    kind, vm, *rest = words
    if kind == "create":
        vms.create_vm(vm, [("root", 4096)])
    elif kind == "disk":
        vms.add_disk(vm, rest[0], 4096)
    elif kind == "snapshot":
        vms.create_snapshot(vm, rest[0])
    elif kind == "clone":
        vms.clone(vm, rest[0], rest[1])
    elif kind == "rename":
        vms.rename_vm(vm, rest[0])
    elif kind == "restore":
        vms.restore(vm, rest[0])
    else:
        vms.delete_vm(vm)


def apply(state: State, words: list[str]) -> State:
    """What the operation makes of a state in which it can be done."""
    kind, vm, *rest = words
    after = dict(state)
    disks, snapshots = state.get(vm, (frozenset(), frozenset()))
    if kind == "create":
        after[vm] = (frozenset({"root"}), frozenset())
    elif vm not in state:
        pass
    elif kind == "disk":
        after[vm] = (disks | {rest[0]}, snapshots)
    elif kind == "snapshot":
        after[vm] = (disks, snapshots | {(rest[0], disks)})
    elif kind == "clone":
        after[rest[1]] = (dict(snapshots).get(rest[0], frozenset()), frozenset())
    elif kind == "rename":
        after[rest[0]] = after.pop(vm)
    elif kind == "delete":
        del after[vm]
    return after


def look(vms: VMs) -> State:
    return {
        vm.name: (
            frozenset(disk.name for disk in vm.disks),
            frozenset(
                (one.name, frozenset(disk.name for disk in one.disks))
                for one in vms.list_snapshots(vm.name)
                if one.origin == "manual"
            ),
        )
        for vm in vms.list_vms()
    }


def choose(choice: random.Random, state: State, number: int) -> list[str]:
    """An operation that can be done, with names that were never used."""
    if not state or (len(state) < LIMIT_VMS and choice.random() < 0.3):
        return ["create", f"vm{number}"]
    vm = choice.choice(sorted(state))
    snapshots = sorted(dict(state[vm][1]))
    kinds = ["disk", "snapshot", "rename", "delete"] + (["clone", "restore"] if snapshots else [])
    kind = choice.choice(kinds)
    if kind == "clone":
        return ["clone", vm, choice.choice(snapshots), f"vm{number}"]
    if kind == "restore":
        return ["restore", vm, choice.choice(snapshots)]
    return [kind, vm, f"{'vm' if kind == 'rename' else kind}{number}"][: 2 if kind == "delete" else 3]


class Home:
    def __init__(self, directory: str) -> None:
        self.pool, self.catalog = f"{directory}/pool", f"{directory}/catalog.db"
        self.socket = f"{directory}/engine.sock"

    def serve(self, say: Say) -> None:
        """An engine until it is killed."""
        pool = Pool.open(self.pool, dedup_bytes=1 << 20)
        EngineServer(pool, Attachments(), self.socket).start()
        say("ready")
        threading.Event().wait()

    def control(self, say: Say, seed: int, first_number: int) -> None:
        """A control plane that changes VMs until it is killed, and says what it will do and what came of it."""
        choice, number, pause = random.Random(seed), first_number, threading.Event()
        vms = VMs(Catalog(self.catalog), EngineClient(self.socket), clock=Clock())
        while True:
            try:
                vms.reconcile()
                state = look(vms)
                while True:
                    number += 1
                    words = choose(choice, state, number)
                    say(f"will {' '.join(words)}")
                    perform(vms, words)
                    say("did")
                    state = look(vms)
            except Unavailable:
                say("unsure")
                pause.wait(0.01)
            except BlockdevError as error:
                say(f"wrong {error}")
                raise


class Witness:
    """What may be, after what a control plane said: several states, where an operation was interrupted."""

    def __init__(self) -> None:
        self.possible: list[State] = [{}]
        self.under_way: list[str] = []
        self.done_count = 0

    def hear(self, line: str) -> None:
        verb, *words = line.split()
        if verb == "will":
            self.under_way = words
        elif verb == "did":
            self.possible = [apply(state, self.under_way) for state in self.possible]
            self.under_way = []
            self.done_count += 1
        else:
            assert verb == "unsure", line
            self.interrupted()

    def interrupted(self) -> None:
        if self.under_way:
            self.possible += [apply(state, self.under_way) for state in self.possible]
            self.under_way = []


def test_nothing_acknowledged_is_lost_however_either_process_dies(seed: int) -> None:
    choice = random.Random(seed)
    witness = Witness()
    with tempfile.TemporaryDirectory(prefix="bd-") as directory:
        home = Home(directory)
        Pool.create(home.pool, 64 << 20, segment_bytes=1 << 20).close()
        for turn in range(ROUNDS):
            live_through(home, choice, witness, turn)
            check(home, witness)
    assert witness.done_count > ROUNDS  # six of a round are expected; by chance it fails once in a hundred million runs


def live_through(home: Home, choice: random.Random, witness: Witness, turn: int) -> None:
    """Some work, a death, some more work, and the other's death."""
    engine = Child(home.serve)
    assert engine.hear() == "ready"
    control = Child(lambda say: home.control(say, choice.randrange(1 << 30), turn * 10_000))
    hear_some(control, witness, choice.randrange(1, 25))
    if choice.random() < 0.5:
        engine.kill()
        engine.close()
        engine = Child(home.serve)
        assert engine.hear() == "ready"
        hear_some(control, witness, choice.randrange(1, 15))
    first, second = (engine, control) if choice.random() < 0.5 else (control, engine)
    first.kill()
    second.kill()
    while line := control.hear():
        witness.hear(line)
    witness.interrupted()
    engine.close()
    control.close()


def hear_some(control: Child, witness: Witness, count: int) -> None:
    for _ in range(count):
        line = control.hear()
        assert line, "the control plane has ended"
        witness.hear(line)


def check(home: Home, witness: Witness) -> None:
    """One of the possible states is there, and is all that is possible from here on."""
    with Pool.open(home.pool, dedup_bytes=1 << 20) as pool:
        server = EngineServer(pool, Attachments(), home.socket)
        server.start()
        catalog, engine = Catalog(home.catalog), EngineClient(home.socket)
        vms = VMs(catalog, engine, clock=Clock())
        vms.reconcile()
        check_agreed(vms, catalog, engine)
        seen = look(vms)
        assert seen in witness.possible
        witness.possible = [seen]
        assert pool.check() == []
        engine.close()
        catalog.close()
        server.stop()
