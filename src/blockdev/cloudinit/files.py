"""The files of a seed: what they say when nobody says anything else, and what is refused before a guest meets it.

cloud-init ignores user data that it does not know, and a guest that nobody can log in to is the first to tell; so what
it would not take is refused here.  Formats: https://cloudinit.readthedocs.io, "NoCloud" and "User data formats".
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import yaml

from blockdev.cloudinit.identity import Identity, fill
from blockdev.errors import InvalidArgument
from blockdev.vmmap.names import check_text

TEXT_BYTES_MAX = 64 << 10  # of user data and of a network configuration, before and after replacing words

# the guest's image may say that its host name is to stay as it is
USER_DATA = "#cloud-config\npreserve_hostname: false\n"

_BEGINNINGS = (
    "#cloud-config",
    "#cloud-config-archive",
    "#cloud-config-jsonp",
    "#cloud-boothook",
    "#include",
    "#include-once",
    "#part-handler",
    "## template: jinja",
)
_KNOWN = re.compile(rf"(?:(?:{'|'.join(map(re.escape, _BEGINNINGS))})(?=\s|$)|#!)", re.IGNORECASE)
_MIME = re.compile(r"(?:content-type:\s*multipart/|mime-version:)", re.IGNORECASE)
_MIME_LOOKED_AT = 4096  # characters in which cloud-init looks for the version
_NETWORK_VERSIONS = (1, 2)
_QUOTING = (yaml.composer.ComposerError, yaml.constructor.ConstructorError)  # these name aliases, tags and values
_TAG_HANDLE = "tag handle"
_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # some editors write one; cloud-init takes it for a part of the first line
_QUOTE = re.compile("[\"']")


class Texts(NamedTuple):
    """The templates that a person gave; None: what is usual."""

    user_data: str | None = None
    network_config: str | None = None


class Files(NamedTuple):
    """What one seed holds."""

    meta_data: str
    user_data: str
    network_config: str | None  # None: no such file, and cloud-init asks for an address on the first interface


def check_texts(texts: Texts) -> None:
    """InvalidArgument: what cannot be kept, or is larger than TEXT_BYTES_MAX."""
    check_text("user data", texts.user_data or "", TEXT_BYTES_MAX)
    check_text("network configuration", texts.network_config or "", TEXT_BYTES_MAX)


def write_files(texts: Texts, clone: Identity) -> Files:
    """The files of one clone, not looked at yet."""
    return Files(
        f"instance-id: {clone.uuid}\nlocal-hostname: {clone.hostname}\n",
        USER_DATA if texts.user_data is None else fill(texts.user_data, clone),
        _network_config(clone) if texts.network_config is None else fill(texts.network_config, clone),
    )


def check_files(files: Files) -> None:
    """InvalidArgument: user data or a network configuration that cloud-init would not take."""
    check_texts(Texts(files.user_data, files.network_config))
    _check_user_data(files.user_data)
    if files.network_config is not None:
        _check_network_config(files.network_config)


def _network_config(clone: Identity) -> str | None:
    """Addresses from DHCP on each interface.  Names are set, as not all of cloud-init's renderers match by address."""
    if not clone.interface_count:
        return None
    entries = {
        f"eth{number}": {"match": {"macaddress": mac}, "set-name": f"eth{number}", "dhcp4": True}
        for number, mac in enumerate(clone.mac_addresses())
    }
    return json.dumps({"version": 2, "ethernets": entries}, indent=2) + "\n"  # JSON is YAML


def _check_user_data(text: str) -> None:
    beginning = text.lstrip()
    if _MIME.match(beginning):
        if "mime-version:" not in text[:_MIME_LOOKED_AT].lower():
            raise InvalidArgument("user data of several parts needs a line MIME-Version: 1.0 at its beginning")
        return
    known = _KNOWN.match(beginning)
    if known is None:
        raise InvalidArgument(
            f"user data begins with {_shown(beginning)}, which cloud-init does not know: the first line must be one of "
            f"{', '.join(_BEGINNINGS)}, #!INTERPRETER, or Content-Type: multipart/..."
        )
    if known[0].lower() == "#cloud-config" and not isinstance(_parse("user data", text), dict | None):
        raise InvalidArgument("user data that begins with #cloud-config must be a YAML mapping, like `packages: [vim]`")


def _check_network_config(text: str) -> None:
    found = _parse("network configuration", text)
    inner = found.get("network", found) if isinstance(found, dict) else None
    if not isinstance(inner, dict) or inner.get("version") not in _NETWORK_VERSIONS:
        raise InvalidArgument("a network configuration is a YAML mapping with `version: 2` or `version: 1`")


def _parse(what: str, text: str) -> Any:
    """By Python's loader, whose recursion has an end; values that it cannot make are refused, too.

    What is said of it is kept in the history: the line, and no words of the text, which may be a password's.
    """
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = error.problem or error.context or ""
        if isinstance(error, _QUOTING) or _TAG_HANDLE in problem:
            problem = _QUOTE.split(problem)[0].rstrip(" :")
        raise InvalidArgument(f"{what}{line}: no YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        raise InvalidArgument(f"{what}: no YAML: character {error.position + 1} cannot be in it: {error.reason}") from None
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError):
        raise InvalidArgument(f"{what}: no YAML: a value in it cannot be read as what it is said to be, or is nested too deeply") from None


def _shown(text: str) -> str:
    """Its first line, if it is meant to say what follows; another may be anything, a password too."""
    if not text:
        return "nothing"
    if text.startswith(_BYTE_ORDER_MARK):
        return "a byte order mark"
    line = text.split("\n", 1)[0][:60]
    return repr(line) if line.startswith("#") else "a line without '#'"
