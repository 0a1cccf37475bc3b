"""What one may ask of a pool at random: single steps for scenarios, and mixes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias

from blockdev.policies import COMPRESSIONS, DEDUPS, DiskPolicy, PoolPolicy
from tests.engine.content import block_data
from tests.engine.model import BLOCK, SECTOR
from tests.torture.world import World

MIB = 1 << 20
KINDS = ("noise", "noise", "noise", "repeat", "repeat", "text", "zero")
VDISKS_MAX, SNAPSHOTS_MAX = 6, 12
NAMES = ("vm/root", "vm/data", "vm/root@a", "b", "ü", "x" * 255)
ANY_SECTORS = (1, 2, 7, 8, 8, 8, 9, 16, 17, 40, 64, 129)

Action: TypeAlias = Callable[[World, Random], None]


def place(world: World, disk: int, chosen: Random, sectors: Sequence[int]) -> tuple[int, int]:
    """Offset and length of a range inside a disk, small disks and its end included."""
    total = world.size(disk) // SECTOR
    count = min(chosen.choice(sectors), total)
    if count % 8 == 0 and chosen.random() < 0.8:
        first = chosen.randrange((total - count) // 8 + 1) * 8
    else:
        first = chosen.choice((0, total - count, chosen.randrange(total - count + 1)))
    return first * SECTOR, count * SECTOR


def write(
    world: World,
    disk: int,
    chosen: Random,
    sectors: Sequence[int] = ANY_SECTORS,
    kinds: Sequence[str] = KINDS,
    fua: bool = False,
) -> None:
    offset, length = place(world, disk, chosen, sectors)
    world.write(disk, offset, block_data(chosen.choice(kinds), chosen.randrange(1 << 30), length), fua)


def writes(world: World, disk: int, chosen: Random, count: int, sectors: Sequence[int] = ANY_SECTORS) -> None:
    for _ in range(count):
        write(world, disk, chosen, sectors)


def fill(world: World, disk: int, chosen: Random, blocks: int, first: int = 0) -> None:
    """New blocks in order, in one write each MiB."""
    for block in range(first, first + blocks, 256):
        count = min(256, first + blocks - block)
        world.write(disk, block * BLOCK, chosen.randbytes(count * BLOCK))


def zero(world: World, disk: int, chosen: Random, sectors: Sequence[int] = (1, 8, 9, 64, 500, 4096)) -> None:
    world.zero(disk, *place(world, disk, chosen, sectors), discard=chosen.random() < 0.5)


# --- steps of a mix -----------------------------------------------------------------------------------------------------


def _disk(world: World, chosen: Random) -> int:
    return chosen.choice(world.state.vdisks())


def _free_name(world: World, chosen: Random) -> str | None:
    taken = {thing.name for thing in world.state.things.values()}
    return chosen.choice([None, *(name for name in NAMES if name not in taken)])


def _size(chosen: Random) -> int:
    return chosen.choice((chosen.randrange(1, 2 * MIB // SECTOR) * SECTOR, 1 * MIB, 3 << 30, (600 << 30) + SECTOR))


def _create(world: World, chosen: Random) -> None:
    if len(world.state.vdisks()) < VDISKS_MAX:
        world.create((_size(chosen), _free_name(world, chosen), chosen.randbytes(chosen.randrange(12))))


def _write(world: World, chosen: Random) -> None:
    writes(world, _disk(world, chosen), chosen, chosen.choice((1, 1, 2, 5)))


def _fua(world: World, chosen: Random) -> None:
    write(world, _disk(world, chosen), chosen, fua=True)


def _zero(world: World, chosen: Random) -> None:
    zero(world, _disk(world, chosen), chosen)


def _flush(world: World, chosen: Random) -> None:
    world.flush(chosen.choice((None, _disk(world, chosen))))


def _snapshot(world: World, chosen: Random) -> None:
    disks = world.state.vdisks()
    if len(world.state.snapshots()) + len(disks) < SNAPSHOTS_MAX:
        picked = sorted(chosen.sample(disks, chosen.randrange(1, len(disks) + 1)))
        names = [_free_name(world, chosen)] + [None] * len(picked)
        world.snapshot(*((disk, name, b"s") for disk, name in zip(picked, names, strict=False)))


def _clone(world: World, chosen: Random) -> None:
    snapshots = world.state.snapshots()
    room = VDISKS_MAX - len(world.state.vdisks())
    if snapshots and room > 0:
        count = chosen.randrange(1, room + 1)
        world.clone(*((chosen.choice(snapshots), None, b"c") for _ in range(count)))


def _restore(world: World, chosen: Random) -> None:
    snapshots = world.state.snapshots()
    if snapshots:
        snapshot = chosen.choice(snapshots)
        origin = world.state.things[snapshot].origin
        alive = origin in world.state.things and not world.state.things[origin].snapshot
        world.restore((origin if alive else _disk(world, chosen), snapshot))


def _relabel(world: World, chosen: Random) -> None:
    one, other = (chosen.choice(sorted(world.state.things)) for _ in range(2))
    things = world.state.things
    if one == other:
        world.relabel((one, _free_name(world, chosen), b"r"))
    else:
        world.relabel((one, things[other].name, b"1"), (other, things[one].name, b""))


def any_policy(chosen: Random) -> DiskPolicy:
    return DiskPolicy(chosen.choice((None, *COMPRESSIONS)), chosen.choice((None, *DEDUPS)))


def _policy(world: World, chosen: Random) -> None:
    if chosen.random() < 0.3:
        world.set_policy(PoolPolicy(chosen.choice(COMPRESSIONS), chosen.randrange(1, 20), chosen.choice(DEDUPS)))
    else:
        world.set_disk_policies((_disk(world, chosen), any_policy(chosen)))


def _delete(world: World, chosen: Random) -> None:
    disks, snapshots = world.state.vdisks(), world.state.snapshots()
    if len(disks) > 2 and chosen.random() < 0.4:
        world.delete(chosen.choice(disks))
    elif snapshots:
        world.delete(*chosen.sample(snapshots, min(len(snapshots), chosen.choice((1, 1, 2)))))


def _resize(world: World, chosen: Random) -> None:
    disk = _disk(world, chosen)
    size = world.size(disk)
    near = max(size + chosen.randrange(-20, 20) * SECTOR, SECTOR)
    world.resize(disk, chosen.choice((near, near, _size(chosen))))


def _checkpoint(world: World, _chosen: Random) -> None:
    world.checkpoint()


def _compact(world: World, chosen: Random) -> None:
    world.compact(lambda: mix(world, chosen, 1, IO) if chosen.random() < 0.5 else None)


def _forget(world: World, _chosen: Random) -> None:
    world.forget()


def _inspect(world: World, _chosen: Random) -> None:
    world.inspect()


def _reopen(world: World, _chosen: Random) -> None:
    world.reopen()


IO: dict[Action, int] = {_write: 12, _fua: 2, _zero: 3, _flush: 4, _checkpoint: 2, _forget: 1}
OBJECTS: dict[Action, int] = {
    _create: 1,
    _snapshot: 3,
    _clone: 2,
    _restore: 2,
    _relabel: 1,
    _policy: 1,
    _delete: 2,
    _resize: 2,
    _inspect: 1,
    _reopen: 1,
    _compact: 1,
}
ALL = {**IO, **OBJECTS}


def mix(world: World, chosen: Random, count: int, weights: dict[Action, int]) -> None:
    """`count` random steps on what is there; a disk is made if there is none."""
    if not world.state.vdisks():
        world.create((1 * MIB, None, b""))
    for action in chosen.choices(list(weights), list(weights.values()), k=count):
        action(world, chosen)
