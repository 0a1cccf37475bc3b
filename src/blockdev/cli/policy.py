"""blockdevctl pool policy and vm policy: whether data is compressed and stored once, and how fast the pool's own rounds go."""

from __future__ import annotations

from typing import Any

import click

from blockdev.cli import values
from blockdev.cli.output import print_fields
from blockdev.cli.session import Session, Verb, pass_session
from blockdev.errors import Unavailable
from blockdev.policies import COMPRESSIONS, DEDUPS, LEVELS
from blockdev.written import show_size

AS_POOL = "pool"

# of a VM
compression_option = click.option(
    "--compression", type=click.Choice([*COMPRESSIONS, AS_POOL]), help="As of pool policy; pool: as the pool's."
)
dedup_option = click.option("--dedup", type=click.Choice([*DEDUPS, AS_POOL]), help="As of pool policy; pool: as the pool's.")


@click.command(cls=Verb, name="policy")
@click.option(
    "--compression",
    type=click.Choice(COMPRESSIONS),
    help="cold: once data has proved to be cold; inline: soon after it was written; off: never.",
)
@click.option("--level", type=click.IntRange(LEVELS[0], LEVELS[-1]), help="Of zstd.")
@click.option("--dedup", type=click.Choice(DEDUPS), help="Whether equal blocks are stored once.")
@click.option(
    "--compaction-rate",
    type=values.RATE,
    metavar="SIZE|auto",
    help="That the pool's own rounds read in a second; auto: the pool chooses.",
)
@pass_session
def pool_policy(
    session: Session, compression: str | None, level: int | None, dedup: str | None, compaction_rate: int | None
) -> None:
    """Show how the pool keeps data, or change it: for all VMs that say nothing else.

    What is there already follows with the next compaction.
    """
    change = {
        "compression": compression,
        "compression_level": level,
        "dedup": dedup,
        "compaction_rate_bytes": compaction_rate,
    }
    if any(value is not None for value in change.values()):
        status = session.client.patch("/pool", change)
    else:
        status = session.client.get("/status")
        if not status["engine_running"]:
            raise Unavailable(f"the engine is not running: {status['engine_error']}")
    policy = status["engine"]["policy"]
    session.show(policy, lambda: _tell_pool_policy(policy))


def _tell_pool_policy(policy: dict[str, Any]) -> None:
    level, rate = policy["compression_level"], policy["compaction_rate_bytes"]
    print_fields(
        [
            ("compression", f"{policy['compression']}, zstd level {level}"),
            ("dedup", policy["dedup"]),
            ("compaction rate", f"{show_size(rate)} a second" if rate else "auto"),
        ]
    )


@click.command(cls=Verb, name="policy")
@click.argument("name", type=values.VM)
@compression_option
@dedup_option
@pass_session
def vm_policy(session: Session, name: str, compression: str | None, dedup: str | None) -> None:
    """Show how the data of a VM is kept, or change it: for all its disks, and its clones made from then on.

    What is there already follows with the next compaction.
    """
    if compression is not None or dedup is not None:
        vm = session.client.patch(f"/vms/{name}", {"compression": compression, "dedup": dedup})
    else:
        vm = session.client.get(f"/vms/{name}")
    policy = vm["policy"]
    fields = [(field, policy[field] or "as the pool's") for field in ("compression", "dedup")]
    session.show(policy, lambda: print_fields(fields))
