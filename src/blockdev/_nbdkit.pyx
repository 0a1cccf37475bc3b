"""The native nbdkit plugin: this extension is what `nbdkit FILE.so` loads, and it hosts the Python of the engine process.

It is the wall between the NBD protocol and the engine: range, alignment and flags are checked here, an errno is
guaranteed on the way out, and _pool may assume clean input.

Threads and the GIL.  nbdkit calls the data callbacks (read_data ... cache_data) and the questions about an export
(export_size ... export_block_size) from its own threads, many at once.  They are `noexcept nogil`, work on a malloc'ed
Handle and call _pool's C functions: no Python object is touched, so Cython would refuse to compile one, and tests/nbd
reads the generated C to see that it holds no call into Python.  The others (open, close, list, start, stop) are cold and
take the GIL.  The interpreter is never finalised: its threads may still run when nbdkit leaves, and all that must be durable
is made so by the engine's close() in `stop_serving`.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINVAL, EIO, EPERM, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stddef cimport wchar_t
from libc.stdio cimport FILE, fclose, fgets, fopen, printf, snprintf, sscanf
from libc.stdlib cimport calloc, free
from libc.string cimport strcmp, strdup, strlen, strncat, strrchr, strstr

from blockdev._disk cimport (
    disk_cache,
    disk_extents,
    disk_is_snapshot,
    disk_size_bytes,
)
from blockdev._guest cimport guest_flush, guest_read, guest_write, guest_zero
from blockdev._nbdkit_guard cimport guard_connections
from blockdev._pool cimport DiskObject
from blockdev._sync cimport count_u64

import os

from blockdev import diagnostics
from blockdev.engine.clients import client_of_socket, parse_request
from blockdev.engine.process import EngineProcess, describe
from blockdev.errors import BlockdevError

# nbdkit takes a struct of functions from plugin_init, which it calls before there is a Python: the table is constant C.
cdef extern from *:
    """
    #define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
    static void blockdev_dump(void);
    static int blockdev_config(const char *, const char *);
    static int blockdev_config_complete(void);
    static int blockdev_thread_model(void);
    static int blockdev_get_ready(void);
    static int blockdev_after_fork(void);
    static void blockdev_cleanup(void);
    static int blockdev_list_exports(int, int, struct nbdkit_exports *);
    static const char *blockdev_default_export(int, int);
    static void *blockdev_open(int);
    static void blockdev_close(void *);
    static const char *blockdev_export_description(void *);
    static int64_t blockdev_get_size(void *);
    static int blockdev_block_size(void *, uint32_t *, uint32_t *, uint32_t *);
    static int blockdev_can_write(void *);
    static int blockdev_yes(void *);
    static int blockdev_no(void *);
    static int blockdev_can_fua(void *);
    static int blockdev_can_cache(void *);
    static int blockdev_pread(void *, void *, uint32_t, uint64_t, uint32_t);
    static int blockdev_pwrite(void *, const void *, uint32_t, uint64_t, uint32_t);
    static int blockdev_flush(void *, uint32_t);
    static int blockdev_zero(void *, uint32_t, uint64_t, uint32_t);
    static int blockdev_trim(void *, uint32_t, uint64_t, uint32_t);
    static int blockdev_extents(void *, uint32_t, uint64_t, uint32_t, struct nbdkit_extents *);
    static int blockdev_cache(void *, uint32_t, uint64_t, uint32_t);

    static struct nbdkit_plugin blockdev_plugin = {
        .name = "blockdev",
        .longname = "blockdev",
        .version = "0.1.0",
        .description = "Disks and snapshots of virtual machines from a copy-on-write, deduplicating pool",
        .config_help = "home=DIR              (required) the blockdev home; DIR/pool is served\\n"
                       "python=FILE           the interpreter whose packages are used\\n"
                       "tcp_tls=require|off   refuse clients that come over TCP without TLS (default off)\\n"
                       "map_cache_bytes=N     memory for map nodes\\n"
                       "dedup_bytes=N         memory for the fingerprint index\\n"
                       "ready_fd=N            write one line there when serving, or when starting failed",
        .magic_config_key = "home",
        .dump_plugin = blockdev_dump,
        .config = blockdev_config,
        .config_complete = blockdev_config_complete,
        .thread_model = blockdev_thread_model,
        .get_ready = blockdev_get_ready,
        .after_fork = blockdev_after_fork,
        .cleanup = blockdev_cleanup,
        .list_exports = blockdev_list_exports,
        .default_export = blockdev_default_export,
        .open = blockdev_open,
        .close = blockdev_close,
        .export_description = blockdev_export_description,
        .get_size = blockdev_get_size,
        .block_size = blockdev_block_size,
        .can_write = blockdev_can_write,
        .can_flush = blockdev_yes,
        .can_trim = blockdev_yes,
        .can_zero = blockdev_yes,
        .can_fast_zero = blockdev_yes,
        .can_extents = blockdev_yes,
        .can_multi_conn = blockdev_yes,
        .is_rotational = blockdev_no,
        .can_fua = blockdev_can_fua,
        .can_cache = blockdev_can_cache,
        .pread = blockdev_pread,
        .pwrite = blockdev_pwrite,
        .flush = blockdev_flush,
        .trim = blockdev_trim,
        .zero = blockdev_zero,
        .extents = blockdev_extents,
        .cache = blockdev_cache,
    };
    NBDKIT_REGISTER_PLUGIN(blockdev_plugin)
    """

cdef extern from "<dlfcn.h>" nogil:
    enum:
        RTLD_NOW
        RTLD_GLOBAL
        RTLD_NOLOAD
    ctypedef struct Dl_info:
        const char* dli_fname
    int dladdr(const void* address, Dl_info* info)
    void* dlopen(const char* path, int flags)
    char* dlerror()

cdef extern from "<limits.h>" nogil:
    enum:
        PATH_MAX

cdef extern from "<stdlib.h>" nogil:
    char* realpath(const char* path, char* resolved)

cdef extern from "<unistd.h>" nogil:
    int getpid()
    int access(const char* path, int mode)
    enum:
        X_OK

cdef extern from "Python.h" nogil:
    enum:
        PY_MAJOR_VERSION
        PY_MINOR_VERSION
    ctypedef struct PyStatus:
        const char* err_msg
    ctypedef struct PyConfig:
        wchar_t* executable
        wchar_t* program_name
    void PyConfig_InitIsolatedConfig(PyConfig* config)
    PyStatus PyConfig_SetBytesString(PyConfig* config, wchar_t** member, const char* text)
    void PyConfig_Clear(PyConfig* config)
    PyStatus Py_InitializeFromConfig(const PyConfig* config)
    bint PyStatus_Exception(PyStatus status)
    void* PyEval_SaveThread()
    void PyOS_AfterFork_Child()
    const char* Py_GetVersion()
    PyObject* PySys_GetObject(const char* name)
    int PyList_Insert(PyObject* values, Py_ssize_t index, PyObject* item)
    int PySequence_Contains(PyObject* values, PyObject* item)
    PyObject* PyUnicode_DecodeFSDefault(const char* text)
    PyObject* PyImport_ImportModule(const char* name)
    PyObject* PyObject_Str(PyObject* value)
    const char* PyUnicode_AsUTF8(PyObject* text)
    void PyErr_Fetch(PyObject** kind, PyObject** value, PyObject** trace)
    void PyErr_NormalizeException(PyObject** kind, PyObject** value, PyObject** trace)
    void PyErr_Clear()
    void Py_XDECREF(PyObject* value)

cdef const char* parameter_names[PARAMETERS_MAX]     # owned by nbdkit, valid for the life of the plugin
cdef const char* parameter_values[PARAMETERS_MAX]
cdef int parameter_count             # no initial values here: they would be set when Python imports this, after configure
cdef bint module_ready               # this very file's module was initialised by the import in import_engine
cdef int opened_in_pid
cdef object engine


# ---- Data: any thread, no GIL ---------------------------------------------------------------------------------------

cdef int refuse(Handle* handle, const char* what, uint32_t count, uint64_t offset, int error) noexcept nogil:
    """Tells nbdkit the errno of a failed request, and the log unless it is the client's own mistake."""
    nbdkit_set_error(error)
    if error == EINVAL or error == EPERM:
        nbdkit_debug(b"%s: %s of %u bytes at %llu refused", handle.name, what, count, offset)
    elif count_u64(&handle.errors_logged, 1) < ERRORS_LOGGED_MAX:
        (&errno)[0] = error
        nbdkit_error(b"%s: %s of %u bytes at %llu failed: %m", handle.name, what, count, offset)
    return -1


cdef inline bint beyond_end(Handle* handle, uint32_t count, uint64_t offset) noexcept nogil:
    """Whether a range is past the end, which may have come closer since the client connected."""
    cdef uint64_t size_bytes = disk_size_bytes(handle.disk)
    return offset > size_bytes or count > size_bytes - offset


cdef inline bint misplaced(Handle* handle, uint32_t count, uint64_t offset) noexcept nogil:
    """Whether a range is off the sector grid or past the end."""
    return ((count | offset) & (SECTOR_BYTES - 1)) != 0 or beyond_end(handle, count, offset)


cdef inline bint unreadable(Handle* handle, uint32_t count, uint64_t offset) noexcept nogil:
    """The same for reads.  A kernel asks for a part of a sector when an initiator expects no more of it."""
    return beyond_end(handle, count, offset) if handle.endless else misplaced(handle, count, offset)


cdef int read_data "blockdev_pread" (
    void* opaque, void* buffer, uint32_t count, uint64_t offset, uint32_t flags,
) noexcept nogil:
    cdef Handle* handle = <Handle*> opaque
    cdef int error
    if flags != 0 or count > REQUEST_BYTES_MAX or unreadable(handle, count, offset):
        return refuse(handle, b"read", count, offset, EINVAL)
    error = guest_read(handle.disk, buffer, count, offset, handle.transfers)
    return refuse(handle, b"read", count, offset, error) if error else 0


cdef int write_data "blockdev_pwrite" (
    void* opaque, const void* buffer, uint32_t count, uint64_t offset, uint32_t flags,
) noexcept nogil:
    cdef Handle* handle = <Handle*> opaque
    cdef int error
    if handle.read_only:
        return refuse(handle, b"write", count, offset, EPERM)
    if flags & ~<uint32_t> NBDKIT_FLAG_FUA or count > REQUEST_BYTES_MAX or misplaced(handle, count, offset):
        return refuse(handle, b"write", count, offset, EINVAL)
    error = guest_write(
        handle.disk, buffer, count, offset, (flags & NBDKIT_FLAG_FUA) != 0, handle.keeps, handle.transfers)
    return refuse(handle, b"write", count, offset, error) if error else 0


cdef int flush_data "blockdev_flush" (void* opaque, uint32_t flags) noexcept nogil:
    cdef Handle* handle = <Handle*> opaque
    cdef int error = guest_flush(handle.disk, handle.transfers)
    return refuse(handle, b"flush", 0, 0, error) if error else 0


cdef inline int make_hole(Handle* handle, uint32_t count, uint64_t offset, uint32_t flags, bint trim) noexcept nogil:
    """Trim and write-zeroes alike.  A request without MAY_TRIM makes a hole too: zeros are never stored, and space that
    is not in use is not set aside for anyone.  Never slower than writing, so a fast zero is always granted."""
    cdef int error
    if handle.read_only:
        return refuse(handle, b"zero", count, offset, EPERM)
    if misplaced(handle, count, offset):
        return refuse(handle, b"zero", count, offset, EINVAL)
    error = guest_zero(
        handle.disk, count, offset, trim, (flags & NBDKIT_FLAG_FUA) != 0, handle.keeps, handle.transfers)
    return refuse(handle, b"zero", count, offset, error) if error else 0


cdef int zero_data "blockdev_zero" (void* opaque, uint32_t count, uint64_t offset, uint32_t flags) noexcept nogil:
    return make_hole(<Handle*> opaque, count, offset, flags, False)


cdef int trim_data "blockdev_trim" (void* opaque, uint32_t count, uint64_t offset, uint32_t flags) noexcept nogil:
    return make_hole(<Handle*> opaque, count, offset, flags, True)


cdef int add_extent(void* opaque, uint64_t offset, uint64_t length, bint hole) noexcept nogil:
    """Passes one extent to nbdkit; not 0 when no more are wanted."""
    cdef ExtentList* extents = <ExtentList*> opaque
    if nbdkit_add_extent(extents.reply, offset, length, NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO if hole else 0) == -1:
        extents.failed = True
        return 1
    extents.count += 1
    return extents.count >= extents.limit


cdef int list_extents "blockdev_extents" (
    void* opaque, uint32_t count, uint64_t offset, uint32_t flags, nbdkit_extents* reply,
) noexcept nogil:
    cdef Handle* handle = <Handle*> opaque
    cdef ExtentList extents
    cdef int error
    if misplaced(handle, count, offset):
        return refuse(handle, b"block status", count, offset, EINVAL)
    extents.reply = reply
    extents.count = 0
    extents.limit = 1 if flags & NBDKIT_FLAG_REQ_ONE else EXTENTS_REPLY_MAX
    extents.failed = False
    error = disk_extents(handle.disk, count, offset, add_extent, &extents)
    if extents.failed:
        return -1
    if extents.count == 0:
        return refuse(handle, b"block status", count, offset, error if error > 0 else EIO)
    return 0     # what was found before an error or the limit is an answer: the client asks on from its end


cdef int cache_data "blockdev_cache" (void* opaque, uint32_t count, uint64_t offset, uint32_t flags) noexcept nogil:
    cdef Handle* handle = <Handle*> opaque
    cdef int error
    if flags != 0 or misplaced(handle, count, offset):
        return refuse(handle, b"cache", count, offset, EINVAL)
    error = disk_cache(handle.disk, count, offset)
    return refuse(handle, b"cache", count, offset, error) if error else 0


# ---- What an export is and can: any thread, no GIL --------------------------------------------------------------------

cdef int64_t export_size "blockdev_get_size" (void* opaque) noexcept nogil:
    cdef Handle* handle = <Handle*> opaque
    return <int64_t> ENDLESS_BYTES if handle.endless else <int64_t> disk_size_bytes(handle.disk)


cdef int export_block_size "blockdev_block_size" (
    void* opaque, uint32_t* minimum, uint32_t* preferred, uint32_t* maximum,
) noexcept nogil:
    minimum[0] = SECTOR_BYTES
    preferred[0] = BLOCK_BYTES
    maximum[0] = REQUEST_BYTES_MAX
    return 0


cdef int can_write "blockdev_can_write" (void* opaque) noexcept nogil:
    return not (<Handle*> opaque).read_only


cdef int yes "blockdev_yes" (void* opaque) noexcept nogil:
    return 1


cdef int no "blockdev_no" (void* opaque) noexcept nogil:
    return 0


cdef int can_fua "blockdev_can_fua" (void* opaque) noexcept nogil:
    return NBDKIT_FUA_NATIVE


cdef int can_cache "blockdev_can_cache" (void* opaque) noexcept nogil:
    return NBDKIT_CACHE_NATIVE


# ---- Connections: cold, with the GIL -----------------------------------------------------------------------------------

cdef object complain(BaseException error):
    """One line in nbdkit's log for an operating error; anything else is a bug and shows where it came from."""
    cdef bytes text = str(error).encode() if isinstance(error, BlockdevError) else repr(error).encode()
    if not isinstance(error, (BlockdevError, OSError)):
        diagnostics.report_bug(error)
    nbdkit_error(b"%s", <const char*> text)


cdef tuple peer():
    """(who the client of this connection is, whether it came over TCP)."""
    cdef sockaddr_storage address
    cdef socklen_t length = sizeof(address)
    cdef char host[256]
    cdef char service[32]
    if nbdkit_peer_name(<sockaddr*> &address, &length) == -1:
        return "unknown", True
    if address.ss_family == AF_UNIX:
        return client_of_socket((<char*> &address)[SUN_PATH:length], nbdkit_peer_pid()), False
    if getnameinfo(
        <sockaddr*> &address, length, host, sizeof(host), service, sizeof(service), NI_NUMERICHOST | NI_NUMERICSERV
    ):
        return "unknown", True
    numeric = (<bytes> host).decode()
    return f"[{numeric}]:{service.decode()}" if ":" in numeric else f"{numeric}:{service.decode()}", True


cdef Handle* new_handle(DiskObject thing, bytes name, int64_t token, object request, bint read_only) except NULL:
    cdef Handle* handle = <Handle*> calloc(1, sizeof(Handle))
    if handle == NULL:
        raise MemoryError
    handle.name = strdup(name)
    Py_INCREF(thing)
    handle.thing = <PyObject*> thing
    handle.disk = thing.disk
    handle.token = token
    handle.keeps = request.keeps and not disk_is_snapshot(thing.disk)
    handle.transfers = request.transfers
    handle.endless = request.endless
    handle.read_only = read_only or disk_is_snapshot(thing.disk)
    return handle


cdef void* open_export "blockdev_open" (int read_only) noexcept with gil:
    cdef const char* requested = nbdkit_export_name()
    try:
        name = <bytes> requested if requested != NULL else b""
        client, over_tcp = peer()
        engine.admit(over_tcp, nbdkit_is_tls() == 1)
        request = parse_request(name.decode(errors="replace"))
        thing, token = engine.attach(request.name, client)
        return new_handle(thing, name, token, request, read_only != 0)
    except BaseException as error:
        complain(error)
        return NULL


cdef void close_export "blockdev_close" (void* opaque) noexcept with gil:
    cdef Handle* handle = <Handle*> opaque
    try:
        engine.detach(handle.token)
    except BaseException as error:
        complain(error)
    Py_DECREF(<object> handle.thing)
    free(handle.name)
    free(handle)


cdef int list_exports "blockdev_list_exports" (int read_only, int is_tls, nbdkit_exports* exports) noexcept with gil:
    try:
        engine.admit(peer()[1], is_tls == 1)
        for name, description in engine.exports():
            if nbdkit_add_export(exports, name.encode(), description.encode()) == -1:
                return -1
        return 0
    except BaseException as error:
        complain(error)
        return -1


cdef const char* default_export "blockdev_default_export" (int read_only, int is_tls) noexcept with gil:
    try:
        engine.admit(peer()[1], is_tls == 1)
        name = engine.default_export().encode()
        return nbdkit_strdup_intern(name)
    except BaseException as error:
        complain(error)
        return NULL


cdef const char* export_description "blockdev_export_description" (void* opaque) noexcept with gil:
    try:
        text = describe(<object> (<Handle*> opaque).thing).encode()
        return nbdkit_strdup_intern(text)
    except BaseException as error:
        complain(error)
        return NULL


# ---- Starting and stopping: nbdkit's main thread -----------------------------------------------------------------------

cdef void dump_plugin "blockdev_dump" () noexcept nogil:
    printf(b"blockdev_python_version=%d.%d\n", <int> PY_MAJOR_VERSION, <int> PY_MINOR_VERSION)


cdef int configure "blockdev_config" (const char* key, const char* value) noexcept nogil:
    """Keeps a parameter until there is a Python to give it to."""
    global parameter_count
    if parameter_count == PARAMETERS_MAX:
        nbdkit_error(b"more than %d parameters", <int> PARAMETERS_MAX)
        return -1
    parameter_names[parameter_count] = key
    parameter_values[parameter_count] = value
    parameter_count += 1
    return 0


cdef int finish_configuration "blockdev_config_complete" () noexcept nogil:
    return start_interpreter()


cdef int thread_model "blockdev_thread_model" () noexcept nogil:
    """Several threads a connection only where nbdkit survives the loss of one; see _nbdkit_guard."""
    cdef int error
    if not module_ready:      # --dump-plugin: nothing is served
        return NBDKIT_THREAD_MODEL_PARALLEL
    error = guard_connections()
    if error == 0:
        return NBDKIT_THREAD_MODEL_PARALLEL
    nbdkit_error(b"one thread a connection: this nbdkit cannot be guarded against lost clients (error %d)", error)
    return NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS


cdef int get_ready "blockdev_get_ready" () noexcept with gil:
    """Opens the pool while the person who started nbdkit still sees the errors."""
    global engine, opened_in_pid
    try:
        parameters = {}
        for index in range(parameter_count):
            parameters[(<bytes> parameter_names[index]).decode()] = os.fsdecode(<bytes> parameter_values[index])
        engine = EngineProcess.open(parameters, "native")
        opened_in_pid = getpid()
        return 0
    except BaseException as error:
        complain(error)
        return -1


def request_quit() -> None:
    """Makes nbdkit stop serving, as on SIGTERM."""
    with nogil:
        nbdkit_shutdown()


cdef int after_fork "blockdev_after_fork" () noexcept with gil:
    try:
        if getpid() != opened_in_pid:
            PyOS_AfterFork_Child()
        engine.start(request_quit)
        return 0
    except BaseException as error:
        complain(error)
        return -1


cdef void stop_serving "blockdev_cleanup" () noexcept with gil:
    """Every connection is closed.  When this returns, the pool is checkpointed and closed."""
    try:
        engine.close()
        diagnostics.flush()
    except BaseException as error:
        complain(error)


# ---- The interpreter -----------------------------------------------------------------------------------------------

cdef const char* parameter(const char* name) noexcept nogil:
    cdef int index
    for index in range(parameter_count):
        if strcmp(parameter_names[index], name) == 0:
            return parameter_values[index]
    return NULL


cdef int own_path(char* path) noexcept nogil:
    """The absolute path of this file; `path` has room for PATH_MAX bytes."""
    cdef Dl_info info
    if dladdr(<const void*> &read_data, &info) == 0 or realpath(info.dli_fname, path) == NULL:
        nbdkit_error(b"cannot tell which file this plugin is: %m")
        return -1
    return 0


cdef void cut_last_part(char* path) noexcept nogil:
    """/a/b -> /a, in place."""
    cdef char* slash = strrchr(path, c"/")
    if slash != NULL:
        slash[0] = 0


cdef int find_python(const char* plugin, char* python) noexcept nogil:
    """The interpreter whose packages to use: python=FILE, else that of the virtual environment that holds this plugin, or
    the .venv beside the source tree that it was built in.  "" when there is none: then the system's packages are used."""
    cdef const char* chosen = parameter(b"python")
    cdef char root[PATH_MAX]
    cdef char guess[PATH_MAX]
    if chosen != NULL:
        snprintf(python, PATH_MAX, b"%s", chosen)
        if access(python, X_OK) != 0:
            nbdkit_error(b"python=%s: %m", python)
            return -1
        return 0
    package_root(plugin, root)
    snprintf(guess, PATH_MAX, b"%s/../../../bin" if strstr(root, b"/site-packages") else b"%s/../.venv/bin", root)
    if realpath(guess, python) == NULL:
        python[0] = 0
        return 0
    strncat(python, b"/python", PATH_MAX - 1 - strlen(python))
    if access(python, X_OK) != 0:
        python[0] = 0
    return 0


cdef void package_root(const char* plugin, char* root) noexcept nogil:
    """The directory that holds the package: /x/blockdev/_nbdkit.so -> /x"""
    snprintf(root, PATH_MAX, b"%s", plugin)
    cut_last_part(root)
    cut_last_part(root)


cdef int check_version(const char* python) noexcept nogil:
    """A virtual environment of another minor version has no extension modules that this process could load."""
    cdef char path[PATH_MAX]
    cdef char line[256]
    cdef int major = 0
    cdef int minor = 0
    cdef bint found = False
    cdef FILE* config
    snprintf(path, PATH_MAX, b"%s", python)
    cut_last_part(path)
    cut_last_part(path)
    strncat(path, b"/pyvenv.cfg", PATH_MAX - 1 - strlen(path))
    config = fopen(path, b"r")
    if config == NULL:
        return 0     # not a virtual environment
    while not found and fgets(line, sizeof(line), config) != NULL:
        found = (
            sscanf(line, b"version = %d.%d", &major, &minor) == 2
            or sscanf(line, b"version_info = %d.%d", &major, &minor) == 2
        )
    fclose(config)
    if found and (major != PY_MAJOR_VERSION or minor != PY_MINOR_VERSION):
        nbdkit_error(
            b"%s is Python %d.%d but this plugin is built for Python %d.%d: build blockdev with that one (make build)",
            python, major, minor, <int> PY_MAJOR_VERSION, <int> PY_MINOR_VERSION,
        )
        return -1
    return 0


cdef int start_interpreter() noexcept nogil:
    """Starts Python in this process and imports this very file as blockdev._nbdkit; leaves without the GIL."""
    cdef char plugin[PATH_MAX]
    cdef char python[PATH_MAX]
    if own_path(plugin) == -1 or find_python(plugin, python) == -1 or check_version(python) == -1:
        return -1
    if share_libpython() == -1 or initialise_python(python) == -1 or import_engine(plugin) == -1:
        return -1
    PyEval_SaveThread()
    return 0


cdef int share_libpython() noexcept nogil:
    """nbdkit loaded libpython for this plugin alone; other extension modules look its symbols up in the whole process."""
    cdef char library[64]
    snprintf(library, sizeof(library), b"libpython%d.%d.so.1.0", <int> PY_MAJOR_VERSION, <int> PY_MINOR_VERSION)
    if dlopen(library, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD) == NULL:
        nbdkit_error(b"%s is not the Python that this plugin was built with: %s", library, dlerror())
        return -1
    return 0


cdef int initialise_python(const char* python) noexcept nogil:
    """Isolated: nbdkit has its own signal handlers, and PYTHONPATH and its like must not change what is served."""
    cdef PyConfig config
    cdef PyStatus status
    PyConfig_InitIsolatedConfig(&config)
    status = PyConfig_SetBytesString(&config, &config.program_name, b"python3")
    if python[0] and not PyStatus_Exception(status):
        status = PyConfig_SetBytesString(&config, &config.executable, python)
    if not PyStatus_Exception(status):
        status = Py_InitializeFromConfig(&config)
    PyConfig_Clear(&config)
    if PyStatus_Exception(status):
        nbdkit_error(b"Python does not start: %s", status.err_msg)
        return -1
    return 0


cdef int import_engine(const char* plugin) noexcept nogil:
    """Runs the module initialisation of this file.  Plain C API: until it is done, no Cython object exists."""
    cdef char root[PATH_MAX]
    cdef PyObject* path = PySys_GetObject(b"path")
    cdef PyObject* entry
    package_root(plugin, root)
    entry = PyUnicode_DecodeFSDefault(root)
    if entry == NULL or path == NULL or (PySequence_Contains(path, entry) != 1 and PyList_Insert(path, 0, entry) == -1):
        return report_import_failure()
    Py_XDECREF(entry)
    if PyImport_ImportModule(b"blockdev._nbdkit") == NULL:     # never released: it is this code
        return report_import_failure()
    if not module_ready:
        nbdkit_error(b"python finds another blockdev than the one of %s: give nbdkit the file of that one", plugin)
        return -1
    return 0


cdef int report_import_failure() noexcept nogil:
    cdef PyObject* kind = NULL
    cdef PyObject* value = NULL
    cdef PyObject* trace = NULL
    cdef PyObject* text
    cdef const char* shown = b"unknown error"
    PyErr_Fetch(&kind, &value, &trace)
    PyErr_NormalizeException(&kind, &value, &trace)
    text = PyObject_Str(value) if value != NULL else NULL
    if text != NULL:
        shown = PyUnicode_AsUTF8(text)
    nbdkit_error(b"cannot import blockdev: %s (is python= the one it was installed for?)", shown)
    PyErr_Clear()
    return -1


module_ready = True
