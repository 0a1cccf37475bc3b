"""Made-up loads of VMs, and what a history must know of them afterwards."""

from __future__ import annotations

import random
import uuid

import numpy as np

from blockdev.engine.statistics import LATENCY_BUCKETS
from blockdev.statistics.figures import CAUSES, GAUGES, KINDS, OF, QUANTILES, SUMS
from blockdev.statistics.slots import Seen

BEGIN = 1_790_000_000.0 // 3600 * 3600  # an hour begins


def uuids(count: int) -> list[str]:
    return [str(uuid.UUID(int=number + 1)) for number in range(count)]


def seen(random_: random.Random, vm_count: int, scale: int = 5000) -> Seen:
    """Something that happened to VMs; sums of some are 0."""
    generator = np.random.default_rng(random_.randrange(1 << 32))
    sums = generator.integers(0, scale, (vm_count, len(SUMS)))
    sums[generator.random(vm_count) < 0.3] = 0
    histograms = np.zeros((vm_count, len(QUANTILES), LATENCY_BUCKETS), np.int64)
    for kind, name in enumerate(("reads", "writes", "flushes")):
        for vm in range(vm_count):
            buckets = generator.integers(20, 120, sums[vm, OF[name]])
            np.add.at(histograms[vm, kind], buckets, 1)
    for place in range(len(KINDS), len(KINDS) + len(CAUSES)):
        for vm in range(vm_count):
            requests = int(histograms[vm, : len(KINDS)].sum())
            waited = int(generator.integers(0, requests + 1))
            histograms[vm, place, 0] = requests - waited
            np.add.at(histograms[vm, place], generator.integers(1, 90, waited), 1)
    gauges = np.full((vm_count, len(GAUGES)), np.nan)
    return Seen(sums, histograms, gauges, np.zeros(vm_count, np.bool_))


def nothing(vm_count: int) -> Seen:
    return Seen(
        np.zeros((vm_count, len(SUMS)), np.int64),
        np.zeros((vm_count, len(QUANTILES), LATENCY_BUCKETS), np.int64),
        np.full((vm_count, len(GAUGES)), np.nan),
        np.zeros(vm_count, np.bool_),
    )
