// Fetching what is read next while the processor multiplies.
#pragma once

#include <immintrin.h>

#include <vector>

#include "common.h"

namespace gw {

// Asks for the lines of a rectangle of a matrix, some with every call, spread over `calls`.
class Ahead {
   public:
    Ahead(const bf16* first, index ld, index rows, index width, index calls)
        : first_(reinterpret_cast<const char*>(first)),
          ld_(2 * ld),
          lines_((2 * width + 63) / 64),
          left_(width > 0 ? rows * lines_ : 0),
          burst_(calls > 0 ? (left_ + calls - 1) / calls : 0) {}

    void operator()() {
        for (index n = std::min(burst_, left_); n > 0; --n, --left_) {
            _mm_prefetch(first_ + line_ * 64, _MM_HINT_T1);
            if (++line_ == lines_) {
                line_ = 0;
                first_ += ld_;
            }
        }
    }

   private:
    const char* first_ = nullptr;
    index ld_ = 0, lines_ = 0, left_ = 0, burst_ = 0, line_ = 0;
};

// The same of pieces of memory, one behind the other; what is needed soon into the first cache.
class Stream {
 public:
    void clear() {
        parts_.clear();
        part_ = lines_ = 0;
    }
    void add(const void* first, index bytes) {
        const char* begin = static_cast<const char*>(first);
        if (bytes > 0) parts_.push_back({begin, begin + bytes});
        lines_ += (bytes + 63) / 64;
    }
    void spread(index calls, bool soon) {
        burst_ = calls > 0 ? (lines_ + calls - 1) / calls : 0;
        soon_ = soon;
    }

    void operator()() {
        for (index n = burst_; n > 0 && part_ < parts_.size();) {
            auto& [next, last] = parts_[part_];
            const char* end = std::min(last, next + n * 64);
            n -= (end - next + 63) / 64;
            if (soon_)
                for (; next < end; next += 64) _mm_prefetch(next, _MM_HINT_T0);
            else
                for (; next < end; next += 64) _mm_prefetch(next, _MM_HINT_T1);
            if (next >= last) ++part_;
        }
    }

 private:
    struct Part {
        const char *next, *last;
    };

    std::vector<Part> parts_;
    std::size_t part_ = 0;  // that is being fetched
    index lines_ = 0, burst_ = 0;
    bool soon_ = false;
};

}  // namespace gw
