// Activations to eight bits, in the order in which the kernels read them.
#include <atomic>
#include <cstring>

#include "common.h"
#include "pool.h"
#include "scratch.h"

namespace shoestring {
namespace {

thread_local Scratch kept, row;

struct Job {
    Quantise quantise;
    const float* x;
    i64 columns, group;
    Tokens* into;
    i8* codes;
    float* scale;
    i32* sums;
    std::atomic<bool>* failed;
};

void one_token(void* context, i64 token) {
    const Job& job = *static_cast<Job*>(context);
    const Tokens& into = *job.into;
    const Blocks blocks(into.tokens, into.most);
    const i64 block = blocks.holding(token), width = blocks.size(block), padded = into.quads * QUAD;
    i8* const at = job.codes + blocks.start(block) * padded;
    i8* const straight = width == 1 ? at : static_cast<i8*>(row.get(static_cast<std::size_t>(padded) + 1));
    if (!straight) {
        job.failed->store(true, std::memory_order_relaxed);
        return;
    }
    job.scale[token] = job.quantise(job.x + token * job.columns, job.columns, padded, job.group, straight,
                                    job.sums + token * into.groups);
    if (width == 1) return;
    i8* to = at + (token - blocks.start(block)) * QUAD;
    for (i64 quad = 0; quad < into.quads; ++quad, to += width * QUAD) std::memcpy(to, straight + quad * QUAD, QUAD);
}

}  // namespace

// Fills in `into` from its tokens, groups, quads and most. The memory is the calling thread's, until its next call. False: there
// is none.
bool quantise(const Kernel& kernel, const float* x, i64 tokens, i64 columns, i64 group, int threads, Tokens& into) {
    const auto cache_line = [](i64 bytes) { return static_cast<std::size_t>((bytes + 63) / 64 * 64); };
    const std::size_t codes = cache_line(tokens * into.quads * QUAD), scale = cache_line(tokens * 4);
    u8* const memory = static_cast<u8*>(kept.get(codes + scale + cache_line(tokens * into.groups * 4) + 64));
    if (!memory) return false;
    std::atomic<bool> failed{false};
    Job job{kernel.quantise,
            x,
            columns,
            group,
            &into,
            reinterpret_cast<i8*>(memory),
            reinterpret_cast<float*>(memory + codes),
            reinterpret_cast<i32*>(memory + codes + scale),
            &failed};
    into.codes = job.codes;
    into.scale = job.scale;
    into.sums = job.sums;
    parallel(tokens * columns < (i64{1} << 14) ? 1 : threads, tokens, one_token, &job);
    return !failed;
}

}  // namespace shoestring
