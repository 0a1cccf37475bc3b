/* XXH3-128 of one block with avx512f vectors; _dedup.pyx takes the widest that the CPU has when it is imported. */
#pragma GCC target("avx512f")
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_AVX512
#include <xxhash.h>

XXH128_hash_t fingerprint_avx512(const void *block);

XXH128_hash_t fingerprint_avx512(const void *block) { return XXH3_128bits(block, 4096); }
