// AVX-512 VNNI: packed weights straight from memory, up to four tokens at a time. Taking bytes apart runs beside the
// multiplications, which take twice as long; a block of rows stays in cache for all tokens. Trits are not brought
// down to 0, 1, 2: each place of a byte keeps its own sums of a known multiple, and these are divided once, at the end of a group.
#include "avx512.h"

#if SHOESTRING_X86

namespace shoestring {
namespace {

// Byte v of the 1.6-bit layout without its highest trit, v mod 81, to its four lower trits at two bits each.
struct Crumbs {
    alignas(64) u8 of[128];
    Crumbs() {
        for (int value = 0; value < 128; ++value) {
            u8 trits[5];
            digits(static_cast<u8>(value < 81 ? value : 80), trits);  // beyond 80: bytes above 242
            of[value] = static_cast<u8>(trits[0] | trits[1] << 2 | trits[2] << 4 | trits[3] << 6);
        }
    }
};

const Crumbs crumbs;

constexpr i64 MOST = 4;  // tokens at once: with five sums each they fill the registers

// What a thread reads is one long run. Bytes ahead at which each line of it is asked for, and one line of each page, which
// has the address of the page looked up in time.
constexpr i64 AHEAD = 4096, PAGES_AHEAD = 65536;

VNNI inline __m512i bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

// Four trits of two bits: place k holds 4^k times the trit.
VNNI inline void crumbs_of(__m512i four, __m512i* trits) {
    trits[0] = _mm512_and_si512(four, bytes(0x03));
    trits[1] = _mm512_and_si512(four, bytes(0x0c));
    trits[2] = _mm512_and_si512(four, bytes(0x30));
    trits[3] = _mm512_and_si512(four, bytes(0xc0));
}

VNNI inline __m512i crumb_sum(const __m512i* dots) {
    const __m512i even = _mm512_add_epi32(dots[0], _mm512_srai_epi32(dots[2], 4));
    return _mm512_add_epi32(even, _mm512_add_epi32(_mm512_srai_epi32(dots[1], 2), _mm512_srai_epi32(dots[3], 6)));
}

// Takes the highest digit off `value`: power times the digit is returned. Subtracting wraps around where it does not fit.
VNNI inline __m512i place(__m512i& value, int power) {
    const __m512i before = value, once = _mm512_sub_epi8(value, bytes(power)), twice = _mm512_sub_epi8(value, bytes(2 * power));
    value = _mm512_min_epu8(_mm512_min_epu8(value, once), twice);
    return _mm512_sub_epi8(before, value);
}

// An exact multiple of 3^k divided by it: times the inverse modulo 2^32.
VNNI inline __m512i over(__m512i multiple, u32 inverse) {
    return _mm512_mullo_epi32(multiple, _mm512_set1_epi32(static_cast<int>(inverse)));
}

constexpr u32 THIRD = 0xaaaaaaabu, NINTH = THIRD * THIRD, TWENTY_SEVENTH = NINTH * THIRD, EIGHTY_FIRST = NINTH * NINTH;
static_assert(3 * THIRD == 1 && 81 * EIGHTY_FIRST == 1, "inverses modulo 2^32");

// How a vector of bytes becomes a vector of trits for each place, and the sums of the places one sum.
struct TwoBits {
    static constexpr int PLACES = 4;
    VNNI inline void split(__m512i value, __m512i* trits) const { crumbs_of(value, trits); }
    VNNI static inline __m512i sum(const __m512i* dots) { return crumb_sum(dots); }
};

struct FiveTrits {
    static constexpr int PLACES = 5;
    VNNI inline void split(__m512i value, __m512i* trits) const {
        value = _mm512_min_epu8(value, bytes(242));
        trits[4] = place(value, 81);
        trits[3] = place(value, 27);
        trits[2] = place(value, 9);
        trits[1] = place(value, 3);
        trits[0] = value;
    }
    VNNI static inline __m512i sum(const __m512i* dots) {
        const __m512i upper = _mm512_add_epi32(over(dots[4], EIGHTY_FIRST), over(dots[3], TWENTY_SEVENTH));
        return _mm512_add_epi32(_mm512_add_epi32(upper, dots[0]), _mm512_add_epi32(over(dots[2], NINTH), over(dots[1], THIRD)));
    }
};

struct FiveTritsByTable {
    static constexpr int PLACES = 5;
    __m512i low, high;
    VNNI inline FiveTritsByTable() : low(load512(crumbs.of)), high(load512(crumbs.of + VECTOR)) {}
    VNNI inline void split(__m512i value, __m512i* trits) const {
        trits[4] = place(value, 81);
        // vpermi2b, which is VBMI: by name, as the functions here are shared with processors that have none
        __asm__("vpermi2b %2, %1, %0" : "+v"(value) : "v"(low), "v"(high));
        crumbs_of(value, trits);
    }
    VNNI static inline __m512i sum(const __m512i* dots) { return _mm512_add_epi32(crumb_sum(dots), over(dots[4], EIGHTY_FIRST)); }
};

// sums += four trits of each lane times the four codes at x. By name, for the compilers copy sums about and load x apart.
VNNI inline void dot(__m512i& sums, __m512i trits, const i8* x) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(trits), "m"(*reinterpret_cast<const i32*>(x)));
}

VNNI inline __m512 scales_of(const Product& p, i64 row, i64 group, __mmask16 lanes) {
    const float* const from = p.scales + row * p.groups + group;
    if (p.groups == 1) return _mm512_maskz_loadu_ps(lanes, from);
    const __m512i apart = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(static_cast<int>(p.groups)));
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, apart, from, 4);
}

// Rows of one block times one block of T tokens, the first of which is `token`.
template <class Code, int T>
VNNI __attribute__((noinline)) void product(const Product& p, i64 block, i64 token) {
    constexpr int PLACES = Code::PLACES;
    const Code code;
    const i64 row = block * LANES, above = p.rows - row;
    const __mmask16 lanes = static_cast<__mmask16>(above < LANES ? (1u << above) - 1 : 0xffffu);
    const u8* from = p.packed + block * p.column_blocks * VECTOR;
    const i8* x = p.x.codes + token * p.x.quads * QUAD;
    __m512 total[T];
    for (int t = 0; t < T; ++t) total[t] = _mm512_setzero_ps();
    for (i64 group = 0; group < p.groups; ++group) {
        __m512i dots[T][PLACES];
        for (int t = 0; t < T; ++t)
            for (int k = 0; k < PLACES; ++k) dots[t][k] = _mm512_setzero_si512();
        for (i64 b = 0; b < p.group_blocks;) {
            _mm_prefetch(reinterpret_cast<const char*>(from) + PAGES_AHEAD, _MM_HINT_T0);
            const i64 page = b + 4096 / VECTOR, end = page < p.group_blocks ? page : p.group_blocks;
            for (; b < end; ++b, from += VECTOR, x += PLACES * T * QUAD) {
                _mm_prefetch(reinterpret_cast<const char*>(from) + AHEAD, _MM_HINT_T0);
                __m512i trits[PLACES];
                code.split(load512(from), trits);
#pragma GCC unroll 5
                for (int k = 0; k < PLACES; ++k)
#pragma GCC unroll 4
                    for (int t = 0; t < T; ++t) dot(dots[t][k], trits[k], x + (k * T + t) * QUAD);
            }
        }
        const __m512 scale = scales_of(p, row, group, lanes);
        for (int t = 0; t < T; ++t) {
            const __m512i sum = _mm512_sub_epi32(Code::sum(dots[t]), _mm512_set1_epi32(p.x.sums[(token + t) * p.groups + group]));
            total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total[t]);
        }
    }
    for (int t = 0; t < T; ++t) {
        const __m512 scaled = _mm512_mul_ps(total[t], _mm512_set1_ps(p.x.scale[token + t]));
        _mm512_mask_storeu_ps(p.out + (token + t) * p.rows + row, lanes, scaled);
    }
}

template <class Code>
bool run(const Product& p, i64 first, i64 last) {
    const Blocks blocks(p.x.tokens, p.x.most);
    for (i64 block = first; block < last; ++block)
        for (i64 b = 0; b < blocks.count; ++b) {
            const i64 token = blocks.start(b);
            switch (blocks.size(b)) {
                case 1: product<Code, 1>(p, block, token); break;
                case 2: product<Code, 2>(p, block, token); break;
                case 3: product<Code, 3>(p, block, token); break;
                default: product<Code, 4>(p, block, token);
            }
        }
    return true;
}

VNNI float quantise_vnni(const float* x, i64 columns, i64 padded, i64 group, i8* codes, i32* sums) {
    return quantise_body(x, columns, padded, group, codes, sums);
}

SHOESTRING_FLOATS(VNNI)

}  // namespace

const Kernel avx512_vnni_kernel = {MOST, {run<TwoBits>, run<FiveTrits>}, {integers8_vnni, integers4_vnni}, quantise_vnni, FLOATS, attend_avx512, dense_avx512, gate_avx512, share_avx512, &grouped_avx512};
const Kernel avx512_vbmi_kernel = {MOST, {run<TwoBits>, run<FiveTritsByTable>}, {integers8_vnni, integers4_vnni}, quantise_vnni, FLOATS, attend_avx512, dense_avx512, gate_avx512, share_avx512, &grouped_avx512};

}  // namespace shoestring

#endif
