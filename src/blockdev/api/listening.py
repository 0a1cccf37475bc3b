"""Where the control plane listens: HOME/run/api.sock (0600), and on TCP when told to, with TLS.

TLS is the default on loopback, too.  Nobody but root can read what passes there, but any user of the machine may take the
port while we are away and be sent our clients' tokens: a client that checks the certificate gives them to nobody else.
Plain HTTP has to be asked for, and goes nowhere but to loopback: to a reverse proxy on this machine, say.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blockdev.addresses import Address
from blockdev.errors import InvalidArgument
from blockdev.home import Home


@dataclass(frozen=True)
class Tcp:
    """What is served over TCP."""

    address: Address
    tls: Path | None  # the directory of its certificate; None: plain HTTP
    fingerprint: str | None = None  # SHA-256 of the certificate
    warning: str | None = None  # something that its clients may stumble over
    registers: bool = False  # whether admins with a token may have domains made at hypervisors

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.address}"

    @property
    def browser_url(self) -> str:
        """What people can open: the machine's name, where all its addresses are served."""
        if not self.address.is_unspecified():
            return self.url
        return f"{'http' if self.tls is None else 'https'}://{socket.gethostname()}:{self.address.port}"

    def arguments(self) -> list[str]:
        """Those of a blockdevd that serves it."""
        how = ["--api-plain"] if self.tls is None else ["--api-tls", str(self.tls)]
        return ["--api", str(self.address), *how, *(["--api-hypervisors"] if self.registers else [])]

    def context(self) -> ssl.SSLContext | None:
        from blockdev.api import certificate  # as below

        return None if self.tls is None else certificate.context(self.tls)


def prepare_tcp(home: Home, address: Address, tls: Path | None, plain: bool) -> Tcp:
    """What to serve at `address`: by the certificate in `tls`, else by the home's own, which is made when there is none.

    Raises InvalidArgument: plain HTTP that others could reach, or a certificate that cannot be used.
    """
    if plain and tls is not None:
        raise InvalidArgument("with TLS or plain, not both: leave one of --api-tls and --api-plain away")
    if plain:
        if not address.is_loopback():
            raise InvalidArgument(
                f"{address} can be reached from outside, where anybody on the way could read tokens: leave --api-plain "
                "away, or use a loopback address such as 127.0.0.1:8080"
            )
        return Tcp(address, None)
    from blockdev.api import certificate  # cryptography takes long to load, and most commands do without

    directory = tls or home.keys / "api"
    if tls is None and not directory.exists():
        home.make_directories()
        certificate.make(directory, address.host)
    certificate.context(directory)
    warning = None
    if not certificate.is_for(directory, address.host):
        advice = "give one that does" if tls else "remove the directory to have another one made"
        warning = f"the certificate in {directory} does not name {address.host}, and clients that look refuse it: {advice}"
    return Tcp(address, directory, certificate.fingerprint(directory), warning)


def listen_local(home: Home) -> socket.socket:
    """The owner's socket; its name is ours to take away because we hold the home's lock."""
    with suppress(FileNotFoundError):
        home.api_socket.unlink()
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    local.bind(str(home.api_socket))
    home.api_socket.chmod(0o600)
    return local
