"""Runs in the lab guest: libiscsi's test suite against a LUN of ours and against LIO over a RAM disk of the kernel."""

from __future__ import annotations

import json
import sys

from tests.targets import conformance, facts, plain_lio
from tests.targets.facts import fact
from tests.targets.world import DIRECTORY, MEBIBYTE, PORTALS, World

SIZE_MIB = 100
INITIATORS = ("iqn.2026-11.org.example:first", "iqn.2026-11.org.example:second")
PLAIN = "iqn.2026-11.org.example:plain"
PLAIN_PORTALS = ("127.0.0.1:3270", "127.0.0.1:3271")
VERDICTS = "left-verdicts.json"


@fact
def the_suite_runs_in_full_against_a_lun_of_ours(world: World) -> None:
    world.make_vm("tried", disk=SIZE_MIB)
    iqn = world.offer("tried", initiators=INITIATORS)["iqn"]
    _keep(world, "ours", iqn, PORTALS)


@fact
def the_suite_runs_in_full_against_lio_over_a_ram_disk(world: World) -> None:
    device = plain_lio.ram_disk(SIZE_MIB * MEBIBYTE)
    plain_lio.target(PLAIN, [plain_lio.block_backstore("plain", device)], *PLAIN_PORTALS)
    _keep(world, "plain", PLAIN, PLAIN_PORTALS)


@fact
def the_suite_runs_in_full_against_lio_over_a_ram_disk_that_can_discard(world: World) -> None:
    device = plain_lio.thin_ram_disk(SIZE_MIB * MEBIBYTE)
    plain_lio.target(f"{PLAIN}-thin", [plain_lio.block_backstore("thin", device)], "127.0.0.1:3272", "127.0.0.1:3273")
    _keep(world, "thin", f"{PLAIN}-thin", ("127.0.0.1:3272", "127.0.0.1:3273"))


def _keep(world: World, name: str, iqn: str, portals: tuple[str, ...]) -> None:
    verdicts = conformance.run_suite(
        conformance.urls(iqn, portals, 0), INITIATORS, facts.share() / f"left-{name}.log"
    )
    world.notes[name] = verdicts
    (facts.share() / VERDICTS).write_text(json.dumps(world.notes))


def main() -> None:
    World(DIRECTORY).play(sys.modules[__name__], "1G")


if __name__ == "__main__":
    main()
