"""The one door to the file system below a pool.  See _medium.pxd for the contract."""

import os

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uint64_t
from posix.unistd cimport close, fdatasync, fsync, ftruncate, unlink
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_DIRECTORY, O_EXCL, O_RDONLY, O_RDWR, open as posix_open
from posix.stat cimport fstat, struct_stat

from blockdev import errors

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void* buffer, size_t count, long long offset)
    ssize_t pwrite(int fd, const void* buffer, size_t count, long long offset)

cdef extern from "<stdio.h>" nogil:
    int rename(const char* source, const char* destination)
    int dprintf(int fd, const char* format, ...)

cdef extern from "<string.h>" nogil:
    char* strerror(int number)


cdef int medium_open(const char* path, int mode, int* fd) noexcept nogil:
    cdef int flags = O_CLOEXEC
    if mode == MEDIUM_READ:
        flags |= O_RDONLY
    elif mode == MEDIUM_WRITE:
        flags |= O_RDWR
    else:
        flags |= O_RDWR | O_CREAT | O_EXCL
    fd[0] = posix_open(path, flags, 0o600)
    return errno if fd[0] < 0 else 0


cdef int medium_close(int fd) noexcept nogil:
    return errno if close(fd) < 0 else 0


cdef int medium_read(int fd, void* buffer, uint64_t count, uint64_t offset) noexcept nogil:
    cdef ssize_t got
    while count:
        got = pread(fd, buffer, count, offset)
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


cdef int medium_write(int fd, const void* buffer, uint64_t count, uint64_t offset) noexcept nogil:
    cdef ssize_t done
    while count:
        done = pwrite(fd, buffer, count, offset)
        if done < 0:
            if errno == EINTR:
                continue
            return errno
        if done == 0:
            return EIO
        buffer = <const char*>buffer + done
        count -= done
        offset += done
    return 0


cdef int medium_sync(int fd) noexcept nogil:
    return errno if fdatasync(fd) < 0 else 0


cdef int medium_sync_directory(const char* path) noexcept nogil:
    cdef int fd = posix_open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    cdef int failure = 0
    if fd < 0:
        return errno
    if fsync(fd) < 0:
        failure = errno
    close(fd)
    return failure


cdef int medium_rename(const char* source, const char* destination) noexcept nogil:
    return errno if rename(source, destination) < 0 else 0


cdef int medium_truncate(int fd, uint64_t size_bytes) noexcept nogil:
    return errno if ftruncate(fd, size_bytes) < 0 else 0


cdef int medium_unlink(const char* path) noexcept nogil:
    return errno if unlink(path) < 0 else 0


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
        raise errors.MediumError(f"{path}: {os.strerror(failure)}", failure)


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


def write_file_durably(str path, bytes content, bint create):
    """Write `content` at offset 0 and fdatasync it.  `create`: the file must not exist; else it must."""
    cdef int fd = -1
    cdef const char* place = content
    cdef uint64_t count = len(content)
    cdef int failure
    _check(medium_open(path.encode(), MEDIUM_CREATE if create else MEDIUM_WRITE, &fd), path)
    try:
        with nogil:
            failure = medium_write(fd, place, count, 0)
            if failure == 0:
                failure = medium_sync(fd)
        _check(failure, path)
    finally:
        medium_close(fd)


def sync_directory(str path):
    """Make creations, renames and removals in a directory durable."""
    _check(medium_sync_directory(path.encode()), path)


def rename_file(str source, str destination):
    """Rename over `destination` atomically; durable after sync_directory."""
    _check(medium_rename(source.encode(), destination.encode()), source)


def unlink_file(str path):
    """Remove a file; durable after sync_directory."""
    _check(medium_unlink(path.encode()), path)
