// What the kernels share: sizes, the task of one matrix product, the table of an instruction set's functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace shoestring {

using i8 = std::int8_t;
using u8 = std::uint8_t;
using u16 = std::uint16_t;
using i32 = std::int32_t;
using u32 = std::uint32_t;
using i64 = std::int64_t;
using u64 = std::uint64_t;

constexpr i64 LANES = 16;        // rows of a block: one 32-bit lane of a 512-bit vector each
constexpr i64 QUAD = 4;          // columns that share a lane
constexpr i64 VECTOR = 64;       // bytes of a block: LANES * QUAD

enum Layout : int { TERNARY2 = 0, TERNARY16 = 1 };

// Quads in a block of columns: a byte holds one trit of each.
constexpr i64 quads_of(int layout) { return layout == TERNARY2 ? 4 : 5; }

// The trits of a byte of the 1.6-bit layout, lowest first. Bytes above 242 stand for no trits; they read as 242 in every kernel.
inline void digits(u8 byte, u8 found[5]) {
    unsigned value = byte > 242 ? 242u : byte;
    for (int place = 0; place < 5; ++place) {
        const unsigned rest = value * 171u >> 9;  // value / 3 for value < 256
        found[place] = static_cast<u8>(value - 3u * rest);
        value = rest;
    }
}

// How tokens are cut into blocks of nearly equal width, none wider than `most`.
struct Blocks {
    i64 count, width, wider;  // the first `wider` blocks hold one token more than `width`
    Blocks(i64 tokens, i64 most) : count((tokens + most - 1) / most) {
        width = count ? tokens / count : 0;
        wider = count ? tokens % count : 0;
    }
    i64 start(i64 block) const { return block * width + (block < wider ? block : wider); }
    i64 holding(i64 token) const {
        const i64 in_wider = wider * (width + 1);
        return token < in_wider ? token / (width + 1) : wider + (token - in_wider) / width;
    }
    int size(i64 block) const { return static_cast<int>(width + (block < wider)); }
};

// Activations in eight bits. A block of w tokens holds [quads][w][4] codes and begins at start * quads * 4.
struct Tokens {
    i64 tokens, groups, quads;
    i64 most;            // tokens of a block
    const i8* codes;
    const float* scale;  // [tokens]; NaN where a value of the token is not finite
    const i32* sums;     // [tokens, groups] of the codes
};

struct Product {
    int layout;
    const u8* packed;
    i64 rows, row_blocks, column_blocks, groups, group_blocks;  // group_blocks: column blocks of one group
    const float* scales;                                        // [rows, groups]
    Tokens x;
    float* out;                                                 // [tokens, rows]
};

struct IntegerProduct {
    const u8* weights;
    i64 rows, columns, stride;  // stride: bytes from one row to the next
    const float* scales;        // [rows]
    Tokens x;                   // most = 1, one group; `quads` covers whole blocks of 64 columns
    float* out;
};

// Both work on part of the rows: blocks of 16 of a Product, single ones of an IntegerProduct. False: there is no memory.
using Ternaries = bool (*)(const Product&, i64 first, i64 last);
using Integers = void (*)(const IntegerProduct&, i64 first, i64 last);

using Quantise = float (*)(const float* x, i64 columns, i64 padded, i64 group, i8* codes, i32* sums);

// What a decoder does between its products; see decoder_bodies.h.
struct Floats {
    void (*norm)(const float* x, const float* gain, float epsilon, i64 count, float* out);
    void (*turn)(const float* x, const float* cos, const float* sin, i64 count, float* out);
    float (*dot)(const float* a, const float* b, i64 count);
    void (*recall)(const float* state, i64 keys, i64 values, const float* query, float* out);
    void (*remember)(float* state, i64 keys, i64 values, float kept, const float* key, const float* value, const float* query, float* out);
};

inline float half_to_float(u16 half) {
    const u32 sign = static_cast<u32>(half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 0x3ffu;
    u32 bits;
    float value;
    if (exponent == 31) {
        bits = sign | 0x7f800000u | fraction << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    } else {
        value = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    }
    std::memcpy(&value, &bits, 4);
    return value;
}

struct Piece;         // attention.h
struct DenseProduct;  // dense.h
struct GroupedKernel;  // grouped.h
void attend_plain(const Piece&);
void attend_avx2(const Piece&);
void attend_avx512(const Piece&);
void dense_plain(const DenseProduct&, i64 first, i64 last);
void dense_avx2(const DenseProduct&, i64 first, i64 last);
void dense_avx512(const DenseProduct&, i64 first, i64 last);
void gate_plain(const float* gates, const float* ups, i64 count, float* out);
void share_plain(const float* gates, const float* ups, i64 count, float* out);
void gate_avx2(const float* gates, const float* ups, i64 count, float* out);
void share_avx2(const float* gates, const float* ups, i64 count, float* out);
void gate_avx512(const float* gates, const float* ups, i64 count, float* out);
void share_avx512(const float* gates, const float* ups, i64 count, float* out);
extern const GroupedKernel grouped_plain, grouped_avx2, grouped_avx512;

// One instruction set.
struct Kernel {
    i64 most;  // tokens that `ternaries` takes at once: how it wants them blocked
    Ternaries ternaries[2];  // by layout
    Integers integers[2];    // 8 bits, 4 bits
    Quantise quantise;
    Floats floats;
    void (*attend)(const Piece&);
    void (*dense)(const DenseProduct&, i64 first, i64 last);
    void (*gate)(const float* gates, const float* ups, i64 count, float* out);   // silu(gate) up
    void (*share)(const float* gates, const float* ups, i64 count, float* out);  // sigmoid(gate) up
    const GroupedKernel* grouped;
};

// What an instruction set that needs its trits one to a byte has for `tiles`. A tile is [quads][16 rows][4 columns] of
// trit + 1, in cache.
struct Tile {
    i64 quads, most;  // of a tile, a multiple of 20; tokens that `multiply` takes at once
    void (*unpack[2])(const u8* packed, i64 blocks, u8* tile);
    void (*multiply)(const u8* tile, i64 quads, const i8* x, int width, i32* dots);  // dots: [width, 16], added to
    void (*finish)(const i32* dots, const float* scale, const i32* sums, i64 stride, i64 tokens, float* total);
};

extern const Kernel plain_kernel;
#if defined(__x86_64__)
#define SHOESTRING_X86 1
extern const Kernel avx2_kernel, avx512_vnni_kernel, avx512_vbmi_kernel;
#endif

// out [tokens, rows] = x [tokens, columns] times trits, or integers of 8 or 4 bits. False: there is no memory.
bool multiply(const Kernel&, int layout, int threads, const float* x, i64 tokens, i64 columns, const u8* packed, i64 rows,
              const float* scales, i64 groups, float* out);
bool multiply_integers(const Kernel&, int bits, int threads, const float* x, i64 tokens, i64 columns, const u8* weights,
                       i64 rows, const float* scales, float* out);

bool quantise(const Kernel&, const float* x, i64 tokens, i64 columns, i64 group, int threads, Tokens& into);
bool tiles(const Product&, const Tile&, i64 first, i64 last);

}  // namespace shoestring
