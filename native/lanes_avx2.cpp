// Attention and products with floats, with AVX2 and FMA.
#define SHOESTRING_LANES 2
#include "common.h"

#if SHOESTRING_X86

#include "attention_body.h"
#include "dense_body.h"
#include "gate_body.h"

namespace shoestring {

void attend_avx2(const Piece& piece) { attend_piece(piece); }

void dense_avx2(const DenseProduct& product, i64 first, i64 last) {
    if (product.bfloat16)
        dense_rows<u16>(product, first, last);
    else
        dense_rows<float>(product, first, last);
}

void gate_avx2(const float* gates, const float* ups, i64 count, float* out) { gate_all<true>(gates, ups, count, out); }

void share_avx2(const float* gates, const float* ups, i64 count, float* out) { gate_all<false>(gates, ups, count, out); }

}  // namespace shoestring

#endif
