// Tensors that lie anywhere, added to one that holds them all; for any x86-64.
#include <omp.h>

#include "common.h"

using namespace gw;

namespace {

template <class Number>
struct Piece {
    const Number* values;  // none for zeros
    index size;
};

float number(bf16 value) { return to_float(value); }
float number(float value) { return value; }

// Threads have shares of the numbers, not of pieces.
template <class Number>
void add(const Piece<Number>* pieces, index count, float* sums) {
    index total = 0;
    for (index i = 0; i < count; ++i) total += pieces[i].size;
#pragma omp parallel
    {
        const Range own = share(total, omp_get_thread_num(), omp_get_num_threads());
        index start = 0;  // of a piece among all numbers
        for (index i = 0; i < count && start < own.last; start += pieces[i++].size) {
            const auto& [values, size] = pieces[i];
            const Range here{std::max(own.first - start, index{0}),
                             std::min(own.last - start, size)};
            if (values)
                for (index k = here.first; k < here.last; ++k)
                    sums[start + k] += number(values[k]);
        }
    }
}

}  // namespace

// Adds pieces, one behind the other, to `sums`.
GW_API void gw_add_pieces_bf16(const Piece<bf16>* pieces, index count, float* sums) {
    add(pieces, count, sums);
}

GW_API void gw_add_pieces_f32(const Piece<float>* pieces, index count, float* sums) {
    add(pieces, count, sums);
}
