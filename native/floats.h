// Numbers of bfloat16 and float32, from one to the other.
#pragma once

#include <cmath>
#include <cstring>

#include "common.h"

namespace shoestring {

inline u16 narrow(float value) {  // to bfloat16, to the nearest, ties to even
    u32 bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<u16>(bits >> 16 | 0x40);
    return static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline void widen_all(const void* numbers, bool bfloat16, i64 count, float* to) {
    if (!bfloat16) {
        std::memcpy(to, numbers, static_cast<std::size_t>(count) * sizeof(float));
        return;
    }
    for (i64 i = 0; i < count; ++i) {
        const u32 bits = static_cast<u32>(static_cast<const u16*>(numbers)[i]) << 16;
        std::memcpy(to + i, &bits, 4);
    }
}

inline void narrow_all(const float* numbers, bool bfloat16, i64 count, void* to) {
    if (!bfloat16) {
        std::memcpy(to, numbers, static_cast<std::size_t>(count) * sizeof(float));
        return;
    }
    for (i64 i = 0; i < count; ++i) static_cast<u16*>(to)[i] = narrow(numbers[i]);
}

}  // namespace shoestring
