// A product of float32 in block floating point with a weight as it lies, for AVX2 alone.
//
// Rows are rounded once; a thread rounds a few panels of the weight and multiplies all rows with
// them. So a weight costs what some twenty rows cost, whatever their number.
#include <omp.h>

#include "block_sums.h"
#include "scratch.h"
#include "turns.h"

using namespace gw;

namespace {

constexpr index most_bytes = 192 * 1024;  // of a thread's panels, which stay in its second cache

struct Weight {
    const float* values;
    index across, along;  // from one output to the next, from one input to the next
    index outputs, inputs;

    void round(index panel, char* target) const {
        const float* first = values + panel * panel_width * across;
        if (across == 1)
            round_across(first, along, inputs, target);
        else
            round_along(first, across, inputs, target);
    }
};

}  // namespace

// y (rows, outputs) = x WT + bias; outputs and inputs are multiples of 16.
GW_API void gw_multiply_rounded_avx2(const float* x, index ldx, index rows, const float* weight,
                                     index across, index along, index outputs, index inputs,
                                     const float* bias, float* y) {
    static thread_local Scratch values_room, scales_room;
    const Weight w{weight, across, along, outputs, inputs};
    const index groups = groups_of(inputs), panels = outputs / panel_width;
    const index most = std::max<index>(1, most_bytes / panel_bytes(inputs));
    const WholeRows rounded{values_room.room<Whole>(rows * inputs),
                            scales_room.room<float>(rows * groups), inputs};
    Turns turns({0, panels}, most, omp_get_max_threads());
#pragma omp parallel
    {
        static thread_local Scratch room;
        char* const own = room.room<char>(most * panel_bytes(inputs));
#pragma omp for schedule(static)
        for (index row = 0; row < rows; ++row) rounded.from(row).round(x + row * ldx);
        turns.take([&](Range taken, Range) {
            for (index p = 0; p < taken.count(); ++p)
                w.round(taken.first + p, own + p * panel_bytes(inputs));
            const index left = taken.first * panel_width, right = taken.last * panel_width;
            const auto begin = [&](Range begun) {
                for (index row = begun.first; row < begun.last; ++row)
                    for (index j = left; j < right; j += lanes)
                        store(y + row * outputs + j, bias ? load(bias + j) : zeros());
            };
            add_product(rounded, rows, WholePanels{own, inputs}, taken.count(), y + left, outputs,
                        begin);
        });
    }
}
