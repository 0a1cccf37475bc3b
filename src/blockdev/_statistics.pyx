"""Counting requests, and reading what was counted.

See _statistics.pxd for the design and docs/format/engine-socket.md for the rows.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from blockdev._sync cimport (
    aligned_zeroed, claim_pointer, count_u64, load_pointer, load_u64, pthread_mutex_lock, pthread_mutex_t,
    pthread_rwlock_rdlock, pthread_rwlock_t, pthread_rwlock_wrlock,
)

cdef extern from *:
    """
    #include <stdint.h>

    static inline void *thread_tally(void)
    {
        static __thread uint64_t tally[9];
        return tally;
    }

    static inline uint32_t latency_bucket(uint64_t ns)
    {
        int octave;
        if (ns < 1024) return 0;
        if (ns >> 36) return 209;
        octave = 63 - __builtin_clzll(ns);
        return 1 + 8 * (octave - 10) + ((ns >> (octave - 3)) & 7);
    }

    static inline uint32_t size_bucket(uint64_t bytes)
    {
        uint64_t above = bytes ? (bytes - 1) >> 9 : 0;
        uint32_t bucket = above ? 64 - __builtin_clzll(above) : 0;
        return bucket < 17 ? bucket : 17;
    }
    """
    void* thread_tally() noexcept nogil
    uint32_t latency_bucket(uint64_t ns) noexcept nogil
    uint32_t size_bucket(uint64_t byte_count) noexcept nogil

cdef extern from "<sched.h>" nogil:
    int sched_getcpu()

cdef enum:
    CACHE_LINE_BYTES = 64
    CELLS_AT_FIRST = 4096
    IN_FLIGHT_ATTEMPTS = 8

API_VERSION = 1
COUNTED = bool(COUNTED_BUILD)


# --- counting: any thread, without the GIL ---------------------------------------------------------------------------

cdef Tally* my_tally() noexcept nogil:
    return <Tally*>thread_tally()


cdef void end_wait(Cause cause, uint64_t begun_ns) noexcept nogil:
    if COUNTED_BUILD:
        my_tally().waited_ns[<int>cause] += monotonic_ns() - begun_ns


cdef void lock_slowly(pthread_mutex_t* lock, Cause cause) noexcept nogil:
    cdef uint64_t begun_ns = monotonic_ns()
    pthread_mutex_lock(lock)
    end_wait(cause, begun_ns)


cdef void share_slowly(pthread_rwlock_t* lock) noexcept nogil:
    cdef uint64_t begun_ns = monotonic_ns()
    pthread_rwlock_rdlock(lock)
    end_wait(CAUSE_LOCK, begun_ns)


cdef void exclude_slowly(pthread_rwlock_t* lock) noexcept nogil:
    cdef uint64_t begun_ns = monotonic_ns()
    pthread_rwlock_wrlock(lock)
    end_wait(CAUSE_LOCK, begun_ns)


cdef Stripe* make_stripe(Statistics* counters, uint32_t index) noexcept nogil:
    """NULL: no memory, and nothing is counted there."""
    cdef Stripe* made = <Stripe*>aligned_zeroed(CACHE_LINE_BYTES, sizeof(Stripe))
    if made != NULL and not claim_pointer(<void**>&counters.stripes[index], made):
        free(made)
    return <Stripe*>load_pointer(<void**>&counters.stripes[index])


cdef inline Stripe* my_stripe(Statistics* counters) noexcept nogil:
    cdef uint32_t index = <uint32_t>sched_getcpu() & (STRIPES_MAX - 1)
    cdef Stripe* stripe = <Stripe*>load_pointer(<void**>&counters.stripes[index])
    return stripe if stripe != NULL else make_stripe(counters, index)


cdef uint64_t begin_request(Statistics* counters) noexcept nogil:
    cdef Stripe* stripe
    if not COUNTED_BUILD:
        return 0
    stripe = my_stripe(counters)
    if stripe != NULL:
        count_u64(&stripe.started, 1)
    memset(my_tally(), 0, sizeof(Tally))
    return monotonic_ns()


cdef void count_waits(Stripe* stripe, Tally* tally) noexcept nogil:
    cdef uint64_t waited[3]
    cdef int i
    waited[<int>WAIT_LOG] = tally.waited_ns[<int>CAUSE_LOCK] + tally.waited_ns[<int>CAUSE_LOG]
    waited[<int>WAIT_MEDIUM] = tally.waited_ns[<int>CAUSE_MEDIUM]
    waited[<int>WAIT_COMPACTION] = tally.waited_ns[<int>CAUSE_COMPACTION]
    for i in range(WAIT_COUNT):
        if waited[i]:
            count_u64(&stripe.waits[i][latency_bucket(waited[i])], 1)


cdef void end_request(
    Statistics* counters, uint64_t begun_ns, Kind kind, uint64_t byte_count, int failure
) noexcept nogil:
    cdef Tally* tally
    cdef Stripe* stripe
    cdef KindCounters* of_kind
    cdef uint64_t latency_ns
    cdef int i
    if not COUNTED_BUILD:
        return
    latency_ns = monotonic_ns() - begun_ns
    tally = my_tally()
    stripe = my_stripe(counters)
    if stripe == NULL:
        return
    count_u64(&stripe.ended, 1)
    for i in range(BLOCK_KIND_COUNT):       # a request that failed may have written some
        if tally.blocks[i]:
            count_u64(&stripe.blocks[i], tally.blocks[i])
    if failure:
        count_u64(&stripe.failed, 1)
        return
    of_kind = &stripe.kinds[<int>kind]
    if byte_count:
        count_u64(&of_kind.bytes, byte_count)
        count_u64(&of_kind.sizes[size_bucket(byte_count)], 1)
    count_u64(&of_kind.latency_ns, latency_ns)
    for i in range(CAUSE_COUNT):
        if tally.waited_ns[i]:
            count_u64(&of_kind.waited_ns[i], tally.waited_ns[i])
    if kind <= KIND_FLUSH:
        count_waits(stripe, tally)
    count_u64(&of_kind.latency[latency_bucket(latency_ns)], 1)


cdef void count_service(Statistics* counters, Service service, uint64_t byte_count) noexcept nogil:
    cdef Stripe* stripe
    if COUNTED_BUILD:
        stripe = my_stripe(counters)
        if stripe != NULL:
            count_u64(&stripe.services[<int>service], byte_count)


# --- reading ---------------------------------------------------------------------------------------------------------

cdef struct KindRow:
    uint64_t operations
    uint64_t bytes
    uint64_t latency_ns
    uint64_t waited_ns[4]
    uint64_t sizes[18]

cdef struct Row:                    # docs/format/engine-socket.md; little-endian, as all machines this runs on
    uint64_t id
    uint64_t time_ns
    uint64_t in_flight
    uint64_t failed
    KindRow kinds[5]
    uint64_t blocks[5]
    uint64_t services[4]

cdef struct Cell:
    uint32_t row
    uint16_t kind
    uint16_t bucket
    uint64_t count

cdef struct Cells:                  # owned by whoever packs
    Cell* items
    uint64_t count
    uint64_t room

cdef struct Sum:                    # of one vdisk
    uint64_t latency[5][210]
    uint64_t waits[3][210]
    bint used[5]
    bint waited


ROW_BYTES = sizeof(Row)
CELL_BYTES = sizeof(Cell)


cdef void add_kind(KindCounters* found, KindRow* row, uint64_t* latency) noexcept nogil:
    cdef uint64_t count
    cdef int i
    for i in range(LATENCY_BUCKETS):
        count = load_u64(&found.latency[i])
        latency[i] += count
        row.operations += count
    for i in range(SIZE_BUCKETS):
        row.sizes[i] += load_u64(&found.sizes[i])
    for i in range(CAUSE_COUNT):
        row.waited_ns[i] += load_u64(&found.waited_ns[i])
    row.latency_ns += load_u64(&found.latency_ns)
    row.bytes += load_u64(&found.bytes)


cdef bint has_waited(Stripe* stripe) noexcept nogil:
    cdef uint64_t waited_ns = 0
    cdef int i, k
    for k in range(KIND_FLUSH + 1):
        for i in range(CAUSE_COUNT):
            waited_ns += load_u64(&stripe.kinds[k].waited_ns[i])
    return waited_ns != 0


cdef void add_waits(Stripe* stripe, Sum* total) noexcept nogil:
    cdef int i, k
    total.waited = True
    for k in range(WAIT_COUNT):
        for i in range(LATENCY_BUCKETS):
            total.waits[k][i] += load_u64(&stripe.waits[k][i])


cdef void add_stripe(Stripe* stripe, Row* row, Sum* total) noexcept nogil:
    cdef int i
    if has_waited(stripe):                              # most disks of many are read from memory, by one client
        add_waits(stripe, total)
    for i in range(KIND_COUNT):
        if load_u64(&stripe.kinds[i].latency_ns) == 0:  # never used: most disks know no discards
            continue
        total.used[i] = True
        add_kind(&stripe.kinds[i], &row.kinds[i], total.latency[i])
    for i in range(BLOCK_KIND_COUNT):
        row.blocks[i] += load_u64(&stripe.blocks[i])
    for i in range(SERVICE_COUNT):
        row.services[i] += load_u64(&stripe.services[i])
    row.failed += load_u64(&stripe.failed)


cdef int push_cell(Cells* cells, uint32_t row, int kind, int bucket, uint64_t count) noexcept nogil:
    """-1: no memory."""
    cdef Cell* more
    if cells.count == cells.room:
        more = <Cell*>realloc(cells.items, 2 * cells.room * sizeof(Cell))
        if more == NULL:
            return -1
        cells.items = more
        cells.room *= 2
    cells.items[cells.count].row = row
    cells.items[cells.count].kind = <uint16_t>kind
    cells.items[cells.count].bucket = <uint16_t>bucket
    cells.items[cells.count].count = count
    cells.count += 1
    return 0


cdef int push_cells(Cells* cells, uint32_t row, int kind, uint64_t* counts) noexcept nogil:
    """Those of a histogram that are not zero.  -1: no memory."""
    cdef int i
    for i in range(LATENCY_BUCKETS):
        if counts[i] and push_cell(cells, row, kind, i, counts[i]):
            return -1
    return 0


cdef uint64_t read_in_flight(Statistics* counters) noexcept nogil:
    """Requests that have begun and not ended: exactly, as of some moment, if none begins meanwhile; else a few too many.

    Those that ended are read first, so none ended that had not begun.  The least of some attempts counts: who reads may
    lose its processor in between.
    """
    cdef uint64_t started, ended, started_before = 0, least = <uint64_t>-1
    cdef Stripe* stripe
    cdef int _attempt, i
    for _attempt in range(IN_FLIGHT_ATTEMPTS):
        started = ended = 0
        for i in range(STRIPES_MAX):
            stripe = <Stripe*>load_pointer(<void**>&counters.stripes[i])
            if stripe != NULL:
                ended += load_u64(&stripe.ended)
        for i in range(STRIPES_MAX):
            stripe = <Stripe*>load_pointer(<void**>&counters.stripes[i])
            if stripe != NULL:
                started += load_u64(&stripe.started)
        least = min(least, started - ended)
        if least == 0 or started == started_before:
            break
        started_before = started
    return least


cdef int read_disk(
    Statistics* counters, Row* row, uint32_t number, Cells* cells, Cells* waits
) noexcept nogil:
    """Sum one vdisk's stripes into its row, which is zeros, and its cells.  -1: no memory."""
    cdef Sum total
    cdef Stripe* stripe
    cdef bint any_stripe = False
    cdef int i, k
    row.time_ns = monotonic_ns()
    for i in range(STRIPES_MAX):
        stripe = <Stripe*>load_pointer(<void**>&counters.stripes[i])
        if stripe != NULL:
            if not any_stripe:
                memset(&total, 0, sizeof(total))
                any_stripe = True
            add_stripe(stripe, row, &total)
    if not any_stripe:
        return 0
    for k in range(KIND_COUNT):
        if total.used[k] and push_cells(cells, number, k, total.latency[k]):
            return -1
    for k in range(WAIT_COUNT):
        if total.waited and push_cells(waits, number, k, total.waits[k]):
            return -1
    row.in_flight = read_in_flight(counters)
    return 0


cdef int make_cells(Cells* cells) except -1:
    cells.items = <Cell*>malloc(CELLS_AT_FIRST * sizeof(Cell))
    if cells.items == NULL:
        raise MemoryError()
    cells.room = CELLS_AT_FIRST
    cells.count = 0
    return 0


cdef bytes bytes_of(Cells* cells):
    return PyBytes_FromStringAndSize(<char*>cells.items, cells.count * sizeof(Cell))


def pack_statistics(list disks, uint64_t bytes_max):
    """(rows, cells, cells of waits, how many disks these are of) of DiskStatistics: of the first ones, as many as go into
    `bytes_max` bytes.

    One row more than fits is made, so there is always one.
    """
    cdef uint32_t count = len(disks), done = 0
    cdef Cells cells, waits
    cdef int failure = 0
    cdef Row* rows = <Row*>calloc(count + 1, sizeof(Row))
    cdef Statistics** sources = <Statistics**>malloc((count + 1) * sizeof(Statistics*))
    cells.items = waits.items = NULL
    try:
        if rows == NULL or sources == NULL:
            raise MemoryError()
        make_cells(&cells)
        make_cells(&waits)
        for i in range(count):
            rows[i].id = (<DiskStatistics?>disks[i]).id
            sources[i] = (<DiskStatistics>disks[i]).counters
        with nogil:
            while done < count and not failure:
                failure = read_disk(sources[done], &rows[done], done, &cells, &waits)
                done += 1
                if done * sizeof(Row) + (cells.count + waits.count) * sizeof(Cell) >= bytes_max:
                    break
        if failure:
            raise MemoryError()
        return PyBytes_FromStringAndSize(<char*>rows, done * sizeof(Row)), bytes_of(&cells), bytes_of(&waits), done
    finally:
        free(rows)
        free(sources)
        free(cells.items)
        free(waits.items)


def now_ns():
    """The clock that rows are told by: monotonic, in nanoseconds."""
    return monotonic_ns()


cdef class DiskStatistics:
    """The counters of one vdisk and its snapshots, from the engine's start on."""

    def __cinit__(self, uint32_t id):
        self.id = id
        self.counters = <Statistics*>calloc(1, sizeof(Statistics))
        if self.counters == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef int i
        if self.counters != NULL:
            for i in range(STRIPES_MAX):
                free(self.counters.stripes[i])
            free(self.counters)
