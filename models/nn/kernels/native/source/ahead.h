// Fetching what is packed next while the processor multiplies.
#pragma once

#include <immintrin.h>

#include "common.h"

namespace gw {

// Asks for the lines of a rectangle of a matrix, some with every call, spread over `calls`.
class Ahead {
   public:
    Ahead() = default;
    Ahead(const void* first, index bytes, index calls)
        : Ahead(static_cast<const bf16*>(first), 0, 1, bytes / 2, calls) {}
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

}  // namespace gw
