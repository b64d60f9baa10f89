// A few keys or values of one head at a time: scores with them, their weighted sums, and the weights between; compiled by each
// instruction set for itself. Each sum has one order, whoever is looked at together.
#pragma once

#include <limits>

#include "attention.h"
#include "lanes.h"

namespace shoestring {
namespace {

constexpr i64 TOGETHER = 4;                                // keys that are looked at together
constexpr i64 VALUES = 16;                                 // values likewise: what they add to is loaded and stored once for them
constexpr i64 SHARED = SHOESTRING_LANES == 512 ? 4 : 1;    // queries that share what is loaded of them, at most: as registers allow

// scores[q * step + k] of Q queries with four keys, all `width` wide, a whole number of lanes.
template <int Q>
LANES_INLINE void score(const float* query, const float* const* keys, i64 width, i64 step, float* scores) {
    V dots[Q][TOGETHER];
    for (int q = 0; q < Q; ++q)
        for (int k = 0; k < TOGETHER; ++k) dots[q][k] = zero();
    for (i64 d = 0; d < width; d += LANES) {
        V key[TOGETHER];
#pragma GCC unroll 4
        for (int k = 0; k < TOGETHER; ++k) key[k] = loaded(keys[k] + d);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
            const V asked = load(query + q * width + d);
#pragma GCC unroll 4
            for (int k = 0; k < TOGETHER; ++k) dots[q][k] = fused(asked, key[k], dots[q][k]);
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) sums(dots[q], scores + q * step);
}

// totals [Q, width] += the weighted sums of `count` values, in order. weights[q * step + k].
template <int Q, int N>
LANES_INLINE void mix_some(const float* weights, i64 step, const float* const* values, i64 count, i64 width, float* totals) {
    V to[Q][N];
    for (int q = 0; q < Q; ++q)
        for (int n = 0; n < N; ++n) to[q][n] = load(totals + q * width + n * LANES);
    for (i64 k = 0; k < count; ++k) {
        V value[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) value[n] = load(values[k] + n * LANES);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
            const V weight = same(weights[q * step + k]);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) to[q][n] = fused(weight, value[n], to[q][n]);
        }
    }
    for (int q = 0; q < Q; ++q)
        for (int n = 0; n < N; ++n) store(totals + q * width + n * LANES, to[q][n]);
}

template <int Q>
LANES_INLINE void mix(const float* weights, i64 step, const float* const* values, i64 count, i64 width, float* totals) {
    const float* from[VALUES];
    for (i64 at = 0; at < width;) {
        for (i64 k = 0; k < count; ++k) from[k] = values[k] + at;
        if (at + 4 * LANES <= width) {
            mix_some<Q, 4>(weights, step, from, count, width, totals + at);
            at += 4 * LANES;
        } else {
            mix_some<Q, 1>(weights, step, from, count, width, totals + at);
            at += LANES;
        }
    }
}

// Has bytes fetched that are looked at a run later: not to the nearest cache, which a run fills.
LANES_INLINE void ask(const char* from, i64 bytes) {
#if SHOESTRING_LANES
    for (i64 at = 0; at < bytes; at += 64) _mm_prefetch(from + at, _MM_HINT_T1);
#else
    (void)from, (void)bytes;
#endif
}

LANES_INLINE float half_at(const char* from) {
    u16 half;
    std::memcpy(&half, from, sizeof(half));
    return half_to_float(half);
}

// Some keys or values of one head as rows of floats with whole lanes: those that are not are copied into `room`, filled with zeros.
LANES_INLINE void as_floats(const char* const* from, i64 kind, i64 count, i64 width, float* room, const float** to) {
    const i64 padded = whole_lanes(width);
    if (kind == FLOAT32 && padded == width) {
        for (i64 k = 0; k < count; ++k) to[k] = reinterpret_cast<const float*>(from[k]);
        return;
    }
    for (i64 k = 0; k < count; ++k, room += padded) {
        to[k] = room;
        const char* const behind = from[k] + (kind == PAIRS ? width / 2 : width);  // scales, where there are codes
        const float scale = kind == CODES ? half_at(behind) : 0.0f;
        for (i64 d = 0; d < width; d += LANES) {
            const i64 left = width - d;
            if (kind == PAIRS) {
                const char* const group = behind + d / PAIRS_GROUP * 4;
                const V codes = nibbles(reinterpret_cast<const u8*>(from[k]) + d / 2);
                store(room + d, add(same(half_at(group)), times(same(half_at(group + 2)), codes)));
            } else if (kind == CODES) {
                const i8* const codes = reinterpret_cast<const i8*>(from[k]) + d;
                store(room + d, times(left < LANES ? widen_some(codes, left) : widen(codes), same(scale)));
            } else if (kind == BFLOAT16) {
                const u16* const numbers = reinterpret_cast<const u16*>(from[k]) + d;
                store(room + d, left < LANES ? widen_some(numbers, left) : widen(numbers));
            } else {
                const float* const numbers = reinterpret_cast<const float*>(from[k]) + d;
                store(room + d, left < LANES ? load_some(numbers, left) : load(numbers));
            }
        }
    }
}

// How many of the queries that are left are taken together: as many as can be, in few shares.
LANES_INLINE i64 shared_by(i64 left) {
    if (SHARED == 1 || left <= SHARED) return left < SHARED ? left : SHARED;
    return left == 5 || left == 6 || left == 9 ? 3 : SHARED;
}

// `score` and `mix` of as many queries as `shared_by` says.
LANES_INLINE void score(i64 queries, const float* query, const float* const* keys, i64 width, i64 step, float* scores) {
    switch (queries) {
        case 1: return score<1>(query, keys, width, step, scores);
#if SHOESTRING_LANES == 512
        case 2: return score<2>(query, keys, width, step, scores);
        case 3: return score<3>(query, keys, width, step, scores);
        default: return score<4>(query, keys, width, step, scores);
#endif
    }
}

LANES_INLINE void mix(i64 queries, const float* weights, i64 step, const float* const* values, i64 count, i64 width, float* totals) {
    switch (queries) {
        case 1: return mix<1>(weights, step, values, count, width, totals);
#if SHOESTRING_LANES == 512
        case 2: return mix<2>(weights, step, values, count, width, totals);
        case 3: return mix<3>(weights, step, values, count, width, totals);
        default: return mix<4>(weights, step, values, count, width, totals);
#endif
    }
}

// Of `count` scores, their largest taken off, the exponentials, in their place. Returns the sum of these.
LANES_INLINE float exponentials(float* scores, i64 count, float& top) {
    const float none = -std::numeric_limits<float>::infinity();
    top = none;
    for (i64 k = 0; k < count; ++k) top = scores[k] > top ? scores[k] : top;
    V share = zero();
    for (i64 k = 0; k < count; k += LANES) {
        float rest[LANES];  // nothing beyond the last is written
        const bool whole = k + LANES <= count;
        for (i64 i = 0; i < LANES && !whole; ++i) rest[i] = k + i < count ? scores[k + i] : none;
        const V weights = exponential(less(load(whole ? scores + k : rest), same(top)));
        share = add(share, weights);
        if (whole) {
            store(scores + k, weights);
            continue;
        }
        store(rest, weights);
        std::memcpy(scores + k, rest, static_cast<std::size_t>(count - k) * sizeof(float));
    }
    return sum(share);
}

}  // namespace
}  // namespace shoestring
