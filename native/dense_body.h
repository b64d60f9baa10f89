// The product with a matrix of float32 or bfloat16, compiled by each instruction set for itself. The sum of a row and a token is kept in
// sixteen lanes, whatever others are summed beside it.
#pragma once

#include "dense.h"
#include "lanes.h"

namespace shoestring {
namespace {

LANES_INLINE V weights_at(const float* from) { return load(from); }
LANES_INLINE V weights_at(const u16* from) { return widen(from); }
LANES_INLINE V some_weights_at(const float* from, i64 count) { return load_some(from, count); }
LANES_INLINE V some_weights_at(const u16* from, i64 count) { return widen_some(from, count); }

template <class W, int R, int T>
LANES_TARGET void dense_tile(const DenseProduct& p, i64 row, i64 token) {
    const W* const weights = static_cast<const W*>(p.weights) + row * p.columns;
    const float* const x = p.x + token * p.columns;
    V dots[R][T];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) dots[r][t] = zero();
    const i64 whole = p.columns / LANES * LANES, last = p.columns - whole;
    for (i64 d = 0; d < whole; d += LANES) {
        V w[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) w[r] = weights_at(weights + r * p.columns + d);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
            const V own = load(x + t * p.columns + d);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) dots[r][t] = fused(w[r], own, dots[r][t]);
        }
    }
    if (last)
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t)
                dots[r][t] = fused(some_weights_at(weights + r * p.columns + whole, last), load_some(x + t * p.columns + whole, last),
                                   dots[r][t]);
    for (int t = 0; t < T; ++t) {
        V four[4] = {zero(), zero(), zero(), zero()};
        for (int r = 0; r < R; ++r) four[r] = dots[r][t];
        float found[4];
        sums(four, found);
        for (int r = 0; r < R; ++r) p.out[(token + t) * p.rows + row + r] = found[r];
    }
}

template <class W, int R>
void dense_tokens(const DenseProduct& p, i64 row) {
    i64 token = 0;
    for (; token + 3 <= p.tokens; token += 3) dense_tile<W, R, 3>(p, row, token);
    if (p.tokens - token == 2) dense_tile<W, R, 2>(p, row, token);
    if (p.tokens - token == 1) dense_tile<W, R, 1>(p, row, token);
}

template <class W>
void dense_rows(const DenseProduct& p, i64 first, i64 last) {
    i64 row = first;
    if (p.tokens == 1)
        for (; row + 4 <= last; row += 4) dense_tile<W, 4, 1>(p, row, 0);
    for (; row + 2 <= last; row += 2) dense_tokens<W, 2>(p, row);
    for (; row < last; ++row) dense_tokens<W, 1>(p, row);
}

}  // namespace
}  // namespace shoestring
