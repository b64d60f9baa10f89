// Attention of all rows of a pass, cut into pieces for the threads.
#include "attention.h"

#include <atomic>
#include <cstring>

#include "pool.h"
#include "scratch.h"

namespace shoestring {
namespace {

constexpr i64 ALONE = i64{1} << 16;  // multiplications worth another thread
constexpr i64 QUERIES = 32;          // of a piece: they share what is fetched of keys and values

thread_local Scratch kept, listed;

struct Part {
    i64 row, first, count;
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
    std::atomic<bool> failed;
};

void one_piece(void* context, i64 number) {
    Job& job = *static_cast<Job*>(context);
    const Part& part = job.parts[number / job.heads->key_value_heads];
    float* const room = static_cast<float*>(kept.get(static_cast<std::size_t>(job.room) * sizeof(float)));
    if (!room) return job.failed.store(true, std::memory_order_relaxed);
    job.kernel->attend({job.heads, job.held, job.rows + part.row, part.first, part.count, number % job.heads->key_value_heads,
                        job.queries, job.query_step, job.head_step, job.out, room});
}

u16 narrow(float value) {  // to bfloat16, to the nearest, ties to even
    u32 bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<u16>(bits >> 16 | 0x40);
    return static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

void put(const Side& side, const Held& held, const Row& row, i64 heads, i64 width, const float* from, i64 step) {
    for (i64 token = 0; token < row.count; ++token) {
        const i64 place = row.held + token;
        const i64 at = row.blocks[place / held.block] * side.block_step + place % held.block * side.token_step;
        for (i64 head = 0; head < heads; ++head) {
            const float* const numbers = from + (row.start + token) * step + head * width;
            const i64 to = at + head * side.head_step;
            if (held.bfloat16)
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
    i64 pieces = 0, seen = 0, most = 0;
    for (i64 row = 0; row < count; ++row) {
        pieces += (rows[row].count + tokens - 1) / tokens;
        seen += rows[row].count * (rows[row].held + rows[row].count);
        most = rows[row].count > most ? rows[row].count : most;
    }
    Part* const parts = static_cast<Part*>(listed.get(static_cast<std::size_t>(pieces + 1) * sizeof(Part)));
    if (!parts) return false;
    i64 next = 0;
    for (i64 row = 0; row < count; ++row)
        for (i64 first = 0; first < rows[row].count; first += tokens)
            parts[next++] = {row, first, rows[row].count - first < tokens ? rows[row].count - first : tokens};
    Job job{&kernel, &heads, &held, rows, parts, queries, query_step, head_step, out,
            room_of(heads, most < tokens ? most : tokens), {false}};
    const i64 work = seen * heads.heads * (heads.key_width + heads.value_width);
    parallel(work < ALONE ? 1 : threads, pieces * heads.key_value_heads, one_piece, &job);
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
