// Attention and products with floats, in plain C++.
#define SHOESTRING_LANES 0
#include "common.h"

#include "attention_body.h"
#include "dense_body.h"
#include "gate_body.h"

namespace shoestring {

void attend_plain(const Piece& piece) { attend_piece(piece); }

void dense_plain(const DenseProduct& product, i64 first, i64 last) {
    if (product.bfloat16)
        dense_rows<u16>(product, first, last);
    else
        dense_rows<float>(product, first, last);
}

void gate_plain(const float* gates, const float* ups, i64 count, float* out) { gate_all<true>(gates, ups, count, out); }

void share_plain(const float* gates, const float* ups, i64 count, float* out) { gate_all<false>(gates, ups, count, out); }

}  // namespace shoestring
