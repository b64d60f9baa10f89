// Attention, in plain C++.
#define SHOESTRING_LANES 0
#include "common.h"

#include "attention_body.h"

namespace shoestring {

void attend_plain(const Piece& piece) { attend_piece(piece); }

}  // namespace shoestring
