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

// The same of pieces of memory, one behind the other; of a large one at four places side by side,
// which memory gives faster.
class Stream {
 public:
    void clear() {
        parts_.clear();
        part_ = rows_ = 0;
    }
    void add(const void* first, index bytes) {
        if (bytes <= 0) return;
        const index lines = (bytes + 63) / 64, width = lines < worth_splitting ? 1 : 4;
        const index rows = (lines + width - 1) / width;
        parts_.push_back({static_cast<const char*>(first), rows * 64, width, rows});
        rows_ += rows;
    }
    void spread(index calls) {
        calls_ = std::max<index>(calls, 1);
        due_ = 0;
    }

    void operator()() {
        for (due_ += rows_; due_ >= calls_ && part_ < parts_.size(); due_ -= calls_) {
            Part& part = parts_[part_];
            for (index i = 0; i < part.width; ++i)
                _mm_prefetch(part.next + i * part.stride, _MM_HINT_T1);
            part.next += 64;
            if (!--part.rows) ++part_;
        }
    }

 private:
    static constexpr index worth_splitting = 64;  // lines

    struct Part {
        const char* next;
        index stride, width, rows;  // a row is a line at each place, `stride` apart
    };

    std::vector<Part> parts_;
    std::size_t part_ = 0;  // that is being fetched
    index rows_ = 0, calls_ = 1, due_ = 0;  // in `calls_`ths of a row
};

// The same for products by vectors: with every call as many lines as with any other, or the same
// line again. Asking at times is a branch that is mispredicted each time, which takes longer than
// the products in between.
class Steady {
 public:
    void clear() {
        parts_.clear();
        bytes_ = 0;
    }
    void add(const void* first, index bytes) {
        if (bytes <= 0) return;
        parts_.push_back({static_cast<const char*>(first), bytes});
        bytes_ += bytes;
    }
    void spread(index calls) {
        const index lines = bytes_ / line + static_cast<index>(parts_.size());
        const index most = std::max<index>(calls, 1);
        burst_ = (lines + most - 1) / most;
        pace_ = burst_ ? (lines * line << shift) / (most * burst_) : 0;
        part_ = 0;
        next();
    }

    [[gnu::always_inline]] void operator()() {
        for (index n = burst_; n > 0; --n) {
            _mm_prefetch(first_ + (at_ >> shift), _MM_HINT_T1);
            if ((at_ += pace_) >= end_) [[unlikely]] next();
        }
    }

 private:
    static constexpr index line = 64;
    static constexpr int shift = 10;  // of a place in a part, which is in fractions of a byte

    struct Part {
        const char* first;
        index bytes;
    };

    void next() {
        at_ = 0;
        if (part_ == parts_.size()) {
            burst_ = 0;
            return;
        }
        first_ = parts_[part_].first;
        end_ = parts_[part_++].bytes << shift;
    }

    std::vector<Part> parts_;
    std::size_t part_ = 0;  // that comes after the one being fetched
    const char* first_ = nullptr;
    index at_ = 0, end_ = 0, pace_ = 0, burst_ = 0, bytes_ = 0;
};

// The same of two pieces, at four places side by side, which memory gives faster than one behind
// the other.
class Abreast {
 public:
    void clear() { parts_ = row_ = rows_ = 0; }
    void add(const void* first, index bytes) {
        const index half = (bytes + 127) / 128;
        for (index i = 0; i < 2; ++i, ++parts_)
            first_[parts_] = static_cast<const char*>(first) + i * half * 64;
        rows_ = std::max(rows_, half);
    }
    void spread(index calls) { burst_ = (rows_ + calls - 1) / calls; }

    void operator()() {
        for (const index last = std::min(row_ + burst_, rows_); row_ < last; ++row_)
            for (index i = 0; i < parts_; ++i) _mm_prefetch(first_[i] + row_ * 64, _MM_HINT_T1);
    }

 private:
    const char* first_[4];
    index parts_ = 0, row_ = 0, rows_ = 0, burst_ = 0;  // a row is a line of each part
};

}  // namespace gw
