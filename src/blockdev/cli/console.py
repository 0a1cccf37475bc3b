"""blockdevctl console: how a person gets into the web console."""

from __future__ import annotations

import click

from blockdev.cli.session import Session, Verb, pass_session


@click.command(cls=Verb)
@pass_session
def console(session: Session) -> None:
    """Print the address of the web console, with a code that signs an admin in once."""
    made = session.client.post("/console-codes")
    made["address"] = f"{made['url']}/sign-in#code={made['code']}"
    session.say(made, f"{made['address']}\nopen it in a browser before {made['expires']}; the code works once, and others sign in by a token")
