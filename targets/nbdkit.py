"""Starting and stopping the engine process: nbdkit with one of the two plugins, on a Unix socket and on TCP when asked.

The listening sockets are made here and handed to nbdkit by socket activation, because nbdkit by itself listens on a Unix
socket or on TCP, never both, and because a port that is taken should be an error before the pool is opened.  The Unix
socket gets its final name only when the engine serves: whoever finds it can connect, and an engine that fails to start
(another has the pool) takes nothing away from the one that runs.

nbdkit ends with the thread that started it (it asks the kernel for a SIGTERM then, as always under socket activation), so a
supervisor that is killed leaves no engine behind.  Its log is run/engine.log.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import blockdev
from blockdev.addresses import is_loopback, listen
from blockdev.errors import BY_CODE, InvalidArgument, NotFound, ToolFailed
from blockdev.home import Home

LISTEN_FIRST_FD = 3  # SD_LISTEN_FDS_START
PASSED_FROM_FD = 32  # where descriptors wait so that moving one to its place does not close another
LOG_BYTES_MAX = 1 << 20  # a longer log is set aside at start, as engine.log.1
# Threads that serve one connection.  Native: nbdkit's default.  Python: more than one only contend for the GIL (measured:
# 21k IOPS with 16, 44k with 1).
THREADS = {"native": 16, "python": 1}
# bash, because dash redirects descriptors of one digit only; LISTEN_PID must name the process that nbdkit will be.
LAUNCHER = 'export LISTEN_PID=$$; exec "$@"'

CERTIFICATE_FILES = ("ca-cert.pem", "server-cert.pem", "server-key.pem")

Plugin = Literal["native", "python"]


@dataclass(frozen=True)
class Options:
    """What to serve and how.  TLS concerns TCP only: the Unix socket is the owner's, in a directory of mode 0700."""

    home: Path
    plugin: Plugin = "native"
    tcp: tuple[str, int] | None = None  # address and port to listen on, besides the Unix socket
    tls_psk: Path | None = None  # file of user:key lines, as psktool makes it
    tls_certificates: Path | None = None  # directory of CERTIFICATE_FILES
    verify_clients: bool = True  # with certificates: a client must show one that the same CA signed
    insecure_tcp: bool = False  # by name: reachable from other hosts although anyone could connect
    threads: int | None = None  # that serve one connection (default: THREADS)
    verbose: bool = False
    parameters: dict[str, str] = field(
        default_factory=dict
    )  # further ones of the plugin, such as map_cache_bytes

    def check(self) -> None:
        """Raises InvalidArgument for what must not or cannot be served, NotFound for missing TLS files."""
        if self.tls_psk is not None and self.tls_certificates is not None:
            raise InvalidArgument(
                "TLS by pre-shared keys or by certificates, not both: nbdkit would ignore one"
            )
        if self.tls_psk is not None:
            if not self.tls_psk.is_file():
                raise NotFound(f"no file of TLS keys at {self.tls_psk}; psktool makes one")
            _require_private(self.tls_psk)
        for name in CERTIFICATE_FILES:
            # nbdkit itself would go on without TLS
            if self.tls_certificates is not None and not (self.tls_certificates / name).is_file():
                raise NotFound(f"no {name} in {self.tls_certificates}; certtool makes it (see nbdkit-tls(1))")
        if self.tls_certificates is not None:
            _require_private(self.tls_certificates / "server-key.pem")
        if (
            self.tcp is not None
            and not self.insecure_tcp
            and not (is_loopback(self.tcp[0]) or self._authenticates())
        ):
            raise InvalidArgument(
                f"{self.tcp[0]} can be reached by other hosts and nothing would keep them from writing to the disks: "
                "use a loopback address, --tls-psk, --tls-certificates, or allow it by --insecure-nbd"
            )

    def _authenticates(self) -> bool:
        return self.tls_psk is not None or (self.tls_certificates is not None and self.verify_clients)

    @property
    def tls(self) -> bool:
        return self.tls_psk is not None or self.tls_certificates is not None


def _require_private(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        raise InvalidArgument(f"{path} is a secret that other users may read: chmod 600 {path}")


def plugin_arguments(plugin: Plugin) -> list[str]:
    """What nbdkit loads.  Raises NotFound when the native plugin is not built for this Python."""
    if plugin == "python":
        return ["python", str(Path(__file__).with_name("nbdkit_python.py"))]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for directory in blockdev.__path__:
        built = Path(directory, f"_nbdkit{suffix}")
        if built.is_file():
            return [str(built)]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise NotFound(
        f"the native plugin is not built for Python {version}: run make build, or use the python plugin"
    )


def _threads(options: Options) -> int:
    """Threads for one connection.  One under TLS: there the guard against clients that die does not reach (docs/nbd.md)."""
    if options.threads is not None:
        return options.threads
    return 1 if options.tls_psk or options.tls_certificates else THREADS[options.plugin]


def command(options: Options) -> list[str]:
    """nbdkit's command line, without what hands it its sockets.  No secret is in it: keys are named by file."""
    nbdkit = shutil.which("nbdkit")
    if nbdkit is None:
        raise NotFound("nbdkit is not installed: apt-get install nbdkit nbdkit-plugin-python")
    arguments = [nbdkit, "--foreground", f"--threads={_threads(options)}"]
    parameters = {"home": str(options.home.absolute()), "python": sys.executable, **options.parameters}
    if options.tls:
        # "on", not "require": nbdkit has one rule for all its sockets.  The plugin refuses TCP clients without TLS.
        arguments += ["--tls=on"]
        parameters["tcp_tls"] = "require"
    else:
        arguments += ["--tls=off"]
    if options.tls_psk is not None:
        arguments += [f"--tls-psk={options.tls_psk.absolute()}"]
    if options.tls_certificates is not None:
        arguments += [f"--tls-certificates={options.tls_certificates.absolute()}"]
        arguments += ["--tls-verify-peer"] if options.verify_clients else []
    arguments += ["--verbose"] if options.verbose else []
    return [
        *arguments,
        *plugin_arguments(options.plugin),
        *(f"{key}={value}" for key, value in parameters.items()),
    ]


class NbdServer:
    """A running engine process.  Made by start()."""

    def __init__(
        self, process: subprocess.Popen[bytes], home: Home, tcp: tuple[str, int] | None, socket_inode: int
    ) -> None:
        self.process = process
        self.home = home
        self.tcp = tcp  # the address it listens on, with the port that the kernel chose when 0 was asked for
        self._socket_inode = socket_inode

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        """None while it runs, else its exit status (negative: the signal that killed it)."""
        return self.process.poll()

    def stop(self, timeout_s: float = 60.0) -> int:
        """Ends it: connections are closed, the pool is checkpointed.  Returns the exit status.

        Raises ToolFailed when it is still there after `timeout_s`; it is not killed, as that is the caller's decision.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ToolFailed(f"the engine (pid {self.pid}) did not stop within {timeout_s:g} s") from None
        with suppress(FileNotFoundError):
            if (
                self.home.nbd_socket.stat().st_ino == self._socket_inode
            ):  # not that of an engine started since
                self.home.nbd_socket.unlink()
        return status


def start(options: Options, timeout_s: float = 60.0) -> NbdServer:
    """Starts the engine process and returns when it serves: its pool is open and all its sockets answer.

    Raises InvalidArgument, NotFound, Busy (the pool has another engine, the port is taken), UnknownFormat, Corrupt, or
    ToolFailed with what nbdkit said last.
    """
    home = Home.at(options.home)
    options.check()
    home.require_initialised()
    arguments = command(options)
    home.make_directories()
    with ExitStack() as cleanup:
        listener, path = cleanup.enter_context(_unix_listener(home))
        listeners, tcp = [listener], None
        if options.tcp is not None:
            listeners.append(cleanup.enter_context(listen(*options.tcp)))
            tcp = listeners[1].getsockname()[:2]
        ready, ready_writer = os.pipe()
        reader = cleanup.enter_context(open(ready, "rb", buffering=0))
        log_start = _set_log_aside(home)
        process = _launch(home, arguments, [opened.fileno() for opened in listeners], ready_writer)
        try:
            _wait_until_ready(process, reader.fileno(), home, log_start, timeout_s)
        except BaseException:
            process.kill()
            process.wait()
            raise
        inode = path.stat().st_ino
        path.rename(home.nbd_socket)
    return NbdServer(process, home, tcp, inode)


@contextmanager
def _unix_listener(home: Home) -> Iterator[tuple[socket.socket, Path]]:
    """A listening socket for the owner alone, under a name that only this process uses."""
    path = home.run / f"nbd-{os.getpid()}.new"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as opened:
        os.fchmod(opened.fileno(), 0o600)  # Linux gives the file the mode that the socket has at bind
        opened.bind(str(path))
        try:
            opened.listen(socket.SOMAXCONN)
            yield opened, path
        finally:
            path.unlink(missing_ok=True)


def _launch(home: Home, arguments: list[str], listeners: list[int], ready: int) -> subprocess.Popen[bytes]:
    """Starts nbdkit with the listening sockets at descriptors 3, 4, ... and the readiness pipe after them."""
    passed = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PASSED_FROM_FD) for fd in (*listeners, ready)]
    os.close(ready)
    ready_at = LISTEN_FIRST_FD + len(listeners)
    moves = " ".join(f"{LISTEN_FIRST_FD + index}<&{fd}-" for index, fd in enumerate(passed))
    environment = {**os.environ, "LISTEN_FDS": str(len(listeners))}
    try:
        with open(home.run / "engine.log", "ab") as log:
            return subprocess.Popen(
                [
                    "/bin/bash",
                    "-c",
                    f"exec {moves}; {LAUNCHER}",
                    "nbdkit",
                    *arguments,
                    f"ready_fd={ready_at}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=passed,
                env=environment,
                start_new_session=True,  # Ctrl-C in the supervisor's terminal is for the supervisor
            )
    finally:
        for fd in passed:
            os.close(fd)


def _set_log_aside(home: Home) -> int:
    """Where this run's part of the log begins."""
    log = home.run / "engine.log"
    size = log.stat().st_size if log.exists() else 0
    if size > LOG_BYTES_MAX:
        log.rename(log.with_suffix(".log.1"))
        return 0
    return size


def _wait_until_ready(
    process: subprocess.Popen[bytes], reader: int, home: Home, log_start: int, timeout_s: float
) -> None:
    """The plugin writes one line: "ready", or "error CODE MESSAGE"; a pipe closed without one is nbdkit's own failure."""
    if not select.select([reader], [], [], timeout_s)[0]:
        raise ToolFailed(
            f"the engine did not become ready within {timeout_s:g} s; see {home.run / 'engine.log'}"
        )
    line = os.read(reader, 65536).decode(errors="replace").strip()
    if line == "ready":
        return
    status = process.wait(timeout_s)
    if line:
        _, code, message = line.split(" ", 2)
        raise BY_CODE.get(code, ToolFailed)(message)
    raise ToolFailed(f"nbdkit did not start: {_last_error(home, log_start, status)}")


def _last_error(home: Home, log_start: int, status: int) -> str:
    with open(home.run / "engine.log", "rb") as log:
        log.seek(log_start)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower()] or lines
    return errors[-1].removeprefix("nbdkit: error: ") if errors else f"it said nothing and ended with {status}"
