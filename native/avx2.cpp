// AVX2 and FMA: unsigned trits times signed codes in pairs of 16 bits, widened once a tile.
#include "common.h"

#if SHOESTRING_X86

#include <immintrin.h>

#include "decoder_bodies.h"

#define AVX2 __attribute__((target("avx2,fma")))

namespace shoestring {
namespace {

// Of a tile: 40 * 2 * 3 * 127 fits into the 16 bits in which a lane is summed (3: the largest value of two bits).
constexpr i64 QUADS = 40;
static_assert(QUADS * 2 * 3 * 127 < 32768);
constexpr int MOST = 4;

AVX2 inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
AVX2 inline void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }

AVX2 void unpack2(const u8* packed, i64 blocks, u8* tile) {
    const __m256i low = _mm256_set1_epi8(3);
    for (i64 b = 0; b < blocks; ++b, tile += 4 * VECTOR)
        for (int half = 0; half < VECTOR; half += 32) {
            const __m256i four = load(packed + b * VECTOR + half);
            store(tile + half, _mm256_and_si256(four, low));
            store(tile + VECTOR + half, _mm256_and_si256(_mm256_srli_epi16(four, 2), low));
            store(tile + 2 * VECTOR + half, _mm256_and_si256(_mm256_srli_epi16(four, 4), low));
            store(tile + 3 * VECTOR + half, _mm256_and_si256(_mm256_srli_epi16(four, 6), low));
        }
}

// Takes the highest digit off `value`, its weight being `power`: twice, subtract where that does not wrap around.
AVX2 inline __m256i digit(__m256i& value, __m256i power) {
    const __m256i once = _mm256_min_epu8(value, _mm256_sub_epi8(value, power));
    const __m256i twice = _mm256_min_epu8(once, _mm256_sub_epi8(once, power));
    const __m256i kept = _mm256_add_epi8(_mm256_cmpeq_epi8(value, once), _mm256_cmpeq_epi8(once, twice));  // -1 for each
    value = twice;
    return _mm256_add_epi8(kept, _mm256_set1_epi8(2));
}

AVX2 void unpack16(const u8* packed, i64 blocks, u8* tile) {
    for (i64 b = 0; b < blocks; ++b, tile += 5 * VECTOR)
        for (int half = 0; half < VECTOR; half += 32) {
            __m256i value = _mm256_min_epu8(load(packed + b * VECTOR + half), _mm256_set1_epi8(static_cast<char>(242)));
            store(tile + 4 * VECTOR + half, digit(value, _mm256_set1_epi8(81)));
            store(tile + 3 * VECTOR + half, digit(value, _mm256_set1_epi8(27)));
            store(tile + 2 * VECTOR + half, digit(value, _mm256_set1_epi8(9)));
            store(tile + VECTOR + half, digit(value, _mm256_set1_epi8(3)));
            store(tile + half, value);
        }
}

template <int T>
AVX2 void multiply_by(const u8* tile, i64 quads, const i8* x, i32* sums) {
    __m256i low[T], high[T];
    for (int t = 0; t < T; ++t) low[t] = high[t] = _mm256_setzero_si256();
    for (i64 quad = 0; quad < quads; ++quad, tile += VECTOR, x += T * QUAD) {
        const __m256i upper = load(tile), lower = load(tile + 32);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
            const __m256i four = _mm256_set1_epi32(quad_at(x + t * QUAD));
            low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(upper, four));
            high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(lower, four));
        }
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < T; ++t, sums += LANES) {
        store(sums, _mm256_add_epi32(load(sums), _mm256_madd_epi16(low[t], ones)));
        store(sums + 8, _mm256_add_epi32(load(sums + 8), _mm256_madd_epi16(high[t], ones)));
    }
}

void multiply(const u8* tile, i64 quads, const i8* x, int width, i32* sums) {
    static constexpr decltype(&multiply_by<1>) by[MOST] = {multiply_by<1>, multiply_by<2>, multiply_by<3>, multiply_by<4>};
    by[width - 1](tile, quads, x, sums);
}

AVX2 void finish(const i32* dots, const float* scale, const i32* sums, i64 stride, i64 tokens, float* total) {
    finish_body(dots, scale, sums, stride, tokens, total);
}

AVX2 float quantise_avx2(const float* x, i64 columns, i64 padded, i64 group, i8* codes, i32* sums) {
    return quantise_body(x, columns, padded, group, codes, sums);
}

AVX2 inline i32 total(__m256i sums) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// |w| is the unsigned side and x takes w's sign: 2 * 128 * 127 just fits.
AVX2 inline __m256i dots8(__m256i sums, __m256i weights, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

AVX2 inline __m256i dots4(__m256i sums, __m256i weights, __m256i x) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(1)));
}

template <int BITS, int R>
AVX2 void some_rows(const IntegerProduct& p, i64 row) {
    const i64 whole = BITS == 8 ? p.columns / 32 * 32 : p.x.quads * QUAD;
    alignas(32) u8 tail[R][32] = {};  // the last columns of 8-bit rows, which end where they end
    if (BITS == 8)
        for (int r = 0; r < R; ++r)
            std::memcpy(tail[r], p.weights + (row + r) * p.stride + whole, static_cast<std::size_t>(p.columns - whole));
    for (i64 token = 0; token < p.x.tokens; ++token) {
        const i8* const x = p.x.codes + token * p.x.quads * QUAD;
        __m256i sums[R];
        for (int r = 0; r < R; ++r) sums[r] = _mm256_setzero_si256();
        if (BITS == 8) {
            for (i64 column = 0; column < whole; column += 32)
                for (int r = 0; r < R; ++r)
                    sums[r] = dots8(sums[r], load(p.weights + (row + r) * p.stride + column), load(x + column));
            if (whole < p.columns)
                for (int r = 0; r < R; ++r) sums[r] = dots8(sums[r], load(tail[r]), load(x + whole));
        } else {
            const __m256i low = _mm256_set1_epi8(15);
            for (i64 column = 0; column < whole; column += 64)
                for (int r = 0; r < R; ++r) {
                    const __m256i pairs = load(p.weights + (row + r) * p.stride + column / 2);
                    sums[r] = dots4(sums[r], _mm256_and_si256(pairs, low), load(x + column));
                    sums[r] = dots4(sums[r], _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low), load(x + column + 32));
                }
        }
        for (int r = 0; r < R; ++r) {
            const i32 dot = total(sums[r]) - (BITS == 4 ? 8 * p.x.sums[token] : 0);
            p.out[token * p.rows + row + r] = (static_cast<float>(dot) * p.scales[row + r] + 0.0f) * p.x.scale[token];
        }
    }
}

template <int BITS>
void integers(const IntegerProduct& p, i64 first, i64 last) {
    i64 row = first;
    for (; row + 4 <= last; row += 4) some_rows<BITS, 4>(p, row);
    for (; row < last; ++row) some_rows<BITS, 1>(p, row);
}

constexpr Tile TILE = {QUADS, MOST, {unpack2, unpack16}, multiply, finish};

bool ternaries(const Product& p, i64 first, i64 last) { return tiles(p, TILE, first, last); }

SHOESTRING_FLOATS(AVX2)

}  // namespace

const Kernel avx2_kernel = {MOST, {ternaries, ternaries}, {integers<8>, integers<4>}, quantise_avx2, FLOATS, attend_avx2, dense_avx2, gate_avx2, share_avx2, &grouped_avx2};

}  // namespace shoestring

#endif
