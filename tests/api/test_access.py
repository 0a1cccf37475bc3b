"""Who may ask what over TCP: tokens, their roles, and TLS."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
import stat
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockdev.addresses import Address
from blockdev.api import certificate
from blockdev.api.access import LEAST, OWNER, ROLES, Caller, least_role
from blockdev.api.listening import prepare_tcp
from blockdev.api.servers import CONNECTIONS_MAX
from blockdev.api.tokens import Tokens
from blockdev.errors import AlreadyExists, InvalidArgument, NotFound, PoolFull
from blockdev.home import Home as Paths
from blockdev.vmmap.catalog import Catalog
from tests.cli.served import SECONDS_MAX, Home, read_until
from tests.ports import free_address
from tests.vmmap.world import Clock

Connect = Callable[[str | None], httpx.Client]


def operations(rest: httpx.Client) -> list[tuple[str, str, str]]:
    """(method, path below /api/v1 with a name that nothing has, name)."""
    paths = rest.get("/openapi.json").json()["paths"]
    return [
        (method, "".join("none" if "}" in part else part for part in path.removeprefix("/api/v1").replace("}", "}{").split("{")), one["operationId"])
        for path, item in paths.items()
        for method, one in item.items()
    ]


def test_each_route_has_one_least_role_and_the_document_says_it(rest: httpx.Client) -> None:
    named = [route for routes in LEAST.values() for route in routes]
    described = {
        one["operationId"]: one["security"]
        for item in rest.get("/openapi.json").json()["paths"].values()
        for one in item.values()
    }
    named.remove("show_metrics")  # at the root, in Prometheus' own form: no address of REST's
    beside = {"show_metrics"}  # not below /api/v1, and not in its document
    assert sorted(set(named) - beside) == sorted(described)
    assert {name: [{"bearer": [least_role(name)]}] for name in described} == described
    assert least_role("a route that somebody forgot") == "admin"


def test_each_role_is_let_in_where_it_may_and_refused_elsewhere(
    rest: httpx.Client, callers: dict[str, httpx.Client], over_tcp: Connect
) -> None:
    nobody, seen = over_tcp(None), 0
    for method, path, name in operations(rest):
        assert nobody.request(method, path).status_code == 401, name
        for role, client in callers.items():
            seen += 1
            answer = client.request(method, path)
            if ROLES.index(role) < ROLES.index(least_role(name)):
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (403, "not_allowed"), (name, role, answer.text)
                assert least_role(name) in error["message"]
            else:
                assert answer.status_code != 401, (name, role)
                assert answer.status_code != 403 or "Unix socket" in answer.text, (name, role, answer.text)
    assert seen > 3 * 40


@pytest.mark.parametrize(
    "given",
    [None, "Bearer", "Bearer bdv_nothing", "Basic b3duZXI6", "bdv_nothing", "Bearer \xff\xfe", "Bearer " + "x" * 8000],
)
def test_without_a_token_that_is_known_nothing_is_answered(over_tcp: Connect, api_address: str, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    for path in ("/vms", "/openapi.json", "/nowhere", "https://{}/metrics"):
        answer = over_tcp(None).get(path.format(api_address), headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "not_allowed"
        challenge = answer.headers["WWW-Authenticate"]
        assert challenge.startswith("Bearer ") and ("invalid_token" in challenge) == (given is not None)
    assert over_tcp(None).post("/vms", json={"name": "x" * (5 << 20)}, headers=headers).status_code == 401  # type: ignore[arg-type]


def test_the_unix_socket_is_the_owners_whatever_token_is_sent(rest: httpx.Client) -> None:
    assert rest.get("/tokens", headers={"Authorization": "Bearer bdv_nothing"}).status_code == 200


def test_a_token_lets_in_until_it_is_removed(rest: httpx.Client, over_tcp: Connect) -> None:
    answer = rest.post("/tokens", json={"name": "passing", "role": "viewer", "valid_seconds": 3600})
    made = answer.json()
    assert answer.status_code == 201 and made["token"].startswith("bdv_") and len(made["token"]) == 4 + 43
    client = over_tcp(made.pop("token"))
    assert client.get("/vms").status_code == 200
    assert rest.post("/tokens", json={"name": "passing", "role": "admin"}).status_code == 409
    assert [one for one in rest.get("/tokens").json()["tokens"] if one["name"] == "passing"] == [made]
    assert rest.delete("/tokens/passing").json() == made
    assert client.get("/vms").status_code == 401
    assert rest.delete("/tokens/passing").status_code == 404


def test_tokens_come_in_pages(rest: httpx.Client) -> None:
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        assert rest.post("/tokens", json={"name": name, "role": "viewer"}).status_code == 201
    found, after = [], ""
    while after is not None:
        answer = rest.get("/tokens", params={"count": 2, "after": after}).json()
        assert len(answer["tokens"]) <= 2
        found += [one["name"] for one in answer["tokens"]]
        after = answer["next"]
    assert [name for name in found if name.startswith("page-")] == names and found == sorted(found)
    for name in names:
        rest.delete(f"/tokens/{name}")


def test_a_viewer_sees_no_configuration(rest: httpx.Client, callers: dict[str, httpx.Client]) -> None:
    disks = [{"name": "root", "size_bytes": 512}]
    rest.post("/vms", json={"name": "secretive", "config": "password", "disks": disks})
    rest.post("/vms/secretive/snapshots", json={"name": "s"})
    paths = [path for method, path, _name in operations(rest) if method == "get"]
    for path in paths:
        path = path.replace("/vms/none", "/vms/secretive").replace("/snapshots/none", "/snapshots/s")
        assert "password" not in callers["viewer"].get(path).text, path
    assert callers["operator"].get("/vms/secretive/snapshots/s").json()["config"] == "password"
    assert callers["operator"].get("/vms/secretive/config").json() == {"config": "password"}
    # what is registered from it may name programs of the hypervisor
    for refused in (
        callers["operator"].put("/vms/secretive/config", json={"config": "<domain/>"}),
        callers["operator"].post("/vms", json={"name": "sly", "config": "<domain/>", "disks": disks}),
    ):
        assert refused.status_code == 403, refused.text
    assert callers["admin"].put("/vms/secretive/config", json={"config": "password"}).status_code == 200
    rest.delete("/vms/secretive")


def test_a_viewer_sees_no_configuration_in_the_job_that_imported_it(
    rest: httpx.Client, callers: dict[str, httpx.Client], tmp_path: Path
) -> None:
    path = str(tmp_path / "snapshot.stream")
    rest.post("/vms", json={"name": "streamed", "config": "<vm password='secret'/>", "disks": [{"name": "root", "size_bytes": 4096}]})
    assert rest.post("/vms/streamed/snapshots", json={"name": "s1"}).status_code == 201
    for start, body in (("/vms/streamed/snapshots/s1/export", {"path": path}), ("/streams/import", {"path": path, "vm": "taken-in"})):
        job = rest.post(start, json=body).json()
        while job["state"] not in ("done", "failed"):
            job = rest.get(f"/jobs/{job['id']}", params={"after": job["version"], "wait_seconds": 10}).json()
    assert job["state"] == "done" and "secret" in rest.get("/vms/taken-in/config").text
    seen = callers["viewer"].get(f"/jobs/{job['id']}")
    assert seen.json()["result"]["made"]["name"] == "s1" and "secret" not in seen.text


@pytest.fixture
def catalog(tmp_path: Path) -> Any:
    opened = Catalog(tmp_path / "catalog.db")
    yield opened
    opened.close()


def test_tokens_survive_a_restart_and_end_at_their_time(catalog: Catalog) -> None:
    clock = Clock()
    tokens = Tokens(catalog, clock)
    row, short = tokens.add("short", "operator", 60)
    _, lasting = tokens.add("lasting", "admin", None)
    again = Tokens(catalog, lambda: now)
    now = clock() - 1
    assert again.caller(short) == Caller("short", "operator") and again.caller(lasting) == Caller("lasting", "admin")
    now += 3600
    assert again.caller(short) is None and again.caller(lasting) == Caller("lasting", "admin")
    assert [one.name for one in again.page("", 10)] == ["lasting", "short"], "it is shown until it is removed"
    assert again.caller("") is None and again.caller("bdv_" + "A" * 43) is None and again.caller("\udcff") is None
    assert again.remove("short") == row
    with pytest.raises(NotFound):
        again.remove("short")


def test_the_catalog_has_no_token(catalog: Catalog, tmp_path: Path) -> None:
    _, token = Tokens(catalog, Clock()).add("kept", "admin", None)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in kept and hashlib.sha256(token.encode()).digest() in kept


def test_no_token_is_called_as_the_owner_is(catalog: Catalog) -> None:
    tokens = Tokens(catalog, Clock())
    for name in (OWNER.name, "", "a/b", "~x"):
        with pytest.raises(InvalidArgument):
            tokens.add(name, "viewer", None)
    tokens.add("once", "viewer", None)
    with pytest.raises(AlreadyExists):
        tokens.add("once", "viewer", None)


def test_token_commands(home: Home, over_tcp: Connect, tmp_path: Path) -> None:
    made = home.json("token", "add", "by-hand", "--role", "operator", "--for", "2d")
    assert set(made) == {"name", "role", "created", "expires", "token"} and made["expires"] > made["created"]
    assert over_tcp(made["token"]).get("/vms").status_code == 200
    file = tmp_path / "token"
    told = home.run("token", "add", "in-a-file", "--role", "viewer", "--out", file)
    assert told.status == 0 and "bdv_" not in told.stdout and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert over_tcp(file.read_text().strip()).get("/vms").status_code == 200
    listed = {one["name"]: one for one in home.json("token", "list")["tokens"]}
    assert "token" not in listed["by-hand"] and listed["in-a-file"]["expires"] is None
    assert "bdv_" not in home("token", "list")
    assert home.run("token", "add", "other", "--role", "viewer", "--out", file).status == 4
    assert "other" not in home("token", "list"), "a file that cannot be written makes no token"
    assert home.run("token", "add", "by-hand", "--role", "viewer", "--out", tmp_path / "new").status == 4
    assert not (tmp_path / "new").exists()
    for name in ("by-hand", "in-a-file"):
        home("token", "remove", name)
    assert over_tcp(made["token"]).get("/vms").status_code == 401
    assert home.run("token", "remove", "by-hand").status == 3
    assert home.run("token", "remove", "a/../b").status == 3
    assert home.run("token", "add", "x", "--role", "king").status == 2


def presented(address: str) -> str:
    """The fingerprint of the certificate that is served there."""
    host, port = address.split(":")
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))).hexdigest()
    return ":".join(digest[at : at + 2] for at in range(0, 64, 2)).upper()


def test_the_homes_certificate_is_made_once_and_its_fingerprint_is_told(fresh: Home) -> None:
    address = free_address()
    told = []
    for _ in range(2):
        fresh.serving = fresh.start_serving("--api", address)
        told.append(read_until(fresh.serving, "serving the API")[-1].split()[-1])
        assert presented(address) == told[-1]
        fresh.stop()
    assert told[0] == told[1]
    keys = fresh.path / "keys/api"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (keys, keys / "key.pem", keys / "cert.pem")] == [0o700, 0o600, 0o600]
    assert list((fresh.path / "keys").iterdir()) == [keys]


def test_a_client_that_trusts_the_certificate_is_served_by_name_and_address(fresh: Home) -> None:
    address = free_address()
    fresh.serve("--api", address)
    port = address.split(":")[1]
    token = fresh("token", "add", "t", "--role", "viewer").strip()
    trust = fresh.trust()
    headers = {"Authorization": f"Bearer {token}"}
    for host in ("127.0.0.1", "localhost"):
        assert httpx.get(f"https://{host}:{port}/api/v1/vms", verify=trust, headers=headers).status_code == 200
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"https://{address}/api/v1/vms")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{address}/api/v1/vms")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings(action="ignore"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", int(port))) as stream, pytest.raises(ssl.SSLError):
        old.wrap_socket(stream)


def test_a_certificate_of_the_owners_own_is_served(fresh: Home, tmp_path: Path) -> None:
    certificate.make(tmp_path / "mine", "127.0.0.1")
    address = free_address()
    fresh.serving = fresh.start_serving("--json", "--api", address, "--api-tls", str(tmp_path / "mine"))
    told = json.loads("".join(read_until(fresh.serving, "}")))
    assert told["api_fingerprint"] == presented(address) == certificate.fingerprint(tmp_path / "mine")
    assert told["api_url"] == f"https://{address}" and not (fresh.path / "keys/api").exists()


def test_plain_http_on_loopback_needs_a_token_too(fresh: Home) -> None:
    address = free_address()
    fresh.serve("--api", address, "--api-plain")
    base = f"http://{address}/api/v1"
    assert httpx.get(f"{base}/vms").status_code == 401
    token = fresh("token", "add", "t", "--role", "viewer").strip()
    assert httpx.get(f"{base}/vms", headers={"Authorization": f"bearer {token}"}).status_code == 200


@pytest.mark.parametrize("options", [(), ("--api-plain",)])
def test_those_without_a_token_keep_nobody_out_for_long(fresh: Home, options: tuple[str, ...]) -> None:
    """Nor do those who begin no TLS handshake."""
    address = Address.parse(free_address())
    fresh.serve("--api", str(address), *options)
    with ExitStack() as held:

        def connect() -> socket.socket:
            return held.enter_context(socket.create_connection((address.host, address.port), timeout=SECONDS_MAX))

        idle = [connect() for _ in range(CONNECTIONS_MAX)]
        one_more = connect()
        assert one_more.recv(1) == b""
        assert fresh.json("vm", "list") == {"vms": []}, "the owner is served meanwhile"
        assert idle[0].recv(1) == b""
        refused = connect()
        if not options:
            context = fresh.trust()
            refused = held.enter_context(context.wrap_socket(refused, server_hostname="localhost"))
        refused.sendall(b"GET /api/v1/vms HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while part := refused.recv(4096):
            answer += part
        assert answer.startswith(b"HTTP/1.1 401") and b"connection: close" in answer.lower()


def test_what_strangers_send_is_not_in_the_log(fresh: Home) -> None:
    address = free_address()
    fresh.serve("--api", address)
    context = fresh.trust()

    def send(data: bytes) -> bytes:
        plain = socket.create_connection(("127.0.0.1", int(address.split(":")[1])), timeout=SECONDS_MAX)
        with context.wrap_socket(plain, server_hostname="localhost") as stream:
            stream.sendall(data)
            return stream.recv(4096)

    upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert send(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400") and send(upgrade).startswith(b"HTTP/1.1 421")  # the console is not called x
    with context.wrap_socket(socket.create_connection(("127.0.0.1", int(address.split(":")[1]))), server_hostname="localhost") as idle:
        idle.settimeout(SECONDS_MAX)
        assert idle.recv(1) == b"", "by then the one that sent nonsense would have been found idle, too"
    said = fresh.stop()
    assert "uvicorn" not in said and "Traceback" not in said


def test_idle_tls_connections_do_not_hold_up_the_end(fresh: Home) -> None:
    address = free_address()
    fresh.serve("--api", address)
    context = fresh.trust()
    token = fresh("token", "add", "t", "--role", "viewer").strip()
    stream = context.wrap_socket(socket.create_connection(("127.0.0.1", int(address.split(":")[1]))), server_hostname="localhost")
    with stream:
        stream.sendall(f"GET /api/v1/vms HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        assert stream.recv(100).startswith(b"HTTP/1.1 200")
        said = fresh.stop()  # and this end neither reads nor closes
    assert "graceful shutdown exceeded" not in said


def test_answers_over_tcp_do_not_wait_for_acknowledgements() -> None:
    """Nagle's algorithm holds a body back until its head was acknowledged, which takes 40 ms."""

    async def accepted() -> int:
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                seen.set_result(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        address = Address.parse(free_address())
        server = await asyncio.get_running_loop().create_server(Protocol, sock=address.listen())
        async with server:
            _, writer = await asyncio.open_connection(address.host, address.port)
            try:
                return await seen
            finally:
                writer.close()

    assert asyncio.run(accepted())


def paths(fresh: Home) -> Paths:
    return Paths.at(fresh.path)


def test_what_would_be_served_without_tls_off_loopback_is_refused(fresh: Home, tmp_path: Path) -> None:
    outside = Address.parse("0.0.0.0:8443")
    with pytest.raises(InvalidArgument, match="reached from outside"):
        prepare_tcp(paths(fresh), outside, None, True)
    with pytest.raises(InvalidArgument, match="not both"):
        prepare_tcp(paths(fresh), outside, tmp_path, True)
    assert prepare_tcp(paths(fresh), outside, None, False).url == "https://0.0.0.0:8443"
    named = prepare_tcp(paths(fresh), Address.parse("192.0.2.7:8443"), None, False)
    assert named.warning and "does not name 192.0.2.7" in named.warning, "it was made for another address"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda mine, other: (mine / "key.pem").chmod(0o640), "chmod 600"),
        (lambda mine, other: (mine / "key.pem").unlink(), "no key.pem"),
        (lambda mine, other: (mine / "cert.pem").write_text("nothing"), "cannot be used"),
        (lambda mine, other: (mine / "cert.pem").write_bytes((other / "cert.pem").read_bytes()), "belong together"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused_before_anything_starts(
    fresh: Home, tmp_path: Path, spoil: Callable[[Path, Path], None], says: str
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for made in (mine, other):
        certificate.make(made, "127.0.0.1")
    spoil(mine, other)
    refused = fresh.run("serve", "--api", free_address(), "--api-tls", mine)
    assert refused.status == 2 and says in refused.error


def test_a_full_file_system_refuses_a_token_and_lets_one_be_removed(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(catalog, Clock())
    _, token = tokens.add("old", "viewer", None)

    def full(self: Catalog) -> None:
        raise PoolFull("the file system is full")

    monkeypatch.setattr(Catalog, "require_room", full)
    with pytest.raises(PoolFull):
        tokens.add("new", "viewer", None)
    tokens.remove("old")
    assert tokens.caller(token) is None and tokens.page("", 10) == []
