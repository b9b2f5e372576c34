// The sum in fixed point on CPUs: see fused_sum_c.py. Each value is read and written once.
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

// sum[i] = (first ? 0 : sum[i]) + truncated(addend[i] * scale), i < size. Returns the bits of the largest |addend[i]|.
static inline uint32_t add(int64_t *restrict sum, const float *restrict addend, int64_t size, float scale, int first) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < size; i++) {
        uint32_t of_value = magnitude(addend[i]);
        largest = of_value > largest ? of_value : largest;
        int64_t fixed = (int64_t)(addend[i] * scale);
        sum[i] = first ? fixed : sum[i] + fixed;
    }
    return largest;
}

FOR_EACH_PROCESSOR
uint32_t add_fixed(int64_t *restrict total, const float *restrict addend, int64_t size, float scale, int first) {
    return first ? add(total, addend, size, scale, 1) : add(total, addend, size, scale, 0);
}

// mean[i] = the sum over k < count of truncated(rows[k][i] * scales[k]), times 2^-48. Returns as add_fixed.
FOR_EACH_PROCESSOR
uint32_t mean_fixed(float *restrict mean, const float *const *rows, const float *scales, int count, int64_t size) {
    int64_t sum[BLOCK];
    uint32_t largest = 0;
    for (int64_t begin = 0; begin < size; begin += BLOCK) {
        int64_t width = size - begin < BLOCK ? size - begin : BLOCK;
        for (int k = 0; k < count; k++) {
            const float *row = rows[k] + begin;
            uint32_t of_row = k ? add(sum, row, width, scales[k], 0) : add(sum, row, width, scales[k], 1);
            largest = of_row > largest ? of_row : largest;
        }
        for (int64_t i = 0; i < width; i++) mean[begin + i] = (float)sum[i] * 0x1p-48f;
    }
    return largest;
}
