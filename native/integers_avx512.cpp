// AVX-512 VNNI: matrices of 8 and 4 bits, rows as they come, 64 columns at a time.
#include "avx512.h"

#if SHOESTRING_X86

namespace shoestring {
namespace {

constexpr int MOST = 4;  // tokens at once

// Bytes ahead at which weights are asked for. A single token has rows read one by one, which is one long run; four rows side
// by side come from memory at half the rate, and pay only where several tokens use them.
constexpr i64 ahead(int rows) { return rows == 1 ? 4096 : 512; }
constexpr i64 PAGES_AHEAD = 65536;  // and one line of each page, to have its address looked up

// 64 columns of a row, made unsigned by adding 128 or 8. `inside`: those that 8-bit rows, which end where they end, have.
template <int BITS>
VNNI inline __m512i weights_at(const u8* row, i64 column, __mmask64 inside) {
    if (BITS == 8) {
        const __m512i whole = inside == ~u64{0} ? _mm512_loadu_si512(row + column) : _mm512_maskz_loadu_epi8(inside, row + column);
        return _mm512_xor_si512(whole, _mm512_set1_epi8(static_cast<char>(0x80)));
    }
    const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + column / 2)));
    return _mm512_and_si512(_mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4)), _mm512_set1_epi8(15));
}

// The sum of the lanes modulo 2^32.
VNNI inline u32 total(__m512i lanes) {
    const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return static_cast<u32>(_mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1))));
}

template <int BITS, int R, int T>
VNNI inline void add(const IntegerProduct& p, const u8* weights, const i8* x, i64 column, __mmask64 inside, __m512i dots[R][T]) {
    const i64 width = p.x.quads * QUAD;
    __m512i codes[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) codes[t] = load512(x + t * width + column);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
        _mm_prefetch(reinterpret_cast<const char*>(weights + r * p.stride + column * BITS / 8) + ahead(R), _MM_HINT_T0);
        const __m512i unsigned_weights = weights_at<BITS>(weights + r * p.stride, column, inside);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) dots[r][t] = _mm512_dpbusd_epi32(dots[r][t], unsigned_weights, codes[t]);
    }
}

template <int BITS, int R, int T>
VNNI void some(const IntegerProduct& p, i64 row, i64 token) {
    const i64 whole = BITS == 8 ? p.columns / 64 * 64 : p.x.quads * QUAD;
    const u8* const weights = p.weights + row * p.stride;
    const i8* const x = p.x.codes + token * p.x.quads * QUAD;
    __m512i dots[R][T];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) dots[r][t] = _mm512_setzero_si512();
    for (i64 column = 0; column < whole; column += 64) add<BITS, R, T>(p, weights, x, column, ~u64{0}, dots);
    if (whole < p.columns) add<BITS, R, T>(p, weights, x, whole, (u64{1} << (p.columns - whole)) - 1, dots);
    for (int t = 0; t < T; ++t) {
        const u32 offset = static_cast<u32>(BITS == 8 ? 128 : 8) * static_cast<u32>(p.x.sums[token + t]);
        for (int r = 0; r < R; ++r) {
            const u32 dot = total(dots[r][t]) - offset;
            const float scaled = static_cast<float>(static_cast<i32>(dot)) * p.scales[row + r] + 0.0f;
            p.out[(token + t) * p.rows + row + r] = scaled * p.x.scale[token + t];
        }
    }
}

template <int BITS, int R>
VNNI void all_tokens(const IntegerProduct& p, i64 row) {
    i64 token = 0;
    for (; token + MOST <= p.x.tokens; token += MOST) some<BITS, R, MOST>(p, row, token);
    for (; token < p.x.tokens; ++token) some<BITS, R, 1>(p, row, token);
}

template <int BITS>
void integers(const IntegerProduct& p, i64 first, i64 last) {
    i64 row = first;
    if (p.x.tokens > 1)
        for (; row + 4 <= last; row += 4) all_tokens<BITS, 4>(p, row);
    for (; row < last; ++row) {
        for (i64 page = 0; page < p.stride; page += 4096)
            _mm_prefetch(reinterpret_cast<const char*>(p.weights + row * p.stride + page) + PAGES_AHEAD, _MM_HINT_T0);
        all_tokens<BITS, 1>(p, row);
    }
}

}  // namespace

void integers8_vnni(const IntegerProduct& p, i64 first, i64 last) { integers<8>(p, first, last); }
void integers4_vnni(const IntegerProduct& p, i64 first, i64 last) { integers<4>(p, first, last); }

}  // namespace shoestring

#endif
