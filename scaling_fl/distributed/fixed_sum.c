// The sum in fixed point on CPUs: see fused_sum_c.py. Each value is read and written once.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 2048 // values: their sums stay in the first-level cache
#define LINE 16    // values: a line of the cache
#define AHEAD 512  // values: fetched before they are needed, because processors don't look beyond a page of 4 KiB

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

#if defined(__GNUC__)
#define FETCH(values) __builtin_prefetch(values)
#else
#define FETCH(values) (void)(values)
#endif

// sum[i] = (first ? 0 : sum[i]) + truncated(delta[i] * scales[k]) of the rows k, i < size. There are one or two rows: `b` may
// be NULL. A delta is the row's value, or `server` - it if there is a `server`. largest[k]: the bits of the largest |delta[i]|,
// if larger than before.
static inline void add(int64_t *restrict sum, const float *restrict a, const float *restrict b,
                       const float *restrict server, const float *scales, uint32_t *largest, int64_t size, int first) {
    uint32_t of_a = largest[0], of_b = b ? largest[1] : 0;
    float scale_a = scales[0], scale_b = b ? scales[1] : 0;
    for (int64_t begin = 0; begin < size; begin += 4 * LINE) {
        int64_t end = size - begin < 4 * LINE ? size : begin + 4 * LINE;
        for (int64_t line = begin; line < end; line += LINE) {
            FETCH(a + line + AHEAD);
            if (b) FETCH(b + line + AHEAD);
            if (server) FETCH(server + line + AHEAD);
        }
        for (int64_t i = begin; i < end; i++) {
            float delta = server ? server[i] - a[i] : a[i];
            of_a = magnitude(delta) > of_a ? magnitude(delta) : of_a;
            int64_t fixed = (int64_t)(delta * scale_a);
            if (b) {
                delta = server ? server[i] - b[i] : b[i];
                of_b = magnitude(delta) > of_b ? magnitude(delta) : of_b;
                fixed += (int64_t)(delta * scale_b);
            }
            sum[i] = first ? fixed : sum[i] + fixed;
        }
    }
    largest[0] = of_a;
    if (b) largest[1] = of_b;
}

// The same, compiled for each of the cases.
static inline void add_case(int64_t *restrict sum, const float *a, const float *b, const float *server,
                            const float *scales, uint32_t *largest, int64_t size, int first) {
#define CASE(b, server) (first ? add(sum, a, b, server, scales, largest, size, 1) : add(sum, a, b, server, scales, largest, size, 0))
    if (b && server) CASE(b, server);
    else if (b) CASE(b, NULL);
    else if (server) CASE(NULL, server);
    else CASE(NULL, NULL);
}

FOR_EACH_PROCESSOR
uint32_t add_fixed(int64_t *restrict total, const float *row, const float *server, int64_t size, float scale,
                   int first) {
    uint32_t largest = 0;
    add_case(total, row, NULL, server, &scale, &largest, size, first);
    return largest;
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
        for (int k = 0, taken; k < count; k += taken) {
            taken = k + 1 < count && servers[k] == servers[k + 1] ? 2 : 1; // two rows share an access to the sum
            const float *second = taken == 2 ? rows[k + 1] + begin : NULL;
            const float *server = servers[k] ? servers[k] + begin : NULL;
            add_case(sum, rows[k] + begin, second, server, scales + k, largest + k, width, k == 0);
        }
        for (int64_t i = 0; i < width; i++) mean[begin + i] = (float)sum[i] * 0x1p-48f;
    }
}
