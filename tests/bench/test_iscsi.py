"""The table of bench.iscsi: medians, and ratios of the same round."""

from __future__ import annotations

from bench.iscsi import rows_of


def run(iops: float) -> dict[str, float]:
    return {"iops": iops, "mean_us": 1e6 / iops, "p99_us": 2e6 / iops}


def test_ratios_are_medians_of_ours_to_the_other_in_the_same_round() -> None:
    found = {"reads": {"ours": [run(100), run(300), run(50)], "file": [run(200), run(300), run(200)]}}
    assert rows_of(found)[1:] == [
        ["reads", "", "", "", "", ""],
        ["  ours", "100", "10000", "20000", "", ""],
        ["  file", "200", "5000", "10000", "0.50", "2.00"],
    ]
