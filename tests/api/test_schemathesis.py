"""The API keeps what its OpenAPI document says, whatever is sent: schemathesis tries all of it, over TCP with a token.

What it looks at and what it leaves out, with the reasons: schemathesis.toml.  A failure shows the request as a curl command.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.served import Home
from tests.ports import free_address

ST = str(Path(sys.executable).with_name("st"))
CONFIG = Path(__file__).with_name("schemathesis.toml")
MINUTES_MAX = 8  # on a machine that does much else
REACHED_MIN = 0.7  # of the operations, once with success: else it has tried out refusals only
KEY_PREFIX = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"  # RFC 8709, section 4
DISKS = [{"name": name, "size_bytes": 1 << 20} for name in ("root", "data")]


@pytest.fixture
def filled() -> Iterator[tuple[Home, str]]:
    """A served home with VMs, snapshots, schedules and tokens, of the names in schemathesis.toml; its address."""
    made, address, peers = Home(), free_address(), free_address()
    try:
        made.init("2G")
        made.serve("--api", address, "--replicate", peers)
        with made.rest() as rest:
            for number in range(1, 13):
                sure(rest.post("/vms", json={"name": f"vm-{number}", "disks": DISKS, "config": "<domain/>"}))
                for snapshot in ("s1", "s2"):
                    sure(rest.post(f"/vms/vm-{number}/snapshots", json={"name": snapshot}))
            hourly = {"name": "hourly", "at": "hourly :05", "keep_seconds": 10800}
            sure(rest.put("/schedules", json={"schedules": [hourly]}))
            sure(rest.put("/vms/vm-1/schedules", json={"schedules": [hourly, {**hourly, "name": "daily"}]}))
            sure(rest.post("/tokens", json={"name": "monitor", "role": "viewer"}))
            for name in ("kvm", "spare"):
                sure(rest.post("/hypervisors", json={"name": name, "uri": f"test:///default?{name}"}))
            sure(rest.post("/pool/check"))
            replicate_to_itself(rest, int(peers.partition(":")[2]))
        yield made, address
    finally:
        made.close()


def replicate_to_itself(rest: httpx.Client, port: int) -> None:
    """Peers and paths, of which one leads to this home and works."""
    own = sure(rest.get("/replication/identity"))["key"]
    others = [f"ssh-ed25519 {base64.b64encode(KEY_PREFIX + bytes([number]) * 32).decode()}" for number in (1, 2)]
    for name, key in zip(("near", "spare", "self"), [*others, own], strict=True):
        sure(rest.post("/replication/peers", json={"name": name, "key": key, "vms": ["*"]}))
    for name, key, to in (("nowhere", others[0], 9), ("spare", others[1], 9), ("self", own, port)):
        sure(rest.post("/replication/paths", json={"name": name, "host": "127.0.0.1", "port": to, "key": key}))
    sure(rest.post("/replication/paths/self/test"))
    sure(rest.put("/vms/vm-1/protections/nowhere", json={"rpo_seconds": 7200}))


def sure(answer: httpx.Response) -> Any:
    assert answer.status_code < 300, answer.text
    return answer.json()


def test_schemathesis_finds_no_fault(filled: tuple[Home, str], tmp_path: Path) -> None:
    home, address = filled
    certificate, daemon = home.path / "keys/api/cert.pem", home.control_pid()
    token = home("token", "add", "schemathesis", "--role", "admin").strip()
    base = f"https://{address}/api/v1"
    done = subprocess.run(
        [
            *(ST, "--config-file", CONFIG, "run", f"{base}/openapi.json"),
            *("-H", f"Authorization: Bearer {token}", "--tls-verify", certificate),
            *("--report", "ndjson", "--report-ndjson-path", tmp_path / "report"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60 * MINUTES_MAX,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reached = answered(tmp_path / "report")
    unreached = sorted(name for name, statuses in reached.items() if not any(200 <= status < 300 for status in statuses))
    assert len(unreached) < len(reached) * (1 - REACHED_MIN), unreached
    with home.rest() as rest:
        assert rest.get("/status").json()["engine_running"]
        assert "schemathesis" in [one["name"] for one in rest.get("/tokens").json()["tokens"]]
    assert home.control_pid() == daemon, "it was started again in between"


def answered(report: Path) -> dict[str, set[int]]:
    """Operation -> the statuses that it was answered with, of requests that were its own."""
    found: dict[str, set[int]] = defaultdict(set)
    for line in report.read_text().splitlines():
        scenario = json.loads(line).get("ScenarioFinished") or {}
        recorder = scenario.get("recorder", {})
        for exchange in recorder.get("interactions", {}).values():
            if exchange["response"] and exchange["request"]["method"] == recorder["label"].split(" ")[0]:
                found[recorder["label"]].add(exchange["response"]["status_code"])
    return found
