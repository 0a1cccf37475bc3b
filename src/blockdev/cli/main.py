"""blockdevctl: the command line.  Every failure is one line on standard error and a non-zero exit status."""

from __future__ import annotations

import os
import sys

import click

from blockdev.cli import (
    attach,
    clone,
    console,
    disk,
    events,
    hypervisor,
    initialise,
    job,
    mount,
    pool,
    replicate,
    schedule,
    serve,
    snapshot,
    statistics,
    stream,
    target,
    token,
    vm,
)
from blockdev.cli.session import INTERRUPTED_STATUS, Noun, Session
from blockdev.errors import BlockdevError, InvalidArgument


@click.group(cls=Noun, name="blockdevctl", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="blockdev")
def blockdevctl() -> None:
    """Virtual machines' disks, snapshots, schedules and clones from a deduplicating pool.

    Sizes are written 20G, 512M, 1.5T or in bytes, in binary units; durations 90s, 30m, 12h, 3d, 2w.
    """


for _command in (
    initialise.init,
    serve.serve,
    pool.pool,
    vm.vm,
    statistics.top,
    disk.disk,
    snapshot.snapshot,
    schedule.schedule,
    replicate.replicate,
    clone.clone,
    clone.restore,
    attach.attach,
    job.job,
    events.events,
    token.token,
    console.console,
    hypervisor.hypervisor,
    target.target,
):
    blockdevctl.add_command(_command)
for _command in (mount.mount, mount.unmount, stream.export, stream.import_, stream.inspect):
    snapshot.snapshot.add_command(_command)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status of one command line."""
    try:
        status = blockdevctl.main(arguments, prog_name="blockdevctl", standalone_mode=False, obj=Session())
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return InvalidArgument.exit_status
    except click.UsageError as error:
        return _fail(_usage(error), InvalidArgument.exit_status)
    except click.ClickException as error:
        return _fail(error.format_message(), InvalidArgument.exit_status)
    except BlockdevError as error:
        return _fail(error.message, error.exit_status)
    except (KeyboardInterrupt, click.Abort) as error:
        return _fail(str(error.__cause__ or error) or "interrupted", INTERRUPTED_STATUS)  # click's has the other as its cause
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return BlockdevError.exit_status
    except OSError as error:  # such as a full file system
        return _fail(f"{error.filename or 'blockdevctl'}: {error.strerror or error}", BlockdevError.exit_status)


def _usage(error: click.UsageError) -> str:
    where = error.ctx.command_path if error.ctx else "blockdevctl"
    message = error.format_message().rstrip(".")
    return f"{message}{'' if message.endswith('?') else ':'} see {where} --help"


def _fail(message: str, status: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return status


if __name__ == "__main__":
    main()
