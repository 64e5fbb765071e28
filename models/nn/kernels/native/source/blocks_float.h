// The products of training in float32, for processors with AVX2 alone.
#pragma once

#include "blocks_avx2.h"
#include "products.h"

namespace gw {

struct Avx2Floats {
    using Number = float;
    using Given = OperandOf<float, float>;

    static constexpr int most_rows = Avx2::most_rows;
    static constexpr index step = 2;  // inputs of an operand must be a multiple of this

    // Calls store(row, panel, sum) with the sums over the inputs.
    template <class Store>
    static void multiply_group(index panels, index rows, const Given& given, const Given&,
                               Store&& store) {
        for (index p = 0; p < panels; ++p)
            Avx2::multiply<1>(rows, given.panel(p),
                              [&](index row, int, Floats sum) { store(row, p, sum); });
    }

    // The sums (rows, ld), added to what is there or put there.
    template <bool adds>
    static void multiply_to(float* sums, index ld, index panels, index rows, const Given& given) {
        multiply_group(panels, rows, given, {}, [&](index row, index panel, Floats sum) {
            float* place = sums + row * ld + panel * panel_width;
            gw::store(place, adds ? gw::load(place) + sum : sum);
        });
    }
};

}  // namespace gw
