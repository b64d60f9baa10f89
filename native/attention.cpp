// Attention of all rows of a pass, cut into pieces for the threads.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "floats.h"
#include "pool.h"
#include "scratch.h"

namespace shoestring {
namespace {

constexpr i64 ALONE = i64{1} << 16;  // multiplications worth another thread
constexpr i64 QUERIES = 32;          // of a piece: they share what is fetched of keys and values
constexpr i64 MOST_RUNS = 16;        // of a part: within it the next run is fetched ahead
constexpr i64 PARTS = 2;             // for each thread, at least, where there are runs enough

thread_local Scratch kept, listed, shared;

i64 runs_of(i64 places) { return (places + PLACES - 1) / PLACES; }

struct Part {
    i64 row, first, count, head, head_count, run, runs;
    float* partial;
};

struct Job {
    const Kernel* kernel;
    const Heads* heads;
    const Held* held;
    const Row* rows;
    const Part* parts;
    const float* queries;
    i64 query_step, head_step;
    float* out;
    i64 room;
    bool joins;
    float* looked;
    i64 most;
    std::atomic<bool> failed;
};

void one_part(void* context, i64 number) {
    Job& job = *static_cast<Job*>(context);
    const Part& part = job.parts[number];
    float* const room = static_cast<float*>(kept.get(static_cast<std::size_t>(job.room) * sizeof(float)));
    if (!room) return job.failed.store(true, std::memory_order_relaxed);
    job.kernel->attend({job.heads, job.held, job.rows + part.row, part.first, part.count, part.head, part.head_count, part.run, part.runs,
                        part.partial, job.joins, job.queries, job.query_step, job.head_step, job.out, room, job.looked, job.most});
}

// To float16, to the nearest, ties to even, of numbers that are within its range.
u16 to_half(float value) {
    const float size = std::fabs(value);
    u32 bits, sign;
    std::memcpy(&sign, &value, 4);
    std::memcpy(&bits, &size, 4);
    if (size != size) return 0x7e00;
    const u32 half = size < 6.103515625e-5f ? static_cast<u32>(std::nearbyint(size * 16777216.0f))  // beneath the normal ones
                                            : (bits + 0xfffu + (bits >> 13 & 1) - (112u << 23)) >> 13;
    return static_cast<u16>(half | (sign >> 16 & 0x8000u));
}

float within(float value, float low, float high) { return value < low ? low : value > high ? high : value; }  // NaN stays

// As decode/cache_stores/int8.py does it.
void encode(const float* from, i64 width, i8* codes) {
    float top = 0.0f;
    bool none = false;
    for (i64 d = 0; d < width; ++d) {
        const float size = std::fabs(from[d]);
        none = none || size != size;
        top = size > top ? size : top;
    }
    const u16 half = none ? u16{0x7e00} : to_half(within(top / 127.0f, 6.2e-5f, 65504.0f));
    const float scale = half_to_float(half);
    for (i64 d = 0; d < width; ++d)
        codes[d] = none ? i8{0} : static_cast<i8>(within(std::nearbyint(from[d] / scale), -127.0f, 127.0f));
    std::memcpy(codes + width, &half, sizeof(half));
}

// As decode/cache_stores/int4.py does it.
void encode_pairs(const float* from, i64 width, u8* to) {
    for (i64 g = 0; g < width / PAIRS_GROUP; ++g) {
        const float* const x = from + g * PAIRS_GROUP;
        float least = x[0], most = x[0];
        bool none = false;
        for (i64 d = 0; d < PAIRS_GROUP; ++d) {
            none = none || x[d] != x[d];
            least = x[d] < least ? x[d] : least;
            most = x[d] > most ? x[d] : most;
        }
        u16 bounds[2] = {0x7e00, 0x7e00};
        if (!none) bounds[0] = to_half(within(least, -65504.0f, 65504.0f));
        const float low = half_to_float(bounds[0]);
        if (!none) bounds[1] = to_half(within((most - low) / 15.0f, 6.2e-5f, 65504.0f));
        const float scale = half_to_float(bounds[1]);
        for (i64 d = 0; d < PAIRS_GROUP; d += 2) {
            u8 pair = 0;
            for (i64 i = 0; i < 2 && !none; ++i)
                pair |= static_cast<u8>(static_cast<int>(within(std::nearbyint((x[d + i] - low) / scale), 0.0f, 15.0f)) << (4 * i));
            to[(g * PAIRS_GROUP + d) / 2] = pair;
        }
        std::memcpy(to + width / 2 + g * sizeof(bounds), bounds, sizeof(bounds));
    }
}

void put(const Side& side, const Held& held, const Row& row, i64 heads, i64 width, const float* from, i64 step) {
    for (i64 token = 0; token < row.count; ++token) {
        const i64 place = row.held + token;
        const i64 at = row.blocks[place / held.block] * side.block_step + place % held.block * side.token_step;
        for (i64 head = 0; head < heads; ++head) {
            const float* const numbers = from + (row.start + token) * step + head * width;
            const i64 to = at + head * side.head_step;
            if (held.numbers == CODES)
                encode(numbers, width, static_cast<i8*>(side.numbers) + to);
            else if (held.numbers == PAIRS)
                encode_pairs(numbers, width, static_cast<u8*>(side.numbers) + to);
            else if (held.numbers == BFLOAT16)
                for (i64 d = 0; d < width; ++d) static_cast<u16*>(side.numbers)[to + d] = narrow(numbers[d]);
            else
                std::memcpy(static_cast<float*>(side.numbers) + to, numbers, static_cast<std::size_t>(width) * sizeof(float));
        }
    }
}

}  // namespace

bool attend(const Kernel& kernel, int threads, const Heads& heads, const Held& held, const Row* rows, i64 count,
            const float* queries, i64 query_step, i64 head_step, float* out) {
    const i64 sharing = heads.heads / heads.key_value_heads, tokens = QUERIES / sharing ? QUERIES / sharing : 1;
    i64 parts = 0, seen = 0, room = 0, sums = 0;
    // a row of few tokens is shared by runs of its keys, in which all heads lie side by side; others by heads, and tokens
    const auto by_runs = [&](const Row& row) { return row.count * heads.heads <= QUERIES && row.held + row.count > PLACES; };
    i64 all_runs = 0;
    for (i64 row = 0; row < count; ++row) all_runs += by_runs(rows[row]) ? runs_of(rows[row].held + rows[row].count) : 0;
    const i64 together = std::min(MOST_RUNS, std::max(i64{1}, all_runs / (PARTS * threads)));  // what is found does not hang on it
    for (i64 row = 0; row < count; ++row) {
        const i64 runs = runs_of(rows[row].held + rows[row].count);
        const i64 queries = rows[row].count * sharing;
        seen += rows[row].count * (rows[row].held + rows[row].count);
        if (by_runs(rows[row])) {
            parts += runs + 1;
            sums += runs * heads.key_value_heads * sums_of(heads, queries);
            room = std::max(room, room_of(heads, queries, heads.key_value_heads));
        } else {
            parts += (rows[row].count + tokens - 1) / tokens * heads.key_value_heads;
            room = std::max(room, room_of(heads, std::min(rows[row].count, tokens) * sharing, 1));
        }
    }
    Part* const listing = static_cast<Part*>(listed.get(static_cast<std::size_t>(parts + 1) * sizeof(Part)));
    float* partial = static_cast<float*>(shared.get(static_cast<std::size_t>(sums + 1) * sizeof(float)));
    if (!listing || !partial) return false;
    i64 next = 0;
    Part* joins = listing + parts;  // those that join runs, from the end on
    for (i64 row = 0; row < count; ++row) {
        const i64 runs = runs_of(rows[row].held + rows[row].count);
        if (by_runs(rows[row])) {
            for (i64 run = 0; run < runs; run += together)
                listing[next++] = {row, 0, rows[row].count, 0, heads.key_value_heads, run, std::min(run + together, runs), partial};
            *--joins = {row, 0, rows[row].count, 0, heads.key_value_heads, 0, runs, partial};
            partial += runs * heads.key_value_heads * sums_of(heads, rows[row].count * sharing);
            continue;
        }
        for (i64 first = 0; first < rows[row].count; first += tokens) {
            const i64 some = rows[row].count - first < tokens ? rows[row].count - first : tokens;
            for (i64 head = 0; head < heads.key_value_heads; ++head)
                listing[next++] = {row, first, some, head, 1, 0, runs_of(rows[row].held + first + some), nullptr};
        }
    }
    const i64 work = seen * heads.heads * (heads.key_width + heads.value_width);
    threads = work < ALONE ? 1 : threads;
    Job job{&kernel, &heads, &held, rows, listing, queries, query_step, head_step, out, room, false, nullptr, 0, {false}};
    parallel(threads, next, one_part, &job);
    job.parts = joins;
    job.joins = true;
    parallel(threads, listing + parts - joins, one_part, &job);
    return !job.failed.load(std::memory_order_relaxed);
}

bool looks(const Kernel& kernel, int threads, const Heads& heads, const Held& held, const Row* rows, i64 count, const float* queries,
           i64 query_step, i64 head_step, i64 most, float* out) {
    const i64 sharing = heads.heads / heads.key_value_heads, tokens = QUERIES / heads.heads ? QUERIES / heads.heads : 1;
    i64 pieces = 0, parts = 0, seen = 0;
    for (i64 row = 0; row < count; ++row) {
        const i64 own = (rows[row].count + tokens - 1) / tokens;
        pieces += own;
        parts += own * ((runs_of(rows[row].held + rows[row].count) + MOST_RUNS - 1) / MOST_RUNS);
        seen += rows[row].count * (rows[row].held + rows[row].count);
    }
    Part* const listing = static_cast<Part*>(listed.get(static_cast<std::size_t>(parts + pieces + 1) * sizeof(Part)));
    if (!listing) return false;
    i64 next = 0;
    Part* const joins = listing + parts;
    for (i64 row = 0, piece = 0; row < count; ++row)
        for (i64 first = 0; first < rows[row].count; first += tokens) {
            const i64 some = std::min(rows[row].count - first, tokens), runs = runs_of(rows[row].held + first + some);
            for (i64 run = 0; run < runs; run += MOST_RUNS)
                listing[next++] = {row, first, some, 0, heads.key_value_heads, run, std::min(run + MOST_RUNS, runs), nullptr};
            joins[piece++] = {row, first, some, 0, heads.key_value_heads, 0, runs, nullptr};
        }
    threads = seen * heads.heads * heads.key_width < ALONE ? 1 : threads;
    Job job{&kernel, &heads, &held, rows, listing, queries, query_step, head_step, nullptr,
            room_of(heads, tokens * sharing, heads.key_value_heads), false, out, most, {false}};
    parallel(threads, next, one_part, &job);
    job.parts = joins;
    job.joins = true;
    parallel(threads, pieces, one_part, &job);
    return !job.failed.load(std::memory_order_relaxed);
}

void keep(const Heads& heads, const Held& held, const Row* rows, i64 count, const float* keys, i64 key_step, const float* values,
          i64 value_step) {
    for (i64 row = 0; row < count; ++row) {
        put(held.keys, held, rows[row], heads.key_value_heads, heads.key_width, keys, key_step);
        put(held.values, held, rows[row], heads.key_value_heads, heads.value_width, values, value_step);
    }
}

}  // namespace shoestring
