"""Starting, stopping, and being started wrongly."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from blockdev.targets.nbdkit import CERTIFICATE_FILES, Options, command, start

import nbd
from blockdev import Pool
from blockdev.errors import Busy, InvalidArgument, NotFound, ToolFailed, UnknownFormat
from tests.nbd.conftest import DISK, DISK_BYTES, Server

BLOCK = 4096
ENDED_SECONDS_MAX = 120  # on a machine that does much else


def test_sigterm_with_an_idle_client_ends_it_at_once_and_keeps_what_was_written(
    server: Server, seed: int
) -> None:
    data = random.Random(seed).randbytes(16 * BLOCK)
    handle = server.connect()
    handle.pwrite(data, BLOCK)  # not flushed: a clean end keeps it all the same
    assert server.engine is not None
    pid = server.engine.pid
    os.kill(pid, signal.SIGTERM)
    assert server.engine.process.wait(ENDED_SECONDS_MAX) == 0
    server.stop()
    pool = Pool.open(str(server.home.pool))
    assert pool.find(DISK).read(BLOCK, 16 * BLOCK) == data
    assert pool.check() == []
    pool.close()


def test_sigterm_in_the_middle_of_writes_keeps_every_flushed_one(server: Server) -> None:
    """The writer goes on until its connection ends: each write it was told of, with FUA, is there afterwards."""
    handle = server.connect()
    assert server.engine is not None
    done = 0
    with pytest.raises(nbd.Error):
        for index in range(1_000_000):
            handle.pwrite((index + 1).to_bytes(8, "little") * 512, (index % 1024) * BLOCK, nbd.CMD_FLAG_FUA)
            done = index + 1
            if done == 200:
                os.kill(server.engine.pid, signal.SIGTERM)
    assert server.engine.process.wait(ENDED_SECONDS_MAX) == 0
    server.stop()
    pool = Pool.open(str(server.home.pool))
    disk = pool.find(DISK)
    for index in range(max(0, done - 1024), done):
        stored = int.from_bytes(disk.read((index % 1024) * BLOCK, 512)[:8], "little")
        assert stored == index + 1 or stored == index + 1 + 1024, f"write {index} is lost"
    pool.close()


def test_a_client_that_reads_no_replies_cannot_keep_the_engine_from_ending(server: Server) -> None:
    """It asks for much more than the sockets hold, and takes nothing."""
    handle = server.connect()
    for _ in range(32):
        handle.aio_pread(nbd.Buffer(4 << 20), 0)
    assert server.engine is not None
    os.kill(server.engine.pid, signal.SIGTERM)
    assert server.engine.process.wait(ENDED_SECONDS_MAX) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_the_other_signals_that_end_nbdkit_end_it_cleanly_too(server: Server, number: signal.Signals) -> None:
    server.connect()
    assert server.engine is not None
    os.kill(server.engine.pid, number)
    assert server.engine.process.wait(ENDED_SECONDS_MAX) == 0


def test_after_stop_no_socket_is_left_and_the_next_engine_starts(server: Server) -> None:
    assert server.stop() == 0
    assert not list(server.home.run.glob("*.sock")) and not list(server.home.run.glob("*.new"))
    server.start()
    assert server.connect().get_size() == DISK_BYTES


def test_after_a_kill_the_next_engine_replaces_the_sockets(server: Server) -> None:
    handle = server.connect()
    handle.pwrite(b"k" * BLOCK, 0, nbd.CMD_FLAG_FUA)
    assert server.engine is not None
    server.engine.process.kill()
    server.engine.process.wait()
    server.start()
    assert server.connect().pread(BLOCK, 0) == b"k" * BLOCK
    control = server.control()
    assert control.hello()["pid"] == server.engine.pid
    control.close()


def test_the_sockets_are_for_their_owner_alone(server: Server) -> None:
    assert server.home.run.stat().st_mode & 0o777 == 0o700
    for path in (server.home.nbd_socket, server.home.engine_socket):
        assert path.stat().st_mode & 0o777 == 0o600


def test_status_names_the_plugin_and_the_process(server: Server) -> None:
    control = server.control()
    status = control.status()
    assert server.engine is not None
    assert (status["plugin"], status["pid"]) == (server.plugin, server.engine.pid)
    control.close()


def test_a_second_engine_on_a_home_is_busy_and_the_first_goes_on(server: Server) -> None:
    handle = server.connect()
    with pytest.raises(Busy):
        start(Options(home=server.home.path, plugin=server.plugin))
    assert handle.pread(512, 0) == bytes(512)
    assert server.connect().get_size() == DISK_BYTES, "the socket is still that of the first engine"
    assert not list(server.home.run.glob("*.new"))


def test_a_home_without_a_pool_is_not_found(idle_server: Server) -> None:
    with pytest.raises(NotFound, match="init"):
        idle_server.start()


def test_a_pool_of_an_unknown_format_is_refused(idle_server: Server) -> None:
    idle_server.create()
    for path in idle_server.home.pool.glob("superblock-*"):
        data = bytearray(path.read_bytes())
        data[8] ^= 0x40
        path.write_bytes(data)
    with pytest.raises((UnknownFormat, ToolFailed, Exception), match="(?i)format|version|superblock"):
        idle_server.start()


def test_an_unknown_parameter_is_named(idle_server: Server) -> None:
    idle_server.create()
    with pytest.raises((InvalidArgument, ToolFailed), match="speed"):
        idle_server.start(parameters={"speed": "warp"})


def test_nbdkit_options_that_it_refuses_are_shown_with_its_words(idle_server: Server, tmp_path: Path) -> None:
    idle_server.create()
    for name in CERTIFICATE_FILES:
        (tmp_path / name).write_text("not a certificate")
        (tmp_path / name).chmod(0o600)
    with pytest.raises(ToolFailed, match="nbdkit did not start: .*server-cert.pem"):
        idle_server.start(tcp=("127.0.0.1", 0), tls_certificates=tmp_path)


def by_hand(server: Server, *arguments: str, **parameters: str) -> list[str]:
    """nbdkit's command line as a person would type it."""
    words = command(Options(home=server.home.path, plugin=server.plugin))
    words.remove("--foreground")
    given = [word for word in words if not any(word.startswith(f"{name}=") for name in parameters)]
    return [given[0], *arguments, *given[1:], *(f"{name}={value}" for name, value in parameters.items())]


def fails_with_one_line(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("nbdkit: error: "), done.stderr
    return lines[0]


def test_by_hand_each_error_is_one_line(idle_server: Server, tmp_path: Path) -> None:
    socket_path = str(idle_server.home.path / "s")
    here = ("-f", "-U", socket_path)
    assert "init" in fails_with_one_line(by_hand(idle_server, *here))
    idle_server.create()
    assert "speed" in fails_with_one_line(by_hand(idle_server, *here, speed="warp"))
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.9.2\n")
    text = fails_with_one_line(by_hand(idle_server, *here, python=str(environment / "bin" / "python")))
    assert "make build" in text and "3.11" in text


def test_by_hand_in_the_background_it_serves_and_stops(idle_server: Server, run) -> None:
    """Without -f nbdkit forks between opening the pool and starting the threads."""
    idle_server.create()
    pid_file = idle_server.home.path / "pid"
    run(*by_hand(idle_server, "-U", str(idle_server.home.nbd_socket), "-P", str(pid_file)))
    while not pid_file.exists() or not pid_file.read_text().endswith("\n"):
        pass  # written when nbdkit is ready; pytest-timeout bounds this
    pid = int(pid_file.read_text())
    watch = os.pidfd_open(pid)
    try:
        handle = idle_server.connect()
        handle.pwrite(b"b" * BLOCK, 0)
        control = idle_server.control()
        assert control.hello()["pid"] == pid
        control.close()
    finally:
        os.kill(pid, signal.SIGTERM)
        assert select.select([watch], [], [], 20)[0], "it did not end"
        os.close(watch)
    idle_server.home.nbd_socket.unlink()
    idle_server.start()
    assert idle_server.connect().pread(BLOCK, 0) == b"b" * BLOCK


def test_dump_plugin_needs_no_home(plugin: str, run) -> None:
    words = command(Options(home=Path("/nonexistent"), plugin=plugin))  # type: ignore[arg-type]
    text = run(words[0], *[word for word in words[1:] if not word.startswith("--")], "--dump-plugin")
    assert "python_version=3.11" in text


def test_a_flood_of_half_open_connections_does_not_keep_clients_out(server: Server) -> None:
    idle = []
    for _ in range(50):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(server.home.nbd_socket))
        idle.append(connection)
    assert server.connect().pread(512, 0) == bytes(512)
    assert server.stop() == 0
    for connection in idle:
        connection.close()
