"""blockdevctl token: who may use the API over TCP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO
from urllib.parse import quote

import click

from blockdev.cli import values
from blockdev.cli.output import print_columns
from blockdev.cli.session import Noun, Session, pass_session
from blockdev.errors import AlreadyExists, InvalidArgument

ROLES = ("scraper", "viewer", "operator", "admin")


@click.group(cls=Noun)
def token() -> None:
    """Tokens for the API over TCP.  The Unix socket needs none."""


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it may: docs/api.md has the table.")
@click.option("--for", "seconds", type=values.DURATION, metavar="DURATION", help="From now (default: until it is removed).")
@click.option("--out", type=values.PATH, metavar="FILE", help="Write the token to a new file, mode 0600, not to the terminal.")
@pass_session
def add(session: Session, name: str, role: str, seconds: int | None, out: str | None) -> None:
    """Make a token.  It is shown this once: only its digest is kept."""
    body = {"name": name, "role": role, "valid_seconds": seconds}
    if out is not None:
        with _new_file(out) as file:
            made = session.client.post("/tokens", body)
            file.write(made.pop("token") + "\n")
        session.say(made, f"wrote token {name}, {role}{_until(made)}, to {out}")
        return
    made = session.client.post("/tokens", body)
    session.say(made, made["token"])


@contextmanager
def _new_file(path: str) -> Iterator[TextIO]:
    """Mode 0600; it goes again when what is done inside fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists already: choose another file, or remove it") from None
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from None
    try:
        with open(descriptor, "w") as file:
            yield file
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


@token.command(name="list")
@pass_session
def list_(session: Session) -> None:
    """List the tokens, without themselves."""
    found = session.client.get_all("/tokens", "tokens")

    def tell() -> None:
        rows = [[one["name"], one["role"], one["created"], one["expires"] or "never"] for one in found["tokens"]]
        print_columns(["TOKEN", "ROLE", "CREATED", "EXPIRES"], rows)
        if not rows:
            click.echo("no tokens: make one with blockdevctl token add NAME --role viewer")

    session.show(found, tell)


@token.command()
@click.argument("name")
@pass_session
def remove(session: Session, name: str) -> None:
    """Take a token back: it lets nobody in from now on."""
    gone = session.client.delete(f"/tokens/{quote(name, safe='')}")
    session.say(gone, f"removed token {name}")


def _until(made: dict[str, Any]) -> str:
    return f" until {made['expires']}" if made["expires"] else ""
