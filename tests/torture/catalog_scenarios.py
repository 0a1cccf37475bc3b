"""What the catalog's torture does: a whole control plane and engine on one home, and stories of VM operations on it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import xxhash

from blockdev import Pool
from blockdev.api.unfinished import Unfinished
from blockdev.engine.attachments import Attachments
from blockdev.engine.client import EngineClient
from blockdev.engine.server import EngineServer
from blockdev.policies import COMPRESSIONS
from blockdev.vmmap.catalog import Catalog
from blockdev.vmmap.catalog_schema import SCHEMA_VERSION, config_digest
from blockdev.vmmap.copies import SnapshotCopy
from blockdev.vmmap.receipts import Receipt
from blockdev.vmmap.reserve import ReserveSize
from blockdev.vmmap.service import VMs
from tests.vmmap.receiving import ALL_OPERATIONS, FAR, NEWCOMER, build_receiving
from tests.vmmap.world import CUSTOM_CLONES, MEBIBYTE, Clock, Observation, copy_of, observe, sent_copy

BLOCK_BYTES = 4096
SMALL_RESERVE = ReserveSize(64 << 10, 12)  # so that states are written in no time, and it is used up at times


class Machine:
    """Both planes of the home at `path`, in this process, on real sockets and files."""

    def __init__(self, path: str, at_step: Callable[[str], None] | None = None) -> None:
        """Nothing is agreed upon yet."""
        self._path, self._at_step = path, at_step
        self._start_engine()
        self._start_control()

    def _start_engine(self) -> None:
        self.pool = Pool.open(
            os.path.join(self._path, "pool"), dedup_bytes=1 << 20, map_cache_bytes=1 << 16, background=False
        )
        self._server = EngineServer(self.pool, Attachments(), os.path.join(self._path, "engine.sock"))
        self._server.start()

    def _start_control(self) -> None:
        self.engine = EngineClient(os.path.join(self._path, "engine.sock"))
        self.catalog = Catalog(os.path.join(self._path, "catalog.db"), SMALL_RESERVE)
        self.vms = VMs(self.catalog, self.engine, clock=Clock(), at_step=self._at_step)
        self.unfinished = Unfinished(self.vms)

    def _stop_control(self) -> None:
        self.catalog.close()
        self.engine.close()

    def _stop_engine(self) -> None:
        self._server.stop()
        self.pool.close()

    def restart_control(self) -> None:
        self._stop_control()
        self._start_control()
        self.agree()

    def restart_engine(self) -> None:
        """The next change finds another engine and agrees first."""
        self._stop_engine()
        self._start_engine()

    def agree(self) -> None:
        """What the daemon does when it starts."""
        self.vms.reconcile()
        self.unfinished.sweep()

    def observe(self) -> Observation:
        return observe(self.vms, self.pool, content_of)

    def stop(self) -> None:
        self._stop_control()
        self._stop_engine()


@contextmanager
def running(path: str, at_step: Callable[[str], None] | None = None) -> Iterator[Machine]:
    machine = Machine(path, at_step)
    try:
        yield machine
    finally:
        machine.stop()


def content_of(pool: Pool, export: str, size_bytes: int) -> tuple[int, str]:
    """All that the disk holds, in short."""
    thing = pool.find(export)
    assert thing.size_bytes == size_bytes, f"{export}: the catalog says {size_bytes}, not {thing.size_bytes}"
    found = xxhash.xxh3_64()
    for offset, length, state in thing.extents(0, size_bytes):
        if state == "data":
            found.update(offset.to_bytes(8, "little") + thing.read(offset, length))
    return size_bytes, found.hexdigest()


Step = Callable[[Machine], object]


def write(export: str, block: int, byte: int) -> Step:
    """One block of a guest's, flushed: acknowledged as a whole or not."""

    def step(machine: Machine) -> None:
        machine.pool.find(export).write(block * BLOCK_BYTES, bytes([byte]) * BLOCK_BYTES)
        machine.pool.flush()

    return step


def operation(name: str) -> Step:
    return lambda machine: ALL_OPERATIONS[name](machine.vms)


def call(method: str, *arguments: Any, **named: Any) -> Step:
    """One operation of VMs."""
    return lambda machine: getattr(machine.vms, method)(*arguments, **named)


def _create_from_images(machine: Machine) -> None:
    """As blockdev.api.imports does it, with a guest's writes in the place of qemu-img's."""
    with machine.unfinished.vm("imported", [("empty", MEBIBYTE)], "<imported/>", "from two images"):
        for number, disk in enumerate(("root", "data"), 1):
            begun = machine.vms.begin_import("imported", disk, MEBIBYTE, create=True)
            target = machine.pool.find(begun.export)
            for block in range(3):
                target.write(block * 5 * BLOCK_BYTES, bytes([number]) * BLOCK_BYTES)
            target.flush()
            machine.vms.finish_import(begun.id)


def _import_over(machine: Machine) -> None:
    begun = machine.vms.begin_import("web", "root", 2 * MEBIBYTE, create=False)
    target = machine.pool.find(begun.export)
    target.write(7 * BLOCK_BYTES, b"i" * BLOCK_BYTES)
    target.flush()
    machine.vms.finish_import(begun.id)


def _clone_customized(machine: Machine) -> None:
    """As blockdev.api.customize does it; what a seed holds is known by its clone."""

    def write_seeds(exports: list[str]) -> None:
        for number, export in enumerate(exports, 1):
            machine.pool.find(export).write(2 * BLOCK_BYTES, bytes([number]) * BLOCK_BYTES)
        machine.pool.flush()

    machine.vms.clone_customized("web", "s1", CUSTOM_CLONES, write_seeds)


def _copy_from_elsewhere(machine: Machine) -> None:
    """As blockdev.api.streams does it, with a guest's writes in the place of NBD's: a VM, and one more snapshot for it."""
    whole = copy_of(machine.vms, None)
    _fill_copy(machine, whole)
    second = "22222222-2222-4333-8444-555555555555"
    _fill_copy(machine, whole._replace(uuid=second, name="farther", base_uuid=whole.uuid, base_name=whole.name))


def _fill_copy(machine: Machine, copy: SnapshotCopy) -> None:
    begun = machine.vms.begin_copy(copy)
    for number, export in enumerate(begun.exports, 1):
        target = machine.pool.find(export)
        target.write(BLOCK_BYTES, bytes([number + len(copy.name)]) * BLOCK_BYTES)
        target.flush()
    machine.vms.finish_copy(begun)


class Receiver:
    """A peer that sends one snapshot, as blockdev.replicate.store takes it; what a block holds is known by its number."""

    def __init__(self, copy: SnapshotCopy, *ancestors: int) -> None:
        self._copy = copy
        self._ancestors = [sent_copy(number).uuid for number in ancestors]

    def _begin(self, machine: Machine) -> Receipt:
        peer = machine.catalog.peer("east")
        receipt = None if peer is None else machine.vms.begin_receipt(peer.id, "protect", self._copy, self._ancestors)
        assert receipt is not None
        return receipt

    def receive(self, machine: Machine) -> None:
        """Some more blocks of each disk; from then on they are here whatever happens."""
        receipt = self._begin(machine)
        places = [min(disk.next_block + 5, disk.size_bytes // BLOCK_BYTES) for disk in receipt.disks]
        for disk, end in zip(receipt.disks, places, strict=True):
            for block in range(disk.next_block, end):
                machine.pool.get(disk.object_id).write(block * BLOCK_BYTES, bytes([1 + block]) * BLOCK_BYTES)
        machine.vms.make_receipt_durable(receipt)
        machine.vms.save_receipt(receipt, places, receipt.data_bytes + 5 * BLOCK_BYTES)

    def finish(self, machine: Machine) -> None:
        receipt = self._begin(machine)
        machine.vms.finish_receipt(receipt, machine.vms.receipt_digests(receipt))


def _received(copy: SnapshotCopy, *ancestors: int) -> list[Step]:
    """Both processes are restarted while it comes."""
    peer = Receiver(copy, *ancestors)
    return [
        *(peer.receive, peer.receive, Machine.restart_control, peer.receive),
        *(Machine.restart_engine, peer.receive, peer.finish),
    ]


def _demote(vm: str) -> Step:
    return lambda machine: machine.vms.demote(vm, machine.catalog.peers()[0].id)


def _export_running(machine: Machine) -> None:
    """As blockdev.api.exports does it: a snapshot for as long as it is read."""
    with machine.unfinished.snapshot("web", "for-export"):
        machine.pool.find("web/root@for-export").read(0, BLOCK_BYTES)


def _checkpoint(machine: Machine) -> None:
    machine.pool.checkpoint()


def _any_operations(chosen: Random) -> Iterator[Step]:
    """Operations that can be done on what is there, with names that were never used, by VMs that may have gone."""
    names: dict[str, list[str]] = {"web": ["s1", "s2"], "db": ["s1"]}  # VM -> its snapshots
    for number in range(8):
        vm, new = chosen.choice(sorted(names)), f"vm{number}"
        kinds = ["create", "delete", "rename", "snapshot", "add disk", "write", "policy"]
        kind = chosen.choice(kinds + (["forget", "clone", "restore"] if names[vm] else []))
        if kind == "create" or len(names) == 1:
            names[new] = []
            yield call("create_vm", new, [("root", MEBIBYTE), ("data", 512)], "<c/>")
        elif kind == "delete":
            del names[vm]
            yield call("delete_vm", vm)
        elif kind == "rename":
            names[new] = names.pop(vm)
            yield call("rename_vm", vm, new)
        elif kind == "snapshot":
            names[vm].append(new)
            yield call("create_snapshot", vm, new)
        elif kind == "forget":
            yield call("delete_snapshot", vm, names[vm].pop())
        elif kind == "clone":
            names.update({f"{new}-1": [], f"{new}-2": []})
            yield call("clone_many", vm, names[vm][0], 2, new)
        elif kind == "restore":
            yield call("restore", vm, chosen.choice(names[vm]))
        elif kind == "policy":
            yield call("set_policy", vm, {"compression": chosen.choice(COMPRESSIONS), "dedup": None})
        elif kind == "add disk":
            yield call("add_disk", vm, new, 4096)
        else:
            yield write(f"{vm}/root", chosen.randrange(128), number + 1)


def _any_receiving(chosen: Random) -> Iterator[Step]:
    """What can happen to a VM of a peer, in any order, and the peer's part of it."""
    name, here, newest, is_begun, is_promoted = FAR, [1, 2], 3, True, False
    for number in range(10):
        kinds = ["restart control", "restart engine", *(["rename", "clone"] if here else [])]
        if is_promoted:
            kinds += ["write", "demote", "demote"]
        else:
            kinds += ["receive", "receive", "finish", "finish", *(["promote", "forget", "delete"] if here else ["drop"])]
        kind = chosen.choice(kinds)
        if kind in ("receive", "finish"):
            newest += not is_begun
            is_begun = kind == "receive"
            yield getattr(Receiver(sent_copy(newest), *range(newest - 1, 0, -1)), kind)
            here += [] if is_begun else [newest]
        elif kind == "rename":
            yield call("rename_vm", name, f"vm{number}")
            name = f"vm{number}"
        elif kind == "clone":
            yield call("clone", name, f"far-{chosen.choice(here)}", f"clone{number}")
        elif kind == "write":
            yield write(f"{name}/root", chosen.randrange(128), number + 1)
        elif kind == "promote":
            is_begun, is_promoted = False, True
            yield call("promote", name, f"far-{chosen.choice(here)}")
        elif kind == "demote":
            is_promoted = False
            yield _demote(name)
        elif kind == "forget":
            yield call("delete_snapshot", name, f"far-{here.pop(chosen.randrange(len(here)))}")
        elif kind == "delete":
            yield call("delete_vm", name, force=True)
            name, here, is_begun = FAR, [], False
        elif kind == "drop":
            is_begun = False
            yield operation("drop what nobody goes on with")
        else:
            yield Machine.restart_control if kind == "restart control" else Machine.restart_engine


def _large_configuration(number: int) -> Step:
    """Enough pages for SQLite to take its log into the database after a few of them, and to begin it anew."""
    text = f"<spare>{number}</spare>" * 50_000
    return call("set_config", "spare", text)


def _story(steps: Sequence[Step]) -> Callable[[Random], Iterable[Step]]:
    return lambda _chosen: steps


STORIES: dict[str, Sequence[Step]] = {
    "of_version_1": [
        operation("set a policy"),
        operation("add a disk"),
        Machine.restart_control,
        operation("clone what runs"),
    ],
    "of_version_2": [
        operation("create a snapshot with terms"),
        Machine.restart_control,
        operation("change a snapshot"),
        operation("expire snapshots"),
    ],
    "of_version_3": [
        operation("create a snapshot"),
        Machine.restart_control,
        operation("clone what runs"),
    ],
    "of_version_4": [
        operation("create a snapshot"),
        Machine.restart_control,
        operation("clone what runs"),
    ],
    "of_version_5": [
        operation("receive a snapshot"),
        Machine.restart_control,
        operation("receive a copy"),
    ],
    "of_version_6": [
        operation("set a configuration"),
        Machine.restart_control,
        operation("restore a VM"),
        operation("receive a snapshot"),
    ],
    "the_first_start": [
        call("create_vm", "first", [("a", MEBIBYTE), ("b", MEBIBYTE)], "<first/>", "the first"),
        write("first/a", 3, 7),
        call("create_snapshot", "first", "s1"),
    ],
    "a_life": [
        call("create_vm", "a", [("root", MEBIBYTE), ("data", MEBIBYTE)], "<a/>"),
        write("a/root", 1, 1),
        call("create_snapshot", "a", "s1", "one"),
        write("a/root", 2, 2),
        call("clone_many", "a", "s1", 3, "b"),
        call("rename_vm", "a", "c"),
        call("restore", "c", "s1"),
        call("delete_snapshot", "c", "s1"),
        call("delete_vm", "c"),
        call("create_vm", "c", [("root", MEBIBYTE)]),
    ],
    "one_name_again_and_again": [
        call("delete_vm", "web"),
        call("create_vm", "web", [("root", 2 * MEBIBYTE)], "<other/>", "another web"),
        call("rename_vm", "db", "old-db"),
        call("rename_vm", "web", "db"),
        call("clone", "old-db", None, "web"),
    ],
    "restored_twice": [
        call("restore", "web", "s1"),
        write("web/root", 9, 9),
        call("restore", "web", "s2", disk="root"),
        call("restore", "web", "s1", disk="old"),
    ],
    "clones_with_seeds": [
        _clone_customized,
        call("create_snapshot", "copy-2", "s1"),
        call("restore_beside", "copy-2", "s1", "copy-3"),
        call("restore_beside", "web", "s1", "older", disk="root"),
    ],
    "a_VM_from_images": [_create_from_images, call("create_snapshot", "imported", "s1")],
    "an_import_over_a_disk": [_import_over, call("rename_vm", "web", "www")],
    "snapshots_from_elsewhere": [_copy_from_elsewhere, call("rename_vm", "far-away", "near")],
    "snapshots_of_a_peer": [*_received(sent_copy(4), 2, 1), *_received(sent_copy(5), 4, 3, 2, 1)],
    "a_VM_of_a_peer": _received(NEWCOMER),
    "there_and_back": [
        call("promote", FAR),
        write(f"{FAR}/root", 3, 3),
        call("create_snapshot", FAR, "own"),
        write(f"{FAR}/root", 4, 4),
        _demote(FAR),
        Receiver(sent_copy(6), 2, 1).receive,
        Receiver(sent_copy(6), 2, 1).finish,
        call("promote", FAR),
    ],
    "an_export_of_what_runs": [_export_running, call("set_description", "web", "exported")],
    "checkpoints_in_between": [
        operation("create a VM"),
        _checkpoint,
        operation("rename a VM"),
        _checkpoint,
        call("clone_many", "www", "s1", 2, "copy"),
    ],
    "SQLite_begins_its_log_anew": [
        *(_large_configuration(number) for number in range(6)),
        operation("create a snapshot"),
        operation("delete a VM without disks"),
    ],
    "the_control_plane_restarts": [
        operation("add a disk"),
        Machine.restart_control,
        operation("clone what runs"),
        Machine.restart_control,
        operation("remove a disk"),
    ],
    "the_engine_restarts": [
        operation("create a snapshot"),
        Machine.restart_engine,
        operation("restore a VM with a disk that is gone"),
        Machine.restart_engine,
        operation("delete a VM"),
    ],
}

FROM_POOL_ONLY = {"catalog_the_first_start"}  # its home has no catalog yet
FROM_VERSIONS = {f"catalog_of_version_{version}": version for version in range(1, SCHEMA_VERSION)}
CATALOG_SCENARIOS: dict[str, Callable[[Random], Iterable[Step]]] = {
    **{f"catalog_{name.replace(' ', '_')}": _story([operation(name)]) for name in ALL_OPERATIONS},
    **{f"catalog_{name}": _story(steps) for name, steps in STORIES.items()},
    "catalog_any_operations": _any_operations,
    "catalog_any_receiving": _any_receiving,
}


def build_pool(path: str) -> None:
    """A home before its first start."""
    Pool.create(os.path.join(path, "pool"), 64 << 20, segment_bytes=1 << 20).close()


PASSWORD = "pa55word"
# version -> what makes a catalog of the next version one of it
DOWNGRADES = {
    6: f"UPDATE config SET text = text || '<graphics type=\"vnc\" passwd=\"{PASSWORD}\"/>';"  # only texts are others
    "UPDATE config SET digest = config_digest(text);",
    5: "DROP TABLE target_lun; DROP TABLE target_initiator; DROP TABLE target_portal; DROP TABLE target;",
    4: "".join(
        f"DROP TABLE {table};"
        for table in (
            *("replication_sample", "transfer", "receipt_disk", "receipt", "made_vm", "received_vm", "protection", "path", "peer"),
        )
    )
    + "DROP INDEX snapshot_vm; ALTER TABLE snapshot_disk DROP COLUMN digest;",
    3: "DROP TABLE domain; DROP TABLE hypervisor; DROP TABLE job; DROP TABLE token; DROP INDEX snapshot_uuid; DROP INDEX snapshot_uncounted;"
    "ALTER TABLE snapshot DROP COLUMN changed_bytes; ALTER TABLE snapshot DROP COLUMN uuid;",
    2: "DROP TABLE event; DROP TABLE schedule_run; DROP TABLE schedule;"
    "DROP INDEX snapshot_schedule; DROP INDEX snapshot_expires;"
    + "".join(
        f"ALTER TABLE snapshot DROP COLUMN {column};"
        for column in ("due", "schedule", "locked_until", "expires", "frozen_ms", "asked")
    )
    + "ALTER TABLE vm DROP COLUMN agent; ALTER TABLE vm DROP COLUMN own_schedules;",
    1: "ALTER TABLE vm DROP COLUMN dedup; ALTER TABLE vm DROP COLUMN compression;",
}


def build_world_of_version(path: str, version: int) -> None:
    """The same world, its catalog as the builds of an earlier version left it."""
    build_world(path)
    database = sqlite3.connect(os.path.join(path, "catalog.db"))
    database.create_function("config_digest", 1, config_digest)
    steps = [DOWNGRADES[step] for step in range(SCHEMA_VERSION - 1, version - 1, -1)]
    database.executescript(f"{' '.join(steps)} PRAGMA user_version = {version};")
    database.close()


def build_world(path: str) -> None:
    """The home that most scenarios start from."""
    build_pool(path)
    with running(path) as machine:
        build_receiving(machine.vms, machine.pool)
        for export, block in (("web/root", 11), ("web/data", 200), ("db/root", 5)):
            write(export, block, block)(machine)
