"""`blockdevctl serve`: what dies comes back, guests notice only the engine, and signals end everything cleanly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

import nbd
from tests.cli.served import BLOCKDEVCTL, SECONDS_MAX, Home, read_until, run_tool, until
from tests.ports import free_address

ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(fresh: Home) -> Home:
    fresh.serve()
    fresh("vm", "create", "web", "--disk", "root=64M")
    return fresh


@pytest.mark.parametrize("name", ["path", "abstract"])
def test_a_service_manager_is_told_when_guests_and_commands_are_answered(fresh: Home, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    address = str(fresh.above / "notify") if name == "path" else f"@{fresh.above.name}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(SECONDS_MAX)
        fresh.serve()
        assert manager.recv(100) == b"READY=1"
        fresh("vm", "list")


def test_the_unit_for_systemd_is_one(fresh: Home) -> None:
    text = (ROOT / "targets/systemd/blockdev.service").read_text()
    unit = fresh.above / "blockdev.service"
    unit.write_text(text.replace("/opt/blockdev/.venv/bin/blockdevctl", BLOCKDEVCTL).replace("/var/lib/blockdev", str(fresh.path)))
    checked = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


class Load:
    """One client that writes and reads on one connection until it is told to stop; any error stays in `failure`."""

    def __init__(self, uri: str) -> None:
        self.rounds = 0
        self.failure: Exception | None = None
        self._stop = threading.Event()
        self._handle = nbd.NBD()
        self._handle.connect_uri(uri)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                block = os.urandom(4096)
                self._handle.pwrite(block, self.rounds % 1000 * 4096)
                assert self._handle.pread(4096, self.rounds % 1000 * 4096) == block
                self._handle.flush()
                self.rounds += 1
        except Exception as error:
            self.failure = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        assert self.failure is None


def test_killed_control_plane_comes_back_and_the_data_path_does_not_notice(served: Home) -> None:
    engine = served.engine_pid()
    load = Load(served.uri("web/root"))
    for _ in range(3):
        before = until(served.control_pid, "a control plane")
        os.kill(before, signal.SIGKILL)
        assert [vm["name"] for vm in served.json("vm", "list")["vms"]] == ["web"]  # the client waits for it
        assert served.control_pid() != before
        seen = load.rounds
        until(lambda seen=seen: load.rounds > seen, "load")  # type: ignore[misc]
    load.stop()
    assert served.engine_pid() == engine


@pytest.mark.parametrize("command", ["vm create", "disk import", "disk export"])
def test_control_plane_killed_in_a_job_leaves_nothing_of_it(served: Home, scratch: Path, command: str) -> None:
    image = scratch / "large.raw"
    run_tool("dd", "if=/dev/urandom", f"of={image}", "bs=1M", "count=300", "status=none")
    if command == "disk export":
        served("disk", "import", "web/large", image)
    before = served.state()
    arguments = {
        "vm create": ["vm", "create", "new", "--disk", "data=1M", "--image", f"root={image}"],
        "disk import": ["disk", "import", "web/large", str(image)],
        "disk export": ["disk", "export", "web/large", str(scratch / "out.qcow2")],
    }[command]
    running = served.start_command(*arguments)
    with served.rest() as rest:
        until(lambda: any(0 < j["fraction"] < 1 for j in rest.get("/jobs").json()["jobs"]), "progress")
    served.hold_transfer()
    assert served.state() != before
    os.kill(served.control_pid(), signal.SIGKILL)
    _, errors = running.communicate(timeout=SECONDS_MAX)
    assert running.returncode != 0 and errors.splitlines()[-1].startswith("error: ")
    served("pool", "status")  # waits for the next control plane
    until(lambda: served.state() == before, "the state before")
    assert not (scratch / "out.qcow2").exists()


def test_killed_engine_comes_back_with_what_was_flushed(served: Home) -> None:
    run_tool("qemu-io", "-f", "raw", "-c", "write -P 5 0 1M", "-c", "flush", served.uri("web/root"))
    engine = served.engine_pid()
    os.kill(engine, signal.SIGKILL)
    until(lambda: served.json("pool", "status")["engine"].get("pid") not in (None, engine), "another engine")
    assert "verification failed" not in run_tool("qemu-io", "-f", "raw", "-c", "read -P 5 0 1M", served.uri("web/root"))
    served("snapshot", "create", "web", "--name", "after")


def test_api_says_503_while_the_engine_is_away(served: Home) -> None:
    assert served.serving is not None
    engine = served.engine_pid()
    os.kill(served.serving.pid, signal.SIGSTOP)  # so that nobody starts it again
    try:
        os.kill(engine, signal.SIGKILL)
        with served.rest() as rest:
            until(lambda: rest.post("/vms/web/snapshots", json={}).status_code == 503, "503")
            answer = rest.post("/vms/web/snapshots", json={})
            assert answer.json()["error"]["code"] == "unavailable"
            assert rest.get("/vms").status_code == 200
            assert rest.get("/status").json()["engine_running"] is False
        result = served.run("snapshot", "create", "web")
        assert result.status == 11 and "engine" in result.error
    finally:
        os.kill(served.serving.pid, signal.SIGCONT)
    until(lambda: served.json("pool", "status")["engine_running"], "the engine")
    served("snapshot", "create", "web")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_both_and_leaves_no_process(served: Home, number: signal.Signals) -> None:
    pids = [served.engine_pid(), served.control_pid()]
    load = nbd.NBD()
    load.connect_uri(served.uri("web/root"))
    load.pwrite(b"k" * 4096, 0)
    served.stop(number)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert sorted(p.name for p in (served.path / "run").glob("*.sock")) == []
    served.serve()
    assert [vm["name"] for vm in served.json("vm", "list")["vms"]] == ["web"]
    again = nbd.NBD()
    again.connect_uri(served.uri("web/root"))
    assert again.pread(4096, 0) == b"k" * 4096
    again.shutdown()


def test_killed_supervisor_leaves_nothing_in_the_way_of_the_next(served: Home) -> None:
    assert served.serving is not None
    pids = (served.control_pid(), served.engine_pid())
    served.serving.kill()
    served.serving.communicate()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the end of both")
    served.serve()
    assert [vm["name"] for vm in served.json("vm", "list")["vms"]] == ["web"]


def test_engine_that_cannot_live_is_given_up(served: Home) -> None:
    assert served.serving is not None
    for superblock in (served.path / "pool").glob("superblock-*"):
        os.truncate(superblock, 10)
    os.kill(served.engine_pid(), signal.SIGKILL)
    output, _ = served.serving.communicate(timeout=SECONDS_MAX)
    assert served.serving.returncode != 0
    assert output.splitlines()[-1].startswith("error: the engine died 5 times")
    served.serving = None


def test_python_plugin_serves_over_tcp_too(fresh: Home) -> None:
    nbd_address = free_address()
    fresh.serve("--plugin", "python", "--nbd", nbd_address, "--api", free_address())
    fresh("vm", "create", "web", "--disk", "root=1M")
    assert fresh.json("pool", "status")["engine"]["plugin"] == "python"
    uri = fresh("attach", "web/root", "--host", "127.0.0.1", "--port", nbd_address.split(":")[1]).strip()
    assert run_tool("nbdinfo", "--size", uri).strip() == str(1 << 20)


def test_serve_prints_json_when_asked(fresh: Home) -> None:
    serving = fresh.start_serving("--json")
    fresh.serving = serving
    lines = read_until(serving, "}")
    assert '"plugin": "native"' in "".join(lines)
