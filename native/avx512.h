// Targets and loads of the AVX-512 files.
#pragma once

#include "common.h"

#if SHOESTRING_X86

#include <immintrin.h>

#include "decoder_bodies.h"

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")))

namespace shoestring {

VNNI inline __m512i load512(const void* from) { return _mm512_loadu_si512(from); }

void integers8_vnni(const IntegerProduct&, i64 first, i64 last);
void integers4_vnni(const IntegerProduct&, i64 first, i64 last);

}  // namespace shoestring

#endif
