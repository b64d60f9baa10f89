// Matrices in groups with AVX2: 16 rows in the lanes of two vectors, up to four tokens at a time. Sums of a group of 4-bit weights
// fit into 16 bits and are widened once; those of 8-bit weights are widened pair by pair.
#include "common.h"

#if SHOESTRING_X86

#include <immintrin.h>

#include "grouped_body.h"

#define AVX2 __attribute__((target("avx2,fma,f16c")))

namespace shoestring {
namespace {

constexpr i64 MOST = 4;
static_assert(GROUP_QUADS * 2 * 15 * 127 < 32768, "a lane of 16 bits holds a group of 4-bit weights");

constexpr i64 AHEAD = 4096;  // bytes ahead at which a single token asks for weights

AVX2 inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
AVX2 inline __m256 halves(const u8* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }

// dots [T][2] of a group with 4-bit weights.
template <int T>
AVX2 inline __attribute__((always_inline)) void dots4(const u8* block, const i8* x, __m256i dots[T][2]) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i sums[T][2];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        const __m256i upper = load(block + k * VECTOR), lower = load(block + k * VECTOR + 32);
#pragma GCC unroll 2
        for (int quad = 0; quad < 2; ++quad) {
            const __m256i one = _mm256_and_si256(quad ? _mm256_srli_epi16(upper, 4) : upper, low);
            const __m256i other = _mm256_and_si256(quad ? _mm256_srli_epi16(lower, 4) : lower, low);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) {
                const __m256i four = _mm256_set1_epi32(quad_at(x + ((2 * k + quad) * T + t) * QUAD));
                const __m256i first = _mm256_maddubs_epi16(one, four), second = _mm256_maddubs_epi16(other, four);
                sums[t][0] = k + quad ? _mm256_add_epi16(sums[t][0], first) : first;
                sums[t][1] = k + quad ? _mm256_add_epi16(sums[t][1], second) : second;
            }
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
        for (int half = 0; half < 2; ++half) dots[t][half] = _mm256_madd_epi16(sums[t][half], ones);
}

// |w| is the unsigned side and x takes w's sign: 2 * 128 * 127 just fits.
template <int T>
AVX2 inline __attribute__((always_inline)) void dots8(const u8* block, const i8* x, __m256i dots[T][2]) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < T; ++t) dots[t][0] = dots[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const __m256i weights = load(block + k * VECTOR + 32 * half), size = _mm256_abs_epi8(weights);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) {
                const __m256i four = _mm256_set1_epi32(quad_at(x + (k * T + t) * QUAD));
                const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four, weights));
                dots[t][half] = _mm256_add_epi32(dots[t][half], _mm256_madd_epi16(pairs, ones));
            }
        }
}

// Rows of one block times one block of T tokens, the first of which is `token`.
template <int BITS, int T>
AVX2 void product(const GroupedProduct& p, i64 block, i64 token) {
    constexpr i64 bytes = block_bytes(BITS), codes_bytes = (BITS == 4 ? 4 : 8) * VECTOR;
    const u8* from = p.packed + block * p.groups * bytes;
    const i8* x = p.x.codes + token * p.groups * GROUP;
    const float* scale = p.x.scale + token * p.groups;
    const float* offset = p.x.offset + token * p.groups;
    __m256 total[T][2];
    for (int t = 0; t < T; ++t) total[t][0] = total[t][1] = _mm256_setzero_ps();
    for (i64 g = 0; g < p.groups; ++g, from += bytes, x += T * GROUP, scale += T, offset += T) {
        if (T == 1)
            for (i64 line = 0; line < bytes; line += 64) _mm_prefetch(reinterpret_cast<const char*>(from) + AHEAD + line, _MM_HINT_T0);
        __m256i dots[T][2];
        if (BITS == 4)
            dots4<T>(from, x, dots);
        else
            dots8<T>(from, x, dots);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const __m256 scales = halves(from + codes_bytes + 16 * half);
            const __m256 minimums = BITS == 4 ? halves(from + codes_bytes + 2 * LANES + 16 * half) : _mm256_setzero_ps();
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) {
                const __m256 by = _mm256_mul_ps(scales, _mm256_set1_ps(scale[t]));
                total[t][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t][half]), by, total[t][half]);
                if (BITS == 4) total[t][half] = _mm256_fmadd_ps(minimums, _mm256_set1_ps(offset[t]), total[t][half]);
            }
        }
    }
    const i64 row = block * LANES, left = p.rows - row;
    for (int t = 0; t < T; ++t) {
        float* const to = p.out + (token + t) * p.rows + row;
        if (left >= LANES) {
            _mm256_storeu_ps(to, total[t][0]);
            _mm256_storeu_ps(to + 8, total[t][1]);
        } else {
            float all[LANES];
            _mm256_storeu_ps(all, total[t][0]);
            _mm256_storeu_ps(all + 8, total[t][1]);
            std::memcpy(to, all, static_cast<std::size_t>(left) * sizeof(float));
        }
    }
}

template <int BITS>
void rows(const GroupedProduct& p, i64 first, i64 last) {
    const Blocks blocks(p.x.tokens, p.x.most);
    for (i64 block = first; block < last; ++block)
        for (i64 b = 0; b < blocks.count; ++b) {
            const i64 token = blocks.start(b);
            switch (blocks.size(b)) {
                case 1: product<BITS, 1>(p, block, token); break;
                case 2: product<BITS, 2>(p, block, token); break;
                case 3: product<BITS, 3>(p, block, token); break;
                default: product<BITS, 4>(p, block, token);
            }
        }
}

AVX2 void quantise_avx2(const float* x, i64 columns, i8* codes, float* scale, i32* sums) {
    quantise_groups_body(x, columns, codes, scale, sums);
}

}  // namespace

const GroupedKernel grouped_avx2 = {MOST, {rows<4>, rows<8>}, quantise_avx2};

}  // namespace shoestring

#endif
