"""The certificate of the API over TCP: one of its owner's own, or one that is made here and that clients pin.

A directory holds `cert.pem` (with what leads to its issuer) and `key.pem`, mode 0600.  What is made is signed by itself, so
a client either is given it as its authority, or compares its fingerprint.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blockdev import _medium
from blockdev.beside import made_beside
from blockdev.clock import now_seconds
from blockdev.errors import InvalidArgument

CERTIFICATE, KEY = "cert.pem", "key.pem"
DAYS = 3650  # whoever pins it would have to be told of another one


def make(directory: Path, host: str) -> None:
    """A key (ECDSA P-256) and a certificate of it for `host` and localhost in a new directory; durable, all or nothing."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with made_beside(directory, "api") as made:
        _medium.write_file(str(made / KEY), [pem], True, True)  # mode 0600, as all that it makes
        signed = _sign(key, host).public_bytes(serialization.Encoding.PEM)
        _medium.write_file(str(made / CERTIFICATE), [signed], True, True)
        _medium.sync_directory(str(made))
        with suppress(OSError):  # another process was faster
            os.rename(made, directory)
        _medium.sync_directory(str(directory.parent))


def _sign(key: ec.EllipticCurvePrivateKey, host: str) -> x509.Certificate:
    now = datetime.fromtimestamp(now_seconds(), UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "blockdev")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clients' clocks differ
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)  # it vouches for itself only
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _names(host: str) -> list[x509.GeneralName]:
    """Of an address that stands for all of the machine's, the machine's name instead."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return [x509.IPAddress(address), x509.DNSName("localhost")]
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    with suppress(ValueError):  # a name that is not ASCII
        names.append(x509.DNSName(socket.gethostname()))
    return names


def is_for(directory: Path, host: str) -> bool:
    """Whether the certificate there is for `host`; one of the machine's names counts for all its addresses."""
    address = ipaddress.ip_address(host)
    certificate = x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes())
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return address.is_unspecified or address in found.get_values_for_type(x509.IPAddress)


def names(directory: Path, host: str) -> bool:
    """Whether the certificate there is for the name `host`, by itself or by a wildcard in its first part."""
    certificate = x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes())
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    known = {name.lower() for name in found.get_values_for_type(x509.DNSName)}
    above = host.partition(".")[2]
    return host in known or (bool(above) and f"*.{above}" in known)


def context(directory: Path) -> ssl.SSLContext:
    """What serves by the certificate and key there.  Raises InvalidArgument: they are missing, not private, or no pair."""
    for file in (CERTIFICATE, KEY):
        if not (directory / file).is_file():
            raise InvalidArgument(f"no {file} in {directory}: TLS needs {CERTIFICATE} and {KEY} there")
    if (directory / KEY).stat().st_mode & 0o077:
        raise InvalidArgument(f"{directory / KEY} can be read by others: chmod 600 it")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        made.load_cert_chain(directory / CERTIFICATE, directory / KEY, password="")  # a key with a password is refused, not asked for
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InvalidArgument(
            f"{CERTIFICATE} and {KEY} in {directory} cannot be used: {error}; they must be PEM, belong together, and have no password"
        ) from None
    return made


def fingerprint(directory: Path) -> str:
    """SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` shows it."""
    pem = (directory / CERTIFICATE).read_text()
    begin = pem.index("-----BEGIN CERTIFICATE-----")  # its own comes first
    end = pem.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[begin:end])).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))
