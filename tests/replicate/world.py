"""The world of one seed: two homes, what is sent between them, and what may go wrong (simulate.py)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import zip_longest

from blockdev.errors import BlockdevError, Corrupt, NotAllowed, Unavailable
from blockdev.replicate.control import Begin
from blockdev.replicate.frames import Frames
from blockdev.replicate.receiver import Receiver
from blockdev.replicate.sender import Sender
from blockdev.replicate.source import SnapshotSource
from blockdev.replicate.store import PeerStore
from blockdev.vmmap.catalog import SnapshotRow
from blockdev.vmmap.catalog_replication import ProtectionRow
from blockdev.vmmap.holds import Rules, queued_snapshots
from blockdev.vmmap.model import Agreement
from tests.replicate.homes import ControlKilled, Home
from tests.vmmap.world import add_peer

BLOCK = 4096
STEPS = (100, 350)
MEND_STEPS_MAX = 60_000
NOW = "2026-11-22T12:00:00.000Z"
Content = dict[str, bytes]  # by name of disk


class Wrong(AssertionError):
    """What must never be."""


class Later:
    """Work that is done in parts at some later steps, or all of it when somebody waits for it."""

    def __init__(self) -> None:
        self._work: Iterator[None] | None = None

    def __call__(self, work: Iterator[None]) -> Callable[[], None]:
        self._work = work
        return self._end

    def run(self) -> bool:
        """One part of it.  False: there is none."""
        if self._work is None:
            return False
        for _ in self._work:
            return True
        self._work = None
        return True

    def _end(self) -> None:
        while self.run():
            pass


class CountingStore(PeerStore):
    """Counts the bytes that were put by it."""

    put_bytes = 0

    def put(self, disk: int, offers: bytes, data: bytes | memoryview) -> None:
        super().put(disk, offers, data)
        self.put_bytes += len(data)


class Connection:
    """A sender, a receiver, and the bytes that are on their way between them."""

    def __init__(
        self, sender: Sender, store: CountingStore, receiver: Receiver, snapshot: SnapshotRow, saves: Later
    ) -> None:
        self.sender = sender
        self.saves = saves
        self.store = store
        self.receiver = receiver
        self.snapshot = snapshot
        self.was_alone = True
        self.there = bytearray()
        self.back = bytearray()
        self.there_frames = Frames()
        self.back_frames = Frames()
        sender.start()


class Flow:
    """One VM of one home that is protected at the other."""

    def __init__(self, world: World, source: Home, target: Home, vm_name: str) -> None:
        self.world = world
        self.source = source
        self.target = target
        vm = source.catalog.vm(vm_name)
        assert vm is not None
        self.vm_id, self.vm_uuid, self.vm_name = vm.id, vm.uuid, vm.name
        self.connections: list[Connection] = []
        self.retry: tuple[Sender, SnapshotRow] | None = None
        self.is_refused = False  # for good
        self.done: set[str] = set()  # uuids of snapshots that the target said it has
        self.deleted: set[str] = set()  # of those, that were deleted there, maybe
        self.sent_bytes = 0  # of blocks, plain
        self.spare_bytes = 0  # of these, that may have been sent before

    def protection(self) -> ProtectionRow:
        return self.source.catalog.protections(self.vm_id)[0]

    def queue(self) -> list[SnapshotRow]:
        catalog = self.source.catalog
        vm = catalog.vm_by_id(self.vm_id)
        assert vm is not None
        return queued_snapshots(catalog, self.protection(), vm, Rules(catalog))

    def connect(self) -> bool:
        """False: there is nothing to be sent, or no way."""
        if self.retry is not None:
            (sender, row), self.retry = self.retry, None
        else:
            queued = self.queue()
            if not queued:
                return False
            row = queued[0]
            source = SnapshotSource(self.source.vms, self.source.engine, self.vm_id, row.uuid)
            self.world.learn(self.source)
            sender = Sender(self._begin(source), source, self.world.choice.choice([0, 1, 3]), self.world.monotonic)
        peer_id = self.target.catalog.peers()[0].id
        target = self.target
        later = Later()
        parts = target.vms, target.engine, peer_id, target.space, target.holds
        store = CountingStore(*parts, lambda what, arguments: {}, later)
        self.connections.append(Connection(sender, store, Receiver(store, self.world.monotonic), row, later))
        if len(self.connections) > 1:
            for connection in self.connections:
                connection.was_alone = False
        self.world.counts["connections"] += 1
        return True

    def _begin(self, source: SnapshotSource) -> Begin:
        return source.begin("protect", None, None)

    def drop(self, connection: Connection, is_seen: bool = True) -> None:
        """The cable is cut.  is_seen: by the receiver, too, which closes; else it hangs on."""
        self.connections.remove(connection)
        sent = connection.sender.progress.sent_bytes
        self.sent_bytes += sent
        self.spare_bytes += sent - connection.store.put_bytes if connection.was_alone else sent
        if is_seen:
            connection.receiver.close()

    def move(self, connection: Connection) -> bool:
        """Something happens on it; False: nothing can."""
        choice = self.world.choice
        actions: list[Callable[[Connection], bool]] = [self._make, self._arrive, self._return, self._save]
        choice.shuffle(actions)
        try:
            return any(action(connection) for action in actions)
        except BlockdevError as error:
            self._failed(connection, error)
            return True

    def _make(self, connection: Connection) -> bool:
        if len(connection.there) > 200_000:
            return False
        made = connection.sender.next()
        if made is not None:
            connection.there += made
            self.world.counts["bytes"] += len(made)
        return made is not None

    def _arrive(self, connection: Connection) -> bool:
        if not connection.there or connection.receiver.is_closed:
            return False
        part = self._piece(connection.there)
        for message in connection.there_frames.feed(part):
            for answer in connection.receiver.handle(message):
                connection.back += answer
        return True

    def _return(self, connection: Connection) -> bool:
        if not connection.back:
            if not connection.receiver.is_closed:
                return False
            self.drop(connection)
            return True
        for message in connection.back_frames.feed(self._piece(connection.back)):
            connection.sender.handle(message)
            if connection.sender.is_done:
                self._done(connection)
                return True
        return True

    def _save(self, connection: Connection) -> bool:
        return connection.saves.run()

    def _piece(self, pipe: bytearray) -> bytes:
        choice = self.world.choice
        count = choice.choice([len(pipe), len(pipe), choice.randrange(1, len(pipe) + 1), 1])
        part = bytes(pipe[:count])
        del pipe[:count]
        return part

    def _done(self, connection: Connection) -> None:
        row = connection.snapshot
        self.done.add(row.uuid)
        protection = self.protection()
        if protection.newest_lsn is None or row.lsn > protection.newest_lsn:
            with self.source.catalog.transaction():
                self.source.catalog.note_replicated(
                    *(self.vm_id, protection.path_id, row.uuid, row.lsn, row.created, NOW)
                )
        self.world.counts["snapshots"] += not connection.sender.progress.was_present
        self.world.tell(f"{self.vm_name}@{row.name} is there")
        self.drop(connection)

    def _failed(self, connection: Connection, error: BlockdevError) -> None:
        self.world.tell(f"{self.vm_name}@{connection.snapshot.name}: {type(error).__name__}: {error}")
        self.world.counts[f"ends by {type(error).__name__}"] += 1
        if isinstance(connection.sender.refusal, Corrupt):
            self.world.differed(self)
        if isinstance(error, NotAllowed):
            self.is_refused = True
        again = connection.sender.retry()
        self.drop(connection)
        if again is not None:
            self.retry = again, connection.snapshot


class Copying(Flow):
    """One copy of a snapshot, which becomes a VM of its own there, whose guest writes then."""

    def __init__(self, world: World, source: Home, target: Home, vm_name: str) -> None:
        super().__init__(world, source, target, vm_name)
        self.row = source.catalog.snapshots(self.vm_id)[-1]
        self.copy_name = f"{vm_name}-copy"
        self._begins_twice = world.choice.random() < 0.5
        self.heads: Content | None = None  # what its disks have to hold; None: that is not known

    def queue(self) -> list[SnapshotRow]:
        is_wanted = not self.done and self.source.catalog.snapshot_by_id(self.row.id) is not None
        return [self.row] if is_wanted else []

    def connect(self) -> bool:
        is_made = super().connect()
        if is_made and self._begins_twice:
            self._begins_twice = False
            super().connect()
        return is_made

    def write(self) -> None:
        """As its guest."""
        if self.done:
            self.check()
            self.world._write(self.target, self.copy_name)
            self.heads = self._read()

    def check(self) -> None:
        if self.done and self.heads is not None and self._read() != self.heads:
            raise Wrong(f"{self.copy_name}: its disks are not what its guest has written")

    def _begin(self, source: SnapshotSource) -> Begin:
        return source.begin("copy", None, None, self.copy_name)

    def _done(self, connection: Connection) -> None:
        self.done.add(connection.snapshot.uuid)
        self.world.counts["copies"] += 1
        self.world.tell(f"{self.copy_name} is there")
        self.heads = self.heads or self.world.contents[connection.snapshot.uuid]
        self.drop(connection)

    def _read(self) -> Content:
        disks = self.target.vms.show_vm(self.copy_name).disks
        return {disk.name: self.target.pool.find(disk.export).read(0, disk.size_bytes) for disk in disks}


class World:
    """Everything that one seed decides."""

    def __init__(self, root: str, seed: int) -> None:
        self.choice = random.Random(f"replication {seed}")
        self.told: list[str] = []
        self.counts: Counter[str] = Counter()
        self.contents: dict[str, Content] = {}  # by uuid of the snapshot
        self._seconds = 1000.0
        self.forgetful: set[Home] = set()  # whose engine was killed
        self._palette = [self._any_block() for _ in range(40)]
        self.home_a = Home(f"{root}/a", self.choice.random() < 0.15)
        self.home_b = Home(f"{root}/b", self.choice.random() < 0.35)
        self.homes = [self.home_a, self.home_b]
        self.flows = [self._protect(self.home_a, self.home_b, "web")]
        if self.choice.random() < 0.4:
            self.flows.append(self._protect(self.home_b, self.home_a, "db"))
        self.copies = [Copying(self, self.home_a, self.home_b, "web")] if self.choice.random() < 0.5 else []
        for home in self.homes:
            home.meanwhile = lambda home=home: self._meanwhile(home)  # type: ignore[misc]
        self._is_meanwhile = False

    def stop(self) -> None:
        for home in self.homes:
            home.stop()

    def tell(self, what: str) -> None:
        self.told.append(what)

    def monotonic(self) -> float:
        self._seconds += 0.0005
        return self._seconds

    # making

    def _any_block(self) -> bytes:
        noise = self.choice.randbytes(self.choice.choice([BLOCK, BLOCK, 64]))
        return (noise * (BLOCK // len(noise)))[:BLOCK]

    def _protect(self, source: Home, target: Home, vm: str) -> Flow:
        sizes = [self.choice.choice([4096, 8704, 60 * BLOCK, 150 * BLOCK + 512, 200 * BLOCK]) for _ in range(self.choice.choice([1, 2, 3]))]
        source.vms.create_vm(vm, [(f"disk{number}", size) for number, size in enumerate(sizes)], "<vm/>")
        for _ in range(self.choice.randrange(12)):
            self._write(source, vm)
        taken = source.vms.create_snapshot(vm)
        row = source.catalog.vm(vm)
        assert row is not None
        with source.catalog.transaction():
            path_id = source.catalog.insert_path("there", "other", 10810, "ssh-ed25519 x", 3, "{}", NOW)
            source.catalog.put_protection(row.id, path_id, None, None, taken.lsn, NOW)
        add_peer(target.catalog, "peer")
        return Flow(self, source, target, vm)

    def _write(self, home: Home, vm: str) -> int:
        """How many blocks it touched, perhaps some of them twice, and some to be what they were."""
        disks = [disk for disk in home.vms.show_vm(vm).disks if disk.state == "ok"]
        if not disks:
            return 0
        touched = 0
        disk = self.choice.choice(disks)
        vdisk = home.pool.find(disk.export)
        sectors = disk.size_bytes // 512
        for _ in range(self.choice.randrange(1, 8)):
            first = self.choice.randrange(sectors)
            length = min(self.choice.choice([1, 8, 8, 8 * 20, 8 * 60]), sectors - first)
            if self.choice.random() < 0.5:
                first -= first % 8
            touched += length // 8 + 2
            if self.choice.random() < 0.25:
                vdisk.discard(first * 512, length * 512)
                continue
            blocks = [self.choice.choice(self._palette) if self.choice.random() < 0.7 else self._any_block() for _ in range(length // 8 + 1)]
            vdisk.write(first * 512, b"".join(blocks)[: length * 512])
        return touched

    # knowing

    def learn(self, home: Home) -> None:
        """What the snapshots hold that were taken here, before any of them can have been sent.  Unavailable: its engine is away."""
        if home.process is None:
            raise Unavailable("the engine has ended, and is not started yet")
        for flow in self.flows:
            if flow.source is home:
                for row in home.catalog.snapshots(flow.vm_id):
                    if row.uuid not in self.contents:
                        self.contents[row.uuid] = read(home, row)

    def differed(self, flow: Flow) -> None:
        raise Wrong(f"{flow.vm_name}: the digests differed")

    # living

    def live(self) -> None:
        steps = self.choice.randrange(*STEPS)
        for _ in range(steps):
            self._guard(self._step)

    def _guard(self, step: Callable[[], object]) -> None:
        """A step that may find a process dead, or end one."""
        try:
            step()
        except ControlKilled as killed:
            self._restart_control(killed.home)
        except BlockdevError as error:
            self.tell(f"  {type(error).__name__}: {error}")

    def _restart_control(self, home: Home) -> None:
        """Its connections are gone without a word."""
        self.tell(f"control plane of {home.path[-1]} killed")
        self.counts["control planes killed"] += 1
        for flow in self._all():
            for connection in list(flow.connections):
                if flow.target is home:  # nothing is saved
                    connection.receiver.is_closed = True
                flow.drop(connection, is_seen=flow.source is home and self._is_up(flow.target))
            flow.retry = None if flow.source is home else flow.retry
        home.restart_control()

    def _is_up(self, home: Home) -> bool:
        return home.process is not None and not home.process.is_dead

    def _step(self) -> None:
        self._seconds += self.choice.choice([0.0, 0.0, 0.01, 1.2])
        [(step, _)] = self.choice.choices(list(self._steps()), [weight for _, weight in self._steps()])
        step()

    def _steps(self) -> list[tuple[Callable[[], object], float]]:
        return [
            (self._move, 60),
            (self._guest, 5),
            (self._snapshot, 4),
            (self._delete_at_source, 2),
            (self._delete_at_target, 2),
            (self._change_disks, 0.5),
            (self._restore, 0.3),
            (self._connect_twice, 0.6),
            (self._guest_of_copy, 2 if self.copies else 0),
            (self._cut, 4),
            (self._kill_engine, 0.8),
            (self._kill_control, 0.8),
            (self._doom, 1.0),
            (self._jump, 0.5),
            (self._fill, 0.4),
            (self._reconcile, 0.4),
            (self._look, 0.3),
        ]

    def _all(self) -> list[Flow]:
        return [*self.flows, *self.copies]

    def _move(self) -> None:
        """A burst on one flow."""
        flow = self.choice.choice(self._all())
        for _ in range(self.choice.randrange(1, 40)):
            self._revive()
            if not flow.connections and not self._connect(flow):
                return
            flow.move(self.choice.choice(flow.connections))

    def _connect(self, flow: Flow) -> bool:
        """Who was told that there is no room does not ask at once again."""
        return not (flow.target.is_full and self.choice.random() < 0.9) and flow.connect()

    def _revive(self) -> None:
        """The supervisor starts an engine that died."""
        for home in self.homes:
            if home.process is not None and home.process.is_dead:
                self._end_engine(home)
            if home.process is None:
                home.start_engine()

    def _flow(self) -> Flow:
        return self.choice.choice(self.flows)

    def _guest(self) -> None:
        flow = self._flow()
        if self._is_up(flow.source):
            self._write(flow.source, flow.vm_name)

    def _snapshot(self) -> None:
        flow = self._flow()
        made = flow.source.vms.create_snapshot(flow.vm_name)
        self.tell(f"{flow.vm_name}@{made.name} taken")
        self.learn(flow.source)

    def _delete_at_source(self) -> None:
        flow = self._flow()
        self.learn(flow.source)
        names = [one.name for one in flow.source.vms.list_snapshots(flow.vm_name)]
        if len(names) > 1:
            name = self.choice.choice(names[:-1])
            flow.source.vms.delete_snapshot(flow.vm_name, name)
            self.tell(f"{flow.vm_name}@{name} deleted at the source")

    def _delete_at_target(self) -> None:
        flow = self._flow()
        vm = flow.target.catalog.vm_of_uuid(flow.vm_uuid)
        names = [] if vm is None else [one.name for one in flow.target.vms.list_snapshots(vm.name)]
        if vm is not None and names:
            name = self.choice.choice(names)
            flow.deleted.add(flow.target.vms.show_snapshot(vm.name, name).uuid)
            flow.target.vms.delete_snapshot(vm.name, name)
            self.tell(f"{vm.name}@{name} deleted at the target")

    def _change_disks(self) -> None:
        flow = self._flow()
        disks = flow.source.vms.show_vm(flow.vm_name).disks
        kind = self.choice.choice(["grow", "shrink", "add", "remove"])
        disk = self.choice.choice(disks)
        size = self.choice.randrange(1, 220 * 8) * 512
        if kind == "add" and len(disks) < 4:
            flow.source.vms.add_disk(flow.vm_name, f"more{len(self.contents)}", size)
        elif kind == "remove" and len(disks) > 1:
            flow.source.vms.remove_disk(flow.vm_name, disk.name)
        else:
            flow.source.vms.resize_disk(flow.vm_name, disk.name, size, force_shrink=True)
        self.tell(f"{flow.vm_name}/{disk.name}: {kind}")

    def _restore(self) -> None:
        flow = self._flow()
        names = [one.name for one in flow.source.vms.list_snapshots(flow.vm_name)]
        flow.source.vms.restore(flow.vm_name, self.choice.choice(names))
        self.learn(flow.source)

    def _connect_twice(self) -> None:
        flow = self.choice.choice(self._all())
        if len(flow.connections) < 3:
            flow.connect()

    def _guest_of_copy(self) -> None:
        copy = self.choice.choice(self.copies)
        if self._is_up(copy.target):
            copy.write()

    def _meanwhile(self, home: Home) -> None:
        """Other channels go on, perhaps to their end, guests write, and snapshots are deleted, while one of a home is beginning."""
        others = [(flow, one) for flow in self._all() if flow.target is home for one in flow.connections if one.receiver.begin is not None]
        if self._is_meanwhile or not others or self.choice.random() < 0.3:
            return
        self._is_meanwhile = True
        try:
            flow, connection = self.choice.choice(others)
            for _ in range(self.choice.choice([1, 40, 400, 400])):
                if self._is_up(home) and connection in flow.connections:
                    flow.move(connection)
            for step in (self._delete_at_source, self._delete_at_target, *([self._guest_of_copy] * 3 if self.copies else [])):
                if self.choice.random() < 0.3:
                    with suppress(BlockdevError):
                        step()
        finally:
            self._is_meanwhile = False

    def _cut(self) -> None:
        flow = self.choice.choice(self._all())
        if flow.connections:
            connection = self.choice.choice(flow.connections)
            flow.drop(connection, is_seen=self.choice.random() < 0.7)
            self.counts["cuts"] += 1

    def _kill_engine(self) -> None:
        home = self.choice.choice(self.homes)
        if home.process is not None:
            self._end_engine(home)
            if self.choice.random() < 0.8:
                home.start_engine()

    def _end_engine(self, home: Home) -> None:
        """What it did not make durable may be lost, and what it knew of fingerprints."""
        home.kill_engine(self.choice.random() < 0.5)
        self.counts["engines killed"] += 1
        self.forgetful.add(home)
        self.tell(f"engine of {home.path[-1]} killed")
        for copy in self.copies:
            if copy.target is home:
                copy.heads = None
        for flow in self.flows:
            if flow.target is home:
                under_way = sum(connection.store.put_bytes for connection in flow.connections)
                flow.spare_bytes += flow.sent_bytes + under_way

    def _kill_control(self) -> None:
        self._restart_control(self.choice.choice(self.homes))

    def _doom(self) -> None:
        """Something is going to die in the middle of something."""
        home = self.choice.choice(self.homes)
        if self.choice.random() < 0.5:
            home.killed_in = self.choice.randrange(1, 12)
        elif home.process is not None:
            home.process.dies_in = self.choice.randrange(1, 40)
            home.process.dies_after = self.choice.random() < 0.5

    def _jump(self) -> None:
        home = self.choice.choice(self.homes)
        home.clock.seconds += self.choice.choice([-86_400.0, -3.0, 3600.0, 86_400.0])
        self._seconds += self.choice.choice([0.0, 10.0, 10_000.0])

    def _fill(self) -> None:
        home = self.choice.choice(self.homes)
        home.is_full = not home.is_full

    def _reconcile(self) -> None:
        self.choice.choice(self.homes).vms.reconcile()

    def _look(self) -> None:
        self._agree()
        for flow in self.flows:
            self._check_received(flow)

    def _agree(self) -> None:
        """What a catalog says is so only when both planes have agreed."""
        for home in self.homes:
            home.vms.reconcile()

    # the end

    def mend(self) -> None:
        """Nothing goes wrong any more, and all is sent."""
        for home in self.homes:
            home.is_full, home.killed_in, home.meanwhile = False, None, lambda: None
            if home.process is not None:
                home.process.dies_in = None
        self._revive()
        self._agree()
        for flow in self._all():
            for connection in list(flow.connections):
                self._guard(lambda flow=flow, connection=connection: flow.drop(connection))  # type: ignore[misc]
            flow.retry = None
            self.learn(flow.source)
        for _ in range(MEND_STEPS_MAX):
            self._revive()
            open_flows = [flow for flow in self._all() if flow.connections or (not flow.is_refused and flow.queue())]
            if not open_flows:
                break
            for flow in open_flows:
                if flow.connections or flow.connect():
                    flow.move(flow.connections[0])
        else:
            raise Wrong(f"after {MEND_STEPS_MAX} steps not all was sent")

    def check(self) -> None:
        self._agree()
        for copy in self.copies:
            copy.check()
        for flow in self.flows:
            self._check_flow(flow)
        for home in self.homes:
            self._check_home(home)

    def _check_received(self, flow: Flow) -> list[SnapshotRow]:
        """What can be seen at the target is whole, and in order."""
        vm = flow.target.catalog.vm_of_uuid(flow.vm_uuid)
        rows = [] if vm is None else flow.target.catalog.snapshots(vm.id)
        for row in rows:
            wanted = self.contents.get(row.uuid)
            if wanted is None:
                raise Wrong(f"{flow.vm_name}@{row.name} was never taken")
            if read(flow.target, row) != wanted:
                raise Wrong(f"{flow.vm_name}@{row.name} is not what it was at its source")
        there = [row.uuid for row in rows]
        at_source = [row.uuid for row in flow.source.catalog.snapshots(flow.vm_id) if row.uuid in there]
        if [one for one in there if one in at_source] != at_source:
            raise Wrong(f"{flow.vm_name}: the snapshots are there in another order")
        return rows

    def _check_flow(self, flow: Flow) -> None:
        there = {row.uuid for row in self._check_received(flow)}
        if flow.queue() or not flow.done:
            raise Wrong(f"{flow.vm_name}: not all was sent")
        if flow.done - flow.deleted - there:
            raise Wrong(f"{flow.vm_name}: of {len(flow.done)} snapshots that were sent some are lost")
        blocks = {block for one in self.contents.values() for disk in one.values() for block in blocks_of(disk)}
        bytes_max = len(blocks) * BLOCK + flow.spare_bytes
        if flow.sent_bytes > bytes_max:
            raise Wrong(f"{flow.vm_name}: {flow.sent_bytes} bytes of blocks were sent, {bytes_max} at most had to be")

    # disaster, and back

    def reverse(self) -> None:
        """In some lives: the target is promoted, goes on, and the former source receives what differs."""
        flow = self.flows[0]
        vm = flow.target.catalog.vm_of_uuid(flow.vm_uuid)
        rows = [] if vm is None else flow.target.catalog.snapshots(vm.id)
        if vm is None or not rows or self.choice.random() < 0.6:
            return
        flow.target.vms.promote(vm.name)
        heads = {disk.name: flow.target.pool.find(disk.export) for disk in flow.target.vms.show_vm(vm.name).disks}
        if {name: head.read(0, head.size_bytes) for name, head in heads.items()} != self.contents[rows[-1].uuid]:
            raise Wrong(f"{vm.name} was promoted to something else than its newest snapshot")
        self._refuse_after_promotion(flow)
        touched = self._write(flow.target, vm.name)
        taken = flow.target.vms.create_snapshot(vm.name)
        back = self._protect_back(flow, vm.name, taken.lsn)
        self.flows = [back, *self.flows[1:]]
        self.mend()
        self.check()
        self._check_only_difference(back, rows[-1].uuid, taken.uuid, touched)
        self.counts["reversals"] += 1

    def _refuse_after_promotion(self, flow: Flow) -> None:
        flow.source.vms.create_snapshot(flow.vm_name)
        while not flow.is_refused:
            if not flow.connections and not flow.connect():
                raise Wrong(f"{flow.vm_name} was sent to where it was promoted")
            flow.move(flow.connections[0])

    def _protect_back(self, flow: Flow, name: str, lsn: int) -> Flow:
        source, target = flow.target, flow.source
        peers = target.catalog.peers()
        peer_id = peers[0].id if peers else add_peer(target.catalog, "peer")
        target.vms.demote(flow.vm_name, peer_id)
        row = source.catalog.vm(name)
        assert row is not None
        with source.catalog.transaction():
            paths = source.catalog.paths()
            path_id = paths[0].id if paths else source.catalog.insert_path("there", "other", 10810, "ssh-ed25519 x", 3, "{}", NOW)
            source.catalog.put_protection(row.id, path_id, None, None, lsn, NOW)
        return Flow(self, source, target, name)

    def _check_only_difference(self, flow: Flow, base_uuid: str, newer_uuid: str, touched: int) -> None:
        """Of an engine that has forgotten fingerprints also what was written again as it was."""
        if not flow.target.catalog.snapshots_of_uuid(base_uuid):
            return  # it was deleted there: nobody can compare with it
        older, newer = self.contents[base_uuid], self.contents[newer_uuid]
        changed = sum(
            before != after
            for disk, content in newer.items()
            for before, after in zip_longest(blocks_of(older.get(disk, b"")), blocks_of(content))
        )
        if flow.sent_bytes > (max(changed, touched) if flow.target in self.forgetful else changed) * BLOCK:
            raise Wrong(f"{flow.vm_name}: {flow.sent_bytes} bytes went back where {changed} blocks differ")

    def _check_home(self, home: Home) -> None:
        home.vms.reconcile()
        again = home.vms.reconcile()
        if again != Agreement(missing=again.missing) or again.missing:
            raise Wrong(f"a second agreement changed more: {again}")
        home.vms.drop_stale_receipts("9999-01-01T00:00:00.000Z")
        left = [thing.name for thing in home.engine.objects() if "~" in str(thing.name)]
        if left or home.catalog.receipts() or home.catalog.receipt_disks() or home.catalog.intents():
            raise Wrong(f"left over: {left}, {home.catalog.receipts()}")
        findings = home.pool.check()
        if findings:
            raise Wrong(f"check found {findings}")


def read(home: Home, row: SnapshotRow) -> Content:
    """All that a snapshot holds, from the pool itself."""
    disks = home.catalog.snapshot_disks(row.id)
    things = {disk.name: home.pool.get(disk.object_id or 0) for disk in disks}
    return {name: thing.read(0, thing.size_bytes) for name, thing in things.items()}


def blocks_of(content: bytes) -> list[bytes]:
    return [content[place : place + BLOCK] for place in range(0, len(content), BLOCK)]
