// The C functions that Python loads. All arguments are checked there; nothing here is.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>

#include "common.h"
#include "pool.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace shoestring {
namespace {

constexpr i64 ALONE = i64{1} << 17;  // multiplications worth waking another thread for
constexpr i64 PIECE = i64{1} << 17;  // bytes of weights in a part of the work for one token: reading ahead is lost at its end
constexpr i64 PARTS = 4;  // for each thread, so that one that is held up is helped by the others

constexpr const char* NAMES[] = {"plain", "avx2", "avx512_vnni", "avx512_vbmi"};

bool supported(int kernel) {
#if SHOESTRING_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    switch (kernel) {
        case 1: return avx2;
        case 2: return vnni;
        case 3: return vnni && __builtin_cpu_supports("avx512vbmi");
        default: break;
    }
#endif
    return kernel == 0;
}

const Kernel& kernel_of(int kernel) {
#if SHOESTRING_X86
    if (kernel == 1) return avx2_kernel;
    if (kernel == 2) return avx512_vnni_kernel;
    if (kernel == 3) return avx512_vbmi_kernel;
#endif
    (void)kernel;
    return plain_kernel;
}

// Units of work (row blocks or rows) in a part, a multiple of `step`: a part for each thread, and up to PARTS where they are large.
i64 units_of(i64 units, i64 unit_bytes, i64 tokens, i64 step, int threads) {
    const i64 work = unit_bytes * (tokens < 16 ? tokens : 16) + 1;
    const i64 large = (PIECE + work - 1) / work, even = (units + threads - 1) / threads;
    const i64 small = (units + PARTS * threads - 1) / (PARTS * threads);
    const i64 chosen = large < small ? small : (large < even ? large : even);
    return (chosen + step - 1) / step * step;
}

int threads_for(i64 multiplications, int threads) {
    const i64 worth = 1 + multiplications / ALONE;
    return worth < threads ? static_cast<int>(worth) : threads;
}

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
}  // namespace shoestring

// Changes with the functions below.
EXPORTED int shoestring_interface() { return 1; }

// Uses the threads of an OpenMP runtime, `run` being its GOMP_parallel; null: threads of the library's own.
EXPORTED void shoestring_borrow_threads(void* run) { shoestring::borrow_threads(run); }

// Asks for large pages under `bytes` of memory that is not used yet. What lies before the first and after the last is left.
EXPORTED void shoestring_large_pages(void* memory, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t large = std::uintptr_t{1} << 21;
    const std::uintptr_t start = (reinterpret_cast<std::uintptr_t>(memory) + large - 1) / large * large;
    const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(memory) + static_cast<std::uintptr_t>(bytes)) / large * large;
    if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);  // advice: nothing hangs on it
#else
    (void)memory, (void)bytes;
#endif
}

// The name of kernel number `kernel` where this processor can run it, '' where not, null beyond the last.
EXPORTED const char* shoestring_kernel(int kernel) {
    if (kernel < 0 || kernel >= static_cast<int>(sizeof(shoestring::NAMES) / sizeof(shoestring::NAMES[0]))) return nullptr;
    return shoestring::supported(kernel) ? shoestring::NAMES[kernel] : "";
}

// out [tokens, rows] = x [tokens, columns] times packed trits. 0, or 1 where there is no memory.
EXPORTED int shoestring_ternary_matmul(int kernel, int layout, int threads, const float* x, std::int64_t tokens,
                                       std::int64_t columns, const std::uint8_t* packed, std::int64_t rows, const float* scales,
                                       std::int64_t groups, float* out) {
    using namespace shoestring;
    if (tokens == 0 || rows == 0) return 0;
    const Kernel& chosen = kernel_of(kernel);
    const i64 block = quads_of(layout) * QUAD, blocks = (columns + block - 1) / block, row_blocks = (rows + LANES - 1) / LANES;
    const i64 group_blocks = groups == 1 ? blocks : columns / groups / block;
    Product product{layout, packed, rows, row_blocks, blocks, groups, group_blocks, scales, {}, out};
    product.x.tokens = tokens;
    product.x.groups = groups;
    product.x.quads = blocks * quads_of(layout);
    product.x.most = chosen.most;
    threads = threads_for(rows * columns * tokens, threads);
    if (!quantise(chosen, x, tokens, columns, groups == 1 ? 0 : columns / groups, threads, product.x)) return 1;
    const i64 units = units_of(row_blocks, blocks * VECTOR, tokens, 1, threads);
    TernaryJob job{&product, chosen.ternaries[layout], units, {false}};
    parallel(threads, (row_blocks + units - 1) / units, ternary_part, &job);
    return job.failed.load(std::memory_order_relaxed);
}

// out [tokens, rows] = x [tokens, columns] times int8 [rows, columns], or pairs of 4-bit weights. 0, or 1 where there is no memory.
EXPORTED int shoestring_integer_matmul(int kernel, int bits, int threads, const float* x, std::int64_t tokens,
                                       std::int64_t columns, const std::uint8_t* weights, std::int64_t rows,
                                       const float* scales, float* out) {
    using namespace shoestring;
    if (tokens == 0 || rows == 0) return 0;
    const Kernel& chosen = kernel_of(kernel);
    const i64 blocks = (columns + 63) / 64;
    IntegerProduct product{bits, weights, rows, columns, bits == 8 ? columns : 32 * blocks, scales, {}, out};
    product.x.tokens = tokens;
    product.x.groups = 1;
    product.x.quads = blocks * 16;
    product.x.most = 1;
    threads = threads_for(rows * columns * tokens, threads);
    if (!quantise(chosen, x, tokens, columns, 0, threads, product.x)) return 1;
    IntegerJob job{&product, chosen.integers[bits == 8 ? 0 : 1], units_of(rows, product.stride, tokens, 4, threads)};
    parallel(threads, (rows + job.units - 1) / job.units, integer_part, &job);
    return 0;
}
