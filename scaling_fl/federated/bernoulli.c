// Bernoulli draws of torch's generator on CPUs: see fast_dropout.py. The state is that of torch.Generator.get_state().
#include <stdint.h>
#include <string.h>

#define WORDS 624 // of the Mersenne Twister's state
#define AHEAD 397
#define LEFT_AT 8   // places in the state, in bytes: how many words are left,
#define NEXT_AT 16  // the next one,
#define STATE_AT 24 // and the words, as 64-bit numbers

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

static inline uint32_t twisted(uint32_t word, uint32_t next, uint32_t ahead) {
    uint32_t mixed = (word & 0x80000000u) | (next & 0x7fffffffu);
    return ahead ^ (mixed >> 1) ^ ((0u - (next & 1u)) & 0x9908b0dfu);
}

// The next WORDS words of the generator (Matsumoto and Nishimura 1998).
static inline void advance(uint32_t *w) {
    for (int i = 0; i < WORDS - AHEAD; i++) w[i] = twisted(w[i], w[i + 1], w[i + AHEAD]);
    for (int i = WORDS - AHEAD; i < WORDS - 1; i++) w[i] = twisted(w[i], w[i + 1], w[i + AHEAD - WORDS]);
    w[WORDS - 1] = twisted(w[WORDS - 1], w[0], w[AHEAD - 1]);
}

static inline uint32_t tempered(uint32_t y) {
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

// draws[i] = 1 where a uniform number of 53 bits is below p, else 0; two words each, the first one above the second.
FOR_EACH_PROCESSOR
void bernoulli(float *restrict draws, int64_t size, double p, uint8_t *restrict generator) {
    uint32_t words[WORDS], drawn[WORDS + 1];
    int32_t left;
    uint64_t next, wide[WORDS];
    memcpy(&left, generator + LEFT_AT, sizeof left);
    memcpy(&next, generator + NEXT_AT, sizeof next);
    memcpy(wide, generator + STATE_AT, sizeof wide);
    for (int i = 0; i < WORDS; i++) words[i] = (uint32_t)wide[i];
    double below = p * 0x1p53; // exact
    int64_t limit = (int64_t)below + (below > (double)(int64_t)below);
    int have = 0; // a first word whose second is in the next block
    while (size > 0) {
        if (left == 1) {
            advance(words);
            left = WORDS + 1;
            next = 0;
        }
        int64_t wanted = 2 * size - have, there = left - 1;
        int count = (int)(wanted < there ? wanted : there);
        const uint32_t *from = words + next;
        for (int i = 0; i < count; i++) drawn[have + i] = tempered(from[i]);
        left -= count;
        next += count;
        int total = have + count, pairs = total / 2;
        for (int i = 0; i < pairs; i++) {
            int64_t bits = (int64_t)(drawn[2 * i] & 0x1fffffu) << 32 | drawn[2 * i + 1];
            draws[i] = bits < limit ? 1.0f : 0.0f;
        }
        have = total % 2;
        if (have) drawn[0] = drawn[total - 1];
        draws += pairs;
        size -= pairs;
    }
    for (int i = 0; i < WORDS; i++) wide[i] = words[i];
    memcpy(generator + LEFT_AT, &left, sizeof left);
    memcpy(generator + NEXT_AT, &next, sizeof next);
    memcpy(generator + STATE_AT, wide, sizeof wide);
}
