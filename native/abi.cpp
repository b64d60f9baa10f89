// The C functions that Python loads. All arguments are checked there; nothing here is.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "attention.h"
#include "common.h"
#include "decoder.h"
#include "grouped.h"
#include "pool.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace shoestring {
namespace {

constexpr const char* NAMES[] = {"plain", "avx2", "avx512_vnni", "avx512_vbmi"};

bool supported(int kernel) {
#if SHOESTRING_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
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

}  // namespace
}  // namespace shoestring

// Changes with the functions below.
EXPORTED int shoestring_interface() { return 9; }

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
    return !multiply(kernel_of(kernel), layout, threads, x, tokens, columns, packed, rows, scales, groups, out);
}

// out [tokens, rows] = x [tokens, columns] times int8 [rows, columns], or pairs of 4-bit weights. 0, or 1 where there is no memory.
EXPORTED int shoestring_integer_matmul(int kernel, int bits, int threads, const float* x, std::int64_t tokens,
                                       std::int64_t columns, const std::uint8_t* weights, std::int64_t rows,
                                       const float* scales, float* out) {
    using namespace shoestring;
    return !multiply_integers(kernel_of(kernel), bits, threads, x, tokens, columns, weights, rows, scales, out);
}

// out [tokens, rows] = x [tokens, columns] times a matrix of 4 or 8 bits in groups of 32 columns. 0, or 1 where there is no memory.
EXPORTED int shoestring_grouped_matmul(int kernel, int bits, int threads, const float* x, std::int64_t tokens,
                                       std::int64_t columns, const std::uint8_t* packed, std::int64_t rows, float* out) {
    using namespace shoestring;
    return !multiply_grouped(*kernel_of(kernel).grouped, bits, threads, x, tokens, columns, packed, rows, out);
}

// x [tokens, width] through all layers, in place, see decoder.h. 0, or 1 where there is no memory.
EXPORTED int shoestring_decode(int kernel, int threads, const void* decoder, const void* held, const void* states, int apart,
                               const void* rows, std::int64_t count, std::int64_t tokens, const float* cos, const float* sin,
                               float* x, float* asked) {
    using namespace shoestring;
    return !decode(kernel_of(kernel), threads, *static_cast<const Decoder*>(decoder), static_cast<const Held*>(held),
                   static_cast<const State*>(states), apart, static_cast<const Row*>(rows), count, tokens, cos, sin, x, asked);
}

// out [tokens, rows] = x [tokens, columns] times any matrix of decoder.h. 0, or 1 where there is no memory.
EXPORTED int shoestring_matmul(int kernel, int threads, const void* matrix, const float* x, std::int64_t tokens, float* out) {
    using namespace shoestring;
    return !product(kernel_of(kernel), threads, *static_cast<const Matrix*>(matrix), x, tokens, out);
}

// out [tokens, heads, value_width] of queries, see attention.h. 0, or 1 where there is no memory.
EXPORTED int shoestring_attend(int kernel, int threads, const void* heads, const void* held, const void* rows, std::int64_t count,
                               const float* queries, std::int64_t query_step, std::int64_t head_step, float* out) {
    using namespace shoestring;
    return !attend(kernel_of(kernel), threads, *static_cast<const Heads*>(heads), *static_cast<const Held*>(held),
                   static_cast<const Row*>(rows), count, queries, query_step, head_step, out);
}

// out [tokens, heads, most] what queries look at, see attention.h. 0, or 1 where there is no memory.
EXPORTED int shoestring_looks(int kernel, int threads, const void* heads, const void* held, const void* rows, std::int64_t count,
                              const float* queries, std::int64_t query_step, std::int64_t head_step, std::int64_t most, float* out) {
    using namespace shoestring;
    return !looks(kernel_of(kernel), threads, *static_cast<const Heads*>(heads), *static_cast<const Held*>(held),
                  static_cast<const Row*>(rows), count, queries, query_step, head_step, most, out);
}

// out [count, columns] = rows `which` of a matrix in groups. 0, or 1 where there is no such row.
EXPORTED int shoestring_grouped_rows(int bits, const std::uint8_t* packed, std::int64_t rows, std::int64_t columns,
                                     const std::int64_t* which, std::int64_t count, float* out) {
    return !shoestring::grouped_rows(bits, packed, rows, columns, which, count, out);
}
