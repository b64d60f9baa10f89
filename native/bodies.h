// Loops that each instruction set compiles for itself: the compiler's vectoriser is good enough for them.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "common.h"

namespace shoestring {

#define SHOESTRING_INLINE inline __attribute__((always_inline))

// One token in eight bits: s = max|x| / 127, codes = round-half-even(x / s). Columns from `columns` to `padded` get code 0.
// Returns s; 0 with codes 0 for a row of zeros (or of values so small that s is 0), NaN with codes 0 where one is not finite.
static SHOESTRING_INLINE float quantise_body(const float* x, i64 columns, i64 padded, i64 group, i8* codes, i32* sums) {
    const i64 groups = group ? columns / group : 1;
    u32 top = 0;
    for (i64 i = 0; i < columns; ++i) {
        u32 bits;
        std::memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        top = bits > top ? bits : top;
    }
    float largest;
    std::memcpy(&largest, &top, 4);
    const float scale = largest / 127.0f;
    if (top >= 0x7f800000u || scale == 0.0f) {
        std::memset(codes, 0, static_cast<std::size_t>(padded));
        std::memset(sums, 0, static_cast<std::size_t>(groups) * sizeof(i32));
        return top >= 0x7f800000u ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    }
    constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
    for (i64 i = 0; i < columns; ++i) {
        float rounded = (x[i] / scale + to_integer) - to_integer;
        rounded = rounded > 127.0f ? 127.0f : rounded;
        rounded = rounded < -127.0f ? -127.0f : rounded;
        codes[i] = static_cast<i8>(static_cast<i32>(rounded));
    }
    std::memset(codes + columns, 0, static_cast<std::size_t>(padded - columns));
    for (i64 g = 0; g < groups; ++g) {
        const i8* from = codes + g * group;
        const i64 count = group ? group : columns;
        i32 sum = 0;
        for (i64 i = 0; i < count; ++i) sum += from[i];
        sums[g] = sum;
    }
    return scale;
}

// total += (dots - sum of the codes) * scale, rounded once, for 16 rows. sums: one per token, `stride` apart.
static SHOESTRING_INLINE void finish_body(const i32* dots, const float* scale, const i32* sums, i64 stride, i64 tokens,
                                          float* total) {
    for (i64 t = 0; t < tokens; ++t)
        for (i64 l = 0; l < LANES; ++l) {
            const i64 at = t * LANES + l;
            total[at] = __builtin_fmaf(static_cast<float>(dots[at] - sums[t * stride]), scale[l], total[at]);
        }
}

static SHOESTRING_INLINE i32 quad_at(const i8* x) {
    i32 four;
    std::memcpy(&four, x, 4);
    return four;
}

}  // namespace shoestring
