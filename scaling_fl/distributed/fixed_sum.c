// The sum in fixed point on CPUs: see fused_sum_c.py. Each value is read and written once.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 2048 // values: their sums stay in the first-level cache

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// One copy for each generation of processors; the loader chooses.
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

// The bits of |value|, as whole numbers, are in the order of the values, infinity and NaN above all.
static inline uint32_t magnitude(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffff;
}

// sum[i] = (first ? 0 : sum[i]) + truncated(delta[i] * scale), i < size, where delta is `row`, or `server` - `row` if there is
// a `server`. Returns the bits of the largest |delta[i]|.
static inline uint32_t add(int64_t *restrict sum, const float *restrict row, const float *restrict server, int64_t size,
                           float scale, int first) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < size; i++) {
        float delta = server ? server[i] - row[i] : row[i];
        uint32_t of_value = magnitude(delta);
        largest = of_value > largest ? of_value : largest;
        int64_t fixed = (int64_t)(delta * scale);
        sum[i] = first ? fixed : sum[i] + fixed;
    }
    return largest;
}

// The same, compiled for each of the cases.
static inline uint32_t add_case(int64_t *restrict sum, const float *restrict row, const float *restrict server,
                                int64_t size, float scale, int first) {
    if (server) return first ? add(sum, row, server, size, scale, 1) : add(sum, row, server, size, scale, 0);
    return first ? add(sum, row, NULL, size, scale, 1) : add(sum, row, NULL, size, scale, 0);
}

FOR_EACH_PROCESSOR
uint32_t add_fixed(int64_t *restrict total, const float *row, const float *server, int64_t size, float scale,
                   int first) {
    return add_case(total, row, server, size, scale, first);
}

// mean[i] = the sum over k < count of truncated(delta_k[i] * scales[k]), times 2^-48. A servers[k] may be NULL.
// largest[k]: the bits of the largest |delta_k[i]|.
FOR_EACH_PROCESSOR
void mean_fixed(float *restrict mean, const float *const *rows, const float *const *servers, const float *scales,
                uint32_t *restrict largest, int count, int64_t size) {
    int64_t sum[BLOCK];
    for (int k = 0; k < count; k++) largest[k] = 0;
    for (int64_t begin = 0; begin < size; begin += BLOCK) {
        int64_t width = size - begin < BLOCK ? size - begin : BLOCK;
        for (int k = 0; k < count; k++) {
            const float *server = servers[k] ? servers[k] + begin : NULL;
            uint32_t of_row = add_case(sum, rows[k] + begin, server, width, scales[k], k == 0);
            largest[k] = of_row > largest[k] ? of_row : largest[k];
        }
        for (int64_t i = 0; i < width; i++) mean[begin + i] = (float)sum[i] * 0x1p-48f;
    }
}
