// The product with a matrix of floats, its rows cut into parts for the threads.
#include "dense.h"

#include "parts.h"
#include "pool.h"

namespace shoestring {
namespace {

struct Part {
    const DenseProduct* product;
    void (*dense)(const DenseProduct&, i64 first, i64 last);
    i64 units;
};

void some_rows(void* context, i64 number) {
    const Part& job = *static_cast<const Part*>(context);
    const i64 first = number * job.units, end = first + job.units;
    job.dense(*job.product, first, end < job.product->rows ? end : job.product->rows);
}

}  // namespace

void multiply_dense(const Kernel& kernel, bool bfloat16, int threads, const float* x, i64 tokens, i64 columns, const void* weights,
                    i64 rows, float* out) {
    if (tokens == 0 || rows == 0) return;
    const DenseProduct product{weights, bfloat16, rows, columns, tokens, x, out};
    threads = threads_for(rows * columns * tokens, threads);
    Part part{&product, kernel.dense, units_of(rows, columns * (bfloat16 ? 2 : 4), tokens, 4, threads)};
    parallel(threads, (rows + part.units - 1) / part.units, some_rows, &part);
}

}  // namespace shoestring
