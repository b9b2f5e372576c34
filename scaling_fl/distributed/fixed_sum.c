// The sum in fixed point on CPUs: see fused_sum_c.py. Each value is read and written once.
#include <stdint.h>
#include <string.h>

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

// total[i] = (first ? 0 : total[i]) + truncated(addend[i] * scale), i < size. Returns the bits of the largest |addend[i]|.
FOR_EACH_PROCESSOR
uint32_t add_fixed(int64_t *restrict total, const float *restrict addend, int64_t size, float scale, int first) {
    uint32_t largest = 0;
    if (first) {
        for (int64_t i = 0; i < size; i++) {
            uint32_t of_value = magnitude(addend[i]);
            largest = of_value > largest ? of_value : largest;
            total[i] = (int64_t)(addend[i] * scale);
        }
    } else {
        for (int64_t i = 0; i < size; i++) {
            uint32_t of_value = magnitude(addend[i]);
            largest = of_value > largest ? of_value : largest;
            total[i] += (int64_t)(addend[i] * scale);
        }
    }
    return largest;
}
