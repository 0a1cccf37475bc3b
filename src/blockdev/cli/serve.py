"""blockdevctl serve: both processes of a home in the foreground."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from blockdev.addresses import Address
from blockdev.api.launch import start_control
from blockdev.api.listening import Tcp, prepare_tcp
from blockdev.api.supervisor import Supervisor, sole_supervisor
from blockdev.cli import values
from blockdev.cli.service_manager import tell_ready
from blockdev.cli.session import Session, Verb, pass_session
from blockdev.constants import REPLICATION_PORT
from blockdev.errors import InvalidArgument
from blockdev.targets import nbdkit

ENGINE_READY_SECONDS_MAX = 600.0  # it replays the log


class AddressValue(click.ParamType):
    name = "addr:port"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        return value if isinstance(value, Address) else Address.parse(str(value))


class PeersAddressValue(click.ParamType):
    name = "addr[:port]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        return value if isinstance(value, Address) else Address.parse(str(value), REPLICATION_PORT)


@click.command(cls=Verb)
@click.option("--nbd", type=AddressValue(), metavar="ADDR:PORT", help="Serve NBD over TCP, too.")
@click.option("--api", type=AddressValue(), metavar="ADDR:PORT", help="Serve REST over TCP, too, for those who have a token.")
@click.option("--api-tls", type=values.PATH, metavar="DIR", help="cert.pem and key.pem for it (default: made once, in the home).")
@click.option("--api-plain", is_flag=True, help="Serve it without TLS; on a loopback address only.")
@click.option(
    "--api-hypervisors",
    is_flag=True,
    help="Let admins with a token have domains made of VMs, too, as the console's clone dialog does: a configuration can name programs there.",
)
@click.option(
    "--replicate",
    type=PeersAddressValue(),
    metavar="ADDR[:PORT]",
    help=f"Let peers reach this home, to send it VMs (port {REPLICATION_PORT} unless another is given).",
)
@click.option(
    "--plugin",
    type=click.Choice(["native", "python"]),
    default="native",
    show_default=True,
    help="native: the engine within nbdkit; python: by nbdkit's Python plugin, slower.",
)
@click.option("--tls-psk", type=values.PATH, metavar="FILE", help="Keys of those who may use NBD over TCP.")
@click.option("--tls-certificates", type=values.PATH, metavar="DIR", help="Certificates for NBD over TCP.")
@click.option("--insecure-nbd", is_flag=True, help="Let everybody who reaches ADDR:PORT read and write the disks.")
@pass_session
def serve(
    session: Session,
    nbd: Address | None,
    api: Address | None,
    api_tls: str | None,
    api_plain: bool,
    api_hypervisors: bool,
    replicate: Address | None,
    plugin: nbdkit.Plugin,
    tls_psk: str | None,
    tls_certificates: str | None,
    insecure_nbd: bool,
) -> None:
    """Serve the disks and the API until interrupted."""
    logging.basicConfig(level=logging.INFO, format="serve: %(message)s")
    home = session.home
    home.require_initialised()
    if nbd is None and (tls_psk or tls_certificates or insecure_nbd):
        raise InvalidArgument("those options are for NBD over TCP: say --nbd ADDR:PORT, too")
    if api is None and (api_tls or api_plain or api_hypervisors):
        raise InvalidArgument("those options are for the API over TCP: say --api ADDR:PORT, too")
    options = nbdkit.Options(
        home=home.path,
        plugin=plugin,
        tcp=(nbd.host, nbd.port) if nbd else None,
        tls_psk=Path(tls_psk) if tls_psk else None,
        tls_certificates=Path(tls_certificates) if tls_certificates else None,
        insecure_tcp=insecure_nbd,
    )
    options.check()
    tcp = None
    for address in filter(None, (api, replicate)):
        address.listen().close()  # a port that is taken should be told before the pool is opened
    if api is not None:
        tcp = replace(prepare_tcp(home, api, Path(api_tls) if api_tls else None, api_plain), registers=api_hypervisors)
        if tcp.warning:
            click.echo(f"warning: {tcp.warning}", err=True)
    home.make_directories()

    servers: list[nbdkit.NbdServer] = []

    def start_engine() -> subprocess.Popen[bytes]:
        servers[:] = [nbdkit.start(options, ENGINE_READY_SECONDS_MAX)]
        return servers[0].process

    def start_api(meanwhile: Callable[[], None]) -> subprocess.Popen[bytes]:
        return start_control(home, tcp, _text(nbd), _text(replicate), meanwhile)

    def announce() -> None:
        _announce(session, nbd, tcp, replicate, plugin)
        tell_ready()

    with sole_supervisor(home):
        try:
            Supervisor(start_engine, start_api, announce).run()
        finally:
            for server in servers:  # it has ended; this takes its socket's name away
                server.stop()


def _text(address: Address | None) -> str | None:
    return None if address is None else str(address)


def _announce(session: Session, nbd: Address | None, tcp: Tcp | None, replicate: Address | None, plugin: str) -> None:
    home = session.home
    document = {
        "home": str(home.path),
        "plugin": plugin,
        "nbd_socket": str(home.nbd_socket),
        "nbd": _text(nbd),
        "api_socket": str(home.api_socket),
        "api": str(tcp.address) if tcp else None,
        "replicate": _text(replicate),
        "api_url": tcp.url if tcp else None,
        "api_fingerprint": tcp.fingerprint if tcp else None,
    }
    command = f"blockdevctl --home {home.path}"
    lines = [
        f"serving the home {home.path} ({plugin} plugin)",
        f"serving NBD on {home.nbd_socket}" + (f" and {nbd}" if nbd else ""),
        f"serving the API on {home.api_socket}" + (f" and {_tell_tcp(tcp)}" if tcp else ""),
        *([f"peers reach this home at {replicate}"] if replicate else []),
        f"to see what there is: {command} vm list; to use a disk: {command} attach VM/DISK",
        *([f"the web console is at {tcp.browser_url}: {command} console prints an address that signs in"] if tcp else []),
    ]
    session.say(document, "\n".join(lines))


def _tell_tcp(tcp: Tcp) -> str:
    return f"{tcp.url}, whose certificate has SHA-256 {tcp.fingerprint}" if tcp.fingerprint else f"{tcp.url}, without TLS"
