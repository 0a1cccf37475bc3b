"""TCP, and who may come in by it: anyone on loopback, with keys, with certificates."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
from blockdev.targets.nbdkit import CERTIFICATE_FILES

import nbd
from blockdev.errors import Busy, InvalidArgument, NotFound
from tests.nbd.conftest import DISK, DISK_BYTES, Server

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def created(idle_server: Server) -> Server:
    idle_server.create()
    return idle_server


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key for alice, and one with another key for her."""
    directory = tmp_path_factory.mktemp("psk")
    for name in ("keys.psk", "other.psk"):
        subprocess.run(["psktool", "-u", "alice", "-p", directory / name], check=True, capture_output=True)
    return directory / "keys.psk"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server/, client/ and stranger/ (a client of another authority), as nbdkit and libnbd want them."""
    top = tmp_path_factory.mktemp("certificates")

    def certtool(*arguments: str | Path) -> None:
        subprocess.run(["certtool", *arguments], check=True, capture_output=True)

    def key(path: Path) -> Path:
        certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", path)
        return path

    def authority(name: str) -> tuple[Path, Path]:
        template = top / f"{name}.info"
        template.write_text(f"cn = {name}\nca\ncert_signing_key\n")
        secret, public = key(top / f"{name}-key.pem"), top / f"{name}.pem"
        certtool(
            "--generate-self-signed", "--load-privkey", secret, "--template", template, "--outfile", public
        )
        return secret, public

    def issue(directory: str, role: str, extra: str, by: tuple[Path, Path], trusted: Path) -> None:
        place = top / directory
        place.mkdir()
        template = place / "template.info"
        template.write_text(f"cn = localhost\ntls_www_{role}\nencryption_key\nsigning_key\n{extra}")
        secret = key(place / f"{role}-key.pem")
        certtool(
            "--generate-certificate",
            *("--load-ca-certificate", by[1], "--load-ca-privkey", by[0]),
            *("--load-privkey", secret, "--template", template, "--outfile", place / f"{role}-cert.pem"),
        )
        (place / "ca-cert.pem").write_bytes(trusted.read_bytes())

    ours, theirs = authority("ours"), authority("theirs")
    issue("server", "server", "dns_name = localhost\nip_address = 127.0.0.1\n", ours, ours[1])
    issue("client", "client", "", ours, ours[1])
    issue("stranger", "client", "", theirs, ours[1])
    return top


def at(server: Server, scheme: str, export: str = DISK, user: str = "", query: str = "") -> str:
    assert server.engine is not None and server.engine.tcp is not None
    return f"{scheme}://{user}{server.engine.tcp[0]}:{server.engine.tcp[1]}/{export}{query}"


def test_tcp_and_the_unix_socket_serve_the_same_pool(created: Server, run) -> None:
    created.start(tcp=LOOPBACK)
    assert run("nbdinfo", "--size", at(created, "nbd")).strip() == str(DISK_BYTES)
    assert run("nbdinfo", "--size", created.uri()).strip() == str(DISK_BYTES)
    assert DISK in run("nbdinfo", "--list", at(created, "nbd", ""))
    assert created.connect().get_tls_negotiated() is False


def test_a_tcp_client_is_known_by_its_address(created: Server) -> None:
    created.start(tcp=LOOPBACK)
    handle = nbd.NBD()
    handle.connect_uri(at(created, "nbd"))
    control = created.control()
    ((_, name, client),) = control.attachments()
    assert name == DISK and client.startswith("127.0.0.1:")
    control.close()
    handle.shutdown()


def test_tcp_over_ipv6(created: Server) -> None:
    created.start(tcp=("::1", 0))
    assert created.engine is not None and created.engine.tcp is not None
    handle = nbd.NBD()
    handle.connect_uri(f"nbd://[::1]:{created.engine.tcp[1]}/{DISK}")
    control = created.control()
    assert control.attachments()[0][2].startswith("[::1]:")
    control.close()
    handle.shutdown()


def test_a_key_lets_its_user_in_over_tcp_and_others_not(created: Server, run, keys: Path) -> None:
    created.start(tcp=LOOPBACK, tls_psk=keys)
    good = at(created, "nbds", user="alice@", query=f"?tls-psk-file={keys}")
    assert run("nbdinfo", "--size", good).strip() == str(DISK_BYTES)
    assert DISK in run("nbdinfo", "--list", at(created, "nbds", "", "alice@", f"?tls-psk-file={keys}"))
    wrong = keys.with_name("other.psk")
    run("nbdinfo", "--size", at(created, "nbds", user="alice@", query=f"?tls-psk-file={wrong}"), status=1)


def test_without_tls_a_tcp_client_neither_opens_nor_lists(created: Server, run, keys: Path) -> None:
    created.start(tcp=LOOPBACK, tls_psk=keys)
    run("nbdinfo", "--size", at(created, "nbd"), status=1)
    assert DISK not in run("nbdinfo", "--list", at(created, "nbd", ""), status=1)
    run("nbdinfo", at(created, "nbd", ""), status=1)
    assert "without TLS" in created.log()
    assert run("nbdinfo", "--size", created.uri()).strip() == str(DISK_BYTES), "the Unix socket needs no TLS"


def test_a_disk_is_copied_in_over_tls(created: Server, run, keys: Path, work: Path) -> None:
    image = work / "in.raw"
    image.write_bytes(b"tls!" * (1 << 20))
    created.start(tcp=LOOPBACK, tls_psk=keys)
    run("nbdcopy", image, at(created, "nbds", user="alice@", query=f"?tls-psk-file={keys}"))
    assert created.connect().pread(4 << 20, 0) == image.read_bytes()


def test_certificates_let_clients_of_the_same_authority_in(created: Server, run, certificates: Path) -> None:
    created.start(tcp=LOOPBACK, tls_certificates=certificates / "server")
    good = at(created, "nbds", query=f"?tls-certificates={certificates / 'client'}")
    assert run("nbdinfo", "--size", good).strip() == str(DISK_BYTES)
    bad = at(created, "nbds", query=f"?tls-certificates={certificates / 'stranger'}")
    run("nbdinfo", "--size", bad, status=1)
    run("nbdinfo", "--size", at(created, "nbd"), status=1)


def test_certificates_without_verified_clients_encrypt_only(created: Server, run, certificates: Path) -> None:
    created.start(tcp=LOOPBACK, tls_certificates=certificates / "server", verify_clients=False)
    bad = at(created, "nbds", query=f"?tls-certificates={certificates / 'stranger'}")
    assert run("nbdinfo", "--size", bad).strip() == str(DISK_BYTES)


def test_keys_are_not_in_the_process_arguments(created: Server, keys: Path) -> None:
    engine = created.start(tcp=LOOPBACK, tls_psk=keys)
    arguments = Path(f"/proc/{engine.pid}/cmdline").read_bytes()
    secret = keys.read_text().strip().split(":")[1]
    assert secret.encode() not in arguments and str(keys).encode() in arguments


class TestRefusals:
    """Of start itself: nothing is left running, and nothing is changed."""

    def test_an_address_that_others_reach_needs_authentication(
        self, created: Server, certificates: Path
    ) -> None:
        with pytest.raises(InvalidArgument, match="can be reached by other hosts"):
            created.start(tcp=("0.0.0.0", 0))
        with pytest.raises(InvalidArgument, match="can be reached by other hosts"):
            created.start(tcp=("0.0.0.0", 0), tls_certificates=certificates / "server", verify_clients=False)
        assert not list(created.home.run.glob("nbd*"))

    def test_a_port_that_is_taken_is_busy(self, created: Server) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(
                Busy, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"
            ):
                created.start(tcp=("127.0.0.1", port))
        assert not list(created.home.run.glob("nbd*"))

    def test_missing_keys_and_certificates_are_named(
        self, created: Server, tmp_path: Path, keys: Path
    ) -> None:
        with pytest.raises(NotFound, match=r"nope\.psk"):
            created.start(tcp=LOOPBACK, tls_psk=tmp_path / "nope.psk")
        with pytest.raises(NotFound, match=r"ca-cert\.pem"):
            created.start(tcp=LOOPBACK, tls_certificates=tmp_path)
        with pytest.raises(InvalidArgument, match="not both"):
            created.start(tcp=LOOPBACK, tls_psk=keys, tls_certificates=tmp_path)

    def test_secrets_that_others_may_read_are_refused(
        self, created: Server, tmp_path: Path, keys: Path
    ) -> None:
        copy = tmp_path / "keys.psk"
        copy.write_bytes(keys.read_bytes())
        copy.chmod(0o640)
        with pytest.raises(InvalidArgument, match=f"chmod 600 {copy}"):
            created.start(tcp=LOOPBACK, tls_psk=copy)
        for name in CERTIFICATE_FILES:
            (tmp_path / name).write_text("")
            (tmp_path / name).chmod(0o644)
        with pytest.raises(InvalidArgument, match="server-key.pem"):
            created.start(tcp=LOOPBACK, tls_certificates=tmp_path)
