"""The one door to the file system below a pool.  See _medium.pxd for the contract."""

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EDQUOT, EEXIST, EINTR, EIO, ENOSPC, EOPNOTSUPP, errno
from libc.stdint cimport uint64_t
from posix.unistd cimport close, fdatasync, fsync, ftruncate, unlink
from posix.fcntl cimport (
    O_CLOEXEC, O_CREAT, O_DIRECTORY, O_EXCL, O_RDONLY, O_RDWR, POSIX_FADV_WILLNEED, open as posix_open, posix_fadvise,
)
from posix.stat cimport fstat, mkdir, struct_stat

from blockdev import errors

from blockdev._statistics cimport CAUSE_MEDIUM, begin_wait, end_wait

cdef enum:
    PREFETCH_BYTES = 128 << 10

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void* buffer, size_t count, long long offset)
    ssize_t pwrite(int fd, const void* buffer, size_t count, long long offset)

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, long long offset, long long count)
    enum:
        FALLOC_FL_KEEP_SIZE

cdef extern from "<stdio.h>" nogil:
    int rename(const char* source, const char* destination)
    int dprintf(int fd, const char* format, ...)

cdef extern from "<string.h>" nogil:
    char* strerror(int number)


cdef inline int told(int error) noexcept nogil:
    """The errno that the pool knows: a quota that is used up is a full file system."""
    return ENOSPC if error == EDQUOT else error


# --- the hook of torture builds --------------------------------------------------------------------------------------

cdef struct Verdict:            # of the hook, about one call
    int failure                 # errno to answer with; 0: none
    bint swallow                # do nothing and answer 0
    uint64_t limit              # bytes that one transfer moves at most; before `failure`, when that is set

cdef object hook = None
cdef PlantedBug planted_bug = BUG_NONE


def intercept(new_hook):
    """Torture builds: from now on ask `new_hook` before each call to the medium; None: nobody.

    It is called as new_hook(operation, fd, path, other, data, offset): operation "open", "create", "close", "read",
    "write", "sync", "sync_directory", "rename" (other: destination), "truncate" (offset: size), "allocate", "unlink",
    "make_directory"; what does not apply is None, -1 or 0.  After a successful open it is called once more with
    "opened", which has both fd and path.  It returns None to go on, or (errno, swallow, limit in bytes).  It is called
    with the GIL, from any thread.
    """
    global hook
    if not TORTURE_BUILD:
        raise RuntimeError("only a torture build can be intercepted: make build/torture/.built")
    hook = new_hook


def plant(bug):
    """Torture builds: switch one PlantedBug on (and all others off)."""
    global planted_bug
    if not TORTURE_BUILD:
        raise RuntimeError("only a torture build has planted bugs: make build/torture/.built")
    planted_bug = bug


def is_planted(bug):
    """planted() for the code that is written in Python."""
    return planted(bug)


cdef bint medium_planted(PlantedBug bug) noexcept nogil:
    return planted_bug == bug


cdef Verdict ask(
    const char* operation, int fd, const char* path, const char* other, const void* data, uint64_t count, uint64_t offset
) noexcept with gil:
    cdef Verdict verdict
    verdict.failure = 0
    verdict.swallow = False
    verdict.limit = <uint64_t>-1
    if hook is None:
        return verdict
    answer = hook(
        operation.decode(), fd, None if path == NULL else os.fsdecode(path), None if other == NULL else os.fsdecode(other),
        None if data == NULL else PyBytes_FromStringAndSize(<const char*>data, count), offset)
    if answer is not None:
        verdict.failure, verdict.swallow, verdict.limit = answer
        verdict.failure = told(verdict.failure)
    return verdict


cdef inline bint settled(
    const char* operation, int fd, const char* path, const char* other, uint64_t offset, int* failure
) noexcept nogil:
    """Whether the hook has decided what a call without a transfer answers."""
    cdef Verdict verdict
    if not TORTURE_BUILD:
        return False
    verdict = ask(operation, fd, path, other, NULL, 0, offset)
    failure[0] = verdict.failure
    return verdict.failure != 0 or verdict.swallow


# --- the calls -------------------------------------------------------------------------------------------------------

cdef int medium_open(const char* path, int mode, int* fd) noexcept nogil:
    cdef int flags = O_CLOEXEC
    cdef int failure = 0
    if mode == MEDIUM_READ:
        flags |= O_RDONLY
    elif mode == MEDIUM_WRITE:
        flags |= O_RDWR
    else:
        flags |= O_RDWR | O_CREAT | O_EXCL
    if settled(b"create" if mode == MEDIUM_CREATE else b"open", -1, path, NULL, 0, &failure):
        return failure
    fd[0] = posix_open(path, flags, 0o600)
    if fd[0] < 0:
        return told(errno)
    if TORTURE_BUILD:
        ask(b"opened", fd[0], path, NULL, NULL, 0, 0)
    return 0


cdef int medium_close(int fd) noexcept nogil:
    if TORTURE_BUILD:
        ask(b"close", fd, NULL, NULL, NULL, 0, 0)
    return errno if close(fd) < 0 else 0


cdef int medium_read_all(int fd, void* buffer, uint64_t count, uint64_t offset) noexcept nogil:
    cdef ssize_t got
    cdef uint64_t limit = count
    cdef Verdict verdict
    if TORTURE_BUILD:
        verdict = ask(b"read", fd, NULL, NULL, NULL, count, offset)
        if verdict.failure:
            return verdict.failure
        limit = verdict.limit
    while count:
        got = pread(fd, buffer, count if count < limit else limit, offset)
        if got < 0:
            if errno == EINTR:
                continue
            return errno
        if got == 0:
            return EIO
        buffer = <char*>buffer + got
        count -= got
        offset += got
    return 0


cdef void medium_prefetch(int fd, uint64_t offset, uint64_t count) noexcept nogil:
    """Let the kernel begin to read a range.  It takes no more at once than its read-ahead, by default 128 KiB."""
    cdef uint64_t end = offset + count
    while offset < end:
        posix_fadvise(fd, offset, min(end - offset, PREFETCH_BYTES), POSIX_FADV_WILLNEED)
        offset += PREFETCH_BYTES


cdef int medium_write_all(int fd, const void* buffer, uint64_t count, uint64_t offset) noexcept nogil:
    cdef ssize_t done
    cdef uint64_t limit = count
    cdef int failure = 0
    cdef Verdict verdict
    if TORTURE_BUILD:
        verdict = ask(b"write", fd, NULL, NULL, buffer, count, offset)
        if verdict.swallow:
            return 0
        limit = verdict.limit
        failure = verdict.failure
        if failure:
            count = count if count < limit else limit
    while count:
        done = pwrite(fd, buffer, count if count < limit else limit, offset)
        if done < 0:
            if errno == EINTR:
                continue
            return told(errno)
        if done == 0:
            return EIO
        buffer = <const char*>buffer + done
        count -= done
        offset += done
    return failure


cdef int medium_sync_data(int fd) noexcept nogil:
    cdef int failure = 0
    if settled(b"sync", fd, NULL, NULL, 0, &failure):
        return failure
    return errno if fdatasync(fd) < 0 else 0


cdef int medium_sync_directory(const char* path) noexcept nogil:
    cdef uint64_t begun_ns
    cdef int failure = 0
    cdef int fd
    if settled(b"sync_directory", -1, path, NULL, 0, &failure):
        return failure
    fd = posix_open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if fd < 0:
        return errno
    begun_ns = begin_wait()
    if fsync(fd) < 0:
        failure = errno
    end_wait(CAUSE_MEDIUM, begun_ns)
    close(fd)
    return failure


cdef int medium_rename(const char* source, const char* destination) noexcept nogil:
    cdef int failure = 0
    if settled(b"rename", -1, source, destination, 0, &failure):
        return failure
    return told(errno) if rename(source, destination) < 0 else 0


cdef int medium_truncate(int fd, uint64_t size_bytes) noexcept nogil:
    cdef int failure = 0
    if settled(b"truncate", fd, NULL, NULL, size_bytes, &failure):
        return failure
    return errno if ftruncate(fd, size_bytes) < 0 else 0


cdef int medium_allocate(int fd, uint64_t offset, uint64_t count) noexcept nogil:
    """Reserve room for a range that may lie behind the end of a file; its size stays.

    0 too where the file system cannot promise that: then a write may still find it full.
    """
    cdef int failure = 0
    if settled(b"allocate", fd, NULL, NULL, offset, &failure):
        return failure
    while fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, count) < 0:
        if errno != EINTR:
            return 0 if errno == EOPNOTSUPP else told(errno)
    return 0


cdef int medium_unlink(const char* path) noexcept nogil:
    cdef int failure = 0
    if settled(b"unlink", -1, path, NULL, 0, &failure):
        return failure
    return errno if unlink(path) < 0 else 0


cdef int medium_make_directory(const char* path) noexcept nogil:
    cdef int failure = 0
    if settled(b"make_directory", -1, path, NULL, 0, &failure):
        return failure
    return told(errno) if mkdir(path, 0o700) < 0 else 0


cdef int medium_size(int fd, uint64_t* size_bytes) noexcept nogil:
    cdef struct_stat status
    if fstat(fd, &status) < 0:
        return errno
    size_bytes[0] = status.st_size
    return 0


cdef void medium_report(const char* format, int error, uint64_t a, uint64_t b) noexcept nogil:
    """One line on stderr about a failure; `format` takes the text of the errno, then up to two unsigned longs."""
    dprintf(2, format, strerror(error), <unsigned long>a, <unsigned long>b)


# The same door for the cold code that is written in Python (superblocks, checkpoint tables, the saved dedup index).

def _check(int failure, str path):
    if failure:
        raise errors.medium_failure(path, failure)


def read_file(str path, uint64_t limit_bytes):
    """The whole content of a file, at most `limit_bytes`; MediumError with the errno otherwise."""
    cdef int fd = -1
    cdef uint64_t size_bytes = 0
    cdef bytearray content
    cdef char* place
    _check(medium_open(path.encode(), MEDIUM_READ, &fd), path)
    try:
        _check(medium_size(fd, &size_bytes), path)
        size_bytes = min(size_bytes, limit_bytes)
        content = bytearray(size_bytes)
        place = content
        _check(medium_read(fd, place, size_bytes, 0), path)
    finally:
        medium_close(fd)
    return bytes(content)


def write_file(str path, chunks, bint create, bint durable):
    """Write an iterable of bytes from offset 0 on, and fdatasync it if `durable`.

    create: the file must not exist; else it must.
    """
    cdef int fd = -1
    cdef const char* place
    cdef uint64_t count, offset = 0
    cdef int failure = 0
    _check(medium_open(path.encode(), MEDIUM_CREATE if create else MEDIUM_WRITE, &fd), path)
    try:
        for chunk in chunks:
            place = chunk
            count = len(chunk)
            with nogil:
                failure = medium_write(fd, place, count, offset)
            _check(failure, path)
            offset += count
        if durable:
            with nogil:
                failure = medium_sync(fd)
            _check(failure, path)
    finally:
        medium_close(fd)


def make_directory(str path):
    """Make a directory, mode 0700; durable after sync_directory of the one it is in."""
    _check(medium_make_directory(path.encode()), path)


def make_directories(str path):
    """Make a directory, mode 0700, where there is none yet, with those above it that are missing; durable.

    One that is there is made durable, too: whoever made it may not have come so far.
    """
    parent = os.path.dirname(path)
    cdef int failure
    if not os.path.isdir(path):
        make_directories(parent)
        failure = medium_make_directory(path.encode())
        if failure != EEXIST or not os.path.isdir(path):
            _check(failure, path)
    elif not os.access(parent, os.R_OK):
        return  # another user's, who may let nobody look: it cannot be synced, nor was the directory made by us
    sync_directory(parent)


def sync_directory(str path):
    """Make creations, renames and removals in a directory durable."""
    _check(medium_sync_directory(path.encode()), path)


def rename_file(str source, str destination):
    """Rename over `destination` atomically; durable after sync_directory."""
    _check(medium_rename(source.encode(), destination.encode()), source)


def unlink_file(str path):
    """Remove a file; durable after sync_directory."""
    _check(medium_unlink(path.encode()), path)
