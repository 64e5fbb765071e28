// Rows whose numbers are broadcast, one after the other, to what all of them are multiplied with.
#pragma once

#include <immintrin.h>

#include "common.h"
#include "vector.h"

namespace gw {

// A pointer of which the compiler does not know what it points to.
template <class T>
[[gnu::always_inline]] inline T* unknown(T* pointer) {
    asm("" : "+r"(pointer));
    return pointer;
}

// R rows, by an address of every third one and their distance, which fit into registers.
template <int R>
class RowsAbreast {
   public:
    template <class Number>
    [[gnu::always_inline]] RowsAbreast(const Number* first, index ld)
        : distance_(ld * static_cast<index>(sizeof *first)) {
        asm("" : "+r"(distance_));
#pragma GCC unroll 4
        for (int third = 0; third < thirds; ++third)
            bases_[third] = reinterpret_cast<const char*>(first + 3 * third * ld);
        hide();
    }

    [[gnu::always_inline]] void advance(index bytes) {
#pragma GCC unroll 4
        for (int third = 0; third < thirds; ++third) bases_[third] += bytes;
        hide();
    }

    // Four bytes of a row, over and over.
    [[gnu::always_inline]] __m512i four(int row, index byte) const {
        std::int32_t four;
        __builtin_memcpy(&four, bases_[row / 3] + byte + row % 3 * distance_, sizeof four);
        return _mm512_set1_epi32(four);
    }
    [[gnu::always_inline]] __m512bh pair(int row, index input) const {
        return reinterpret_cast<__m512bh>(four(row, input * sizeof(bf16)));
    }

   private:
    static constexpr int thirds = (R + 2) / 3;

    // The compiler would make addresses of all rows out of them.
    [[gnu::always_inline]] void hide() {
#pragma GCC unroll 4
        for (int third = 0; third < thirds; ++third) bases_[third] = unknown(bases_[third]);
    }

    index distance_;  // from one row to the next, in bytes
    const char* bases_[thirds];
};

}  // namespace gw
