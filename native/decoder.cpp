// Tokens of several rows through all layers in one call: between the products of small models, calling them one by one costs more than
// they do.
#include "decoder.h"

#include <cstring>

#include "dense.h"
#include "floats.h"
#include "grouped.h"
#include "parts.h"
#include "pool.h"
#include "ready_norm.h"
#include "scratch.h"

namespace shoestring {
namespace {

constexpr i64 ALONE = i64{1} << 14;  // numbers of simple work worth another thread

thread_local Scratch kept;

struct Biased {
    const Matrix* matrix;
    float* out;
};

void add_bias(void* context, i64 token) {
    const Biased& job = *static_cast<Biased*>(context);
    float* const to = job.out + token * job.matrix->rows;
    if (job.matrix->bfloat16_bias) {
        for (i64 row = 0; row < job.matrix->rows; ++row) {
            float bias;
            widen_all(static_cast<const u16*>(job.matrix->bias) + row, true, 1, &bias);
            to[row] += bias;
        }
    } else {
        for (i64 row = 0; row < job.matrix->rows; ++row) to[row] += static_cast<const float*>(job.matrix->bias)[row];
    }
}

// One pass, and the room for what is between its products.
struct Pass {
    const Kernel& kernel;
    const Decoder& d;
    int threads;
    i64 tokens;
    const float *cos, *sin;
    float *x, *normed, *projected, *turned, *mixed, *gates, *gated, *added, *gains;
    i64* row_of;
    const Row* rows;
    const Held* held;                                       // of the layer at hand, of the first row
    const State* state;                                     // likewise
    i64 held_step, state_step;                              // to those of the next row; 0: rows share them
    const Ready *norm, *query_norm, *key_norm;              // likewise
    const float* more;                                      // what is added to the stream before the norm; null for nothing
    float* asked;                                           // where the queries of the layer are left; null: nowhere

    i64 own() const { return d.heads * d.head_width; }
    i64 shared() const { return d.key_value_heads * d.head_width; }
    Heads heads() const {
        return {d.heads, d.key_value_heads, d.head_width, d.head_width, 0, 1.0 / __builtin_sqrt(static_cast<double>(d.head_width))};
    }
    void each_token(i64 numbers, Work work) { parallel(numbers * tokens < ALONE ? 1 : threads, tokens, work, this); }
};

// x += more, normed = norm(x).
void add_and_norm(void* context, i64 token) {
    const Pass& pass = *static_cast<Pass*>(context);
    const i64 width = pass.d.width;
    float* const x = pass.x + token * width;
    if (pass.more)
        for (i64 i = 0; i < width; ++i) x[i] += pass.more[token * width + i];
    if (pass.norm) (*pass.norm)(pass.kernel.floats, width, x, pass.normed + token * width);
}

// Queries turned, keys and values put to their places.
void turn_and_keep(void* context, i64 token) {
    const Pass& pass = *static_cast<Pass*>(context);
    const Floats& floats = pass.kernel.floats;
    const i64 width = pass.d.head_width, own = pass.own(), shared = pass.shared();
    float* const qkv = pass.projected + token * (own + 2 * shared);
    float* const turned = pass.turned + token * (own + shared);
    const float *const cos = pass.cos + token * width, *const sin = pass.sin + token * width;
    for (i64 head = 0; head < pass.d.heads + pass.d.key_value_heads; ++head) {
        const Ready& norm = head < pass.d.heads ? *pass.query_norm : *pass.key_norm;
        norm(floats, width, qkv + head * width, qkv + head * width);
        floats.turn(qkv + head * width, cos, sin, width, turned + head * width);
    }
    if (pass.asked) std::memcpy(pass.asked + token * own, turned, static_cast<std::size_t>(own) * sizeof(float));
    const Row& row = pass.rows[pass.row_of[token]];
    const Row one{0, 1, row.held + token - row.start, row.blocks};
    keep(pass.heads(), pass.held[pass.row_of[token] * pass.held_step], &one, 1, turned + own, 0, qkv + own + shared, 0);
}

void gate(void* context, i64 token) {
    const Pass& pass = *static_cast<Pass*>(context);
    const i64 hidden = pass.d.hidden;
    const float* const gates = pass.gates + token * 2 * hidden;
    pass.kernel.gate(gates, gates + hidden, hidden, pass.gated + token * hidden);
}

bool one_layer(Pass& pass, const Layer& layer, i64 count) {
    const Decoder& d = pass.d;
    const i64 own = pass.own(), shared = pass.shared(), head = whole_lanes(d.head_width);
    const Ready token_norm(layer.token_norm, d.width, pass.gains), query_norm(layer.query_norm, d.head_width, pass.gains + whole_lanes(d.width)),
        key_norm(layer.key_norm, d.head_width, pass.gains + whole_lanes(d.width) + head);
    pass.norm = &token_norm;
    pass.query_norm = &query_norm;
    pass.key_norm = &key_norm;
    pass.each_token(d.width, add_and_norm);
    if (!product(pass.kernel, pass.threads, layer.reads, pass.normed, pass.tokens, pass.projected)) return false;
    if (layer.recurrence.rule == NONE) {
        pass.each_token(own + 2 * shared, turn_and_keep);
        const i64 together = pass.held_step ? 1 : count;
        for (i64 row = 0; row < count; row += together)
            if (!attend(pass.kernel, pass.threads, pass.heads(), pass.held[row * pass.held_step], pass.rows + row, together,
                        pass.turned, own + shared, d.head_width, pass.mixed))
                return false;
    } else if (!remember(pass.kernel, pass.threads, layer.recurrence, pass.state, pass.state_step, pass.rows, count, pass.tokens,
                         pass.projected, layer.reads.rows, layer.query_norm, layer.key_norm, pass.cos, pass.sin, pass.mixed)) {
        return false;
    }
    if (!product(pass.kernel, pass.threads, layer.output, pass.mixed, pass.tokens, pass.added)) return false;
    const Ready channel_norm(layer.channel_norm, d.width, pass.gains);
    pass.norm = &channel_norm;
    pass.more = pass.added;
    pass.each_token(d.width, add_and_norm);
    if (!product(pass.kernel, pass.threads, layer.gate_up, pass.normed, pass.tokens, pass.gates)) return false;
    pass.each_token(2 * d.hidden, gate);
    return product(pass.kernel, pass.threads, layer.down, pass.gated, pass.tokens, pass.added);
}

struct Layers {
    Pass* pass;
    const Held* held;
    const State* states;
    float* asked;
    i64 count;
    bool done;
};

void all_layers(void* of) {
    Layers& all = *static_cast<Layers*>(of);
    Pass& pass = *all.pass;
    i64 attending = 0;
    for (i64 index = 0; index < pass.d.count; ++index) {
        pass.held = all.held + attending;
        pass.state = all.states + (index - attending);
        pass.asked = all.asked ? all.asked + attending * pass.tokens * pass.own() : nullptr;
        attending += pass.d.layers[index].recurrence.rule == NONE;
        if (!(all.done = one_layer(pass, pass.d.layers[index], all.count))) return;
        pass.more = pass.added;
    }
    pass.norm = nullptr;
    if (pass.d.count) pass.each_token(pass.d.width, add_and_norm);
}

}  // namespace

bool product(const Kernel& kernel, int threads, const Matrix& m, const float* x, i64 tokens, float* out) {
    bool done = true;
    switch (m.kind) {
        case TERNARY_2:
        case TERNARY_16:
            done = multiply(kernel, m.kind == TERNARY_2 ? TERNARY2 : TERNARY16, threads, x, tokens, m.columns,
                            static_cast<const u8*>(m.weights), m.rows, m.scales, m.groups, out);
            break;
        case GROUPED_4:
        case GROUPED_8:
            done = multiply_grouped(*kernel.grouped, m.kind == GROUPED_4 ? 4 : 8, threads, x, tokens, m.columns,
                                    static_cast<const u8*>(m.weights), m.rows, out);
            break;
        default: multiply_dense(kernel, m.kind == DENSE_BFLOAT16, threads, x, tokens, m.columns, m.weights, m.rows, out);
    }
    if (!done || !m.bias) return done;
    Biased job{&m, out};
    parallel(m.rows * tokens < ALONE ? 1 : threads, tokens, add_bias, &job);
    return true;
}

bool decode(const Kernel& kernel, int threads, const Decoder& d, const Held* held, const State* states, bool apart, const Row* rows,
            i64 count, i64 tokens, const float* cos, const float* sin, float* x, float* asked) {
    const i64 own = d.heads * d.head_width, shared = d.key_value_heads * d.head_width;
    i64 read = 0, mixed = 0;  // of a token, in the widest layer
    i64 attending = 0;
    for (i64 index = 0; index < d.count; ++index) {
        read = d.layers[index].reads.rows > read ? d.layers[index].reads.rows : read;
        mixed = d.layers[index].output.columns > mixed ? d.layers[index].output.columns : mixed;
        attending += d.layers[index].recurrence.rule == NONE;
    }
    const i64 sizes[] = {tokens * d.width,      tokens * read,               tokens * (own + shared),
                         tokens * mixed,        tokens * 2 * d.hidden,       tokens * d.hidden,
                         tokens * d.width,      whole_lanes(d.width) + 2 * whole_lanes(d.head_width)};
    constexpr int COUNT = sizeof(sizes) / sizeof(sizes[0]);
    float* places[COUNT];
    i64 total = 2 * whole_lanes(tokens);  // of `row_of`
    for (const i64 size : sizes) total += whole_lanes(size);
    float* memory = static_cast<float*>(kept.get(static_cast<std::size_t>(total) * sizeof(float)));
    if (!memory) return false;
    i64* const row_of = reinterpret_cast<i64*>(memory);
    memory += 2 * whole_lanes(tokens);
    for (int i = 0; i < COUNT; memory += whole_lanes(sizes[i]), ++i) places[i] = memory;
    for (i64 row = 0; row < count; ++row)
        for (i64 token = 0; token < rows[row].count; ++token) row_of[rows[row].start + token] = row;
    Pass pass{kernel,    d,         threads,   tokens,    cos,       sin,       x,       places[0], places[1], places[2],
              places[3], places[4], places[5], places[6], places[7], row_of,    rows,    nullptr,   nullptr,   apart ? attending : 0,
              apart ? d.count - attending : 0,            nullptr,   nullptr,   nullptr, nullptr,   nullptr};
    Layers all{&pass, held, states, asked, count, true};
    together(threads_for(2 * d.hidden * d.width * tokens, threads), all_layers, &all);
    return all.done;
}

}  // namespace shoestring
