// The product of packed trits with any number of tokens where multiplying wants one trit to a byte: a piece of 16 rows is
// unpacked once into cache and used for all tokens.
#include <cstring>

#include "common.h"
#include "scratch.h"

namespace shoestring {
namespace {

constexpr i64 PANEL = 192;  // tokens for which sums are kept while a tile is used

thread_local Scratch kept;

}  // namespace

bool tiles(const Product& p, const Tile& isa, i64 first, i64 last) {
    const i64 quads = quads_of(p.layout), step = isa.quads / quads;
    const Blocks blocks(p.x.tokens, isa.most);
    const std::size_t tile_bytes = static_cast<std::size_t>(isa.quads * VECTOR);
    const std::size_t sums_bytes = static_cast<std::size_t>((PANEL + isa.most) * LANES) * 4;
    u8* const memory = static_cast<u8*>(kept.get(tile_bytes + 2 * sums_bytes));
    if (!memory) return false;
    u8* const tile = memory;
    i32* const dots = reinterpret_cast<i32*>(memory + tile_bytes);
    float* const total = reinterpret_cast<float*>(memory + tile_bytes + sums_bytes);
    for (i64 row_block = first; row_block < last; ++row_block) {
        const u8* const packed = p.packed + row_block * p.column_blocks * VECTOR;
        const i64 row = row_block * LANES, rows = p.rows - row < LANES ? p.rows - row : LANES;
        for (i64 block = 0, next; block < blocks.count; block = next) {
            const i64 token = blocks.start(block);
            for (next = block; next < blocks.count && blocks.start(next) - token < PANEL;) ++next;
            const i64 tokens = (next < blocks.count ? blocks.start(next) : p.x.tokens) - token;
            const std::size_t used = static_cast<std::size_t>(tokens * LANES) * 4;
            std::memset(total, 0, used);
            for (i64 group = 0; group < p.groups; ++group) {
                std::memset(dots, 0, used);
                const i64 end = (group + 1) * p.group_blocks;
                for (i64 column = group * p.group_blocks; column < end; column += step) {
                    const i64 count = end - column < step ? end - column : step;
                    isa.unpack[p.layout](packed + column * VECTOR, count, tile);
                    for (i64 b = block; b < next; ++b) {
                        const i64 width = blocks.size(b), start = blocks.start(b);
                        const i8* const x = p.x.codes + (start * p.x.quads + column * quads * width) * QUAD;
                        isa.multiply(tile, count * quads, x, static_cast<int>(width), dots + (start - token) * LANES);
                    }
                }
                float scale[LANES] = {};
                for (i64 l = 0; l < rows; ++l) scale[l] = p.scales[(row + l) * p.groups + group];
                isa.finish(dots, scale, p.x.sums + token * p.groups + group, p.groups, tokens, total);
            }
            for (i64 t = 0; t < tokens; ++t) {
                const float by = p.x.scale[token + t];
                float* const out = p.out + (token + t) * p.rows + row;
                for (i64 l = 0; l < rows; ++l) out[l] = total[t * LANES + l] * by;
            }
        }
    }
    return true;
}

}  // namespace shoestring
