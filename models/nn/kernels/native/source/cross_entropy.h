// Cross-entropy over a vocabulary, with the gradient of the hidden rows in the same call.
//
// Rows go through in chunks. Threads take the vocabulary's segments, of which there are as many on
// every machine, so that no bit depends on the number of threads; then what the segments of a row
// have is added up in order, and softmax's division, in float32, comes last.
#pragma once

#include <omp.h>

#include "cross_entropy_part.h"

namespace gw {

constexpr index chunk_rows = 256;

// The partial sums of all segments for a chunk of rows.
template <class Number>
class Partials {
   public:
    Partials(const Head<Number>& head, bool grad)
        : head_(head), segments_(std::max<index>(8, head.outputs / 4096)), grad_(grad) {
        static thread_local Scratch room;
        numbers_ = room.room<float>(segments_ * size());
    }

    index segments() const { return segments_; }

    Partial of(index segment) const {
        float* first = numbers_ + segment * size();
        return {first, first + chunk_rows, grad_ ? first + 2 * chunk_rows : nullptr};
    }

    // The loss of a row whose target has the logit `own`, whether none is larger, and the gradient
    // (inputs), or none.
    void add_up(index row, index target, float own, float& loss, std::uint8_t& correct,
                float* grad) const {
        float highest = lowest, total = 0;
        for (index s = 0; s < segments_; ++s) highest = std::max(highest, of(s).highest[row]);
        for (index s = 0; s < segments_; ++s) {
            float& scale = of(s).highest[row];  // which is not needed any more
            scale = std::exp(scale - highest);
            total += scale * of(s).sums[row];
        }
        loss = std::log(total) + highest - own;
        correct = own >= highest;
        for (index j = 0; grad && j < head_.inputs; j += lanes) {
            Floats sum = zeros();
            for (index s = 0; s < segments_; ++s)
                sum = fma(load(of(s).grad + row * head_.inputs + j),
                                      splat(of(s).highest[row]), sum);
            const Floats right = read(head_.weight + target * head_.ld + j);
            store(grad + j, sum / splat(total) - right);
        }
    }

   private:
    index size() const { return chunk_rows * (2 + (grad_ ? head_.inputs : 0)); }

    const Head<Number>& head_;
    index segments_;
    bool grad_;
    float* numbers_;
};

// Losses, whether the target is the argmax, and the gradient of each row's loss (or none).
// `Blocks` computes what a block of tokens has to do with the head, of rows as it wants them.
template <class Blocks, class Number = typename Blocks::Number>
void cross_entropy(const Head<Number>& head, const RowsOf<Number>& x, const index* targets,
                   float* losses, std::uint8_t* correct, float* grad) {
    const Partials<Number> partials(head, grad != nullptr);
    const Blocks blocks(head, chunk_rows);
    const index chunks = (x.count + chunk_rows - 1) / chunk_rows;
    const index segments = partials.segments();
    float own[chunk_rows];
#pragma omp parallel
    for (index c = 0; c < chunks; ++c) {
        const auto [top, bottom] = share(x.count, c, chunks);
        const auto here = blocks.take({x.values + top * x.ld, x.ld, bottom - top});
#pragma omp for schedule(dynamic)
        for (index s = 0; s < segments; ++s) {
            const Range part = share(head.outputs / input_step, s, segments);
            sum_segment(blocks, here, {part.first * input_step, part.last * input_step},
                        targets + top, partials.of(s), own);
        }
#pragma omp for
        for (index row = top; row < bottom; ++row)
            partials.add_up(row - top, targets[row], own[row - top], losses[row], correct[row],
                            grad ? grad + row * head.inputs : nullptr);
    }
}

}  // namespace gw
