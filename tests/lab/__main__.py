"""scripts/guest-run: run any command in the lab guest, with its status, stdout and stderr."""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import BinaryIO

from tests.lab.cache import LabError
from tests.lab.guest import STATUS_DIED, STATUS_TIMED_OUT, AnyMachine, Guest, Result, Sink
from tests.lab.qemu import Drive, Machine
from tests.lab.uml import UserModeMachine

EPILOG = """\
The command runs as root on Debian's stock kernel under QEMU's TCG, or with --uml on Debian's User-Mode-Linux kernel,
in the current directory; it sees this machine's files, and what it writes to them is forgotten.
Exit status: the command's; 124: its time ran out; 125: the guest died, or could not start.
"""


def pair(text: str) -> tuple[int, int]:
    first, second = text.split(":")
    return int(first), int(second)


def service(text: str) -> tuple[int, str]:
    port, target = text.split("=", 1)
    return int(port), target


def drive(text: str) -> Drive:
    source = text.removesuffix(",ro")
    return Drive(
        source if "://" in source or source.startswith("nbd") else os.path.abspath(source), source != text
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="guest-run", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-u", "--uml", action="store_true",
        help="User-Mode Linux: ten times faster, one processor, no network, its disks are /dev/ubda and so on")  # fmt: skip
    add("-m", "--memory", type=int, metavar="MIB", help="2048; with --uml 1024")
    add("-t", "--time-limit", type=float, default=300, metavar="SECONDS")
    add("-d", "--drive", type=drive, action="append", default=[], metavar="FILE|URI[,ro]",
        help="a virtio disk; the first is /dev/vda. With --uml a file that may be written: /dev/ubda")  # fmt: skip
    add("-k", "--module", action="append", default=[], help="a kernel module to load first")
    add("--log", type=Path, metavar="FILE", help="keep the guest's kernel log")
    for_qemu = parser.add_argument_group("not with --uml").add_argument
    for_qemu("-c", "--cpus", type=int, default=2)
    for_qemu("-f", "--forward", type=pair, action="append", default=[], metavar="HOSTPORT:GUESTPORT")
    for_qemu("-r", "--reach", type=service, action="append", default=[], metavar="PORT=SOCKET|HOST:PORT",
        help="lets the guest reach a service of this machine at 10.0.2.100:PORT")  # fmt: skip
    for_qemu("-q", "--qemu", action="append", default=[], metavar="ARGUMENTS",
        help="more arguments for QEMU, written as -q='-device ...'")  # fmt: skip
    add("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.command[:1] == ["--"]:
        del arguments.command[0]
    if not arguments.command:
        parser.error("no command to run")
    if arguments.uml and (arguments.forward or arguments.reach or arguments.qemu):
        parser.error("a User-Mode-Linux guest has no network and no QEMU: no -f, -r or -q with --uml")
    if arguments.uml and any(drive.read_only or "://" in drive.source for drive in arguments.drive):
        parser.error("a User-Mode-Linux guest's disks are files that it may write")
    return arguments


def machine(arguments: argparse.Namespace) -> AnyMachine:
    if arguments.uml:
        return UserModeMachine(
            disks=[Path(drive.source) for drive in arguments.drive],
            modules=arguments.module,
            memory_mib=arguments.memory or 1024,
            time_limit_s=arguments.time_limit,
        )
    return Machine(
        drives=arguments.drive,
        forwards=arguments.forward,
        services=arguments.reach,
        modules=arguments.module,
        qemu_arguments=[word for text in arguments.qemu for word in shlex.split(text)],
        memory_mib=arguments.memory or 2048,
        cpu_count=arguments.cpus,
        time_limit_s=arguments.time_limit,
    )


def passing_on(stream: BinaryIO) -> Sink:
    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write


def report(result: Result, arguments: argparse.Namespace) -> None:
    if arguments.log:
        arguments.log.write_text(result.kernel_log)
    if result.status == STATUS_TIMED_OUT:
        print(f"guest-run: stopped after {arguments.time_limit:g} s", file=sys.stderr)
    if result.status == STATUS_DIED:
        print(
            f"guest-run: the guest died; its kernel's last words:\n{result.kernel_log[-2000:]}",
            file=sys.stderr,
        )


def main() -> int:
    arguments = parse()
    # our end must reach the guest as an exception, or it would leave its directory behind
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with Guest(
            arguments.command,
            machine(arguments),
            stdout=passing_on(sys.stdout.buffer),
            stderr=passing_on(sys.stderr.buffer),
        ) as guest:
            result = guest.wait()
    except LabError as error:
        print(f"guest-run: {error}", file=sys.stderr)
        return STATUS_DIED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    report(result, arguments)
    return result.status


sys.exit(main())
