// Attention and products with floats, with AVX-512.
#define SHOESTRING_LANES 512
#include "common.h"

#if SHOESTRING_X86

#include "attention_body.h"
#include "dense_body.h"
#include "gate_body.h"

namespace shoestring {

void attend_avx512(const Piece& piece) { attend_piece(piece); }

void dense_avx512(const DenseProduct& product, i64 first, i64 last) {
    if (product.bfloat16)
        dense_rows<u16>(product, first, last);
    else
        dense_rows<float>(product, first, last);
}

void gate_avx512(const float* gates, const float* ups, i64 count, float* out) { gate_all<true>(gates, ups, count, out); }

void share_avx512(const float* gates, const float* ups, i64 count, float* out) { gate_all<false>(gates, ups, count, out); }

}  // namespace shoestring

#endif
