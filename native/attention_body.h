// Attention of one piece, compiled by each instruction set for itself. A query meets its keys in runs of PLACES, with the largest
// score so far taken off; each sum has one order, whoever the piece is shared with.
#pragma once

#include <limits>

#include "attention.h"
#include "lanes.h"

namespace shoestring {
namespace {

constexpr i64 AT_ONCE = 4;  // vectors of a value that are summed together

// scores [count] of a query with `count` keys, both `width` wide, a whole number of lanes.
LANES_INLINE void score(const float* query, const float* const* keys, i64 count, i64 width, i64 last, float* scores) {
    const i64 whole = width - (last ? LANES : 0);
    for (i64 k = 0; k < count; k += 4) {
        const float* four[4];
        for (int i = 0; i < 4; ++i) four[i] = keys[k + i < count ? k + i : count - 1];
        V dots[4] = {zero(), zero(), zero(), zero()};
        for (i64 d = 0; d < whole; d += LANES) {
            const V q = load(query + d);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) dots[i] = fused(q, load(four[i] + d), dots[i]);
        }
        if (last) {
            const V q = load(query + whole);
            for (int i = 0; i < 4; ++i) dots[i] = fused(q, load_some(four[i] + whole, last), dots[i]);
        }
        sums(dots, scores + k);
    }
}

template <int N>
LANES_INLINE void mix(const float* weights, const float* const* values, i64 count, i64 at, float shrink, float* total) {
    V sums[N];
    for (int n = 0; n < N; ++n) sums[n] = times(load(total + n * LANES), same(shrink));
    for (i64 k = 0; k < count; ++k) {
        const V weight = same(weights[k]);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums[n] = fused(weight, load(values[k] + at + n * LANES), sums[n]);
    }
    for (int n = 0; n < N; ++n) store(total + n * LANES, sums[n]);
}

// total [width] = shrink total + the weighted sum of values. last: numbers in the last lanes, 0 for all.
LANES_INLINE void mix_all(const float* weights, const float* const* values, i64 count, i64 width, i64 last, float shrink,
                          float* total) {
    const i64 whole = width - (last ? LANES : 0);
    i64 at = 0;
    for (; at + AT_ONCE * LANES <= whole; at += AT_ONCE * LANES) mix<AT_ONCE>(weights, values, count, at, shrink, total + at);
    for (; at < whole; at += LANES) mix<1>(weights, values, count, at, shrink, total + at);
    if (!last) return;
    V sum = times(load(total + whole), same(shrink));
    for (i64 k = 0; k < count; ++k) sum = fused(same(weights[k]), load_some(values[k] + whole, last), sum);
    store(total + whole, sum);
}

// Has a cache line fetched.
LANES_INLINE void ask(const float* line) {
#if SHOESTRING_LANES
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
#else
    (void)line;
#endif
}

LANES_INLINE float first_of(V v) {
    float all[LANES];
    store(all, v);
    return all[0];
}

LANES_INLINE void widen_row(const u16* from, i64 count, float* to) {
    i64 d = 0;
    for (; d + LANES <= count; d += LANES) store(to + d, widen(from + d));
    if (d < count) store(to + d, widen_some(from + d, count - d));
}

// Where the numbers of `count` tokens from `first` on are; bfloat16 is widened into `room`, [count, whole lanes of width].
LANES_INLINE void find(const Side& side, const Held& held, const Row& row, i64 head, i64 first, i64 count, i64 width, float* room,
                       const float** to) {
    const i64 padded = whole_lanes(width);
    for (i64 k = 0; k < count; ++k) {
        const i64 place = first + k;
        const i64 at = row.blocks[place / held.block] * side.block_step + place % held.block * side.token_step + head * side.head_step;
        if (held.bfloat16) {
            widen_row(static_cast<const u16*>(side.numbers) + at, width, room + k * padded);
            to[k] = room + k * padded;
        } else {
            to[k] = static_cast<const float*>(side.numbers) + at;
            for (i64 d = 0; d < width; d += LANES) ask(to[k] + d);
        }
    }
}

LANES_TARGET void attend_piece(const Piece& p) {
    const Heads& h = *p.heads;
    const i64 sharing = h.heads / h.key_value_heads, queries = p.count * sharing;
    const i64 wide = whole_lanes(h.key_width), out_wide = whole_lanes(h.value_width);
    // rows that were widened are filled up with zeros; of others nothing beyond their end may be read
    const i64 last = p.held->bfloat16 ? 0 : h.key_width % LANES, out_last = p.held->bfloat16 ? 0 : h.value_width % LANES;
    float* const asked = p.room;
    float* const total = asked + queries * wide;
    float* const largest = total + queries * out_wide;
    float* const shares = largest + queries;
    float* const scores = shares + queries;
    float* const key_room = scores + PLACES + LANES;
    float* const value_room = key_room + PLACES * wide;
    const float by = static_cast<float>(h.scale);
    for (i64 m = 0; m < queries; ++m) {
        const i64 token = p.row->start + p.first + m / sharing, own = p.head * sharing + m % sharing;
        const float* const from = p.queries + token * p.query_step + own * p.head_step;
        for (i64 d = 0; d < wide; ++d) asked[m * wide + d] = d < h.key_width ? from[d] * by : 0.0f;
        largest[m] = -std::numeric_limits<float>::infinity();
        shares[m] = 0.0f;
    }
    std::memset(total, 0, static_cast<std::size_t>(queries * out_wide) * sizeof(float));
    const i64 position = p.row->held + p.first, end = position + p.count;
    const i64 seen = h.window && position + 1 > h.window ? position + 1 - h.window : 0;
    const float *keys[PLACES], *values[PLACES];
    for (i64 first = seen / PLACES * PLACES; first < end; first += PLACES) {
        const i64 count = end - first < PLACES ? end - first : PLACES;
        find(p.held->keys, *p.held, *p.row, p.head, first, count, h.key_width, key_room, keys);
        find(p.held->values, *p.held, *p.row, p.head, first, count, h.value_width, value_room, values);
        for (i64 m = 0; m < queries; ++m) {
            const i64 place = position + m / sharing;
            const i64 low = h.window && place + 1 - h.window > first ? place + 1 - h.window - first : 0;
            const i64 high = place + 1 - first < count ? place + 1 - first : count, number = high - low;
            if (number <= 0) continue;
            score(asked + m * wide, keys + low, number, wide, last, scores);
            float top = largest[m];
            for (i64 k = 0; k < number; ++k) top = scores[k] > top ? scores[k] : top;
            const i64 filled = whole_lanes(number);
            for (i64 k = number; k < filled; ++k) scores[k] = -std::numeric_limits<float>::infinity();
            V share = zero();
            for (i64 k = 0; k < filled; k += LANES) {
                const V weights = exponential(less(load(scores + k), same(top)));
                store(scores + k, weights);
                share = add(share, weights);
            }
            const float shrink = first_of(exponential(same(largest[m] - top)));
            largest[m] = top;
            shares[m] = shares[m] * shrink + sum(share);
            mix_all(scores, values + low, number, out_wide, out_last, shrink, total + m * out_wide);
        }
    }
    for (i64 m = 0; m < queries; ++m) {
        const i64 token = p.row->start + p.first + m / sharing, own = p.head * sharing + m % sharing;
        float* const to = p.out + (token * h.heads + own) * h.value_width;
        const float share = 1.0f / shares[m];
        for (i64 d = 0; d < h.value_width; ++d) to[d] = total[m * out_wide + d] * share;
    }
}

}  // namespace
}  // namespace shoestring
