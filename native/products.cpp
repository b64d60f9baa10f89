// One product, cut into parts for the threads.
#include <atomic>

#include "common.h"
#include "parts.h"
#include "pool.h"

namespace shoestring {
namespace {

struct TernaryJob {
    const Product* product;
    Ternaries ternaries;
    i64 units;
    std::atomic<bool> failed;
};

void ternary_part(void* context, i64 part) {
    TernaryJob& job = *static_cast<TernaryJob*>(context);
    const i64 first = part * job.units, blocks = job.product->row_blocks;
    if (!job.ternaries(*job.product, first, first + job.units < blocks ? first + job.units : blocks))
        job.failed.store(true, std::memory_order_relaxed);
}

struct IntegerJob {
    const IntegerProduct* product;
    Integers integers;
    i64 units;
};

void integer_part(void* context, i64 part) {
    const IntegerJob& job = *static_cast<const IntegerJob*>(context);
    const i64 first = part * job.units, rows = job.product->rows;
    job.integers(*job.product, first, first + job.units < rows ? first + job.units : rows);
}

}  // namespace

bool multiply(const Kernel& kernel, int layout, int threads, const float* x, i64 tokens, i64 columns, const u8* packed, i64 rows,
              const float* scales, i64 groups, float* out) {
    if (tokens == 0 || rows == 0) return true;
    const i64 block = quads_of(layout) * QUAD, blocks = (columns + block - 1) / block, row_blocks = (rows + LANES - 1) / LANES;
    const i64 group_blocks = groups == 1 ? blocks : columns / groups / block;
    Product product{layout, packed, rows, row_blocks, blocks, groups, group_blocks, scales, {}, out};
    product.x.tokens = tokens;
    product.x.groups = groups;
    product.x.quads = blocks * quads_of(layout);
    product.x.most = kernel.most;
    threads = threads_for(rows * columns * tokens, threads);
    if (!quantise(kernel, x, tokens, columns, groups == 1 ? 0 : columns / groups, threads, product.x)) return false;
    const i64 units = units_of(row_blocks, blocks * VECTOR, tokens, 1, threads);
    TernaryJob job{&product, kernel.ternaries[layout], units, {false}};
    parallel(threads, (row_blocks + units - 1) / units, ternary_part, &job);
    return !job.failed.load(std::memory_order_relaxed);
}

bool multiply_integers(const Kernel& kernel, int bits, int threads, const float* x, i64 tokens, i64 columns, const u8* weights,
                       i64 rows, const float* scales, float* out) {
    if (tokens == 0 || rows == 0) return true;
    const i64 blocks = (columns + 63) / 64;
    IntegerProduct product{weights, rows, columns, bits == 8 ? columns : 32 * blocks, scales, {}, out};
    product.x.tokens = tokens;
    product.x.groups = 1;
    product.x.quads = blocks * 16;
    product.x.most = 1;
    threads = threads_for(rows * columns * tokens, threads);
    if (!quantise(kernel, x, tokens, columns, 0, threads, product.x)) return false;
    IntegerJob job{&product, kernel.integers[bits == 8 ? 0 : 1], units_of(rows, product.stride, tokens, 4, threads)};
    parallel(threads, (rows + job.units - 1) / job.units, integer_part, &job);
    return true;
}

}  // namespace shoestring
