// What a decoder does with floats between its products, compiled by each instruction set for itself. All give the same bits:
// every sum is kept in sixteen lanes that are added in one order, and nothing is contracted.
#pragma once

#include <cmath>
#include <cstring>

#include "bodies.h"

namespace shoestring {

static SHOESTRING_INLINE float lanes_sum(const float* lanes) {
    float half[LANES / 2];
    for (i64 l = 0; l < LANES / 2; ++l) half[l] = lanes[l] + lanes[l + LANES / 2];
    return ((half[0] + half[4]) + (half[2] + half[6])) + ((half[1] + half[5]) + (half[3] + half[7]));
}

static SHOESTRING_INLINE float dot_body(const float* a, const float* b, i64 count) {
    float lanes[LANES] = {};
    i64 i = 0;
    for (; i + LANES <= count; i += LANES)
        for (i64 l = 0; l < LANES; ++l) lanes[l] += a[i + l] * b[i + l];
    for (i64 l = 0; i + l < count; ++l) lanes[l] += a[i + l] * b[i + l];
    return lanes_sum(lanes);
}

// out = gain x / sqrt(mean x^2 + epsilon). out may be x.
static SHOESTRING_INLINE void norm_body(const float* x, const float* gain, float epsilon, i64 count, float* out) {
    const float by = 1.0f / std::sqrt(dot_body(x, x, count) / static_cast<float>(count) + epsilon);
    for (i64 i = 0; i < count; ++i) out[i] = x[i] * by * gain[i];
}

// out = x turned by the tables of its place, features i and i + count / 2 together. out is not x.
static SHOESTRING_INLINE void turn_body(const float* x, const float* cos, const float* sin, i64 count, float* out) {
    const i64 half = count / 2;
    for (i64 i = 0; i < half; ++i) out[i] = x[i] * cos[i] + x[i + half] * sin[i];
    for (i64 i = half; i < count; ++i) out[i] = x[i] * cos[i] + x[i - half] * sin[i];
}

// out [values] = state' query, of state [keys, values].
static SHOESTRING_INLINE void recall_body(const float* __restrict state, i64 keys, i64 values, const float* __restrict query,
                                          float* __restrict out) {
    std::memset(out, 0, static_cast<std::size_t>(values) * sizeof(float));
    for (i64 k = 0; k < keys; ++k)
        for (i64 v = 0; v < values; ++v) out[v] += query[k] * state[k * values + v];
}

// state = kept state + key value', then out as above. out is neither.
static SHOESTRING_INLINE void remember_body(float* __restrict state, i64 keys, i64 values, float kept, const float* __restrict key,
                                            const float* __restrict value, const float* __restrict query, float* __restrict out) {
    std::memset(out, 0, static_cast<std::size_t>(values) * sizeof(float));
    for (i64 k = 0; k < keys; ++k, state += values)
        for (i64 v = 0; v < values; ++v) {
            state[v] = kept * state[v] + key[k] * value[v];
            out[v] += query[k] * state[v];
        }
}

// The functions of one instruction set. TARGET: its attribute.
#define SHOESTRING_FLOATS(TARGET)                                                                                         \
    TARGET void norm(const float* x, const float* gain, float epsilon, i64 count, float* out) {                           \
        norm_body(x, gain, epsilon, count, out);                                                                          \
    }                                                                                                                     \
    TARGET void turn(const float* x, const float* cos, const float* sin, i64 count, float* out) {                         \
        turn_body(x, cos, sin, count, out);                                                                               \
    }                                                                                                                     \
    TARGET float dot(const float* a, const float* b, i64 count) { return dot_body(a, b, count); }                         \
    TARGET void recall(const float* state, i64 keys, i64 values, const float* query, float* out) {                        \
        recall_body(state, keys, values, query, out);                                                                     \
    }                                                                                                                     \
    TARGET void remember(float* state, i64 keys, i64 values, float kept, const float* key, const float* value,            \
                         const float* query, float* out) {                                                                \
        remember_body(state, keys, values, kept, key, value, query, out);                                                 \
    }                                                                                                                     \
    constexpr Floats FLOATS = {norm, turn, dot, recall, remember};

}  // namespace shoestring
