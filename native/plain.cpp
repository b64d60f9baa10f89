// Plain C++ for any machine: what the vector kernels must agree with, bit for bit.
#include <cstring>

#include "decoder_bodies.h"

namespace shoestring {
namespace {

constexpr i64 QUADS = 40;

// The trits of the 256 bytes, fetched once.
struct Table {
    u8 trits[256][5];
    Table() {
        for (int byte = 0; byte < 256; ++byte) digits(static_cast<u8>(byte), trits[byte]);
    }
};

const Table table;

void unpack2(const u8* packed, i64 blocks, u8* tile) {
    for (i64 b = 0; b < blocks; ++b)
        for (i64 quad = 0; quad < 4; ++quad)
            for (i64 i = 0; i < VECTOR; ++i) tile[(b * 4 + quad) * VECTOR + i] = packed[b * VECTOR + i] >> (2 * quad) & 3;
}

void unpack16(const u8* packed, i64 blocks, u8* tile) {
    for (i64 b = 0; b < blocks; ++b)
        for (i64 i = 0; i < VECTOR; ++i)
            for (i64 quad = 0; quad < 5; ++quad)
                tile[(b * 5 + quad) * VECTOR + i] = table.trits[packed[b * VECTOR + i]][quad];
}

void multiply(const u8* tile, i64 quads, const i8* x, int, i32* sums) {
    i32 dots[LANES] = {};
    for (i64 quad = 0; quad < quads; ++quad)
        for (i64 l = 0; l < LANES; ++l)
            for (i64 c = 0; c < QUAD; ++c) dots[l] += tile[quad * VECTOR + l * QUAD + c] * x[quad * QUAD + c];
    for (i64 l = 0; l < LANES; ++l) sums[l] += dots[l];
}

void finish(const i32* dots, const float* scale, const i32* sums, i64 stride, i64 tokens, float* total) {
    finish_body(dots, scale, sums, stride, tokens, total);
}

float quantise_plain(const float* x, i64 columns, i64 padded, i64 group, i8* codes, i32* sums) {
    return quantise_body(x, columns, padded, group, codes, sums);
}

int nibble(const u8* row, i64 column) {
    const u8 pair = row[column / 64 * 32 + column % 32];
    return static_cast<int>(column % 64 < 32 ? pair & 15 : pair >> 4) - 8;
}

template <int BITS>
void integers(const IntegerProduct& p, i64 first, i64 last) {
    for (i64 row = first; row < last; ++row) {
        const u8* const weights = p.weights + row * p.stride;
        for (i64 token = 0; token < p.x.tokens; ++token) {
            const i8* const x = p.x.codes + token * p.x.quads * QUAD;
            i32 dot = 0;
            for (i64 column = 0; column < p.columns; ++column)
                dot += (BITS == 8 ? static_cast<i8>(weights[column]) : nibble(weights, column)) * x[column];
            p.out[token * p.rows + row] = (static_cast<float>(dot) * p.scales[row] + 0.0f) * p.x.scale[token];
        }
    }
}

constexpr Tile TILE = {QUADS, 1, {unpack2, unpack16}, multiply, finish};

bool ternaries(const Product& p, i64 first, i64 last) { return tiles(p, TILE, first, last); }

SHOESTRING_FLOATS()

}  // namespace

const Kernel plain_kernel = {1, {ternaries, ternaries}, {integers<8>, integers<4>}, quantise_plain, FLOATS, attend_plain, dense_plain, gate_plain, share_plain, &grouped_plain};

}  // namespace shoestring
