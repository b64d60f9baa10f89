// How the rows of a product are cut into parts for the threads.
#pragma once

#include "common.h"

namespace shoestring {

constexpr i64 WORTH = i64{1} << 17;  // multiplications worth waking another thread for
constexpr i64 PIECE = i64{1} << 17;  // bytes of weights in a part of the work for one token: reading ahead is lost at its end
constexpr i64 PARTS = 4;  // for each thread, so that one that is held up is helped by the others

// Units of work (row blocks or rows) in a part, a multiple of `step`: a part for each thread, and up to PARTS where they are large.
inline i64 units_of(i64 units, i64 unit_bytes, i64 tokens, i64 step, int threads) {
    const i64 work = unit_bytes * (tokens < 16 ? tokens : 16) + 1;
    const i64 large = (PIECE + work - 1) / work, even = (units + threads - 1) / threads;
    const i64 small = (units + PARTS * threads - 1) / (PARTS * threads);
    const i64 chosen = large < small ? small : (large < even ? large : even);
    return (chosen + step - 1) / step * step;
}

inline int threads_for(i64 multiplications, int threads) {
    const i64 worth = 1 + multiplications / WORTH;
    return worth < threads ? static_cast<int>(worth) : threads;
}

}  // namespace shoestring
