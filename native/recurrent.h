// Token mixers with a running state, one token after the other; kernels/recurrent.py has the same structures.
#pragma once

#include "attention.h"

namespace shoestring {

enum Rule : i64 { NONE = 0, LIGHTNING = 1, GATED_DELTA = 2, MAMBA2 = 3, LOLCATS = 4, SUPRA = 5 };

// Numbers of float32 or bfloat16; null: there are none.
struct Array {
    const void* at;
    i64 bfloat16;
};

// A norm without gain is none: nothing is done.
struct Norm {
    const void* gain;
    double epsilon;
    i64 bfloat16;
};

// What a layer keeps of a row and does with it; model/lightning.py and its neighbours have the formulas. keys, values: the sizes of a
// head's state, [keys, values]. shared: how many heads of keys there are. taps: of the convolution; 0: none. window: of LOLCATS.
struct Recurrence {
    i64 rule, heads, keys, values, shared, taps, window;
    Norm norm;
    Array decay, step_bias, skip, kernel, kernel_bias, query_map, key_map, query_bias, key_bias, mix;
};

// The state of all rows of a layer, [rows, heads, keys, values]. inputs: those of the convolution before the pass, [rows, taps - 1,
// channels]; of LOLCATS the window's keys [rows, window, shared, width], and `beside` its values [.., width + 1], the last a 1 where
// there is a token.
struct State {
    float* state;
    void* inputs;
    void* beside;
    i64 bfloat16;  // of inputs and beside
};

// mixed [tokens, heads, values] of what the first matrix made of the tokens, projected [tokens, columns], which is written over. The
// states take the tokens in: of row r that at states[r step], at the place of the row's first block. norms: of queries and keys, of
// LOLCATS and SUPRA. cos, sin: as `decode`. False: there is no memory.
bool remember(const Kernel&, int threads, const Recurrence&, const State* states, i64 step, const Row* rows, i64 count, i64 tokens, float* projected,
              i64 columns, const Norm& query_norm, const Norm& key_norm, const float* cos, const float* sin, float* mixed);

}  // namespace shoestring
