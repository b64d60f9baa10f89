// Attention, with AVX-512.
#define SHOESTRING_LANES 512
#include "common.h"

#if SHOESTRING_X86

#include "attention_body.h"

namespace shoestring {

void attend_avx512(const Piece& piece) { attend_piece(piece); }

}  // namespace shoestring

#endif
