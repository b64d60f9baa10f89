// Matrices of float32 or bfloat16 times few tokens: weights are read once for all of them.
#pragma once

#include "common.h"

namespace shoestring {

struct DenseProduct {
    const void* weights;  // [rows, columns]
    i64 bfloat16, rows, columns, tokens;
    const float* x;       // [tokens, columns]
    float* out;           // [tokens, rows]
};

// out [tokens, rows] = x [tokens, columns] times a matrix; sums are float32.
void multiply_dense(const Kernel&, bool bfloat16, int threads, const float* x, i64 tokens, i64 columns, const void* weights, i64 rows,
                    float* out);

}  // namespace shoestring
