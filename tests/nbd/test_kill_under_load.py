"""kill -9 of a served engine under fio, stamped writers, snapshots and clones: nothing flushed is lost, nothing odd is read.

BLOCKDEV_KILLS=n kills more often, `make torture` 50 times.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.served import Home
from tests.nbd.served_engine import ServedEngine
from tests.nbd.vm_load import Round, World

KILLS = int(os.environ.get("BLOCKDEV_KILLS", "10"))
KILLS_PER_HOME = 10  # the pool only grows
LOAD_SECONDS_MAX = 0.8
KILL_AGAIN_SHARE = 0.2  # of the kills are followed by one while the next engine starts
START_SECONDS_MAX = 0.3
SLOWNESS_MAX = 3  # a slow machine is given so many times the kills until there was load


def kill_and_verify(engine: ServedEngine, world: World, chosen: random.Random, directory: Path) -> None:
    """One round of load, its kill, perhaps another kill in the start that follows, and the look at what is left."""
    load = Round(world, chosen.randrange(1 << 30), directory)
    try:
        load.start()
        ended = load.crew.stopped.wait(chosen.uniform(0, LOAD_SECONDS_MAX))  # the instant of the kill
        assert not ended, load.crew.failures
        dead = engine.kill()
        world.counts["kills"] += 1
        load.end()
    finally:
        load.fio.kill()
    if chosen.random() < KILL_AGAIN_SHARE:
        engine.wait_for_another(dead)
        time.sleep(chosen.uniform(0, START_SECONDS_MAX))  # the instant of the kill
        dead = engine.kill()
        world.counts["kills"] += 1
        world.counts["kills in a start"] += 1
    engine.wait_until_back(dead, world.rest)
    load.verify()
    world.trim()


def kill_one_home(chosen: random.Random, kills: int, directory: Path) -> Counter[str]:
    home = Home()
    try:
        home.init("32G")
        home.serve()
        engine, world = ServedEngine(home), World(home)
        while world.counts["kills"] < kills:
            engine.keep_serve_patient(2)
            kill_and_verify(engine, world, chosen, directory)
        world.inspect("scrub")
        world.close()
        home.stop()
        return world.counts
    finally:
        home.close()


@pytest.mark.timeout(300 + 30 * KILLS)
def test_nothing_flushed_is_lost_when_a_served_engine_is_killed_under_load(seed: int, tmp_path: Path) -> None:
    chosen = random.Random(seed)
    counts: Counter[str] = Counter()
    while counts["kills"] < KILLS or (not is_load(counts) and counts["kills"] < SLOWNESS_MAX * KILLS):
        left = KILLS - counts["kills"]
        counts += kill_one_home(chosen, min(KILLS_PER_HOME, left if left > 0 else KILLS), tmp_path)
        print(dict(counts))
    assert is_load(counts), "there was hardly any load"


def is_load(counts: Counter[str]) -> bool:
    guests = counts["lane flushes"] > KILLS and counts["fio writes flushed"] > KILLS
    return guests and counts["snapshots"] > KILLS and counts["clones"] > KILLS // 4
