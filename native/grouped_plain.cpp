// Matrices in groups, in plain C++: what the vector kernels must agree with, bit for bit.
#include "grouped_body.h"

namespace shoestring {
namespace {

template <int BITS>
int weight(const u8* block, i64 row, i64 column) {
    if (BITS == 8) return static_cast<i8>(block[column / QUAD * VECTOR + row * QUAD + column % QUAD]);
    const u8 pair = block[column / 8 * VECTOR + row * QUAD + column % QUAD];
    return column % 8 < QUAD ? pair & 15 : pair >> 4;
}

float half_at(const u8* from, i64 row) {
    u16 half;
    std::memcpy(&half, from + 2 * row, 2);
    return half_to_float(half);
}

template <int BITS>
void rows(const GroupedProduct& p, i64 first, i64 last) {
    constexpr i64 bytes = block_bytes(BITS), codes_bytes = (BITS == 4 ? 4 : 8) * VECTOR;
    for (i64 row = first * LANES; row < last * LANES && row < p.rows; ++row)
        for (i64 token = 0; token < p.x.tokens; ++token) {
            float sum = 0.0f;
            for (i64 g = 0; g < p.groups; ++g) {
                const u8* const block = p.packed + (row / LANES * p.groups + g) * bytes;
                const i8* const x = p.x.codes + (token * p.groups + g) * GROUP;
                i32 dot = 0;
                for (i64 c = 0; c < GROUP; ++c) dot += weight<BITS>(block, row % LANES, c) * x[c];
                const i64 at = token * p.groups + g;
                sum = __builtin_fmaf(static_cast<float>(dot), half_at(block + codes_bytes, row % LANES) * p.x.scale[at], sum);
                if (BITS == 4) sum = __builtin_fmaf(half_at(block + codes_bytes + 2 * LANES, row % LANES), p.x.offset[at], sum);
            }
            p.out[token * p.rows + row] = sum;
        }
}

void quantise_plain(const float* x, i64 columns, i8* codes, float* scale, i32* sums) {
    quantise_groups_body(x, columns, codes, scale, sums);
}

}  // namespace

const GroupedKernel grouped_plain = {1, {rows<4>, rows<8>}, quantise_plain};

}  // namespace shoestring
