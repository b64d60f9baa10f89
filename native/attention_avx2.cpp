// Attention, with AVX2 and FMA.
#define SHOESTRING_LANES 2
#include "common.h"

#if SHOESTRING_X86

#include "attention_body.h"

namespace shoestring {

void attend_avx2(const Piece& piece) { attend_piece(piece); }

}  // namespace shoestring

#endif
