// Matrices of 4 and 8 bits whose groups of 32 columns have scales of their own, and activations rounded likewise.
#pragma once

#include <cstring>

#include "common.h"

namespace shoestring {

constexpr i64 GROUP = 32;           // columns of a group
constexpr i64 GROUP_QUADS = 8;      // of four columns
constexpr i64 GROUP_MOST = 8;       // tokens that any kernel takes at once

// Bytes of 16 rows and a group. 4 bits: [4][16 rows][4] bytes, byte 4 r + c of the k-th 64 holding column 8 k + c in its low bits and
// 8 k + 4 + c in its high ones, 0 .. 15; then 16 scales and 16 minimums. 8 bits: [8][16 rows][4] of int8, column 4 k + c; then
// 16 scales. Scales and minimums are float16. A weight is minimum + scale * code.
constexpr i64 block_bytes(int bits) { return bits == 4 ? 4 * VECTOR + 4 * LANES : 8 * VECTOR + 2 * LANES; }

// Activations of one block of w tokens: codes [groups][8][w][4], then of each group and token what follows.
struct GroupTokens {
    i64 tokens, groups, most;
    const i8* codes;
    const float* scale;  // NaN where a value of the group is not finite
    const float* offset;  // scale times the sum of the codes
    const i32* sums;      // of the codes
};

struct GroupedProduct {
    const u8* packed;
    i64 rows, groups;
    GroupTokens x;
    float* out;  // [tokens, rows]
};

// Works on blocks first .. last - 1 of 16 rows. out = sum over the groups g, in order, each step rounded once:
//   a = fma(dot, scale_w scale_x, a),   a = fma(minimum_w, offset_x, a).
using GroupedRows = void (*)(const GroupedProduct&, i64 first, i64 last);
// codes [whole groups * 32], scale, sums [groups] of one token.
using GroupQuantise = void (*)(const float* x, i64 columns, i8* codes, float* scale, i32* sums);

struct GroupedKernel {
    i64 most;
    GroupedRows rows[2];  // 4 bits, 8 bits
    GroupQuantise quantise;
};

// out [tokens, rows] = x [tokens, columns] times a matrix in groups. False: there is no memory.
bool multiply_grouped(const GroupedKernel&, int bits, int threads, const float* x, i64 tokens, i64 columns, const u8* packed, i64 rows,
                      float* out);

// out [count, columns] = the rows of these numbers of a matrix in groups. False: there is no such row.
bool grouped_rows(int bits, const u8* packed, i64 rows, i64 columns, const i64* which, i64 count, float* out);

}  // namespace shoestring
