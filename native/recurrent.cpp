// One token after the other: what a chunked form computes for many tokens at once, these rules do for few, without a call between.
#include "recurrent.h"

#include <atomic>
#include <cmath>
#include <cstring>

#include "dense.h"
#include "pool.h"
#include "ready_norm.h"
#include "scratch.h"

namespace shoestring {
namespace {

constexpr i64 ALONE = i64{1} << 16;  // numbers of states worth another thread

thread_local Scratch params, own;

// Where an array of floats lies, once those of bfloat16 are widened.
const float* ready(const Array& array, i64 count, float*& room) {
    if (!array.at) return nullptr;
    if (!array.bfloat16) return static_cast<const float*>(array.at);
    float* const at = room;
    widen_all(array.at, true, count, at);
    room += whole_lanes(count);
    return at;
}

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// What is read of a layer, and where a pass stands.
struct Job {
    const Kernel& kernel;
    const Recurrence& r;
    const State* states;
    i64 step;
    const Row* rows;
    float* projected;
    i64 columns;
    float* mixed;
    const float *decay, *step_bias, *skip, *taps, *taps_bias, *query_bias, *key_bias, *mix;
    const Ready *norm, *query_norm, *key_norm;
    const float *cos, *sin;
    std::atomic<bool> failed;

    i64 inner() const { return r.heads * r.values; }
    i64 channels() const { return r.rule == MAMBA2 ? inner() + 2 * r.shared * r.keys : 3 * inner(); }
    i64 first() const { return r.rule == MAMBA2 ? inner() : 0; }  // of the channels
    float* token(i64 number) const { return projected + number * columns; }
    const State& state_of(i64 row) const { return states[row * step]; }
    float* head_of(i64 row, i64 head) const {
        return state_of(row).state + (rows[row].blocks[0] * r.heads + head) * r.keys * r.values;
    }
};

// Each channel by itself over the latest tokens, then silu, in place: from the last token of a row on, as each reads those before it.
void convolve(void* context, i64 number) {
    Job& job = *static_cast<Job*>(context);
    const Row& row = job.rows[number];
    const State& state = job.state_of(number);
    const i64 count = job.channels(), back = job.r.taps - 1, bytes = state.bfloat16 ? 2 : 4;
    if (job.r.taps) {
        float* const past = static_cast<float*>(own.get(static_cast<std::size_t>(2 * back * count + 1) * sizeof(float)));
        if (!past) return job.failed.store(true, std::memory_order_relaxed);
        float* const next = past + back * count;
        u8* const held = static_cast<u8*>(state.inputs) + row.blocks[0] * back * count * bytes;
        widen_all(held, state.bfloat16, back * count, past);
        const auto input = [&](i64 token) {
            return token < 0 ? past + (back + token) * count : job.token(row.start + token) + job.first();
        };
        for (i64 place = 0; place < back; ++place)
            std::memcpy(next + place * count, input(row.count - back + place), static_cast<std::size_t>(count) * sizeof(float));
        for (i64 token = row.count - 1; token >= 0; --token) {
            float* const x = job.token(row.start + token) + job.first();
            for (i64 c = 0; c < count; ++c) x[c] *= job.taps[c * job.r.taps + back];
            for (i64 before = 1; before <= back; ++before) {
                const float* const old = input(token - before);
                for (i64 c = 0; c < count; ++c) x[c] += old[c] * job.taps[c * job.r.taps + back - before];
            }
            if (job.taps_bias)
                for (i64 c = 0; c < count; ++c) x[c] += job.taps_bias[c];
        }
        narrow_all(next, state.bfloat16, back * count, held);
    }
    for (i64 token = 0; token < row.count; ++token) {
        float* const x = job.token(row.start + token) + job.first();
        job.kernel.share(x, x, count, x);
    }
}

void to_length(const Floats& floats, float* x, i64 count, float length) {
    const float found = std::sqrt(floats.dot(x, x, count)), by = length / (found > 1e-12f ? found : 1e-12f);
    for (i64 i = 0; i < count; ++i) x[i] *= by;
}

// One head of a row, in place of its values where they change.
void one_head(void* context, i64 number) {
    Job& job = *static_cast<Job*>(context);
    const Recurrence& r = job.r;
    const Floats& floats = job.kernel.floats;
    const Row& row = job.rows[number / r.heads];
    const i64 head = number % r.heads, inner = job.inner();
    float* const state = job.head_of(number / r.heads, head);
    float* const room = static_cast<float*>(own.get(static_cast<std::size_t>(r.values) * sizeof(float)));
    if (!room) return job.failed.store(true, std::memory_order_relaxed);
    for (i64 token = row.start; token < row.start + row.count; ++token) {
        float* const p = job.token(token);
        float* const out = job.mixed + token * inner + head * r.values;
        if (r.rule == LIGHTNING) {
            float* const q = p + head * r.keys;
            floats.remember(state, r.keys, r.values, std::exp(-job.decay[head]), q + inner, q + 2 * inner, q, out);
        } else if (r.rule == GATED_DELTA) {
            float *const q = p + head * r.keys, *const k = q + inner, *const v = k + inner;
            to_length(floats, q, r.keys, 1.0f / std::sqrt(static_cast<float>(r.keys)));
            to_length(floats, k, r.keys, 1.0f);
            const float kept = std::exp(-std::exp(job.decay[head]) * softplus(p[4 * inner + head] + job.step_bias[head]));
            const float strength = sigmoid(p[4 * inner + r.heads + head]);
            floats.recall(state, r.keys, r.values, k, room);
            for (i64 i = 0; i < r.values; ++i) v[i] = strength * (v[i] - kept * room[i]);
            floats.remember(state, r.keys, r.values, kept, k, v, q, out);
            (*job.norm)(floats, r.values, out, out);
        } else {
            const float* const x = p + inner + head * r.values;
            const float* const key = p + 2 * inner + head / (r.heads / r.shared) * r.keys;
            const float step = softplus(p[inner + job.channels() + head] + job.step_bias[head]);
            for (i64 i = 0; i < r.values; ++i) room[i] = step * x[i];
            floats.remember(state, r.keys, r.values, std::exp(-step * std::exp(job.decay[head])), key, room, key + r.shared * r.keys, out);
            for (i64 i = 0; i < r.values; ++i) out[i] += job.skip[head] * x[i];
        }
    }
}

// The gate, and a norm over all heads.
void finish(void* context, i64 token) {
    Job& job = *static_cast<Job*>(context);
    const i64 inner = job.inner();
    const float* const p = job.token(token);
    float* const out = job.mixed + token * inner;
    if (job.r.rule == LIGHTNING) {
        (*job.norm)(job.kernel.floats, inner, out, out);
        job.kernel.share(p + 3 * inner, out, inner, out);
    } else if (job.r.rule == GATED_DELTA) {
        job.kernel.gate(p + 3 * inner, out, inner, out);
    } else {
        job.kernel.gate(p, out, inner, out);
        (*job.norm)(job.kernel.floats, inner, out, out);
    }
}

// z [count] = W_h x, x [width].
void mapped(const Job& job, const Array& map, i64 head, const float* x, i64 width, i64 count, float* z) {
    const u8* const weights = static_cast<const u8*>(map.at) + head * count * width * (map.bfloat16 ? 2 : 4);
    const DenseProduct product{weights, map.bfloat16, count, width, 1, x, z};
    job.kernel.dense(product, 0, count);
}

// to = [softmax(z); softmax(-z)], z = W_h x of `count` features.
void features(const Job& job, const Array& map, i64 head, const float* x, i64 width, i64 count, float* z, float* to) {
    mapped(job, map, head, x, width, count, z);
    for (int side = 0; side < 2; ++side) {
        const float sign = side ? -1.0f : 1.0f;
        float most = sign * z[0], total = 0.0f;
        for (i64 i = 1; i < count; ++i) most = sign * z[i] > most ? sign * z[i] : most;
        for (i64 i = 0; i < count; ++i) total += to[i] = std::exp(sign * z[i] - most);
        for (i64 i = 0; i < count; ++i) to[i] /= total;
        to += count;
    }
}

// The query heads of one head of keys and values, of a row: softmax in the window, what has left it by features.
void windowed(void* context, i64 number) {
    Job& job = *static_cast<Job*>(context);
    const Recurrence& r = job.r;
    const Floats& floats = job.kernel.floats;
    const Row& row = job.rows[number / r.shared];
    const i64 shared = number % r.shared, group = r.heads / r.shared, width = r.values - 1, count = r.keys / 2;
    const State& state = job.state_of(number / r.shared);
    const i64 places = r.window + row.count, bytes = state.bfloat16 ? 2 : 4;
    const i64 sizes[] = {places * width, places * r.values, places, width, width, count, r.keys, r.keys, r.values};
    i64 total = 0;
    for (const i64 size : sizes) total += whole_lanes(size);
    float* at = static_cast<float*>(own.get(static_cast<std::size_t>(total) * sizeof(float)));
    if (!at) return job.failed.store(true, std::memory_order_relaxed);
    float* rooms[9];
    for (int i = 0; i < 9; at += whole_lanes(sizes[i]), ++i) rooms[i] = at;
    float *const keys = rooms[0], *const values = rooms[1], *const weights = rooms[2], *const normed = rooms[3], *const q = rooms[4],
          *const z = rooms[5], *const late = rooms[6], *const asked = rooms[7], *const far = rooms[8];
    u8 *const held_keys = static_cast<u8*>(state.inputs), *const held_values = static_cast<u8*>(state.beside);
    const auto place_of = [&](i64 place) { return (row.blocks[0] * r.window + place) * r.shared + shared; };
    for (i64 place = 0; place < r.window; ++place) {
        widen_all(held_keys + place_of(place) * width * bytes, state.bfloat16, width, keys + place * width);
        widen_all(held_values + place_of(place) * r.values * bytes, state.bfloat16, r.values, values + place * r.values);
    }
    for (i64 step = 0; step < row.count; ++step) {
        const i64 token = row.start + step, self = r.window + step;
        const float *const cos = job.cos + token * width, *const sin = job.sin + token * width;
        const float* const p = job.token(token);
        (*job.key_norm)(floats, width, p + (r.heads + shared) * width, normed);
        floats.turn(normed, cos, sin, width, keys + self * width);
        std::memcpy(values + self * r.values, p + (r.heads + r.shared + shared) * width, static_cast<std::size_t>(width) * sizeof(float));
        values[self * r.values + width] = 1.0f;
        const float *const late_key = keys + step * width, *const late_value = values + step * r.values;
        for (i64 head = shared * group; head < (shared + 1) * group; ++head) {
            (*job.query_norm)(floats, width, p + head * width, normed);
            floats.turn(normed, cos, sin, width, q);
            features(job, r.query_map, head, q, width, count, z, asked);
            float* const sums = job.head_of(number / r.shared, head);
            if (late_value[width] > 0.0f) {
                features(job, r.key_map, head, late_key, width, count, z, late);
                floats.remember(sums, r.keys, r.values, 1.0f, late, late_value, asked, far);
            } else {
                floats.recall(sums, r.keys, r.values, asked, far);
            }
            const float scale = 1.0f / std::sqrt(static_cast<float>(width)), share = sigmoid(job.mix[head]);
            float most = -INFINITY;
            for (i64 place = step + 1; place <= self; ++place) {
                const bool real = values[place * r.values + width] > 0.0f;
                weights[place] = real ? scale * floats.dot(q, keys + place * width, width) : -INFINITY;
                most = weights[place] > most ? weights[place] : most;
            }
            for (i64 place = step + 1; place <= self; ++place) {
                const float weight = share * std::exp(weights[place] - most);
                for (i64 i = 0; i < r.values; ++i) far[i] += weight * values[place * r.values + i];
            }
            float* const out = job.mixed + (token * r.heads + head) * width;
            for (i64 i = 0; i < width; ++i) out[i] = far[i] / far[width];
        }
    }
    for (i64 place = 0; place < r.window; ++place) {
        const i64 from = place + row.count;
        narrow_all(keys + from * width, state.bfloat16, width, held_keys + place_of(place) * width * bytes);
        narrow_all(values + from * r.values, state.bfloat16, r.values, held_values + place_of(place) * r.values * bytes);
    }
}

// to = x less its mean, over its standard deviation. to may be x.
void centred(const float* x, double epsilon, i64 count, float* to) {
    float mean = 0.0f, square = 0.0f;
    for (i64 i = 0; i < count; ++i) mean += x[i];
    mean /= static_cast<float>(count);
    for (i64 i = 0; i < count; ++i) square += (x[i] - mean) * (x[i] - mean);
    const float by = 1.0f / std::sqrt(square / static_cast<float>(count) + static_cast<float>(epsilon));
    for (i64 i = 0; i < count; ++i) to[i] = (x[i] - mean) * by;
}

// The query heads of one head of keys and values, of a row: rectified features of both, turned, and sums that fade.
void rectified(void* context, i64 number) {
    Job& job = *static_cast<Job*>(context);
    const Recurrence& r = job.r;
    const Floats& floats = job.kernel.floats;
    const Row& row = job.rows[number / r.shared];
    const i64 shared = number % r.shared, group = r.heads / r.shared, width = r.keys, room = whole_lanes(width);
    float* const normed = static_cast<float*>(own.get(static_cast<std::size_t>(4 * room) * sizeof(float)));
    if (!normed) return job.failed.store(true, std::memory_order_relaxed);
    float *const z = normed + room, *const key = z + room, *const query = key + room;
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    for (i64 token = row.start; token < row.start + row.count; ++token) {
        const float* const p = job.token(token);
        const auto turned = [&](const Ready& norm, const Array& map, const float* bias, const float* x, i64 head, float* to) {
            norm(floats, width, x, normed);
            mapped(job, map, head, normed, width, width, z);
            for (i64 i = 0; i < width; ++i) {
                const float found = z[i] + bias[head * width + i];
                z[i] = found > 0.0f ? found : 0.0f;
            }
            floats.turn(z, job.cos + token * width, job.sin + token * width, width, to);
        };
        turned(*job.key_norm, r.key_map, job.key_bias, p + (r.heads + shared) * width, shared, key);
        for (i64 i = 0; i < width; ++i) key[i] *= scale;
        const float* const value = p + (r.heads + r.shared + shared) * width;
        for (i64 head = shared * group; head < (shared + 1) * group; ++head) {
            turned(*job.query_norm, r.query_map, job.query_bias, p + head * width, head, query);
            float* const out = job.mixed + (token * r.heads + head) * width;
            floats.remember(job.head_of(number / r.shared, head), width, width, std::exp(-job.decay[head]), key, value, query, out);
            centred(out, r.norm.epsilon, width, out);
        }
    }
}

}  // namespace

bool remember(const Kernel& kernel, int threads, const Recurrence& r, const State* states, i64 step, const Row* rows, i64 count,
              i64 tokens, float* projected, i64 columns, const Norm& query_norm, const Norm& key_norm, const float* cos, const float* sin,
              float* mixed) {
    const i64 inner = r.heads * r.values, channels = r.rule == MAMBA2 ? inner + 2 * r.shared * r.keys : 3 * inner;
    const i64 sizes[] = {r.heads, r.heads, r.heads, r.heads, channels * r.taps, channels, inner, r.shared * r.keys,
                         inner,   r.values, r.values};
    i64 total = 0;
    for (const i64 size : sizes) total += whole_lanes(size);
    float* room = static_cast<float*>(params.get(static_cast<std::size_t>(total) * sizeof(float)));
    if (!room) return false;
    const float *const decay = ready(r.decay, r.heads, room), *const step_bias = ready(r.step_bias, r.heads, room),
                *const skip = ready(r.skip, r.heads, room), *const mix = ready(r.mix, r.heads, room),
                *const taps = ready(r.kernel, channels * r.taps, room), *const taps_bias = ready(r.kernel_bias, channels, room),
                *const query_bias = ready(r.query_bias, inner, room), *const key_bias = ready(r.key_bias, r.shared * r.keys, room);
    const Ready norm(r.norm, r.rule == GATED_DELTA ? r.values : inner, room);
    const i64 width = r.rule == LOLCATS ? r.values - 1 : r.values;
    const Ready query(query_norm, width, room + whole_lanes(inner));
    const Ready key(key_norm, width, room + whole_lanes(inner) + whole_lanes(r.values));
    Job job{kernel, r,     states,    step, rows, projected, columns,  mixed, decay, step_bias, skip,   taps, taps_bias,
            query_bias, key_bias, mix, &norm, &query, &key,  cos,      sin,   {false}};
    threads = count * r.heads * r.keys * r.values < ALONE ? 1 : threads;
    if (r.rule == LOLCATS || r.rule == SUPRA) {
        parallel(threads, count * r.shared, r.rule == SUPRA ? rectified : windowed, &job);
        return !job.failed.load(std::memory_order_relaxed);
    }
    parallel(threads, count, convolve, &job);
    parallel(threads, count * r.heads, one_head, &job);
    parallel(threads, tokens, finish, &job);
    return !job.failed.load(std::memory_order_relaxed);
}

}  // namespace shoestring
