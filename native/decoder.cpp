// One token through all layers in one call: between the products of small models, calling them one by one costs more than they do.
#include "decoder.h"

#include <cstring>

#include "pool.h"
#include "scratch.h"

namespace shoestring {
namespace {

constexpr i64 ALONE = i64{1} << 16;  // multiplications of attention worth another thread

thread_local Scratch kept, of_scores;

struct Attention {
    const Decoder& decoder;
    const Floats& floats;
    const float *queries, *keys, *values;
    i64 head_step, places;
    float *scores, *out;
};

// The query heads that share one head of keys and values.
void shared_head(void* context, i64 head) {
    const Attention& job = *static_cast<const Attention*>(context);
    const i64 sharing = job.decoder.heads / job.decoder.key_value_heads, width = job.decoder.head_width;
    for (i64 own = head * sharing; own < (head + 1) * sharing; ++own)
        job.floats.attend(job.queries + own * width, job.keys + head * job.head_step, job.values + head * job.head_step,
                          job.places, width, job.scores + head * job.places, job.out + own * width);
}

struct Buffers {
    float *normed, *qkv, *turned, *mixed, *gates, *gated, *added;
};

bool product(const Kernel& kernel, int threads, const Matrix& matrix, const float* x, float* out) {
    return multiply(kernel, static_cast<int>(matrix.layout), threads, x, 1, matrix.columns, matrix.packed, matrix.rows,
                    matrix.scales, matrix.groups, out);
}

void normalise(const Floats& floats, const Norm& norm, i64 count, const float* x, float* out) {
    if (norm.gain)
        floats.norm(x, norm.gain, static_cast<float>(norm.epsilon), count, out);
    else if (out != x)
        std::memcpy(out, x, static_cast<std::size_t>(count) * sizeof(float));
}

bool mix_tokens(const Kernel& kernel, int threads, const Decoder& d, const Layer& layer, const Cache& cache, i64 index,
                const float* cos, const float* sin, const Buffers& room) {
    if (!product(kernel, threads, layer.qkv, room.normed, room.qkv)) return false;
    const i64 width = d.head_width, own = d.heads * width, shared = d.key_value_heads * width;
    float* const keys = cache.keys + index * cache.layer_step;
    float* const values = cache.values + index * cache.layer_step;
    for (i64 head = 0; head < d.heads; ++head) {
        float* const query = room.qkv + head * width;
        normalise(kernel.floats, layer.query_norm, width, query, query);
        kernel.floats.turn(query, cos, sin, width, room.turned + head * width);
    }
    for (i64 head = 0; head < d.key_value_heads; ++head) {
        float* const key = room.qkv + own + head * width;
        const i64 place = head * cache.head_step + cache.length * width;
        normalise(kernel.floats, layer.key_norm, width, key, key);
        kernel.floats.turn(key, cos, sin, width, keys + place);
        std::memcpy(values + place, room.qkv + own + shared + head * width, static_cast<std::size_t>(width) * sizeof(float));
    }
    const i64 places = cache.length + 1;
    float* const scores = static_cast<float*>(of_scores.get(static_cast<std::size_t>(d.key_value_heads * places) * sizeof(float)));
    if (!scores) return false;
    Attention job{d, kernel.floats, room.turned, keys, values, cache.head_step, places, scores, room.mixed};
    parallel(2 * own * places < ALONE ? 1 : threads, d.key_value_heads, shared_head, &job);
    return product(kernel, threads, layer.output, room.mixed, room.added);
}

bool mix_channels(const Kernel& kernel, int threads, const Decoder& d, const Layer& layer, const Buffers& room) {
    if (!product(kernel, threads, layer.gate_up, room.normed, room.gates)) return false;
    kernel.floats.gate(room.gates, room.gates + d.hidden, d.hidden, room.gated);
    return product(kernel, threads, layer.down, room.gated, room.added);
}

}  // namespace

bool decode(const Kernel& kernel, int threads, const Decoder& d, const Cache& cache, const float* cos, const float* sin, float* x) {
    const i64 own = d.heads * d.head_width, shared = d.key_value_heads * d.head_width;
    const i64 sizes[] = {d.width, own + 2 * shared, own, own, 2 * d.hidden, d.hidden, d.width};
    float* places[7];
    i64 total = 0;
    for (const i64 size : sizes) total += (size + LANES - 1) / LANES * LANES;
    float* memory = static_cast<float*>(kept.get(static_cast<std::size_t>(total) * sizeof(float)));
    if (!memory) return false;
    for (int i = 0; i < 7; memory += (sizes[i] + LANES - 1) / LANES * LANES, ++i) places[i] = memory;
    const Buffers room{places[0], places[1], places[2], places[3], places[4], places[5], places[6]};
    for (i64 index = 0; index < d.count; ++index) {
        const Layer& layer = d.layers[index];
        normalise(kernel.floats, layer.token_norm, d.width, x, room.normed);
        if (!mix_tokens(kernel, threads, d, layer, cache, index, cos, sin, room)) return false;
        for (i64 i = 0; i < d.width; ++i) x[i] += room.added[i];
        normalise(kernel.floats, layer.channel_norm, d.width, x, room.normed);
        if (!mix_channels(kernel, threads, d, layer, room)) return false;
        for (i64 i = 0; i < d.width; ++i) x[i] += room.added[i];
    }
    return true;
}

}  // namespace shoestring
