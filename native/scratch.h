// Memory that a thread keeps from call to call.
#pragma once

#include <cstdlib>

#include "common.h"

namespace shoestring {

class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // At least `bytes`, aligned to a cache line; what it held before is lost. Null where there is no memory.
    void* get(std::size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = (bytes + 4095) / 4096 * 4096;
            memory_ = nullptr;
            if (posix_memalign(&memory_, 64, size_) != 0) {
                memory_ = nullptr;
                size_ = 0;
            }
        }
        return memory_;
    }

  private:
    void* memory_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace shoestring
