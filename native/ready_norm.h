// A norm as the decoder uses it.
#pragma once

#include "floats.h"
#include "recurrent.h"

namespace shoestring {

// A norm whose gain, where it is bfloat16, was widened into `room`.
struct Ready {
    const float* gain;
    float epsilon;
    Ready(const Norm& norm, i64 count, float* room) : gain(nullptr), epsilon(static_cast<float>(norm.epsilon)) {
        if (norm.gain && norm.bfloat16) widen_all(norm.gain, true, count, room);
        gain = norm.gain && norm.bfloat16 ? room : static_cast<const float*>(norm.gain);
    }
    void operator()(const Floats& floats, i64 count, const float* x, float* out) const {
        if (gain)
            floats.norm(x, gain, epsilon, count, out);
        else if (out != x)
            std::memcpy(out, x, static_cast<std::size_t>(count) * sizeof(float));
    }
};

}  // namespace shoestring
