#include "pool.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace shoestring {
namespace {

// How long a worker looks for the next task before it sleeps: longer than what lies between two layers of a model.
constexpr std::chrono::microseconds PATIENCE{100};
constexpr int LOOKS = 64;  // between two looks at the clock
constexpr int MOST_WORKERS = 255;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// What the caller has open for others, one task at a time. `state_` says which, whether others may still enter it, how many may and
// how many have: who comes too late finds it closed, and nobody waits for a thread that has not begun.
class Board {
  protected:
    static u32 generation(u64 state) { return static_cast<u32>(state >> GENERATION); }

    // Lets up to `helpers` others into work on `parts`.
    void open(int helpers, i64 parts, Work work, void* context) {
        work_ = work;
        context_ = context;
        parts_ = parts;
        next_.store(0, std::memory_order_relaxed);
        left_.store(0, std::memory_order_relaxed);
        const u64 generation = (state_.load(std::memory_order_relaxed) >> GENERATION) + 1;
        state_.store(generation << GENERATION | static_cast<u64>(helpers) << LIMIT | OPEN, std::memory_order_seq_cst);
    }

    // Takes what is left of the parts, and waits for who took others.
    void finish() {
        take();
        const u64 entered = state_.fetch_and(~OPEN, std::memory_order_acq_rel) & ENTERED;
        for (int looks = 0; left_.load(std::memory_order_acquire) != entered; ++looks) {
            if (looks < 1000)
                relax();
            else
                sched_yield();
        }
    }

    // Takes part in what `state` says is open.
    void help(u64 state) {
        const u32 task = generation(state);
        while (generation(state) == task && (state & OPEN) && (state & ENTERED) < (state >> LIMIT & 0x7fff)) {
            if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
            take();
            left_.fetch_add(1, std::memory_order_release);
            return;
        }
    }

    alignas(64) std::atomic<u64> state_{0};

  private:
    static constexpr int GENERATION = 32, LIMIT = 17;
    static constexpr u64 OPEN = 1u << 16, ENTERED = OPEN - 1;

    void take() {
        for (i64 part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) work_(context_, part);
    }

    alignas(64) std::atomic<i64> next_{0};
    alignas(64) std::atomic<u64> left_{0};
    Work work_ = nullptr;
    void* context_ = nullptr;
    i64 parts_ = 0;
};

// Threads of the library's own.
class Pool : Board {
  public:
    void run(int threads, i64 parts, Work work, void* context) {
        std::unique_lock<std::mutex> ours(caller_, std::try_to_lock);
        const int helpers = ours ? hire(threads - 1 < parts - 1 ? threads - 1 : static_cast<int>(parts - 1)) : 0;
        if (helpers == 0) {
            for (i64 part = 0; part < parts; ++part) work(context, part);
            return;
        }
        open(helpers, parts, work, context);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) {
            { std::lock_guard<std::mutex> hold(sleep_); }
            wake_.notify_all();
        }
        finish();
    }

  private:
    // How many workers there are now, of `wanted`.
    int hire(int wanted) {
        if (wanted > MOST_WORKERS) wanted = MOST_WORKERS;
        sigset_t all, before;
        if (workers_ < wanted) {
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
            for (pthread_t thread; workers_ < wanted && pthread_create(&thread, nullptr, begin, this) == 0; ++workers_)
                pthread_detach(thread);
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
        }
        return workers_ < wanted ? workers_ : wanted;
    }

    static void* begin(void* pool) {
        static_cast<Pool*>(pool)->serve();
        return nullptr;
    }

    void serve() {
        for (u32 seen = 0;;) {
            const u64 state = await(seen);
            seen = generation(state);
            help(state);
        }
    }

    // The state as soon as it is of another task than `seen`.
    u64 await(u32 seen) {
        const auto until = std::chrono::steady_clock::now() + PATIENCE;
        do {
            for (int look = 0; look < LOOKS; ++look) {
                const u64 state = state_.load(std::memory_order_acquire);
                if (generation(state) != seen) return state;
                relax();
            }
        } while (std::chrono::steady_clock::now() < until);
        std::unique_lock<std::mutex> hold(sleep_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        u64 state;
        while (generation(state = state_.load(std::memory_order_seq_cst)) == seen) wake_.wait(hold);
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
        return state;
    }

    alignas(64) std::atomic<int> sleepers_{0};
    int workers_ = 0;
    std::mutex caller_, sleep_;
    std::condition_variable wake_;
};

// Borrowed threads that stay at hand for many tasks of one caller: to borrow them anew for each costs more than a small task does.
class Crew : Board {
  public:
    void run(int threads, i64 parts, Work work, void* context) {
        open(static_cast<int>(threads - 1 < parts - 1 ? threads - 1 : parts - 1), parts, work, context);
        finish();
    }

    void serve() {
        for (u32 seen = 0;;) {
            u64 state;
            for (int looks = 0; generation(state = state_.load(std::memory_order_acquire)) == seen; ++looks) {
                if (over_.load(std::memory_order_acquire)) return;
                if (looks < BEFORE_OTHERS)
                    relax();
                else
                    sched_yield();  // somebody else may need the core: the caller, say
            }
            seen = generation(state);
            help(state);
        }
    }

    void dismiss() { over_.store(true, std::memory_order_release); }

  private:
    static constexpr int BEFORE_OTHERS = 2000;
    std::atomic<bool> over_{false};
};

thread_local Crew* leading = nullptr;  // the crew of who calls `parallel` here

struct Led {
    void (*work)(void*);
    void* context;
    pthread_t leader;
    Crew crew;
};

void lead_or_serve(void* of) {
    Led& led = *static_cast<Led*>(of);
    if (!pthread_equal(pthread_self(), led.leader)) return led.crew.serve();
    leading = &led.crew;
    led.work(led.context);
    leading = nullptr;
    led.crew.dismiss();
}

// Never destroyed: its threads may outlive main.
Pool* own = nullptr;

using Borrowed = void (*)(void (*work)(void*), void* context, unsigned threads, unsigned flags);
std::atomic<Borrowed> borrowed{nullptr};

// A forked child has the threads of neither: it gets a pool of its own.
std::once_flag prepared;

void prepare() {
    own = new (std::nothrow) Pool;
    pthread_atfork(nullptr, nullptr, [] {
        borrowed.store(nullptr);
        own = new (std::nothrow) Pool;
    });
}

struct Region {
    Work work;
    void* context;
    i64 parts;
    std::atomic<i64> next;
};

void take(void* of) {
    Region& region = *static_cast<Region*>(of);
    for (i64 part; (part = region.next.fetch_add(1, std::memory_order_relaxed)) < region.parts;) region.work(region.context, part);
}

}  // namespace

void borrow_threads(void* run) {
    std::call_once(prepared, prepare);
    borrowed.store(reinterpret_cast<Borrowed>(run));
}

void together(int threads, void (*work)(void*), void* context) {
    const Borrowed run = borrowed.load(std::memory_order_relaxed);
    if (threads <= 1 || !run || leading) return work(context);
    Led led{work, context, pthread_self(), {}};
    run(lead_or_serve, &led, static_cast<unsigned>(threads), 0);
}

void parallel(int threads, i64 parts, Work work, void* context) {
    if (threads > 1 && parts > 1) {
        if (leading) return leading->run(threads, parts, work, context);
        std::call_once(prepared, prepare);
        if (const Borrowed run = borrowed.load(std::memory_order_relaxed)) {
            Region region{work, context, parts, {0}};
            return run(take, &region, static_cast<unsigned>(threads < parts ? threads : parts), 0);
        }
        if (own) return own->run(threads, parts, work, context);
    }
    for (i64 part = 0; part < parts; ++part) work(context, part);
}

}  // namespace shoestring
