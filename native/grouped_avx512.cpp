// Matrices in groups with AVX-512 VNNI: 16 rows in the lanes of a vector, up to eight tokens at a time. 8-bit weights are made unsigned
// by adding 128, which is taken off again by the sum of the codes.
#include "avx512.h"

#if SHOESTRING_X86

#include "grouped_body.h"

namespace shoestring {
namespace {

constexpr i64 MOST = 8;
static_assert(MOST <= GROUP_MOST);

constexpr i64 AHEAD = 4096;  // bytes ahead at which a single token asks for weights

VNNI inline __m512 halves512(const u8* from) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

// Rows of one block times one block of T tokens, the first of which is `token`.
template <int BITS, int T>
VNNI void product(const GroupedProduct& p, i64 block, i64 token) {
    constexpr i64 bytes = block_bytes(BITS), codes_bytes = (BITS == 4 ? 4 : 8) * VECTOR;
    const u8* from = p.packed + block * p.groups * bytes;
    const i8* x = p.x.codes + token * p.groups * GROUP;
    const float* scale = p.x.scale + token * p.groups;
    const float* offset = p.x.offset + token * p.groups;
    const i32* sums = p.x.sums + token * p.groups;
    const __m512i low = _mm512_set1_epi8(15), top = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512 total[T];
    for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
    for (i64 g = 0; g < p.groups; ++g, from += bytes, x += T * GROUP, scale += T, offset += T, sums += T) {
        if (T == 1)
            for (i64 line = 0; line < bytes; line += 64) _mm_prefetch(reinterpret_cast<const char*>(from) + AHEAD + line, _MM_HINT_T0);
        __m512i dots[T];
        for (int t = 0; t < T; ++t) dots[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int quad = 0; quad < GROUP_QUADS; ++quad) {
            __m512i weights;
            if (BITS == 4) {
                const __m512i pairs = load512(from + quad / 2 * VECTOR);
                weights = _mm512_and_si512(quad % 2 ? _mm512_srli_epi16(pairs, 4) : pairs, low);
            } else {
                weights = _mm512_xor_si512(load512(from + quad * VECTOR), top);
            }
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t)
                dots[t] = _mm512_dpbusd_epi32(dots[t], weights, _mm512_set1_epi32(quad_at(x + (quad * T + t) * QUAD)));
        }
        const __m512 scales = halves512(from + codes_bytes);
        const __m512 minimums = BITS == 4 ? halves512(from + codes_bytes + 2 * LANES) : _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            if (BITS == 8) dots[t] = _mm512_sub_epi32(dots[t], _mm512_set1_epi32(128 * sums[t]));
            const __m512 by = _mm512_mul_ps(scales, _mm512_set1_ps(scale[t]));
            total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), by, total[t]);
            if (BITS == 4) total[t] = _mm512_fmadd_ps(minimums, _mm512_set1_ps(offset[t]), total[t]);
        }
    }
    const i64 row = block * LANES, left = p.rows - row;
    const __mmask16 lanes = static_cast<__mmask16>(left < LANES ? (1u << left) - 1 : 0xffffu);
    for (int t = 0; t < T; ++t) _mm512_mask_storeu_ps(p.out + (token + t) * p.rows + row, lanes, total[t]);
}

template <int BITS>
void rows(const GroupedProduct& p, i64 first, i64 last) {
    using By = void (*)(const GroupedProduct&, i64, i64);
    static constexpr By by[MOST] = {product<BITS, 1>, product<BITS, 2>, product<BITS, 3>, product<BITS, 4>,
                                    product<BITS, 5>, product<BITS, 6>, product<BITS, 7>, product<BITS, 8>};
    const Blocks blocks(p.x.tokens, p.x.most);
    for (i64 block = first; block < last; ++block)
        for (i64 b = 0; b < blocks.count; ++b) by[blocks.size(b) - 1](p, block, blocks.start(b));
}

VNNI void quantise_vnni(const float* x, i64 columns, i8* codes, float* scale, i32* sums) {
    quantise_groups_body(x, columns, codes, scale, sums);
}

}  // namespace

const GroupedKernel grouped_avx512 = {MOST, {rows<4>, rows<8>}, quantise_vnni};

}  // namespace shoestring

#endif
