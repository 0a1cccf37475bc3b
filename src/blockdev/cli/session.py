"""What every command has: the home it works on, whether it speaks JSON, and its client.

Verb and Noun are click's command and group with --home and --json, which may stand before or after the verb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, TypeVar

import click

from blockdev.cli.client import Client
from blockdev.cli.output import print_json
from blockdev.cli.progress import follow
from blockdev.errors import InvalidArgument, NotFound
from blockdev.home import Home
from blockdev.written import show_size

Function = TypeVar("Function", bound=Callable[..., Any])
INTERRUPTED_STATUS = 130
TEXT_CHARACTERS_MAX = 4 << 20  # no request takes more


class Session:
    """One run of blockdevctl."""

    def __init__(self) -> None:
        self.home_path: str | None = None
        self.json = False

    @cached_property
    def home(self) -> Home:
        return Home.at(self.home_path)

    @cached_property
    def client(self) -> Client:
        return Client(self.home)

    def show(self, document: Any, tell: Callable[[], None]) -> None:
        """The document as JSON, or what `tell` prints for a person."""
        if self.json:
            print_json(document)
        else:
            tell()

    def say(self, document: Any, sentence: str) -> None:
        self.show(document, lambda: click.echo(sentence))

    def follow(
        self,
        job: dict[str, Any],
        title: str,
        if_cancelled: str = "nothing was changed",
        cancels: bool = True,
        tell_cancelled: Callable[[Any], object] | None = None,
    ) -> Any:
        """The job's result, with its progress shown until then.  if_cancelled: what to say of a cancelled one.

        cancels: Ctrl-C cancels it.  tell_cancelled: shows what it had done until then.
        """
        return follow(self.client, job, title, if_cancelled, self.json, cancels, tell_cancelled)

    def leave(self, job: dict[str, Any]) -> None:
        """Say that a job goes on without this command (--detach)."""
        self.say(job, f"{job['kind']} of {job['subject']} goes on: blockdevctl job watch {job['id']}")


pass_session = click.make_pass_decorator(Session, ensure=True)


def _set_home(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Session).home_path = value


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Session).json = True


class _Everywhere(click.Command):
    """Adds the options that every command takes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        home = click.Option(
            ["--home"],
            metavar="DIR",
            expose_value=False,
            is_eager=True,
            callback=_set_home,
            help="The home directory (default: BLOCKDEV_HOME, or the one of the user).",
        )
        as_json = click.Option(
            ["--json"], is_flag=True, expose_value=False, is_eager=True, callback=_set_json, help="Print JSON."
        )
        self.params += [home, as_json]


class Verb(_Everywhere):
    """A command."""


class Noun(_Everywhere, click.Group):
    """A group of commands."""

    command_class = Verb
    group_class = type


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
force_option = click.option("--force", is_flag=True, help="Go on although clients are attached.")
detach_option = click.option("--detach", is_flag=True, help="Do not wait: print the job, for job watch and job cancel.")


@contextmanager
def until_interrupted() -> Iterator[None]:
    """What is shown inside has no end of its own: Ctrl-C is no failure."""
    with suppress(KeyboardInterrupt):
        yield


def read_text(path: str) -> str:
    """The text of a file that a person named."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(TEXT_CHARACTERS_MAX + 1)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is not UTF-8 text") from None
    if len(text) > TEXT_CHARACTERS_MAX:
        raise InvalidArgument(f"{path} is too long: at most {show_size(TEXT_CHARACTERS_MAX)} can be taken")
    return text
