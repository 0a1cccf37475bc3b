"""The one door to the file system below a pool: every open, write, sync, rename, truncate, unlink and directory sync.

All functions return 0 or a positive errno, loop over short transfers and EINTR, and may be called without the GIL.
A failed sync is never retried: the kernel may have dropped the pages (see the fsync(2) notes); the log poisons itself.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    MEDIUM_READ = 0          # open for reading
    MEDIUM_WRITE = 1         # open for reading and writing
    MEDIUM_CREATE = 2        # create, must not exist; reading and writing

cdef int medium_open(const char* path, int mode, int* fd) noexcept nogil
cdef int medium_close(int fd) noexcept nogil
cdef int medium_read(int fd, void* buffer, uint64_t count, uint64_t offset) noexcept nogil   # EIO on a short file
cdef int medium_write(int fd, const void* buffer, uint64_t count, uint64_t offset) noexcept nogil
cdef int medium_sync(int fd) noexcept nogil                     # fdatasync
cdef int medium_sync_directory(const char* path) noexcept nogil
cdef int medium_rename(const char* source, const char* destination) noexcept nogil
cdef int medium_truncate(int fd, uint64_t size_bytes) noexcept nogil
cdef int medium_unlink(const char* path) noexcept nogil
cdef int medium_size(int fd, uint64_t* size_bytes) noexcept nogil
cdef void medium_report(const char* format, int error, uint64_t a, uint64_t b) noexcept nogil
