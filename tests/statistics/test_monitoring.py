"""The alert rules fire when they should and only then (promtool), and they and the dashboard name only metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.served import Home, run_tool, until
from tests.statistics.conftest import scrape

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "targets/monitoring"
RULES = MONITORING / "blockdev-alerts.yml"
DASHBOARD = MONITORING / "grafana-dashboard.json"
INFO = {'blockdev_vm_info{instance="store:8443",job="blockdev",vm="u1",name="web"}': "1x600"}
HOME = 'instance="store:8443",job="blockdev"'
LANE = f'{HOME},vm="u1",way="north",direction="sent"'
LATE = {f"blockdev_replication_lag_seconds{{{LANE}}}": "100+60x60", f"blockdev_replication_rpo_seconds{{{LANE}}}": "900x60"}
SLOW = f'blockdev_latency_seconds_bucket{{{HOME},vm="u1",kind="write",le='

# alert -> (series, a minute each value; a minute when it does not fire yet or any more; one when it does; labels beside the home's)
CASES: dict[str, tuple[dict[str, str], int, int, dict[str, str]]] = {
    "BlockdevDown": ({f"up{{{HOME}}}": "1x5 0x20"}, 7, 9, {"severity": "critical"}),
    "BlockdevEngineDown": ({f"blockdev_engine_up{{{HOME}}}": "1x5 0x20"}, 6, 8, {"severity": "critical"}),
    "BlockdevRefusesWrites": ({f"blockdev_pool_refuses_writes{{{HOME}}}": "0x5 1x20"}, 5, 7, {"severity": "critical"}),
    "BlockdevPoolFilling": (
        *({f'blockdev_pool_level{{{HOME},level="warning"}}': "0x5 1x30"}, 14, 17),
        {"severity": "warning", "level": "warning"},
    ),
    "BlockdevPoolAlmostFull": (
        *({f'blockdev_pool_level{{{HOME},level="critical"}}': "0x5 1x30"}, 6, 8),
        {"severity": "critical", "level": "critical"},
    ),
    "BlockdevPoolFullSoon": ({f"blockdev_pool_available_bytes{{{HOME}}}": "1000000-1000x600"}, 30, 400, {"severity": "warning"}),
    "BlockdevBlocksDamaged": ({f"blockdev_pool_checksum_errors_total{{{HOME}}}": "0x5 3x20"}, 5, 7, {"severity": "critical"}),
    "BlockdevRequestsFail": (
        *({**INFO, f'blockdev_failed_operations_total{{{HOME},vm="u1",disk="root"}}': "0x9 5x30"}, 9, 12),
        {"severity": "warning", "vm": "u1", "name": "web", "job": ""},
    ),
    "BlockdevLatencyHigh": (
        *({**INFO, f'{SLOW}"0.0625"}}': "0x60", f'{SLOW}"1"}}': "0+100x60", f'{SLOW}"+Inf"}}': "0+100x60"}, 5, 20),
        {"severity": "warning", "vm": "u1", "name": "web", "kind": "write", "job": ""},
    ),
    "BlockdevReplicationLate": (
        *({**INFO, **LATE}, 13, 17),
        {"severity": "critical", "vm": "u1", "name": "web", "way": "north", "direction": "sent", "job": ""},
    ),
    "BlockdevReplicationStalled": (
        *(
            {
                **INFO,
                f"blockdev_replication_remaining_bytes{{{LANE}}}": "5000x60",
                f"blockdev_replication_logical_bytes_total{{{LANE}}}": "0+100x10 1000x60",
            },
            *(20, 45),
        ),
        {"severity": "warning", "vm": "u1", "name": "web", "way": "north", "direction": "sent"},
    ),
    "BlockdevScheduleFails": (
        *({**INFO, f'blockdev_schedule_failures{{{HOME},vm="u1",schedule="daily"}}': "1x9 2x9"}, 9, 11),
        {"severity": "warning", "vm": "u1", "name": "web", "schedule": "daily"},
    ),
    "BlockdevStatisticsStale": (
        *({f"blockdev_statistics_timestamp_seconds{{{HOME}}}": "0+60x9 540x20", f"blockdev_engine_up{{{HOME}}}": "1x40"}, 12, 15),
        {"severity": "warning"},
    ),
}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)


def fires(alert: str, series: dict[str, str], minute: int, labels: dict[str, str] | None, directory: Path) -> str:
    """What promtool has against it that the alert fires then with these labels; None: that it does not fire.  Empty: nothing."""
    expected: list[dict[str, Any]] = [] if labels is None else [{"exp_labels": labels}]
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": expected}],
    }
    rules = directory / "rules.yml"  # without annotations, which would have to be said again
    rules.write_text(re.sub(r"^ +annotations:\n(?: {10,}.*\n)+", "", RULES.read_text(), flags=re.M))
    path = directory / "test.yml"
    path.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [case]}))
    done = promtool("test", "rules", path)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    series, before, after, labels = CASES[alert]
    named = {name: value for name, value in {"instance": "store:8443", "job": "blockdev", **labels}.items() if value}
    assert not fires(alert, series, before, None, tmp_path)
    assert not fires(alert, series, after, named, tmp_path)
    assert fires(alert, series, after, None, tmp_path), "promtool says so when an alert fires that should not"


def test_every_alert_has_a_case_and_the_file_is_sound() -> None:
    assert re.findall(r"- alert: (\w+)", RULES.read_text()) == list(CASES)
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard_expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [one["expr"] for panel in panels for one in panel["targets"]]


def test_every_expression_of_the_dashboard_is_one(tmp_path: Path) -> None:
    expressions = [one.replace("$__rate_interval", "5m") for one in dashboard_expressions()]
    rules = [{"record": f"one:{number}", "expr": one} for number, one in enumerate(expressions)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rules) > 15


def test_the_dashboard_is_what_its_script_writes() -> None:
    run_tool(sys.executable, ROOT / "scripts/build-dashboard", "--check")


def test_rules_and_dashboard_name_metrics_that_there_are_and_promtool_has_nothing_against_them(
    home: Home, rest: httpx.Client
) -> None:
    assert rest.post("/vms", json={"name": "web", "disks": [{"name": "root", "size_bytes": 1 << 20}]}).status_code == 201
    until(lambda: 'blockdev_latency_seconds_count{' in rest.get("http://blockdev/metrics").text, "a look that sees the VM")
    text = rest.get("http://blockdev/metrics").text
    there = {match for match in re.findall(r"^# TYPE (\w+) ", text, flags=re.M)}
    there |= {name for name, _labels in scrape(home)}
    named = set(re.findall(r"blockdev_\w+", RULES.read_text() + " ".join(dashboard_expressions())))
    assert named and named - there == set()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
