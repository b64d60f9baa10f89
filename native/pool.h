// Threads: those of the OpenMP runtime that torch uses where it lends them, else a small pool: a short spin for work, then sleep.
//
// Two sets of threads on the same cores get into each other's way: an OpenMP thread looks for work for milliseconds after its last,
// and takes the core from a worker of another pool. So torch's are used where they can be; nothing is linked for it.
#pragma once

#include "common.h"

namespace shoestring {

using Work = void (*)(void* context, i64 part);

// work(context, p) for each p below `parts`, on the calling thread and up to threads - 1 others; returns when all are done.
// While another caller uses the pool the calling thread does everything itself.
void parallel(int threads, i64 parts, Work work, void* context);

// work(context) on the calling thread. What it asks of `parallel` is shared with up to threads - 1 others, which stay at hand until
// it returns, where threads are borrowed; the pool's own look for work for a while anyway.
void together(int threads, void (*work)(void* context), void* context);

// run: `GOMP_parallel` of the runtime whose threads to use from now on; null: the pool.
void borrow_threads(void* run);

}  // namespace shoestring
