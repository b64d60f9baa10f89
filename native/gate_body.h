// Gates, compiled by each instruction set for itself.
#pragma once

#include "lanes.h"

namespace shoestring {
namespace {

// out [count] = silu(gate) up, both [count]; or, not TIMES, sigmoid(gate) up. out may be either.
template <bool TIMES>
LANES_TARGET void gate_all(const float* gates, const float* ups, i64 count, float* out) {
    const V one = same(1.0f);
    for (i64 i = 0; i < count; i += LANES) {
        const i64 left = count - i;
        const V gate = left < LANES ? load_some(gates + i, left) : load(gates + i);
        const V up = left < LANES ? load_some(ups + i, left) : load(ups + i);
        const V small = exponential(where_under(gate, zero(), gate, less(zero(), gate)));  // of -|gate|: nothing overflows
        const V share = over(where_under(gate, zero(), small, one), add(one, small));
        const V found = times(TIMES ? times(gate, share) : share, up);
        if (left < LANES) {
            float all[LANES];
            store(all, found);
            std::memcpy(out + i, all, static_cast<std::size_t>(left) * sizeof(float));
        } else {
            store(out + i, found);
        }
    }
}

}  // namespace
}  // namespace shoestring
