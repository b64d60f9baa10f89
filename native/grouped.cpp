// A product with a matrix in groups: activations rounded and laid out as the kernels read them, rows cut into parts for the threads.
#include "grouped.h"

#include <atomic>

#include "parts.h"
#include "pool.h"
#include "scratch.h"

namespace shoestring {
namespace {

thread_local Scratch kept, row;

struct Rounding {
    const GroupedKernel* kernel;
    const float* x;
    i64 columns;
    const GroupTokens* into;
    i8* codes;
    float *scale, *offset;
    i32* sums;
    std::atomic<bool> failed;
};

void one_token(void* context, i64 token) {
    Rounding& job = *static_cast<Rounding*>(context);
    const GroupTokens& into = *job.into;
    const Blocks blocks(into.tokens, into.most);
    const i64 block = blocks.holding(token), width = blocks.size(block), place = token - blocks.start(block), groups = into.groups;
    const i64 before = blocks.start(block) * groups;
    u8* const room = static_cast<u8*>(row.get(static_cast<std::size_t>(groups * (GROUP + 8) + 64)));
    if (!room) return job.failed.store(true, std::memory_order_relaxed);
    float* const scale = reinterpret_cast<float*>(room);
    i32* const sums = reinterpret_cast<i32*>(room + groups * 4);
    i8* const straight = width == 1 ? job.codes + before * GROUP : reinterpret_cast<i8*>(room + groups * 8);
    job.kernel->quantise(job.x + token * job.columns, job.columns, straight, scale, sums);
    for (i64 g = 0; g < groups; ++g) {
        const i64 at = before + g * width + place;
        job.scale[at] = scale[g];
        job.sums[at] = sums[g];
        job.offset[at] = scale[g] * static_cast<float>(sums[g]);
    }
    if (width == 1) return;
    i8* to = job.codes + before * GROUP + place * QUAD;
    for (i64 quad = 0; quad < groups * GROUP_QUADS; ++quad, to += width * QUAD) std::memcpy(to, straight + quad * QUAD, QUAD);
}

struct Part {
    const GroupedProduct* product;
    GroupedRows rows;
    i64 blocks, units;
};

void some_rows(void* context, i64 number) {
    const Part& job = *static_cast<const Part*>(context);
    const i64 first = number * job.units, end = first + job.units;
    job.rows(*job.product, first, end < job.blocks ? end : job.blocks);
}

float half_at(const u8* from, i64 row) {
    u16 half;
    std::memcpy(&half, from + 2 * row, 2);
    return half_to_float(half);
}

template <int BITS>
void one_row(const u8* packed, i64 columns, i64 row, float* out) {
    constexpr i64 bytes = block_bytes(BITS), codes_bytes = (BITS == 4 ? 4 : 8) * VECTOR;
    const i64 groups = (columns + GROUP - 1) / GROUP, lane = row % LANES;
    for (i64 g = 0; g < groups; ++g) {
        const u8* const block = packed + (row / LANES * groups + g) * bytes;
        const float scale = half_at(block + codes_bytes, lane);
        const float minimum = BITS == 4 ? half_at(block + codes_bytes + 2 * LANES, lane) : 0.0f;
        for (i64 c = 0; c < GROUP && g * GROUP + c < columns; ++c) {
            const u8 byte = block[(BITS == 4 ? c / 8 : c / QUAD) * VECTOR + lane * QUAD + c % QUAD];
            const int code = BITS == 8 ? static_cast<i8>(byte) : (c % 8 < QUAD ? byte & 15 : byte >> 4);
            const float value = static_cast<float>(code) * scale;
            out[g * GROUP + c] = BITS == 4 ? value + minimum : value;
        }
    }
}

}  // namespace

bool grouped_rows(int bits, const u8* packed, i64 rows, i64 columns, const i64* which, i64 count, float* out) {
    for (i64 i = 0; i < count; ++i) {
        if (which[i] < 0 || which[i] >= rows) return false;
        (bits == 4 ? one_row<4> : one_row<8>)(packed, columns, which[i], out + i * columns);
    }
    return true;
}

bool multiply_grouped(const GroupedKernel& kernel, int bits, int threads, const float* x, i64 tokens, i64 columns, const u8* packed,
                      i64 rows, float* out) {
    if (tokens == 0 || rows == 0) return true;
    const i64 groups = (columns + GROUP - 1) / GROUP, blocks = (rows + LANES - 1) / LANES, each = tokens * groups;
    const auto cache_line = [](i64 bytes) { return (bytes + 63) / 64 * 64; };
    const i64 codes = cache_line(each * GROUP), numbers = cache_line(each * 4);
    u8* const memory = static_cast<u8*>(kept.get(static_cast<std::size_t>(codes + 3 * numbers + 64)));
    if (!memory) return false;
    GroupedProduct product{packed, rows, groups, {tokens, groups, kernel.most, nullptr, nullptr, nullptr, nullptr}, out};
    Rounding layout{&kernel, x, columns, &product.x, reinterpret_cast<i8*>(memory), reinterpret_cast<float*>(memory + codes),
                  reinterpret_cast<float*>(memory + codes + numbers), reinterpret_cast<i32*>(memory + codes + 2 * numbers), {false}};
    product.x.codes = layout.codes;
    product.x.scale = layout.scale;
    product.x.offset = layout.offset;
    product.x.sums = layout.sums;
    threads = threads_for(rows * columns * tokens, threads);
    parallel(tokens * columns < (i64{1} << 14) ? 1 : threads, tokens, one_token, &layout);
    if (layout.failed.load(std::memory_order_relaxed)) return false;
    Part part{&product, kernel.rows[bits == 4 ? 0 : 1], blocks, units_of(blocks, groups * block_bytes(bits), tokens, 1, threads)};
    parallel(threads, (blocks + part.units - 1) / part.units, some_rows, &part);
    return true;
}

}  // namespace shoestring
