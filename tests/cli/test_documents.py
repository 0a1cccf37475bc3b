"""README.md and docs/ say what blockdevctl takes: each printed command is one, and commands.md names all there is."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from blockdev import Pool, VDisk
from blockdev.cli.main import blockdevctl
from blockdev.cli.session import Session
from tests.cli.served import Home

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
TYPED = re.compile(r"^(?:[\w-]+\$ )?(blockdevctl .*)$", re.MULTILINE)
IN_PROSE = re.compile(r"`(blockdevctl [^`]*)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
EVERYWHERE = {"--home", "--json", "--help", "--version"}


def printed() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for block in BLOCK.findall(document.read_text()):
            for line in TYPED.findall(block):
                yield document.name, line


def mentioned() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for line in IN_PROSE.findall(BLOCK.sub("", document.read_text())):
            yield document.name, line


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(below, (*path, name))
    else:
        yield path, command


def options(command: click.Command) -> set[str]:
    found = (name for one in command.params for name in [*one.opts, *one.secondary_opts])
    return {name for name in found if name.startswith("--")} | EVERYWHERE


def resolve(line: str) -> tuple[click.Command, list[str]]:
    """The command that a line names, and what comes behind its name."""
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = blockdevctl
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    return command, words


@pytest.mark.parametrize(("document", "line"), sorted(set(printed())))
def test_a_printed_command_is_one_that_blockdevctl_takes(document: str, line: str) -> None:
    command, words = resolve(line)
    assert not isinstance(command, click.Group)
    command.make_context(line, words, obj=Session())


@pytest.mark.parametrize(("document", "line"), sorted(set(mentioned())))
def test_a_mentioned_command_is_there_with_its_options(document: str, line: str) -> None:
    command, words = resolve(line)
    assert set(OPTION.findall(" ".join(words))) <= options(command)


def synopses() -> dict[str, str]:
    """What commands.md has of each noun."""
    found: dict[str, str] = {}
    text = (ROOT / "docs/commands.md").read_text()
    for block in BLOCK.findall(text[text.index("## Home and server") : text.index("## Images")]):
        for line in re.sub(r"\n +", " ", block).splitlines():
            noun = line.split()[0]
            found[noun] = found.get(noun, "") + line + "\n"
    return found


def test_the_list_of_commands_names_each_noun() -> None:
    assert synopses().keys() == blockdevctl.commands.keys()


@pytest.mark.parametrize("noun", sorted(blockdevctl.commands))
def test_the_list_of_commands_names_each_verb_and_option_and_no_other(noun: str) -> None:
    there, said = list(leaves(blockdevctl.commands[noun], (noun,))), synopses()[noun]
    words = set(re.findall(r"[a-z][a-z-]*", said))
    for path, _command in there:
        assert set(path) <= words, path
    every = set().union(*(options(command) for _path, command in there))
    assert set(OPTION.findall(said)) | EVERYWHERE == every


# Scripts outside of this project are written against these names.
NAMES = """
init --capacity | serve --nbd --api
pool status | pool check | pool scrub | pool compact
vm create --disk --image | vm list | vm show | vm rename | vm delete | vm export | vm config | vm stats
disk add | disk resize | disk remove | disk import | disk export
snapshot create --name --consistency --keep | snapshot list | snapshot show | snapshot delete | snapshot diff | snapshot lock
clone --count --prefix | restore --disk
schedule show | schedule set | schedule default | schedule preview | schedule run
replicate path add | replicate path list | replicate path test | replicate path throttle | replicate path remove
replicate protect | replicate unprotect | replicate status | replicate now | replicate pause | replicate resume | replicate reverse
target list | target add | target remove
hypervisor add | hypervisor list | hypervisor discover | hypervisor remove | attach --as
"""


@pytest.mark.parametrize("name", [part.strip() for part in re.split(r"[|\n]", NAMES) if part.strip()])
def test_names_that_scripts_use_stay(name: str) -> None:
    command, words = resolve(f"blockdevctl {name}")
    assert set(words) <= options(command) and not isinstance(command, click.Group)


def test_ways_of_attaching_stay() -> None:
    [form] = [one for one in blockdevctl.commands["attach"].params if "--as" in one.opts]
    assert isinstance(form.type, click.Choice) and {"uri", "qemu", "libvirt", "nbd-client", "iscsi"} == set(form.type.choices)


def test_the_python_face_stays() -> None:
    """What tests and tools call, by these names and in this order of arguments."""
    face = {
        Pool: {
            "create": "path capacity_bytes",
            "open": "path",
            "create_vdisk": "size_bytes",
            "snapshot": "vdisks",
            "clone": "snapshot",
            "diff": "older newer",
            "delete": "things",
            **dict.fromkeys(["check", "scrub", "compact", "stats", "close"], ""),
        },
        VDisk: {
            "read": "offset length",
            "read_into": "offset buffer",
            "write": "offset buffer fua",
            "flush": "",
            "discard": "offset length",
            "write_zeroes": "offset length",
            "extents": "offset length",
            "resize": "size_bytes",
        },
    }
    for owner, methods in face.items():
        for name, arguments in methods.items():
            found = [one for one in inspect.signature(getattr(owner, name)).parameters if one != "self"]
            assert found[: len(arguments.split())] == arguments.split(), name


def test_the_home_has_what_the_design_says(home: Home) -> None:
    there = {str(path.relative_to(home.path)) for path in home.path.rglob("*")}
    assert {"pool", "catalog.db", "keys", "run/nbd.sock", "run/engine.sock", "run/api.sock"} <= there
    assert home.json("vm", "list") == home.json("--json", "vm", "list")
