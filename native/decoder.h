// A decoder-only transformer, as Python describes it: kernels/decoder.py has the same structures.
#pragma once

#include "recurrent.h"

namespace shoestring {

enum Kind : int { TERNARY_2 = 0, TERNARY_16 = 1, GROUPED_4 = 2, GROUPED_8 = 3, DENSE = 4, DENSE_BFLOAT16 = 5 };

// weights: packed trits, packed groups, or numbers [rows, columns], by `kind`. scales: [rows, groups], of trits. bias: [rows] or null.
struct Matrix {
    const void* weights;
    const float* scales;
    const void* bias;
    i64 rows, columns, groups, kind, bfloat16_bias;
};

// What it reads of the stream by the first matrix, which attention (of queries, keys and values) or a rule mixes, and writes by the second.
struct Layer {
    Norm token_norm, query_norm, key_norm, channel_norm;
    Matrix reads, output, gate_up, down;
    Recurrence recurrence;  // NONE: it attends
};

struct Decoder {
    const Layer* layers;
    i64 count, width, heads, key_value_heads, head_width, hidden;
};

// Takes x [tokens, width], the embeddings of the new tokens of rows, through all layers, in place. held: keys and values of each
// layer that attends, into which those of the new tokens are put; states: of each that does not, of the rows. apart: each row has its
// own of both, one row's after the other's. cos, sin: [tokens, head_width], of their positions. asked: where there is room
// for them, the queries of each layer, turned, are left there, [layers, tokens, heads, head_width]. False: there is no memory.
bool decode(const Kernel&, int threads, const Decoder&, const Held* held, const State* states, bool apart, const Row* rows, i64 count,
            i64 tokens, const float* cos, const float* sin, float* x, float* asked);

// out [tokens, rows] = x [tokens, columns] times any matrix, its bias added. False: there is no memory.
bool product(const Kernel&, int threads, const Matrix&, const float* x, i64 tokens, float* out);

}  // namespace shoestring
