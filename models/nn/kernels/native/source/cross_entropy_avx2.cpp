// Cross-entropy over a vocabulary in float32, in block floating point, for AVX2 alone.
#include "attempt.h"
#include "block_sums.h"
#include "cross_entropy.h"

using namespace gw;

namespace {

struct RoundedBlocks {
    using Number = float;

    const Head<float>& head;

    RoundedBlocks(const Head<float>& given, index rows) : head(given) {
        static thread_local Scratch values, scales;
        rounded_ = {values.room<Whole>(rows * head.inputs),
                    scales.room<float>(rows * groups_of(head.inputs)), head.inputs};
    }

    struct Taken {
        WholeRows wholes;
        index count;
    };

    // Called by all threads of a team: rows are rounded once for all blocks.
    Taken take(const RowsOf<float>& x) const {
#pragma omp for
        for (index row = 0; row < x.count; ++row)
            rounded_.from(row).round(x.values + row * x.ld);
        return {rounded_, x.count};
    }

    // The logits (rows, ld) of some tokens.
    void compute_logits(const Taken& x, Range tokens, Range, float* logits, index ld) const {
        const auto round = [&](index panel, char* own) {
            const float* first = head.weight + (tokens.first + panel * panel_width) * head.ld;
            round_along(first, head.ld, head.inputs, own);
        };
        const auto begin = [&](Range rows, Range columns) {
            for (index row = rows.first; row < rows.last; ++row)
                for (index j = columns.first; j < columns.last; j += lanes)
                    store(logits + row * ld + j,
                          head.bias ? load(head.bias + tokens.first + j) : zeros());
        };
        multiply(x.wholes, x.count, tokens.count() / panel_width, round, logits, ld, begin);
    }

    // grad (rows, inputs) += slopes (rows, tokens) @ the tokens' weights.
    void pull_hidden(const RowsOf<float>& slopes, Range tokens, float* grad) const {
        static thread_local Scratch values, scales;
        const index count = tokens.count();
        const WholeRows rounded{values.room<Whole>(slopes.count * count),
                                scales.room<float>(slopes.count * groups_of(count)), count};
        for (index row = 0; row < slopes.count; ++row)
            rounded.from(row).round(slopes.values + row * slopes.ld);
        const auto round = [&](index panel, char* own) {
            const float* first = head.weight + tokens.first * head.ld + panel * panel_width;
            round_across(first, head.ld, count, own);
        };
        multiply(rounded, slopes.count, head.inputs / panel_width, round, grad, head.inputs,
                 [](Range, Range) {});
    }

   private:
    static constexpr index most_bytes = 160 * 1024;  // of panels that are rounded at a time

    // Adds to y (rows, ld) the product with panels that round(panel, target) makes; begin(rows,
    // columns) may fill a part of y before it is added to.
    template <class Round, class Begin>
    static void multiply(const WholeRows& x, index rows, index panels, Round&& round, float* y,
                         index ld, Begin&& begin) {
        static thread_local Scratch room;
        const index bytes = panel_bytes(x.inputs);
        const index most = std::max<index>(1, most_bytes / bytes);
        char* const rounded = room.room<char>(most * bytes);
        for (index first = 0; first < panels; first += most) {
            const index count = std::min(most, panels - first), left = first * panel_width;
            for (index p = 0; p < count; ++p) round(first + p, rounded + p * bytes);
            const WholePanels own{rounded, x.inputs};
            add_product(x, rows, own, count, y + left, ld, [&](Range begun) {
                begin(begun, {left, left + count * panel_width});
            });
        }
    }

    WholeRows rounded_;
};

}  // namespace

// Losses, whether the target is the argmax, and the gradient of each row's loss (or none).
GW_API void gw_cross_entropy_avx2(const float* weight, index ld, index outputs, index inputs,
                                  const float* bias, const float* x, index ldx, index rows,
                                  const index* targets, float* losses, std::uint8_t* correct,
                                  float* grad) {
    attempt([&] {
        cross_entropy<RoundedBlocks>({weight, ld, outputs, inputs, bias}, {x, ldx, rows}, targets,
                                     losses, correct, grad);
    });
}
