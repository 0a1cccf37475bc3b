"""blockdevctl pool and vm policy, pool and vm usage, and pools that are larger than their file system."""

from __future__ import annotations

from pathlib import Path

from blockdev.policies import PoolPolicy
from tests.cli.served import Home
from tests.engine.content import distinct_blocks

MEBIBYTE = 1 << 20
AS_POOL = {"compression": None, "dedup": None}


def test_the_pools_policy_is_shown_and_changed_and_outlives_a_restart(fresh: Home) -> None:
    fresh.serve()
    assert fresh.json("pool", "policy") == PoolPolicy()._asdict()
    assert fresh("pool", "policy").split("\n") == [
        "compression:      cold, zstd level 3",
        "dedup:            on",
        "compaction rate:  auto",
        "",
    ]
    changed = fresh.json("pool", "policy", "--compression", "inline", "--level", "9", "--compaction-rate", "20M")
    assert changed == PoolPolicy("inline", 9, "on", 20 * MEBIBYTE)._asdict()
    assert "20 MiB a second" in fresh("pool", "policy", "--dedup", "off")
    fresh.stop()
    assert fresh.run("pool", "policy").status == 11
    fresh.serve()
    assert fresh.json("pool", "policy") == PoolPolicy("inline", 9, "off", 20 * MEBIBYTE)._asdict()
    assert fresh.json("pool", "policy", "--compaction-rate", "auto")["compaction_rate_bytes"] == 0


def test_a_vms_policy_is_its_clones_too_and_shown_when_it_is_its_own(home: Home, name: str) -> None:
    home("vm", "create", name, "--disk", "root=1M", "--dedup", "off")
    assert home.json("vm", "policy", name) == {"compression": None, "dedup": "off"}
    assert "dedup:      off" in home("vm", "show", name)
    assert "compression" not in home("vm", "show", name)
    assert home.json("vm", "policy", name, "--compression", "off")["dedup"] == "off"
    home("clone", name, f"{name}-copy")
    assert home.json("vm", "show", f"{name}-copy")["policy"] == {"compression": "off", "dedup": "off"}
    told = home("vm", "policy", name, "--compression", "pool", "--dedup", "pool")
    assert told.count("as the pool's") == 2
    assert home.json("vm", "policy", name) == AS_POOL
    assert "dedup" not in home("vm", "show", name)
    home("vm", "create", f"{name}-plain", "--disk", "root=1M", "--dedup", "pool")
    assert home.json("vm", "policy", f"{name}-plain") == AS_POOL


def test_usage_tells_what_deleting_gives_back(fresh: Home) -> None:
    fresh.serve()
    assert fresh("pool", "usage").count("\n") == 8, "no table where there are no VMs"
    image = fresh.above / "image.raw"
    image.write_bytes(distinct_blocks(0, 1024))
    fresh("vm", "create", "web", "--image", f"root={image}")
    fresh("snapshot", "create", "web", "--name", "monday")
    image.write_bytes(distinct_blocks(5000, 1024))
    fresh("disk", "import", "web/root", image, "--replace", "--yes")
    fresh("clone", "web", "test")
    found = fresh.json("pool", "usage")
    pool, [test, web] = found["pool"], found["vms"]
    assert pool["logical_bytes"] == 8 * MEBIBYTE and pool["dedup_saved_bytes"] == 4 * MEBIBYTE
    assert pool["snapshot_only_bytes"] == 4 * MEBIBYTE
    assert test["shared_bytes"] == web["shared_bytes"] == web["data_bytes"] == 4 * MEBIBYTE
    assert test["unique_stored_bytes"] == 0 < 4 * MEBIBYTE <= web["unique_stored_bytes"]
    assert fresh.json("vm", "usage", "web") == web
    monday = web["snapshots"][0]
    assert (monday["snapshot"], monday["changed_bytes"]) == ("monday", 4 * MEBIBYTE)
    told = fresh("pool", "usage").splitlines()
    assert told[9].split() == ["VM", "SIZE", "DATA", "SHARED", "UNIQUE", "SNAPSHOTS"]
    assert told[11].split()[:3] == ["web", "4", "MiB"]
    rows = [line.split() for line in fresh("vm", "usage", "web").splitlines()]
    assert ["SNAPSHOT", "CREATED", "CHANGED", "FREES"] in rows
    assert ["monday", monday["created"], "4", "MiB", "4", "MiB"] in rows

    before = fresh.json("pool", "usage")["pool"]
    fresh("snapshot", "delete", "web@monday", "--yes")
    after = fresh.json("pool", "usage")["pool"]
    assert before["stored_bytes"] - after["stored_bytes"] == monday["frees_bytes"]
    assert after["reclaimable_bytes"] >= monday["frees_bytes"]


WARNING = "warning: capacity {}, but the file system has room for "


def test_a_pool_larger_than_its_file_system_says_so(tmp_path: Path) -> None:
    home = Home()
    try:
        made = home.run("init", "--capacity", "1000P")
        assert made.status == 0 and made.stderr.startswith(WARNING.format("1000 PiB")) and made.stderr.count("\n") == 1
        home.serve()
        assert "file system:  has room for" in home("pool", "status")
        small = home.run("pool", "resize", "--capacity", "64M")
        assert (small.status, small.stderr) == (0, "")
        assert "file system" not in home("pool", "status")
        large = home.run("pool", "resize", "--capacity", "900P")
        assert large.status == 0 and large.stderr.startswith(WARNING.format("900 PiB")) and large.stderr.count("\n") == 1
        assert "900 PiB now" in large.stdout
    finally:
        home.close()
