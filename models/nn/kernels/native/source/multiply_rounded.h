// A product of float32 in block floating point with a weight as it lies, for AVX2 alone.
//
// Rows are rounded once; a thread rounds a few panels of the weight and multiplies all rows with
// them. So a weight costs what some twenty rows cost, whatever their number.
#pragma once

#include <omp.h>

#include "block_sums.h"
#include "multiply_float.h"
#include "scratch.h"
#include "turns.h"

namespace gw {

inline void round_panel(const FloatWeight& w, index panel, char* target) {
    const float* first = w.values + panel * panel_width * w.across;
    if (w.across == 1)
        round_across(first, w.along, w.inputs, target);
    else
        round_along(first, w.across, w.inputs, target);
}

// y (rows, outputs) = x WT + bias; outputs and inputs are multiples of 16. Calls
// end(rows, columns) for what the same thread has just computed.
template <class End = Nothing>
void multiply_rounded(const RowsOf<float>& x, const FloatWeight& w, float* y, End&& end = {}) {
    static thread_local Scratch values_room, scales_room;
    const index groups = groups_of(w.inputs), bytes = panel_bytes(w.inputs);
    const index most = std::max<index>(1, most_panel_bytes / bytes);
    const WholeRows rounded{values_room.room<Whole>(x.count * w.inputs),
                            scales_room.room<float>(x.count * groups), w.inputs};
    Turns turns({0, w.outputs / panel_width}, most, omp_get_max_threads());
#pragma omp parallel
    {
        static thread_local Scratch room;
        char* const own = room.room<char>(most * bytes);
#pragma omp for schedule(static)
        for (index row = 0; row < x.count; ++row) rounded.from(row).round(x.values + row * x.ld);
        turns.take([&](Range taken, Range) {
            for (index p = 0; p < taken.count(); ++p)
                round_panel(w, taken.first + p, own + p * bytes);
            const Range columns{taken.first * panel_width, taken.last * panel_width};
            const auto begin = [&](Range rows) {
                for (index row = rows.first; row < rows.last; ++row)
                    for (index j = columns.first; j < columns.last; j += lanes)
                        store(y + row * w.outputs + j, w.start(j));
            };
            add_product(rounded, x.count, WholePanels{own, w.inputs}, taken.count(),
                        y + columns.first, w.outputs, begin,
                        [&](Range rows) { end(rows, columns); });
        });
    }
}

}  // namespace gw
