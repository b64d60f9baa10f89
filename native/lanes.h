// Sixteen floats at once, in the registers of the instruction set that a file asks for before it includes this: SHOESTRING_LANES is
// 0 (plain C++), 2 (AVX2 and FMA) or 512 (AVX-512). The same operations in the same order, and so the same bits.
#pragma once

#include <cstring>

#include "common.h"

#if SHOESTRING_LANES
#include <immintrin.h>
#endif

#if SHOESTRING_LANES == 2
#define LANES_TARGET __attribute__((target("avx2,fma")))
#elif SHOESTRING_LANES == 512
#define LANES_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")))
#else
#define LANES_TARGET
#endif
#define LANES_INLINE LANES_TARGET inline __attribute__((always_inline))

namespace shoestring {
namespace {

#if SHOESTRING_LANES == 512

struct V {
    __m512 all;
};

LANES_INLINE V zero() { return {_mm512_setzero_ps()}; }
LANES_INLINE V load(const float* from) { return {_mm512_loadu_ps(from)}; }
LANES_INLINE V same(float value) { return {_mm512_set1_ps(value)}; }
LANES_INLINE void store(float* to, V v) { _mm512_storeu_ps(to, v.all); }
LANES_INLINE V add(V a, V b) { return {_mm512_add_ps(a.all, b.all)}; }
LANES_INLINE V times(V a, V b) { return {_mm512_mul_ps(a.all, b.all)}; }
LANES_INLINE V fused(V a, V b, V c) { return {_mm512_fmadd_ps(a.all, b.all, c.all)}; }  // a b + c, rounded once
LANES_INLINE V less(V a, V b) { return {_mm512_sub_ps(a.all, b.all)}; }
LANES_INLINE V over(V a, V b) { return {_mm512_div_ps(a.all, b.all)}; }
LANES_INLINE V most(V a, V b) { return {_mm512_max_ps(a.all, b.all)}; }  // b where one is no number
LANES_INLINE V where_under(V a, V b, V yes, V no) {  // no where one is no number
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.all, b.all, _CMP_LT_OQ), no.all, yes.all)};
}
LANES_INLINE V power_of_two(V whole) {  // of whole numbers from -126 to 127
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(whole.all), _mm512_set1_epi32(127)), 23))};
}
LANES_INLINE V widen(const u16* from) {  // of bfloat16
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
LANES_INLINE V widen(const i8* from) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
}
LANES_INLINE V nibbles(const u8* from) {  // of 8 bytes, the low four bits of each first
    const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)), low = _mm_set1_epi8(15);
    const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(pairs, low), _mm_and_si128(_mm_srli_epi16(pairs, 4), low));
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes))};
}
LANES_INLINE __m256 halves(V v) {
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v.all), 1));
    return _mm256_add_ps(_mm512_castps512_ps256(v.all), upper);
}

#elif SHOESTRING_LANES == 2

struct V {
    __m256 low, high;
};

LANES_INLINE V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
LANES_INLINE V load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
LANES_INLINE V same(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
LANES_INLINE void store(float* to, V v) {
    _mm256_storeu_ps(to, v.low);
    _mm256_storeu_ps(to + 8, v.high);
}
LANES_INLINE V add(V a, V b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
LANES_INLINE V times(V a, V b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
LANES_INLINE V fused(V a, V b, V c) {  // a b + c, rounded once
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
LANES_INLINE V less(V a, V b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
LANES_INLINE V over(V a, V b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
LANES_INLINE V most(V a, V b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }  // b where one is no number
LANES_INLINE V where_under(V a, V b, V yes, V no) {  // no where one is no number
    return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
LANES_INLINE __m256 power_of_two(__m256 whole) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23));
}
LANES_INLINE V power_of_two(V whole) { return {power_of_two(whole.low), power_of_two(whole.high)}; }  // of whole numbers from -126 to 127
LANES_INLINE V widen(const u16* from) {  // of bfloat16
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
LANES_INLINE V widen(const i8* from) {
    const __m256i low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const __m256i high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8)));
    return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
}
LANES_INLINE V nibbles(const u8* from) {  // of 8 bytes, the low four bits of each first
    const __m128i pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)), low = _mm_set1_epi8(15);
    const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(pairs, low), _mm_and_si128(_mm_srli_epi16(pairs, 4), low));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)))};
}
LANES_INLINE __m256 halves(V v) { return _mm256_add_ps(v.low, v.high); }

#else

struct V {
    float of[LANES];
};

inline V zero() { return V{}; }
inline V load(const float* from) {
    V v;
    std::memcpy(v.of, from, sizeof(v.of));
    return v;
}
inline V same(float value) {
    V v;
    for (float& one : v.of) one = value;
    return v;
}
inline void store(float* to, const V& v) { std::memcpy(to, v.of, sizeof(v.of)); }
inline V add(V a, const V& b) {
    for (i64 l = 0; l < LANES; ++l) a.of[l] += b.of[l];
    return a;
}
inline V times(V a, const V& b) {
    for (i64 l = 0; l < LANES; ++l) a.of[l] *= b.of[l];
    return a;
}
inline V fused(const V& a, const V& b, V c) {  // a b + c, rounded once
    for (i64 l = 0; l < LANES; ++l) c.of[l] = __builtin_fmaf(a.of[l], b.of[l], c.of[l]);
    return c;
}
inline V less(V a, const V& b) {
    for (i64 l = 0; l < LANES; ++l) a.of[l] -= b.of[l];
    return a;
}
inline V over(V a, const V& b) {
    for (i64 l = 0; l < LANES; ++l) a.of[l] /= b.of[l];
    return a;
}
inline V most(const V& a, V b) {  // b where one is no number
    for (i64 l = 0; l < LANES; ++l) b.of[l] = a.of[l] > b.of[l] ? a.of[l] : b.of[l];
    return b;
}
inline V where_under(const V& a, const V& b, const V& yes, V no) {  // no where one is no number
    for (i64 l = 0; l < LANES; ++l) no.of[l] = a.of[l] < b.of[l] ? yes.of[l] : no.of[l];
    return no;
}
inline V power_of_two(V whole) {  // of whole numbers from -126 to 127
    for (i64 l = 0; l < LANES; ++l) {
        const u32 bits = whole.of[l] == whole.of[l] ? static_cast<u32>(static_cast<i32>(whole.of[l]) + 127) << 23 : 0;
        std::memcpy(whole.of + l, &bits, 4);
    }
    return whole;
}
inline V nibbles(const u8* from) {  // of 8 bytes, the low four bits of each first
    V v;
    for (i64 l = 0; l < LANES; ++l) v.of[l] = static_cast<float>(l % 2 ? from[l / 2] >> 4 : from[l / 2] & 15);
    return v;
}
inline V widen(const i8* from) {
    V v;
    for (i64 l = 0; l < LANES; ++l) v.of[l] = static_cast<float>(from[l]);
    return v;
}
inline V widen(const u16* from) {  // of bfloat16
    V v;
    for (i64 l = 0; l < LANES; ++l) {
        const u32 bits = static_cast<u32>(from[l]) << 16;
        std::memcpy(v.of + l, &bits, 4);
    }
    return v;
}

#endif

// Loaded once and kept in a register, where the compiler would load anew for each use.
LANES_INLINE V loaded(const float* from) {
    V v = load(from);
#if SHOESTRING_LANES == 512
    asm("" : "+v"(v.all));
#endif
    return v;
}

// The sums of the lanes of four: first of l and l + 8, then l and l + 4, l and l + 2, l and l + 1.
LANES_INLINE void sums(const V* four, float* to) {
#if SHOESTRING_LANES
    __m128 quarter[4];
    for (int i = 0; i < 4; ++i) {
        const __m256 eight = halves(four[i]);
        quarter[i] = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    }
    _MM_TRANSPOSE4_PS(quarter[0], quarter[1], quarter[2], quarter[3]);
    _mm_storeu_ps(to, _mm_add_ps(_mm_add_ps(quarter[0], quarter[2]), _mm_add_ps(quarter[1], quarter[3])));
#else
    for (int i = 0; i < 4; ++i) {
        float half[LANES / 2];
        for (i64 l = 0; l < LANES / 2; ++l) half[l] = four[i].of[l] + four[i].of[l + LANES / 2];
        to[i] = ((half[0] + half[4]) + (half[2] + half[6])) + ((half[1] + half[5]) + (half[3] + half[7]));
    }
#endif
}

LANES_INLINE float sum(V v) {
    const V four[4] = {v, zero(), zero(), zero()};
    float found[4];
    sums(four, found);
    return found[0];
}

// exp(x) for x <= 0, 0 below -87, NaN for NaN: 2^n times a polynomial in the rest, which is that of Cody and Waite's exponential (Cephes).
LANES_INLINE V exponential(V x) {
    const V low = same(-87.0f), to_integer = same(12582912.0f);
    const V kept = most(low, x);
    const V n = less(fused(kept, same(1.44269504f), to_integer), to_integer);
    const V r = fused(n, same(2.12194440e-4f), fused(n, same(-0.693359375f), kept));
    V p = fused(same(1.9875691500e-4f), r, same(1.3981999507e-3f));
    p = fused(p, r, same(8.3334519073e-3f));
    p = fused(p, r, same(4.1665795894e-2f));
    p = fused(p, r, same(1.6666665459e-1f));
    p = fused(p, r, same(5.0000001201e-1f));
    p = add(fused(p, times(r, r), r), same(1.0f));
    return where_under(x, low, zero(), times(p, power_of_two(n)));
}

// The first `count` < 16 of them, then zeros: nothing beyond is read.
LANES_INLINE V load_some(const float* from, i64 count) {
    float whole[LANES] = {};
    std::memcpy(whole, from, static_cast<std::size_t>(count) * sizeof(float));
    return load(whole);
}

LANES_INLINE V widen_some(const i8* from, i64 count) {
    i8 whole[LANES] = {};
    std::memcpy(whole, from, static_cast<std::size_t>(count));
    return widen(whole);
}

LANES_INLINE V widen_some(const u16* from, i64 count) {
    u16 whole[LANES] = {};
    std::memcpy(whole, from, static_cast<std::size_t>(count) * sizeof(u16));
    return widen(whole);
}

}  // namespace
}  // namespace shoestring
