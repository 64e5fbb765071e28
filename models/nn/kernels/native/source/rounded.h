// Where the sums of a product go, rounded once to bfloat16.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include "common.h"
#include "vector.h"

namespace gw {

// Of what would fill a quarter of the second caches of a team little is there when it is read, and a
// line that is not there is fetched before it is written. So its whole lines go straight to memory.
class Rounded {
   public:
    // To be made by each thread of a team for the part that it writes; `size` is that of all parts.
    Rounded(bf16* target, index size)
        : target_(target), past_(size > omp_get_num_threads() * kept_of_each) {}
    Rounded(const Rounded&) = delete;
    Rounded& operator=(const Rounded&) = delete;
    // From here on other threads see all of it.
    ~Rounded() { _mm_sfence(); }

    void put(index at, __m512 sum) const { store_bf16(target_ + at, sum); }
    void put(index at, __m512 first, __m512 second) const {
        bf16* place = target_ + at;
        if (past_ && reinterpret_cast<std::uintptr_t>(place) % 64 == 0)
            _mm512_stream_si512(reinterpret_cast<__m512i*>(place), both_bf16(first, second));
        else
            store_bf16(place, first, second);
    }

   private:
    static constexpr index kept_of_each = 512 * 1024 / sizeof(bf16);

    bf16* target_;
    bool past_;
};

// Adds 16 numbers of bfloat16 to each of the sums.
template <class... Sums>
void add_bf16(const bf16* numbers, Sums&... sums) {
    ((sums = _mm512_add_ps(sums, load_bf16(numbers)), numbers += panel_width), ...);
}

}  // namespace gw
