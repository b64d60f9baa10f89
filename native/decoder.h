// A decoder-only transformer with packed matrices, as Python describes it: kernels/decoder.py has the same structures.
#pragma once

#include "common.h"

namespace shoestring {

struct Matrix {
    const u8* packed;
    const float* scales;  // [rows, groups]
    i64 rows, columns, groups, layout;
};

// A norm without gain is none: nothing is done.
struct Norm {
    const float* gain;
    double epsilon;
};

struct Layer {
    Norm token_norm, query_norm, key_norm, channel_norm;
    Matrix qkv, output, gate_up, down;
};

struct Decoder {
    const Layer* layers;
    i64 count, width, heads, key_value_heads, head_width, hidden;
};

// Keys and values of the tokens before: [layer][key-value head][place][head_width], with these steps between numbers.
struct Cache {
    float *keys, *values;
    i64 layer_step, head_step, length;  // length: of tokens that are there
};

// Takes x [width], the embedding of the next token, through all layers, in place. cos, sin: [head_width], of its place. Its keys
// and values are put at place `length` of the cache. False: there is no memory.
bool decode(const Kernel&, int threads, const Decoder&, const Cache&, const float* cos, const float* sin, float* x);

}  // namespace shoestring
