"""The one exception tree: each class has a stable code, an errno and an exit status.

The message says what is wrong, where, and what to do next; it is one line.  Bugs assert; these are for operation.
"""

from __future__ import annotations

import errno
import os


class BlockdevError(Exception):
    """Base of all operating errors.  `code` goes over the wires and into `--json`; `exit_status` is the CLI's."""

    code = "error"
    errno = errno.EIO
    exit_status = 1

    @property
    def message(self) -> str:
        return str(self)


class InvalidArgument(BlockdevError):
    """A size, offset, name or option that cannot be used."""

    code = "invalid_argument"
    errno = errno.EINVAL
    exit_status = 2


class NotFound(BlockdevError):
    """A VM, disk, snapshot, export, pool or file that is not there."""

    code = "not_found"
    errno = errno.ENOENT
    exit_status = 3


class AlreadyExists(BlockdevError):
    """A name that is taken."""

    code = "already_exists"
    errno = errno.EEXIST
    exit_status = 4


class Busy(BlockdevError):
    """A thing in use: a pool opened by another engine, a VM with attached clients, a port already taken."""

    code = "busy"
    errno = errno.EBUSY
    exit_status = 5


class ReadOnly(BlockdevError):
    """A write to a snapshot."""

    code = "read_only"
    errno = errno.EPERM
    exit_status = 6


class NotAllowed(BlockdevError):
    """Somebody who may not ask for this: a caller without a valid token, or of too low a role."""

    code = "not_allowed"
    errno = errno.EACCES
    exit_status = 20


class PoolFull(BlockdevError):
    """The pool has no room for new data; reads, deletes and discards still work."""

    code = "pool_full"
    errno = errno.ENOSPC
    exit_status = 7


class NearlyFull(BlockdevError):
    """The pool is filling up; nothing is refused yet."""

    code = "nearly_full"
    errno = errno.ENOSPC
    exit_status = 15


class Corrupt(BlockdevError):
    """Bytes at rest that do not verify."""

    code = "corrupt"
    errno = errno.EIO
    exit_status = 8


class UnknownFormat(BlockdevError):
    """A pool, catalog or message of a version this build does not read."""

    code = "unknown_format"
    errno = errno.ENOTSUP
    exit_status = 9


class Poisoned(BlockdevError):
    """An engine whose log write failed: it refuses further writes until it is restarted."""

    code = "poisoned"
    errno = errno.EIO
    exit_status = 10


class Unavailable(BlockdevError):
    """A process that does not answer: the engine or the control plane is not running."""

    code = "unavailable"
    errno = errno.ECONNREFUSED
    exit_status = 11


class Gone(BlockdevError):
    """A vdisk or snapshot that was deleted while still open."""

    code = "gone"
    errno = errno.ESHUTDOWN
    exit_status = 12


class Locked(BlockdevError):
    """It is kept until a time, whoever asks."""

    code = "locked"
    errno = errno.EPERM
    exit_status = 16


class ToolFailed(BlockdevError):
    """An outside program (qemu-img, nbdkit) that ended with an error."""

    code = "tool_failed"
    errno = errno.EIO
    exit_status = 13


class GuestFailed(BlockdevError):
    """A guest's agent that refused what it was asked, or answered nonsense."""

    code = "guest_failed"
    errno = errno.EPROTO
    exit_status = 17


class Behind(BlockdevError):
    """A VM whose replication exceeds its RPO, or failed."""

    code = "behind"
    errno = errno.ETIME
    exit_status = 18


class MediumError(BlockdevError):
    """The file system below the pool refused an operation; `errno` is its own."""

    code = "medium_error"
    exit_status = 14

    def __init__(self, message: str, error_number: int = errno.EIO) -> None:
        super().__init__(message)
        self.errno = error_number


def medium_failure(what: str, error_number: int) -> MediumError:
    """The error for a failed call to the file system: what failed, why, and what to do."""
    if error_number in (errno.ENOSPC, errno.EDQUOT):
        advice = "make room on the file system below the pool and try again"
    elif error_number == errno.EROFS:
        advice = "the kernel's log says why it is read-only; mount it so that it can be written to, then try again"
    elif error_number in (errno.EACCES, errno.EPERM):
        advice = "become the user who owns it, then try again"
    else:
        advice = "see the kernel's log about that disk, then try again"
    return MediumError(f"{what}: {os.strerror(error_number)}; {advice}", error_number)


def _all_classes(base: type[BlockdevError]) -> list[type[BlockdevError]]:
    found = [base]
    for child in base.__subclasses__():
        found += _all_classes(child)
    return found


BY_CODE: dict[str, type[BlockdevError]] = {cls.code: cls for cls in _all_classes(BlockdevError)}


def from_code(code: str, message: str) -> BlockdevError:
    """The exception that a peer named by its code; an unknown code becomes the base class."""
    return BY_CODE.get(code, BlockdevError)(message)
