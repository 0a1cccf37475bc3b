/* Preloaded into the process that fuzzes extensions built by gcc with sanitizers: coverage for libFuzzer, and large tables.

   Coverage: gcc's -fsanitize-coverage=trace-pc,trace-cmp calls __sanitizer_cov_trace_pc in each basic block and a function
   for each comparison.  libFuzzer, which is in an extension of atheris, reads arrays of 8-bit counters and answers the
   first kind of call no more; the second kind, and all that atheris says of Python code, would be answered by gcc's
   sanitizers, with nothing.  So this stands in front of them: it keeps a counter for each block, given out when the block
   runs first, and passes everything else on to libFuzzer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { BLOCKS_MAX = 1 << 16, PLACES = 1 << 18 }; /* the extensions have about 30,000 blocks */

static uint8_t counters[BLOCKS_MAX];
static uintptr_t blocks[2 * BLOCKS_MAX]; /* libFuzzer's table: address, flags */
static struct { uintptr_t block; uint32_t counter; } places[PLACES]; /* open addressing */
static uint32_t used;

/* Threads may race for a place: then two blocks share a counter, or one has two; both are harmless. */
void __sanitizer_cov_trace_pc(void)
{
    uintptr_t block = (uintptr_t)__builtin_return_address(0);
    uint32_t place = (uint32_t)((block * 0x9E3779B97F4A7C15u) >> 46);
    while (places[place].block != block) {
        if (places[place].block == 0) {
            uint32_t counter = used++ % BLOCKS_MAX;
            places[place].counter = counter;
            places[place].block = block;
            blocks[2 * counter] = block;
            break;
        }
        place = (place + 1) % PLACES;
    }
    counters[places[place].counter]++;
}

/* Passed on, by a jump: libFuzzer looks at the return address. */
#define PASS_ON(name, type_a, type_b)             \
    static void (*passed_##name)(type_a, type_b); \
    void name(type_a a, type_b b)                 \
    {                                             \
        if (passed_##name)                        \
            passed_##name(a, b);                  \
    }
#define EACH(take)                                                       \
    take(__sanitizer_cov_8bit_counters_init, uint8_t *, uint8_t *)       \
    take(__sanitizer_cov_pcs_init, const uintptr_t *, const uintptr_t *) \
    take(__sanitizer_cov_trace_cmp1, uint8_t, uint8_t)                   \
    take(__sanitizer_cov_trace_cmp2, uint16_t, uint16_t)                 \
    take(__sanitizer_cov_trace_cmp4, uint32_t, uint32_t)                 \
    take(__sanitizer_cov_trace_cmp8, uint64_t, uint64_t)                 \
    take(__sanitizer_cov_trace_const_cmp1, uint8_t, uint8_t)             \
    take(__sanitizer_cov_trace_const_cmp2, uint16_t, uint16_t)           \
    take(__sanitizer_cov_trace_const_cmp4, uint32_t, uint32_t)           \
    take(__sanitizer_cov_trace_const_cmp8, uint64_t, uint64_t)           \
    take(__sanitizer_cov_trace_switch, uint64_t, uint64_t *)
EACH(PASS_ON)

/* atheris tells of comparisons of texts and bytes by this one. */
static void (*passed_memcmp)(void *, const void *, const void *, size_t, int);
void __sanitizer_weak_hook_memcmp(void *pc, const void *a, const void *b, size_t bytes, int result)
{
    if (passed_memcmp)
        passed_memcmp(pc, a, b, bytes, result);
}

/* Begin to pass on to the libFuzzer in `library`, which is loaded.  0: it is not. */
int fuzz_coverage_begin(const char *library)
{
    void *fuzzer = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    if (!fuzzer)
        return 0;
#define FIND(name, type_a, type_b) passed_##name = (void (*)(type_a, type_b))dlsym(fuzzer, #name);
    EACH(FIND)
    passed_memcmp =
        (void (*)(void *, const void *, const void *, size_t, int))dlsym(fuzzer, "__sanitizer_weak_hook_memcmp");
    __sanitizer_cov_8bit_counters_init(counters, counters + BLOCKS_MAX);
    __sanitizer_cov_pcs_init(blocks, blocks + 2 * BLOCKS_MAX);
    return 1;
}

/* Large tables: a pool has some of many MiB of which it touches little.  The address sanitizer marks every byte of them at
   each open and close, which is half of the time of an input; here a guard page behind them does for all. */
enum { LARGE_BYTES = 4 << 20, LARGE_MAX = 64, PAGE_BYTES = 4096 };
static const size_t REFUSED_BYTES = (size_t)512 << 20; /* as session.py tells the sanitizer */
static struct { void *start; size_t bytes; } large[LARGE_MAX];

extern void *__interceptor_calloc(size_t count, size_t bytes);
extern void __interceptor_free(void *start);

void *calloc(size_t count, size_t bytes)
{
    size_t all;
    if (__builtin_mul_overflow(count, bytes, &all) || all < LARGE_BYTES || all > REFUSED_BYTES || all % PAGE_BYTES)
        return __interceptor_calloc(count, bytes);
    for (int i = 0; i < LARGE_MAX; i++) {
        void *free_place = NULL;
        if (!__atomic_compare_exchange_n(&large[i].start, &free_place, (void *)-1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            continue;
        char *start = mmap(NULL, all + PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED)
            start = NULL;
        else
            mprotect(start + all, PAGE_BYTES, PROT_NONE);
        large[i].bytes = all + PAGE_BYTES;
        __atomic_store_n(&large[i].start, start, __ATOMIC_SEQ_CST);
        return start;
    }
    return __interceptor_calloc(count, bytes);
}

void free(void *start)
{
    for (int i = 0; i < LARGE_MAX && start && (uintptr_t)start % PAGE_BYTES == 0; i++)
        if (__atomic_load_n(&large[i].start, __ATOMIC_SEQ_CST) == start) {
            munmap(start, large[i].bytes);
            __atomic_store_n(&large[i].start, NULL, __ATOMIC_SEQ_CST);
            return;
        }
    __interceptor_free(start);
}
