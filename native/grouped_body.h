// The rounding of activations in groups, compiled by each instruction set for itself.
#pragma once

#include "bodies.h"
#include "grouped.h"

namespace shoestring {

static SHOESTRING_INLINE void quantise_groups_body(const float* x, i64 columns, i8* codes, float* scale, i32* sums) {
    const i64 whole = columns / GROUP;
    for (i64 g = 0; g < whole; ++g) scale[g] = quantise_body(x + g * GROUP, GROUP, GROUP, 0, codes + g * GROUP, sums + g);
    if (whole * GROUP < columns)
        scale[whole] = quantise_body(x + whole * GROUP, columns - whole * GROUP, GROUP, 0, codes + whole * GROUP, sums + whole);
}

}  // namespace shoestring
