"""Keeps nbdkit alive when a client goes away in the middle of its requests, and sends each reply with one call.

nbdkit 1.32 serves a connection with several threads.  When one of them finds the connection broken (a reply cannot be
sent, a request ends in the middle), it marks it dead and takes its socket away; a thread that waits for its turn to
reply, and looked at that mark before, then ends the whole process: "raw_send_socket: Assertion `sock >= 0' failed".
Killing a client with a deep queue a few times is enough (nbdkit's own memory plugin ended within 100 kills, this one at the
third).  All other guests would lose their disks with it, and what they had not flushed yet.

So nbdkit's own calls of read, send and close are redirected to the functions here, by its table of imported functions:
- a reply that cannot be sent counts as sent, and the reading side is shut down instead;
- the end of a connection, an error, or a request that is none, is told to nbdkit only when no other thread of that
  connection is between the request it has read and the end of its reply.
Then nobody is left who could reply when a connection is marked dead.

nbdkit sends a reply's header and its data with a call each, and marks the first with MSG_MORE, which Unix sockets ignore:
two calls, and the client wakes up twice.  Here what is marked so is held back, if it is small, and goes out with what
follows.  One thread sends all parts of a reply, with the connection's lock held, so the thread itself holds them.

Invariants: `busy(fd)` counts the threads that have read a request from fd and not replied; a thread is counted on one fd at
most, its `busy_fd`, to which belongs what it holds back.  TLS connections do not pass here (gnutls has calls of its own):
an engine that serves TLS gives a connection one thread (targets/nbdkit.py).
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL, ENOSYS, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset, strcmp

from blockdev._sync cimport add_u32, load_u32, store_u32

cdef enum:
    DESCRIPTORS_MAX = 16384        # connections beyond are not guarded
    STRIDE = 16                    # counters of two connections do not share a cache line
    REQUEST_BYTES = 28             # of a request's header; no other read of nbdkit is that long
    REQUEST_MAGIC = 0x25609513
    COMMAND_WRITE = 1
    COMMAND_DISCONNECT = 2         # has no reply
    PAYLOAD_BYTES_MAX = 67108864   # nbdkit gives a connection up when a longer one is announced
    LOOK_AGAIN_NS = 1000000
    PATIENCE_ROUNDS = 60000        # a minute; then a thread was lost in a way not foreseen here
    HOOKS = 3
    HELD_BYTES_MAX = 64            # headers of a reply

cdef extern from *:
    """
    static __thread int busy_fd = -1;
    static __thread char held[64];
    static __thread size_t held_count;
    """
    int busy_fd
    char held[64]
    size_t held_count

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_MORE
        MSG_NOSIGNAL
        MSG_WAITALL
        SHUT_RDWR
    ssize_t recv(int fd, void* buffer, size_t count, int flags)
    ssize_t send(int fd, const void* buffer, size_t count, int flags)
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    int shutdown(int fd, int how)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void* buffer, size_t count)
    int close(int fd)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int nanosleep(const timespec* duration, timespec* rest)

cdef extern from "<endian.h>" nogil:
    uint16_t be16toh(uint16_t value)
    uint32_t be32toh(uint32_t value)

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
    int mprotect(void* address, size_t length, int protection)

cdef extern from "<link.h>" nogil:
    """
    #if defined(__x86_64__)
    #define JUMP_SLOT R_X86_64_JUMP_SLOT
    #define GLOB_DAT R_X86_64_GLOB_DAT
    #elif defined(__aarch64__)
    #define JUMP_SLOT R_AARCH64_JUMP_SLOT
    #define GLOB_DAT R_AARCH64_GLOB_DAT
    #else
    #error "name this machine's relocations of imported functions"
    #endif
    """
    enum:
        JUMP_SLOT
        GLOB_DAT
        PT_DYNAMIC
        DT_NULL
        DT_JMPREL
        DT_PLTRELSZ
        DT_RELA
        DT_RELASZ
        DT_SYMTAB
        DT_STRTAB
    ctypedef struct Elf64_Phdr:
        uint32_t p_type
        uint64_t p_vaddr
    ctypedef struct Elf64_Dyn:
        int64_t d_tag
        uint64_t d_value "d_un.d_val"
    ctypedef struct Elf64_Rela:
        uint64_t r_offset
        uint64_t r_info
    ctypedef struct Elf64_Sym:
        uint32_t st_name
    uint32_t ELF64_R_SYM(uint64_t info)
    uint32_t ELF64_R_TYPE(uint64_t info)
    struct dl_phdr_info:
        uint64_t dlpi_addr
        const Elf64_Phdr* dlpi_phdr
        uint16_t dlpi_phnum
    int dl_iterate_phdr(int (*callback)(dl_phdr_info*, size_t, void*) noexcept nogil, void* opaque)

cdef struct Hook:
    const char* name               # of the function that nbdkit imports
    void* replacement
    uint32_t count                 # of places found in nbdkit

cdef struct Request:               # the header of a request, big endian
    uint32_t magic
    uint16_t flags
    uint16_t command
    uint64_t cookie
    uint32_t offset_high           # two halves: a uint64_t here would be aligned away from its place
    uint32_t offset_low
    uint32_t count

cdef uint32_t counters[DESCRIPTORS_MAX * STRIDE]
cdef bint active                   # all hooks are in place; a part of them would do harm


# ---- What nbdkit calls instead -----------------------------------------------------------------------------------------

cdef inline bint is_tracked(int fd) noexcept nogil:
    return active and 0 <= fd < DESCRIPTORS_MAX


cdef inline uint32_t* busy(int fd) noexcept nogil:
    return &counters[fd * STRIDE]


cdef void become_busy(int fd) noexcept nogil:
    global busy_fd, held_count
    if busy_fd != fd:
        busy_fd = fd
        held_count = 0
        add_u32(busy(fd), 1)


cdef void become_idle(int fd) noexcept nogil:
    global busy_fd
    if busy_fd == fd:
        busy_fd = -1
        add_u32(busy(fd), -1)


cdef void wait_for_others(int fd) noexcept nogil:
    """Returns when no other thread has to reply on fd.  This one is reading, so none begins meanwhile."""
    cdef timespec pause
    cdef uint32_t own = 1 if busy_fd == fd else 0
    cdef int _round
    pause.tv_sec = 0
    pause.tv_nsec = LOOK_AGAIN_NS
    for _round in range(PATIENCE_ROUNDS):
        if load_u32(busy(fd)) <= own:
            return
        nanosleep(&pause, NULL)


cdef bint ends_the_connection(const Request* request) noexcept nogil:
    """Whether nbdkit gives the connection up at once when it sees this."""
    return be32toh(request.magic) != REQUEST_MAGIC or (
        be16toh(request.command) == COMMAND_WRITE and be32toh(request.count) > PAYLOAD_BYTES_MAX
    )


cdef ssize_t send_with_held(int fd, const void* buffer, size_t count, int flags) noexcept nogil:
    """Like send, after what was held back, of which nothing is left when this returns without an error."""
    global held_count
    cdef iovec parts[2]
    cdef msghdr message
    cdef ssize_t sent
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    message.msg_iovlen = 2
    parts[0].iov_base = &held[0]
    parts[1].iov_base = <void*> buffer
    parts[1].iov_len = count
    while held_count:
        parts[0].iov_len = held_count
        sent = sendmsg(fd, &message, flags)
        if sent < 0:
            return -1
        if <size_t> sent > held_count:
            sent -= held_count
            held_count = 0
            return sent
        memmove(held, held + sent, held_count - sent)
        held_count -= sent
    return send(fd, buffer, count, flags) if count else 0


cdef ssize_t guarded_read(int fd, void* buffer, size_t count) noexcept nogil:
    cdef bint is_request = count == REQUEST_BYTES and busy_fd != fd
    cdef ssize_t length
    cdef int error
    if not is_tracked(fd):
        return read(fd, buffer, count)
    if held_count and busy_fd == fd:           # the other side may wait for it
        send_with_held(fd, NULL, 0, MSG_NOSIGNAL)
    length = recv(fd, buffer, count, MSG_WAITALL) if is_request else read(fd, buffer, count)
    error = errno
    if length <= 0:
        if length == -1 and (error == EINTR or error == EAGAIN):
            return -1
        wait_for_others(fd)
        become_idle(fd)
    elif not is_request:
        become_busy(fd)
    elif length < REQUEST_BYTES or ends_the_connection(<const Request*> buffer):
        wait_for_others(fd)
    elif be16toh((<const Request*> buffer).command) != COMMAND_DISCONNECT:
        become_busy(fd)
    (&errno)[0] = error
    return length


cdef ssize_t guarded_send(int fd, const void* buffer, size_t count, int flags) noexcept nogil:
    global held_count
    cdef ssize_t length
    if not is_tracked(fd):
        return send(fd, buffer, count, flags | MSG_NOSIGNAL)
    if flags & MSG_MORE and busy_fd == fd and held_count + count <= HELD_BYTES_MAX:
        memcpy(held + held_count, buffer, count)
        held_count += count
        return count
    length = send_with_held(fd, buffer, count, flags | MSG_NOSIGNAL)
    if length == -1:
        if errno == EINTR or errno == EAGAIN:
            return -1
        shutdown(fd, SHUT_RDWR)     # the thread that reads sees the end and tells nbdkit
        held_count = 0
        length = count
    if <size_t> length == count and not flags & MSG_MORE:     # nbdkit marks all but the last part of a reply
        become_idle(fd)
    return length


cdef int guarded_close(int fd) noexcept nogil:
    if is_tracked(fd):
        store_u32(busy(fd), 0)     # the next connection with this descriptor starts clean, whatever happened to this one
    return close(fd)


# ---- Putting them in place ---------------------------------------------------------------------------------------------

cdef uint64_t dynamic_value(const Elf64_Dyn* entry, int64_t tag) noexcept nogil:
    while entry.d_tag != DT_NULL:
        if entry.d_tag == tag:
            return entry.d_value
        entry += 1
    return 0


cdef int place(Hook* hook, uint64_t* slot) noexcept nogil:
    """Writes one entry of the table of imported functions, which the loader may have made read-only."""
    cdef void* page = <void*> (<uint64_t> slot & ~<uint64_t> 4095)
    if mprotect(page, 4096, PROT_READ | PROT_WRITE) != 0:
        return errno
    slot[0] = <uint64_t> hook.replacement
    hook.count += 1
    return 0


cdef int redirect(Hook* hooks, uint64_t base, const Elf64_Dyn* dynamic, int64_t table, int64_t size) noexcept nogil:
    """Looks for the hooks' names among the relocations of one table."""
    cdef const Elf64_Rela* relocation = <const Elf64_Rela*> dynamic_value(dynamic, table)
    cdef uint64_t count = dynamic_value(dynamic, size) // sizeof(Elf64_Rela)
    cdef const Elf64_Sym* symbols = <const Elf64_Sym*> dynamic_value(dynamic, DT_SYMTAB)
    cdef const char* names = <const char*> dynamic_value(dynamic, DT_STRTAB)
    cdef uint64_t index
    cdef uint32_t kind
    cdef int hook, error
    if relocation == NULL or symbols == NULL or names == NULL:
        return 0
    for index in range(count):
        kind = ELF64_R_TYPE(relocation[index].r_info)
        if kind != JUMP_SLOT and kind != GLOB_DAT:
            continue
        for hook in range(HOOKS):
            if strcmp(names + symbols[ELF64_R_SYM(relocation[index].r_info)].st_name, hooks[hook].name) == 0:
                error = place(&hooks[hook], <uint64_t*> (base + relocation[index].r_offset))
                if error:
                    return error
    return 0


cdef int redirect_program(dl_phdr_info* program, size_t size, void* opaque) noexcept nogil:
    """Called for the first object, which is the program itself; not 0 stops there."""
    cdef const Elf64_Dyn* dynamic = NULL
    cdef uint16_t index
    cdef int error
    for index in range(program.dlpi_phnum):
        if program.dlpi_phdr[index].p_type == PT_DYNAMIC:
            dynamic = <const Elf64_Dyn*> (program.dlpi_addr + program.dlpi_phdr[index].p_vaddr)
    if dynamic == NULL:
        return EINVAL
    error = redirect(<Hook*> opaque, program.dlpi_addr, dynamic, DT_JMPREL, DT_PLTRELSZ)
    if not error:
        error = redirect(<Hook*> opaque, program.dlpi_addr, dynamic, DT_RELA, DT_RELASZ)
    return error or -1


cpdef int guard_connections() noexcept nogil:
    """0, or an errno when nbdkit's calls cannot be redirected: then it must serve with one thread a connection."""
    global active
    cdef Hook hooks[HOOKS]
    cdef int hook, error
    hooks[0] = Hook(b"read", <void*> guarded_read, 0)
    hooks[1] = Hook(b"send", <void*> guarded_send, 0)
    hooks[2] = Hook(b"close", <void*> guarded_close, 0)
    error = dl_iterate_phdr(redirect_program, hooks)
    if error > 0:
        return error
    for hook in range(HOOKS):
        if hooks[hook].count == 0:
            return ENOSYS          # this nbdkit calls something else
    active = True
    return 0
