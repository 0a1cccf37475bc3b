"""The scenarios: each drives a pool through one kind of work, the details by a seed.

A scenario starts on a pool that was created and closed (`FROM_NOTHING`: in an empty directory), asks what it wants, and
ends when it likes: the power is cut at every place in it, so nothing needs to be closed.
"""

from __future__ import annotations

from random import Random

from blockdev.policies import COMPRESSIONS, DEDUPS, DiskPolicy, PoolPolicy
from tests.engine.content import block_data, distinct_blocks
from tests.engine.model import BLOCK, SECTOR
from tests.torture import actions
from tests.torture.actions import MIB, Action, fill, mix, write, writes, zero
from tests.torture.world import World

SCENARIOS: dict[str, Action] = {}
FROM_NOTHING = {"pool_creation", "pool_creation_then_use"}
LEAF = 512 * BLOCK  # what one leaf of a map covers


def scenario(function: Action) -> Action:
    SCENARIOS[function.__name__] = function
    return function


def a_disk(world: World, size_bytes: int = MIB, name: str | None = None) -> int:
    return world.create((size_bytes, name, b""))[0]


def maybe_flush(world: World, chosen: Random, chance: float = 0.15) -> None:
    if chosen.random() < chance:
        world.flush()


# --- writes -------------------------------------------------------------------------------------------------------------


@scenario
def sector_writes(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for _ in range(60):
        write(world, disk, chosen, (1, 2, 3, 5, 7))
        maybe_flush(world, chosen)


@scenario
def block_writes(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for _ in range(60):
        write(world, disk, chosen, (8, 8, 16, 32))
        maybe_flush(world, chosen)


@scenario
def unaligned_writes(world: World, chosen: Random) -> None:
    disk = a_disk(world, MIB + 3 * SECTOR)
    for _ in range(50):
        write(world, disk, chosen, (9, 11, 17, 23, 65, 127))
        maybe_flush(world, chosen)


@scenario
def large_writes(world: World, chosen: Random) -> None:
    disk = a_disk(world, 2 * MIB)
    for _ in range(6):
        write(world, disk, chosen, (512, 1000, 1024, 1203), ("noise", "text"))
        maybe_flush(world, chosen, 0.3)


@scenario
def overwrites(world: World, chosen: Random) -> None:
    disk = a_disk(world, 16 * BLOCK)
    for _ in range(100):
        write(world, disk, chosen, (1, 8, 8, 24))
        maybe_flush(world, chosen)


@scenario
def overwrites_without_flush(world: World, chosen: Random) -> None:
    disk = a_disk(world, 4 * BLOCK)
    writes(world, disk, chosen, 300, (8, 8, 1))


@scenario
def flush_after_each_write(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for _ in range(40):
        write(world, disk, chosen)
        world.flush(disk)


@scenario
def flushes_of_several_disks(world: World, chosen: Random) -> None:
    disks = world.create(*((MIB // 2, f"d{number}", b"") for number in range(3)))
    for _ in range(60):
        write(world, chosen.choice(disks), chosen)
        if chosen.random() < 0.2:
            world.flush(chosen.choice(disks))


@scenario
def fua_writes(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for _ in range(50):
        write(world, disk, chosen, fua=chosen.random() < 0.5)


@scenario
def fua_on_another_disk(world: World, chosen: Random) -> None:
    quiet, loud = world.create((MIB, None, b""), (MIB, None, b""))
    for _ in range(25):
        writes(world, loud, chosen, 2)
        write(world, quiet, chosen, (1, 8), fua=True)


@scenario
def fua_of_what_is_there(world: World, chosen: Random) -> None:
    """The second write of the same bytes changes nothing, and must make the first one durable."""
    disk = a_disk(world)
    for number in range(25):
        data = distinct_blocks(chosen.randrange(1 << 30), 2)
        world.write(disk, number * 2 * BLOCK, data)
        world.write(disk, number * 2 * BLOCK, data, fua=chosen.random() < 0.5)


@scenario
def kept_writes(world: World, chosen: Random) -> None:
    """A client that does not notice the engine's death; the rounds of a few small batches are what it makes of the log."""
    disk = a_disk(world)
    for _ in range(40):
        writes(world, disk, chosen, chosen.choice((1, 1, 3)))
        world.keep(disk)
        maybe_flush(world, chosen, 0.05)


@scenario
def kept_on_another_disk(world: World, chosen: Random) -> None:
    quiet, loud = world.create((MIB, None, b""), (MIB, None, b""))
    for _ in range(25):
        writes(world, loud, chosen, 2)
        if chosen.random() < 0.5:
            zero(world, quiet, chosen)
        world.keep(quiet)
        if chosen.random() < 0.1:
            world.checkpoint()


@scenario
def kept_and_flushed(world: World, chosen: Random) -> None:
    """A batch is closed that has more than was kept: a death in that write must not take what was."""
    disk = a_disk(world)
    for _ in range(20):
        writes(world, disk, chosen, 2, (8, 16))
        world.keep(disk)
        writes(world, disk, chosen, 3, (8, 16, 32))
        world.flush()


@scenario
def kept_of_what_is_there(world: World, chosen: Random) -> None:
    """The second write of the same bytes changes nothing, and the first one may be in memory only."""
    disk = a_disk(world)
    for number in range(25):
        data = distinct_blocks(chosen.randrange(1 << 30), 2)
        world.write(disk, number * 2 * BLOCK, data)
        if chosen.random() < 0.5:
            world.write(disk, number * 2 * BLOCK, data)
            world.keep(disk)


@scenario
def long_without_flush(world: World, chosen: Random) -> None:
    disk = a_disk(world, 2 * MIB)
    writes(world, disk, chosen, 200, (1, 8, 16))


# --- dedup and zeros ----------------------------------------------------------------------------------------------------


@scenario
def repeated_blocks(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for _ in range(60):
        write(world, disk, chosen, (8, 64, 200), ("repeat", "repeat", "noise"))
        maybe_flush(world, chosen)


@scenario
def one_image_on_many_disks(world: World, chosen: Random) -> None:
    image = distinct_blocks(chosen.randrange(1 << 30), 40)
    for number in range(6):
        disk = a_disk(world, MIB // 2)
        for block in range(0, 40, 10):
            world.write(disk, (block + number) * BLOCK, image[block * BLOCK : (block + 10) * BLOCK])
            maybe_flush(world, chosen, 0.3)


@scenario
def repeats_of_unflushed_blocks(world: World, chosen: Random) -> None:
    """A reference to a block that is not durable itself."""
    one, other = world.create((MIB, None, b""), (MIB, None, b""))
    for number in range(30):
        data = distinct_blocks(chosen.randrange(1 << 30), 3)
        world.write(one, number * 3 * BLOCK, data)
        world.write(other, number * 3 * BLOCK, data, fua=chosen.random() < 0.3)


@scenario
def zero_writes(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    writes(world, disk, chosen, 20, (64, 128))
    for _ in range(40):
        write(world, disk, chosen, (8, 9, 64), ("zero", "zero", "noise"))
        maybe_flush(world, chosen)


@scenario
def discards(world: World, chosen: Random) -> None:
    disk = a_disk(world, 2 * MIB + SECTOR)
    for _ in range(30):
        writes(world, disk, chosen, 2, (8, 64, 200))
        zero(world, disk, chosen)
        maybe_flush(world, chosen)


@scenario
def discards_of_whole_leaves(world: World, chosen: Random) -> None:
    disk = a_disk(world, 4 * LEAF)
    for number in range(24):
        for leaf in range(4):
            world.write(disk, leaf * LEAF + number * BLOCK, distinct_blocks(number * 4 + leaf, 1))
        first = chosen.randrange(4)
        world.zero(disk, first * LEAF, chosen.randrange(1, 5 - first) * LEAF, discard=True)
        if number % 5 == 0:
            world.checkpoint()
        maybe_flush(world, chosen)


@scenario
def everything_discarded(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for _ in range(8):
        writes(world, disk, chosen, 8)
        world.zero(disk, 0, world.size(disk), discard=True)
        maybe_flush(world, chosen, 0.5)


# --- snapshots, clones, restores ----------------------------------------------------------------------------------------


@scenario
def snapshots_of_one_disk(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for number in range(8):
        writes(world, disk, chosen, 8)
        world.snapshot((disk, f"s{number}", b"%d" % number))


@scenario
def snapshots_of_several_disks(world: World, chosen: Random) -> None:
    disks = world.create(*((MIB // 2, f"d{number}", b"") for number in range(4)))
    for _ in range(6):
        for disk in disks:
            writes(world, disk, chosen, chosen.randrange(4))
        picked = chosen.sample(disks, chosen.randrange(1, 5))
        world.snapshot(*((disk, None, b"tag") for disk in picked))


@scenario
def deep_snapshots(world: World, chosen: Random) -> None:
    disk = a_disk(world, 64 * BLOCK)
    for _ in range(40):
        write(world, disk, chosen)
        world.snapshot((disk, None, b""))
        if chosen.random() < 0.1:
            world.checkpoint()


@scenario
def snapshots_come_and_go(world: World, chosen: Random) -> None:
    disk = a_disk(world, 64 * BLOCK)
    for _ in range(24):
        writes(world, disk, chosen, 2)
        world.snapshot((disk, None, b""))
        if len(world.state.snapshots()) > 3:
            world.delete(chosen.choice(world.state.snapshots()))
        if chosen.random() < 0.3:
            world.checkpoint()


@scenario
def clones_diverge(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    writes(world, disk, chosen, 20)
    base = world.snapshot((disk, "base", b""))[0]
    for number in range(5):
        clone = world.clone((base, f"c{number}", b"c"))[0]
        writes(world, clone, chosen, 5)
        writes(world, disk, chosen, 3)
        maybe_flush(world, chosen)


@scenario
def many_clones_at_once(world: World, chosen: Random) -> None:
    disks = world.create((MIB // 2, "a", b""), (MIB // 2, "b", b""))
    for disk in disks:
        writes(world, disk, chosen, 10)
    snapshots = world.snapshot(*((disk, None, b"") for disk in disks))
    clones = world.clone(*((chosen.choice(snapshots), f"vm{number}/root", b"") for number in range(20)))
    for clone in clones:
        write(world, clone, chosen, (1, 8))
    world.flush()


@scenario
def clones_of_clones(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for _ in range(10):
        writes(world, disk, chosen, 5)
        disk = world.clone((world.snapshot((disk, None, b""))[0], None, b""))[0]
    writes(world, disk, chosen, 5)
    world.flush()


@scenario
def restores(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    taken = []
    for _ in range(8):
        writes(world, disk, chosen, 6)
        taken += world.snapshot((disk, None, b""))
        writes(world, disk, chosen, 3)
        world.restore((disk, chosen.choice(taken)))


@scenario
def restores_of_several_disks(world: World, chosen: Random) -> None:
    disks = world.create(*((MIB // 2, None, b"") for _ in range(3)))
    for _ in range(4):
        for disk in disks:
            writes(world, disk, chosen, 3)
        snapshots = world.snapshot(*((disk, None, b"") for disk in disks))
        for disk in disks:
            writes(world, disk, chosen, 3)
            world.resize(disk, chosen.randrange(1, MIB // SECTOR) * SECTOR)
        world.restore(*zip(disks, snapshots, strict=True))


@scenario
def relabels(world: World, chosen: Random) -> None:
    disks = world.create(*((MIB, f"d{number}", b"") for number in range(3)))
    for number in range(12):
        write(world, chosen.choice(disks), chosen)
        one, other, third = chosen.sample(disks, 3)
        name = {disk: world.state.things[disk].name for disk in disks}
        world.relabel((one, name[other], b"1"), (other, name[third], b""), (third, name[one], b"x" * number))


@scenario
def policies(world: World, chosen: Random) -> None:
    disks = world.create((MIB, "a", b""), (MIB, "b", b""))
    for number in range(12):
        world.set_disk_policies(*((disk, actions.any_policy(chosen)) for disk in disks))
        writes(world, chosen.choice(disks), chosen, 2)
        if number % 4 == 1:
            world.set_policy(PoolPolicy(chosen.choice(COMPRESSIONS), 1 + number, chosen.choice(DEDUPS)))
        if number % 4 == 3:
            world.checkpoint()


@scenario
def deletes(world: World, chosen: Random) -> None:
    for number in range(8):
        disks = world.create((MIB, f"a{number}", b""), (MIB, f"b{number}", b""))
        for disk in disks:
            writes(world, disk, chosen, 4)
        snapshots = world.snapshot(*((disk, None, b"") for disk in disks))
        doomed = [*disks, *snapshots]
        chosen.shuffle(doomed)
        world.delete(*doomed[:2])
        world.delete(doomed[2])
        if number % 3 == 0:
            world.checkpoint()


@scenario
def records_of_many_slots(world: World, chosen: Random) -> None:
    """Names and tags so long that a record fills several slots, and crosses a segment."""
    tag = chosen.randbytes(1000)
    for _ in range(5):
        disks = world.create(*((MIB, None, tag) for _ in range(60)))
        write(world, chosen.choice(disks), chosen)
        snapshots = world.snapshot(*((disk, None, tag) for disk in disks))
        write(world, chosen.choice(disks), chosen)
        world.delete(*disks, *snapshots)


# --- sizes --------------------------------------------------------------------------------------------------------------


@scenario
def growth(world: World, chosen: Random) -> None:
    disk = a_disk(world, SECTOR)
    for _ in range(16):
        writes(world, disk, chosen, 3)
        world.resize(disk, world.size(disk) * chosen.choice((1, 2, 3)) + chosen.randrange(9) * SECTOR)


@scenario
def growth_of_the_map(world: World, chosen: Random) -> None:
    """Each size needs one level more."""
    disk = a_disk(world, 4 * BLOCK)
    for size in (MIB, 3 << 30, 2 << 40, MIB, 600 << 30):
        writes(world, disk, chosen, 5)
        world.resize(disk, size + chosen.randrange(8) * SECTOR)
        writes(world, disk, chosen, 5)
        if chosen.random() < 0.5:
            world.checkpoint()


@scenario
def shrinking_and_growing(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for _ in range(14):
        writes(world, disk, chosen, 4, (8, 16, 64))
        less = max(world.size(disk) - chosen.randrange(1, 200) * SECTOR, SECTOR)
        world.resize(disk, less)
        if chosen.random() < 0.5:
            world.snapshot((disk, None, b""))
        world.resize(disk, less + chosen.randrange(1, 150) * SECTOR)


# --- checkpoints --------------------------------------------------------------------------------------------------------


@scenario
def one_checkpoint(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    writes(world, disk, chosen, 20)
    world.checkpoint()
    writes(world, disk, chosen, 20)


@scenario
def checkpoints_reuse_slots(world: World, chosen: Random) -> None:
    disk = a_disk(world, 8 * LEAF)
    for _ in range(16):
        for leaf in range(8):
            world.write(disk, leaf * LEAF + chosen.randrange(8) * BLOCK, chosen.randbytes(BLOCK))
        world.checkpoint()


@scenario
def checkpoints_of_shared_maps(world: World, chosen: Random) -> None:
    disk = a_disk(world, 6 * LEAF)
    for _ in range(12):
        for leaf in range(6):
            world.write(disk, leaf * LEAF + chosen.randrange(8) * BLOCK, chosen.randbytes(BLOCK))
        if chosen.random() < 0.5:
            world.snapshot((disk, None, b""))
        if len(world.state.snapshots()) > 2:
            world.delete(world.state.snapshots()[0])
        world.checkpoint()


@scenario
def checkpoints_of_unflushed_writes(world: World, chosen: Random) -> None:
    """The cut falls into a batch that is still open."""
    disk = a_disk(world)
    for _ in range(12):
        writes(world, disk, chosen, chosen.randrange(1, 8), (1, 8))
        world.checkpoint()
        writes(world, disk, chosen, chosen.randrange(4), (1, 8))


@scenario
def checkpoints_among_references(world: World, chosen: Random) -> None:
    """The cut falls into a reference that is still growing."""
    one, other = world.create((MIB, None, b""), (MIB, None, b""))
    image = distinct_blocks(chosen.randrange(1 << 30), 64)
    world.write(one, 0, image)
    for number in range(0, 64, 4):
        world.write(other, number * BLOCK, image[number * BLOCK : (number + 4) * BLOCK])
        if chosen.random() < 0.4:
            world.checkpoint()


@scenario
def empty_checkpoints(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    for _ in range(6):
        writes(world, disk, chosen, 2)
        for _ in range(chosen.randrange(1, 5)):
            world.checkpoint()


@scenario
def checkpoints_and_a_small_cache(world: World, chosen: Random) -> None:
    """Nodes leave the memory and come back from their slots."""
    disk = a_disk(world, 100 * LEAF)
    for _ in range(5):
        for leaf in range(100):
            world.write(disk, leaf * LEAF, chosen.randbytes(BLOCK))
        world.checkpoint()
        world.forget()


# --- segments -----------------------------------------------------------------------------------------------------------


@scenario
def segments_roll(world: World, chosen: Random) -> None:
    disk = a_disk(world, 4 * MIB)
    for number in range(12):
        fill(world, disk, chosen, 64, number * 64)
        world.flush()


@scenario
def segments_roll_unflushed(world: World, chosen: Random) -> None:
    disk = a_disk(world, 4 * MIB)
    fill(world, disk, chosen, 900)
    writes(world, disk, chosen, 5)
    world.flush()
    writes(world, disk, chosen, 5)


@scenario
def segments_roll_in_a_checkpoint(world: World, chosen: Random) -> None:
    disk = a_disk(world, 4 * MIB)
    for number in range(3):
        fill(world, disk, chosen, 230 + chosen.randrange(20), number * 256)
        world.checkpoint()
        writes(world, disk, chosen, 6)


@scenario
def segments_roll_by_records(world: World, chosen: Random) -> None:
    """Each record is a flush: the roll falls between two of them."""
    disk = a_disk(world, 2 * MIB)
    fill(world, disk, chosen, 200)
    for _ in range(40):
        write(world, disk, chosen)
        world.relabel((disk, None, chosen.randbytes(1000)))


# --- no room ------------------------------------------------------------------------------------------------------------


@scenario
def full_file_system(world: World, chosen: Random) -> None:
    """Data is refused; what makes room goes on in the spare segment; then there is room again."""
    disk, other = world.create((4 * MIB, None, b""), (MIB, None, b""))
    fill(world, disk, chosen, 200)
    writes(world, other, chosen, 5)
    world.recorder.no_room = True
    for number in range(6):
        fill(world, disk, chosen, 100, first=200 + 100 * number)
        zero(world, disk, chosen)
        world.relabel((disk, None, chosen.randbytes(1000)))
        maybe_flush(world, chosen, 0.5)
    world.delete(other)
    if chosen.random() < 0.5:
        world.checkpoint()
    world.recorder.no_room = False
    fill(world, disk, chosen, 300)
    world.flush()


# --- opening and closing ------------------------------------------------------------------------------------------------


@scenario
def pool_creation(world: World, _chosen: Random) -> None:
    world.create_pool()


@scenario
def pool_creation_then_use(world: World, chosen: Random) -> None:
    world.create_pool()
    mix(world, chosen, 10, actions.ALL)


@scenario
def clean_close(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    writes(world, disk, chosen, 30)
    world.close()


@scenario
def reopening(world: World, chosen: Random) -> None:
    """The saved fingerprints are used after each start."""
    disk = a_disk(world)
    for number in range(6):
        world.write(disk, number * 20 * BLOCK, block_data("repeat", number, 10 * BLOCK))
        writes(world, disk, chosen, 6, (8, 16, 64))
        world.reopen()


@scenario
def reopening_with_nothing_to_do(world: World, chosen: Random) -> None:
    disk = a_disk(world)
    writes(world, disk, chosen, 4)
    for _ in range(6):
        world.reopen()


# --- compaction ---------------------------------------------------------------------------------------------------------


@scenario
def compaction_of_overwritten_data(world: World, chosen: Random) -> None:
    disk = a_disk(world, 2 * MIB)
    fill(world, disk, chosen, 512)
    for _ in range(3):
        writes(world, disk, chosen, 20, (8, 64, 200, 400))
        maybe_flush(world, chosen, 0.5)
        world.compact()


@scenario
def compaction_with_guests_at_work(world: World, chosen: Random) -> None:
    disk = a_disk(world, 2 * MIB)
    fill(world, disk, chosen, 400)
    for _ in range(3):
        writes(world, disk, chosen, 10, (64, 200, 400))
        world.compact(lambda: writes(world, disk, chosen, 4, (1, 8, 64, 200)))
        maybe_flush(world, chosen, 0.5)


@scenario
def compaction_while_checkpoints_are_taken(world: World, chosen: Random) -> None:
    """What the round goes by stays in its slots, though newer checkpoints do not hold it."""
    disk = a_disk(world, 8 * LEAF)
    fill(world, disk, chosen, 300)
    world.flush()

    def meanwhile() -> None:
        for _ in range(3):
            for leaf in range(8):
                world.write(disk, leaf * LEAF + chosen.randrange(400) * BLOCK, chosen.randbytes(BLOCK))
            world.checkpoint()
            world.forget()

    for _ in range(2):
        writes(world, disk, chosen, 10, (64, 200))
        world.compact(meanwhile)


@scenario
def compaction_beside_unflushed_overwrites(world: World, chosen: Random) -> None:
    """What a power cut takes back may reach what the maps of the moment do not."""
    disk = a_disk(world, 2 * MIB)
    fill(world, disk, chosen, 512)
    world.flush()
    for number in range(4):
        world.write(disk, number * 100 * BLOCK, distinct_blocks(chosen.randrange(1 << 30), 90))
        world.compact()
        world.write(disk, number * 100 * BLOCK, distinct_blocks(chosen.randrange(1 << 30), 90))


@scenario
def compaction_after_deletes(world: World, chosen: Random) -> None:
    for number in range(3):
        disks = [a_disk(world) for _ in range(3)]
        for disk in disks:
            fill(world, disk, chosen, 200)
        snapshot = world.snapshot((disks[0], None, b""))[0]
        writes(world, disks[0], chosen, 10, (64, 200))
        world.delete(disks[1], *([snapshot] if number % 2 else []))
        world.compact()


@scenario
def compaction_revives_by_dedup(world: World, chosen: Random) -> None:
    """Blocks that died are written once more while a round is under way."""
    disk, other = world.create((2 * MIB, None, b""), (2 * MIB, None, b""))
    for _ in range(3):
        dead = distinct_blocks(chosen.randrange(1 << 30), 300)
        world.write(disk, 0, dead)
        world.write(disk, 300 * BLOCK, distinct_blocks(chosen.randrange(1 << 30), 200))
        world.zero(disk, 0, 300 * BLOCK, discard=True)

        def revive(dead: bytes = dead) -> None:
            block = chosen.randrange(290)
            world.write(other, block * BLOCK, dead[block * BLOCK : (block + 10) * BLOCK], fua=chosen.random() < 0.5)

        world.compact(revive)
        maybe_flush(world, chosen, 0.5)


@scenario
def compaction_with_policies(world: World, chosen: Random) -> None:
    """Blocks that are kept plain among those that are not, and all of it turned round."""
    plain, packed = world.create((3 * MIB, "plain", b""), (3 * MIB, "packed", b""))
    world.set_disk_policies((plain, DiskPolicy("off")))
    for disk in (plain, packed):
        world.write(disk, 0, block_data("text", chosen.randrange(1 << 30), 2 * MIB))
    [snapshot] = world.snapshot((plain, None, b""))
    writes(world, plain, chosen, 20)
    world.compact(lambda: write(world, packed, chosen))
    world.set_disk_policies((plain, DiskPolicy("inline")), (packed, DiskPolicy("off")))
    world.delete(snapshot)
    world.compact()


@scenario
def compaction_twice_over(world: World, chosen: Random) -> None:
    """Segments that were rewritten are rewritten again, and then removed."""
    disk = a_disk(world, 2 * MIB)
    fill(world, disk, chosen, 512)
    for first in (0, 128, 256, 384):
        world.zero(disk, first * BLOCK, 128 * BLOCK, discard=True)
        world.compact()
        maybe_flush(world, chosen, 0.5)


@scenario
def compaction_of_text(world: World, chosen: Random) -> None:
    disk = a_disk(world, 2 * MIB)
    for number in range(4):
        world.write(disk, number * 100 * BLOCK, block_data("text", chosen.randrange(1 << 30), 100 * BLOCK))
        world.compact()
        writes(world, disk, chosen, 5)


# --- big maps -----------------------------------------------------------------------------------------------------------


def scattered(world: World, disk: int, chosen: Random, count: int) -> None:
    for _ in range(count):
        block = chosen.randrange(world.size(disk) // BLOCK)
        world.write(disk, block * BLOCK, chosen.randbytes(BLOCK))


@scenario
def big_map(world: World, chosen: Random) -> None:
    disk = a_disk(world, 600 << 30)
    for _ in range(4):
        scattered(world, disk, chosen, 15)
        world.flush()


@scenario
def big_map_with_checkpoints(world: World, chosen: Random) -> None:
    disk = a_disk(world, 600 << 30)
    for _ in range(5):
        scattered(world, disk, chosen, 12)
        world.checkpoint()
        if chosen.random() < 0.5:
            world.snapshot((disk, None, b""))


@scenario
def big_map_with_discards(world: World, chosen: Random) -> None:
    disk = a_disk(world, 40 << 40)
    for _ in range(8):
        scattered(world, disk, chosen, 6)
        first = chosen.randrange(30) << 40
        world.zero(disk, first, chosen.randrange(1, 10) << 40, discard=True)
        if chosen.random() < 0.5:
            world.checkpoint()


# --- mixes --------------------------------------------------------------------------------------------------------------


@scenario
def mix_of_io(world: World, chosen: Random) -> None:
    world.create((MIB, "a", b""), (MIB + SECTOR, "b", b""), (3 << 30, "c", b""))
    mix(world, chosen, 60, actions.IO)


@scenario
def mix_of_objects(world: World, chosen: Random) -> None:
    world.create((MIB, "a", b""), (MIB + SECTOR, "b", b""), (3 << 30, "c", b""))
    mix(world, chosen, 40, {**actions.OBJECTS, **dict.fromkeys(actions.IO, 1)})


@scenario
def mix_of_everything(world: World, chosen: Random) -> None:
    world.create((MIB, "a", b""), (MIB // 2, "b", b""))
    mix(world, chosen, 60, actions.ALL)


@scenario
def mix_over_segments(world: World, chosen: Random) -> None:
    disk = a_disk(world, 3 * MIB)
    for number in range(4):
        fill(world, disk, chosen, 100 + chosen.randrange(60), number * 160)
        mix(world, chosen, 8, actions.ALL)
        if disk not in world.state.things:
            disk = a_disk(world, 3 * MIB)
        elif world.size(disk) < 3 * MIB:
            world.resize(disk, 3 * MIB)
