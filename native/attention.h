// Attention of the new tokens of rows to the keys and values that are held of them, wherever these lie; kernels/attention.py has the
// same structures.
#pragma once

#include "common.h"

namespace shoestring {

constexpr i64 PLACES = 64;  // keys that are looked at together; a run of them begins at a multiple, whoever asks

// Numbers as they are held. CODES: of a head of a token, `width` int8, then their scale, float16. PAIRS: width / 2 bytes, the even
// number in the low four bits, then of each 32 numbers the least and the scale, float16.
enum Numbers : i64 { FLOAT32 = 0, BFLOAT16 = 1, CODES = 2, PAIRS = 3 };

constexpr i64 PAIRS_GROUP = 32;

// What steps are counted in.
inline i64 bytes_of(i64 numbers) { return numbers == FLOAT32 ? 4 : numbers == BFLOAT16 ? 2 : 1; }

// Of a head of a token.
inline i64 vector_bytes(i64 numbers, i64 width) {
    return numbers == CODES ? width + 2 : numbers == PAIRS ? width / 2 + width / PAIRS_GROUP * 4 : width * bytes_of(numbers);
}

// The keys, or the values, of one layer: number d of head h of the token at place p of block b is at
// b block_step + p token_step + h head_step + d.
struct Side {
    void* numbers;
    i64 block_step, token_step, head_step;
};

struct Held {
    Side keys, values;
    i64 block;    // tokens of a block
    i64 numbers;  // as they are held
};

// The new tokens start .. start + count - 1 of a pass are those of a row that holds `held` others, in these blocks.
struct Row {
    i64 start, count, held;
    const i64* blocks;
};

struct Heads {
    i64 heads, key_value_heads, key_width, value_width;
    i64 window;  // how many of the latest tokens are seen; 0: all
    double scale;
};

constexpr i64 whole_lanes(i64 count) { return (count + LANES - 1) / LANES * LANES; }

// What queries find in a run of keys: of each the largest score, the sum of the exponentials less it, and the values so weighted.
inline i64 sums_of(const Heads& heads, i64 queries) { return queries * whole_lanes(heads.value_width) + 2 * whole_lanes(queries); }

// Tokens first .. first + count - 1 of a row, and the query heads that share each of `head_count` heads of keys and values from `head`
// on. They look at the runs run .. runs - 1 of the row. Where there is `partial` what is found in one run is written there, or, if
// it `joins`, is there already: nothing is looked at then.
struct Piece {
    const Heads* heads;
    const Held* held;
    const Row* row;
    i64 first, count, head, head_count, run, runs;
    float* partial;        // of each run, of all heads: see sums_of
    bool joins;
    const float* queries;  // of a pass: [tokens], query_step apart, then [heads], head_step apart
    i64 query_step, head_step;
    float* out;            // [tokens, heads, value_width]
    float* room;           // as many as room_of says
    float* looked;         // [tokens, heads, most]: weights are left there, and no values are looked at; null: nowhere
    i64 most;
};

inline i64 room_of(const Heads& heads, i64 queries, i64 head_count) {
    const i64 key = whole_lanes(heads.key_width), value = whole_lanes(heads.value_width);
    return head_count * (queries * (key + PLACES + LANES) + 2 * sums_of(heads, queries)) + 2 * whole_lanes(queries) + 16 * (key + value);
}

struct Kernel;

// out [tokens, heads, value_width] of queries, for all rows. What each token sees is there already, its own key among it. False:
// there is no memory.
bool attend(const Kernel&, int threads, const Heads&, const Held&, const Row* rows, i64 count, const float* queries,
            i64 query_step, i64 head_step, float* out);

// out [tokens, heads, most]: how much each query looks at each of the `most` first places of its row; sums to one, zero where it sees
// nothing. False: there is no memory.
bool looks(const Kernel&, int threads, const Heads&, const Held&, const Row* rows, i64 count, const float* queries, i64 query_step,
           i64 head_step, i64 most, float* out);

// Puts the keys and values of new tokens, float32, to their places.
void keep(const Heads&, const Held&, const Row* rows, i64 count, const float* keys, i64 key_step, const float* values, i64 value_step);

}  // namespace shoestring
