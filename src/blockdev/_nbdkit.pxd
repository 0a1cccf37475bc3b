"""What the native plugin keeps per connection, and what it takes from nbdkit's C interface (API version 2)."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from blockdev._disk cimport Disk

cdef enum:
    SECTOR_BYTES = 512                   # every offset and length on the wire is a multiple of this
    BLOCK_BYTES = 4096
    REQUEST_BYTES_MAX = 33554432         # 32 MiB, the payload of one read or write
    EXTENTS_REPLY_MAX = 65536            # extents in one block status answer; clients ask again for the rest
    ERRORS_LOGGED_MAX = 100              # lines that one connection may write to the log about failed requests
    ENDLESS_BYTES = 4611686018427387904  # 1 << 62, engine/clients.py
    SUN_PATH = 2                         # where the address is in a sockaddr_un
    PARAMETERS_MAX = 32                  # key=value pairs on nbdkit's command line

# One client connection.  Written by open, then read by any number of threads at once until close frees it.
cdef struct Handle:
    Disk* disk               # borrowed from `thing`, alive as long as it
    PyObject* thing          # owned: the VDisk or VDiskSnapshot
    char* name               # owned: the export name as the client gave it, for the log
    int64_t token            # of the attachment
    bint keeps               # writes are replied to when a file has them (engine/clients.py)
    bint transfers           # for no guest: an import, an export (engine/clients.py)
    bint endless             # no end is told to nbdkit, which would hold clients to it when a disk grows
    bint read_only           # a snapshot, or nbdkit runs with -r
    uint64_t errors_logged   # atomic

# Where disk_extents puts what it finds.
cdef struct ExtentList:
    nbdkit_extents* reply    # nbdkit's list
    uint32_t count           # extents added so far
    uint32_t limit           # stop after this many
    bint failed              # nbdkit refused one; it has set the error

cdef extern from *:
    """
    /* Weak: Python may import this extension where there is no nbdkit, as the tests and tools that only look do. */
    #pragma weak nbdkit_error
    #pragma weak nbdkit_debug
    #pragma weak nbdkit_set_error
    #pragma weak nbdkit_export_name
    #pragma weak nbdkit_is_tls
    #pragma weak nbdkit_peer_name
    #pragma weak nbdkit_peer_pid
    #pragma weak nbdkit_strdup_intern
    #pragma weak nbdkit_shutdown
    #pragma weak nbdkit_add_export
    #pragma weak nbdkit_add_extent
    #define NBDKIT_API_VERSION 2
    #include <nbdkit-plugin.h>
    """

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_UNIX
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct sockaddr_storage:
        int ss_family

cdef extern from "<netdb.h>" nogil:
    enum:
        NI_NUMERICHOST
        NI_NUMERICSERV
    int getnameinfo(
        const sockaddr* address, socklen_t length, char* host, socklen_t host_length,
        char* service, socklen_t service_length, int flags,
    )

cdef extern from "nbdkit-plugin.h" nogil:
    enum:
        NBDKIT_THREAD_MODEL_PARALLEL
        NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS
        NBDKIT_FLAG_FUA
        NBDKIT_FLAG_REQ_ONE
        NBDKIT_FUA_NATIVE
        NBDKIT_CACHE_NATIVE
        NBDKIT_EXTENT_HOLE
        NBDKIT_EXTENT_ZERO
    struct nbdkit_extents:
        pass
    struct nbdkit_exports:
        pass
    void nbdkit_error(const char* format, ...)
    void nbdkit_debug(const char* format, ...)
    void nbdkit_set_error(int error)
    void nbdkit_shutdown()
    const char* nbdkit_export_name()
    int nbdkit_is_tls()
    int nbdkit_peer_name(sockaddr* address, socklen_t* length)
    int64_t nbdkit_peer_pid()
    const char* nbdkit_strdup_intern(const char* text)
    int nbdkit_add_export(nbdkit_exports* exports, const char* name, const char* description)
    int nbdkit_add_extent(nbdkit_extents* extents, uint64_t offset, uint64_t length, uint32_t kind)
